// The register tile: R row groups x M rows of activations, over a stretch of K.
//
// One template serves every integer weight. A *loader* turns 64 bytes of weights into planes
// of 64 codes (16 rows x 4 k); each plane meets one broadcast word of four activations a row:
//
//   Codes2  four planes by shift and mask        Codes5  five planes by base-3 carries
//   Bytes   a plane a vector: INT8 weights, and ternary panels unpacked for prefill
//
// With one row of activations the loop is short of independent sums, so each plane keeps its
// own; where the dot product takes any unsigned byte, two-bit codes are then only masked, never
// shifted, and plane p's sum is divided by 4^p at the end (exactly: every term is a multiple).
#pragma once
#include "kernel_table.h"
#include "simd.h"

namespace TK_NS {

// Lines ahead that a streaming read asks for: the hardware prefetcher stops at page borders.
constexpr int kPrefetchBytes = 4096;

struct Codes2 {
  static constexpr int kPlanes = 4, kBlockBytes = 64;
  static constexpr bool kSmallCodes = true;
};
struct Codes5 {
  static constexpr int kPlanes = 5, kBlockBytes = 64;
  static constexpr bool kSmallCodes = true;
};
template <bool small>
struct Bytes {
  static constexpr int kPlanes = 4, kBlockBytes = 256;
  static constexpr bool kSmallCodes = small;
};

template <class Loader, int R, int M, int U>
struct IntTile {
  static constexpr bool kInPlace = kInPlacePlanes && U == 4 && Loader::kPlanes == 4 &&
                                   Loader::kBlockBytes == 64;
  I acc[R][M][U];

  template <int p>
  inline void plane_step(const C (&w)[R], const int8_t* x, ptrdiff_t x_stride) {
    TK_UNROLL for (int m = 0; m < M; ++m) {
      const A a = broadcast4(x + m * x_stride + 4 * p);
      TK_UNROLL for (int r = 0; r < R; ++r) {
        I& sum = acc[r][m][p % U];
        sum = Loader::kSmallCodes ? dot_codes(sum, w[r], a) : dot_int8(sum, w[r], a);
      }
    }
  }

  template <int p>
  inline void step(C (&v)[R], const uint8_t* const (&w)[R], const int8_t* x, ptrdiff_t x_stride) {
    if constexpr (p < Loader::kPlanes) {
      C codes[R];
      TK_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (Loader::kBlockBytes == 256) codes[r] = load_codes(w[r] + 64 * p);
        else if constexpr (Loader::kPlanes == 5) codes[r] = next_trit(v[r]);
        else if constexpr (kInPlace) codes[r] = plane_in_place<p>(v[r]);
        else codes[r] = plane<p>(v[r]);
      }
      plane_step<p>(codes, x, x_stride);
      step<p + 1>(v, w, x, x_stride);
    }
  }

  // `blocks` blocks of weights from w[r] on, activations from x on; sums to out[m][r][16].
  inline void run(const uint8_t* const (&weights)[R], int blocks, const int8_t* x,
                  ptrdiff_t x_stride, int32_t* out) {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m)
        for (int u = 0; u < U; ++u) acc[r][m][u] = izero();
    const uint8_t* w[R];
    TK_UNROLL for (int r = 0; r < R; ++r) w[r] = weights[r];
    for (int b = 0; b < blocks; ++b) {
      C v[R];
      TK_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (Loader::kBlockBytes == 64) v[r] = load_codes(w[r]);
        if constexpr (M == 1)
          for (int line = 0; line < Loader::kBlockBytes; line += 64)
            __builtin_prefetch(w[r] + kPrefetchBytes + line);
      }
      step<0>(v, w, x, x_stride);
      TK_UNROLL for (int r = 0; r < R; ++r) w[r] += Loader::kBlockBytes;
      x += 4 * Loader::kPlanes;
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) istore(out + (m * R + r) * 16, total(acc[r][m]));
  }

  static inline I total(const I (&sums)[U]) {
    if constexpr (kInPlace) {
      return iadd(iadd(sums[0], ishr<2>(sums[1])), iadd(ishr<4>(sums[2]), ishr<6>(sums[3])));
    } else {
      I sum = sums[0];
      for (int u = 1; u < U; ++u) sum = iadd(sum, sums[u]);
      return sum;
    }
  }
};

// Half-precision weights times float activations, U sums side by side along K.
template <tk::Kind type>
inline F load_half(const uint16_t* p) {
  return type == tk::kBf16 ? load_bf16(p) : load_f16(p);
}

template <tk::Kind type, int R, int M, int U>
struct HalfTile {
  F acc[R][M][U];

  inline void step(int u, const uint16_t* const (&w)[R], const float* x, ptrdiff_t x_stride) {
    F codes[R];
    TK_UNROLL for (int r = 0; r < R; ++r) codes[r] = load_half<type>(w[r] + u * 16);
    TK_UNROLL for (int m = 0; m < M; ++m) {
      const F a = set1(x[m * x_stride + u]);
      TK_UNROLL for (int r = 0; r < R; ++r) acc[r][m][u % U] = fma(codes[r], a, acc[r][m][u % U]);
    }
  }

  inline void run(const uint8_t* const (&weights)[R], int K, const float* x, ptrdiff_t x_stride,
                  float* out) {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m)
        for (int u = 0; u < U; ++u) acc[r][m][u] = set1(0.0f);
    const uint16_t* w[R];
    TK_UNROLL for (int r = 0; r < R; ++r)
      w[r] = reinterpret_cast<const uint16_t*>(weights[r]);
    int k = 0;
    for (; k + 4 <= K; k += 4) {
      TK_UNROLL for (int u = 0; u < 4; ++u) step(u, w, x, x_stride);
      TK_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (M == 1) {
          __builtin_prefetch(reinterpret_cast<const char*>(w[r]) + kPrefetchBytes);
          __builtin_prefetch(reinterpret_cast<const char*>(w[r]) + kPrefetchBytes + 64);
        }
        w[r] += 64;
      }
      x += 4;
    }
    for (; k < K; ++k) {
      step(0, w, x, x_stride);
      TK_UNROLL for (int r = 0; r < R; ++r) w[r] += 16;
      ++x;
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) {
        F sum = acc[r][m][0];
        for (int u = 1; u < U; ++u) sum = add(sum, acc[r][m][u]);
        store(out + (m * R + r) * 16, sum);
      }
  }
};

}  // namespace TK_NS
