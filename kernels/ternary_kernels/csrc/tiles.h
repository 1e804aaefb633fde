// The register tile: R row groups x M rows of activations, over a stretch of K.
//
// One template serves every integer weight. A *loader* turns 64 bytes of weights into planes
// of 64 codes (16 rows x 4 k); each plane meets one broadcast word of four activations a row:
//
//   Codes2  four planes by shift and mask        Codes5  five planes by base-3 carries, or four
//   as Codes2 and the fifth from tables
//   Bytes   a plane a vector: INT8 weights, and ternary panels unpacked for prefill
//
// With one row of activations the loop is short of independent sums, so each plane keeps its
// own; where the dot product takes any unsigned byte, two-bit codes are then only masked, never
// shifted, and plane p's sum is divided by 4^p at the end (exactly: every term is a multiple).
#pragma once
#include "kernel_table.h"
#include "simd.h"

namespace TK_NS {

// How far ahead a streaming read asks: the hardware prefetcher stops at page borders. Near the
// end of a row group the next bytes wanted are those of the next item, `skip` bytes further on.
// The distances are measured: dense codes are used up slowly enough for the longer one.
constexpr int kPrefetchBytes = 4096;
constexpr int kPrefetchInt8Bytes = 2048;

// Into the cache of this level. A core has only some twenty lines under way into its first level:
// integer codes, which take a while to use up, are asked into the second one, from where the loop
// fetches them in time; plain half-precision weights are not.
template <int bytes, int level = 1>
inline void prefetch(const uint8_t* p) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(p + line, 0, 4 - level);
}

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

// The sums of a tile are locals of one function: as members or behind helpers that take them by
// reference, GCC keeps copying them between registers and loses a third of the speed.
//
// INT8 activations: rows at a stride, or (kPacked, prefill) the M words of each four k side by
// side, so that a tile reads one stream from the cache instead of M.
template <class Loader, int R, int M, int U, bool kPacked>
struct IntTile {
  static constexpr ptrdiff_t kWordBytes = kPacked ? 4 * M : 4;
  static constexpr int kAhead = Loader::kBlockBytes == 256 ? kPrefetchInt8Bytes : kPrefetchBytes;
  // Tables pay for few rows (docs/log.md): tall tiles need the registers that they take.
  static constexpr bool kTables = kTritTables && Loader::kPlanes == 5 && M <= 4;
  static constexpr bool kInPlace = kInPlacePlanes && U == 4 && Loader::kBlockBytes == 64 &&
                                   (Loader::kPlanes == 4 || kTables);

  // Plane p of a block; `rest` is what the planes before left of it.
  template <int p>
  static inline C codes(const uint8_t* w, C& rest) {
    if constexpr (Loader::kBlockBytes == 256)
      return load_codes(w + 64 * p);
    else if constexpr (p >= Loader::kPlanes)
      return rest;
    else if constexpr (kTables && p == 4)
      return fifth_trit(load_codes(w));
    else if constexpr (Loader::kPlanes == 5 && !kTables)
      return next_trit(rest);
    else if constexpr (kInPlace)
      return plane_in_place<p>(rest);
    else
      return plane<p>(rest);
  }

  // `blocks` blocks of weights from w[r] on, activations from x on; sums to out[m][r][16].
  static inline void run(const uint8_t* const (&weights)[R], int blocks, ptrdiff_t skip,
                         const int8_t* x, ptrdiff_t x_stride, int32_t* out) {
    I acc[R][M][U];
    TK_UNROLL for (int r = 0; r < R; ++r) TK_UNROLL for (int m = 0; m < M; ++m)
        TK_UNROLL for (int u = 0; u < U; ++u) acc[r][m][u] = izero();
    const uint8_t* w[R];
    TK_UNROLL for (int r = 0; r < R; ++r) w[r] = weights[r];
    const int turn = blocks - kAhead / Loader::kBlockBytes;
    ptrdiff_t ahead = kAhead;
    for (int b = 0; b < blocks; ++b) {
      if (!kPacked && b == turn) ahead += skip;
      C rest[R];
      TK_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (Loader::kBlockBytes == 64) rest[r] = load_codes(w[r]);
        if constexpr (kTables) rest[r] = four_trits(rest[r]);
        if constexpr (!kPacked) prefetch<Loader::kBlockBytes, 2>(w[r] + ahead);
      }
#define TK_PLANE(p)                                                              \
  if constexpr (p < Loader::kPlanes) {                                           \
    C v[R];                                                                      \
    TK_UNROLL for (int r = 0; r < R; ++r) v[r] = codes<p>(w[r], rest[r]);        \
    TK_UNROLL for (int m = 0; m < M; ++m) {                                      \
      const A a = broadcast4(x + m * (kPacked ? 4 : x_stride) + p * kWordBytes); \
      TK_UNROLL for (int r = 0; r < R; ++r) acc[r][m][p % U] =                   \
          Loader::kSmallCodes ? dot_codes(acc[r][m][p % U], v[r], a)             \
                              : dot_int8(acc[r][m][p % U], v[r], a);             \
    }                                                                            \
  }
      TK_PLANE(0)
      TK_PLANE(1)
      TK_PLANE(2)
      TK_PLANE(3)
      TK_PLANE(4)
#undef TK_PLANE
      TK_UNROLL for (int r = 0; r < R; ++r) w[r] += Loader::kBlockBytes;
      x += Loader::kPlanes * kWordBytes;
    }
    TK_UNROLL for (int m = 0; m < M; ++m) TK_UNROLL for (int r = 0; r < R; ++r)
        istore(out + (m * R + r) * 16, total(acc[r][m]));
  }

  static inline I total(const I (&sums)[U]) {
    if constexpr (kInPlace) {
      return iadd(iadd(sums[0], ishr<2>(sums[1])), iadd(ishr<4>(sums[2]), ishr<6>(sums[3])));
    } else {
      I sum = sums[0];
      TK_UNROLL for (int u = 1; u < U; ++u) sum = iadd(sum, sums[u]);
      return sum;
    }
  }
};

// Half-precision weights times float activations. One sum along K for every output, whatever the
// tile: a row's products are the same to the bit beside any other rows.
template <tk::Kind type>
inline F load_half(const uint16_t* p) {
  return type == tk::kBf16 ? load_bf16(p) : load_f16(p);
}

template <tk::Kind type, int R, int M>
struct HalfTile {
  F acc[R][M];

  inline void step(int k, const uint16_t* const (&w)[R], const float* x, ptrdiff_t x_stride) {
    F codes[R];
    TK_UNROLL for (int r = 0; r < R; ++r) codes[r] = load_half<type>(w[r] + k * 16);
    TK_UNROLL for (int m = 0; m < M; ++m) {
      const F a = set1(x[m * x_stride + k]);
      TK_UNROLL for (int r = 0; r < R; ++r) acc[r][m] = fma(codes[r], a, acc[r][m]);
    }
  }

  inline void run(const uint8_t* const (&weights)[R], int K, ptrdiff_t skip, const float* x,
                  ptrdiff_t x_stride, float* out) {
    for (int r = 0; r < R; ++r)
      for (int m = 0; m < M; ++m) acc[r][m] = set1(0.0f);
    const uint16_t* w[R];
    TK_UNROLL for (int r = 0; r < R; ++r) w[r] = reinterpret_cast<const uint16_t*>(weights[r]);
    const int turn = (K - kPrefetchBytes / 32) / 4 * 4;
    ptrdiff_t ahead = kPrefetchBytes;
    int k = 0;
    for (; k + 4 <= K; k += 4) {
      if (k == turn) ahead += skip;
      TK_UNROLL for (int u = 0; u < 4; ++u) step(u, w, x, x_stride);
      TK_UNROLL for (int r = 0; r < R; ++r) {
        prefetch<128>(reinterpret_cast<const uint8_t*>(w[r]) + ahead);
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
      for (int r = 0; r < R; ++r) store(out + (m * R + r) * 16, acc[r][m]);
  }
};

}  // namespace TK_NS
