// The register tile of INT4: R row groups x M rows of activations over whole groups of 32 k.
//
// Sixteen scales in fp16, one a row, belong to every 32 k, so a tile's integer sums live for eight
// dot products and then go, scaled, into float sums that stay in registers: half as many rows as
// an integer tile has (tiles.h) fit beside them. Codes are w + 8; a group's sum starts from -8
// times the sum of its activations (Acts::starts), which takes the 8 back.
//
// Weights as they lie, two codes a byte, or (kPanel, prefill) unpacked to a byte a code. With one
// row of activations the upper codes are masked where they lie and their sum divided by 16 at the
// end, where the dot product takes any unsigned byte.
#pragma once
#include "tiles.h"

namespace TK_NS {

constexpr int kInt4Rows = kMaxRows > 4 ? 6 : 2;
static_assert(kMaxRows % kInt4Rows == 0, "tiles of packed activations are read in whole parts");

// The height of the next tile of M rows.
inline int int4_rows(int M) {
  if (M == 8 && kInt4Rows > 4) return 4;
  return M >= kInt4Rows ? kInt4Rows : M >= 4 ? 4 : M;
}

// Weights of R row groups: codes (or a panel of them) and fp16 scales, [groups][16] each.
template <int R>
struct Int4Stretch {
  const uint8_t* w[R];
  const uint16_t* scales[R];
  int groups;
  ptrdiff_t skip;  // see tiles.h
};

template <bool kPanel, int R, int M, bool kPacked>
struct Int4Tile {
  static constexpr ptrdiff_t kWordBytes = kPacked ? 4 * kMaxRows : 4;
  static constexpr bool kInPlace = kInPlacePlanes && !kPanel && M == 1;
  static constexpr int kGroupBytes = kPanel ? 512 : 256;

  // Word i (four k) of a group; `rest` holds the byte's other code from an even word to the next.
  template <int i>
  static inline C codes(const uint8_t* w, C& rest) {
    if constexpr (kPanel) {
      return load_codes(w + 64 * i);
    } else {
      if constexpr (i % 2 == 0) rest = load_codes(w + 32 * i);
      if constexpr (kInPlace)
        return nibble_in_place<i % 2>(rest);
      else
        return nibble<i % 2>(rest);
    }
  }

  // Products without the activations' own scale, to out[m][r][16].
  static inline void run(const Int4Stretch<R>& from, const int8_t* x, ptrdiff_t x_stride,
                         const int32_t* starts, ptrdiff_t starts_stride, float* out) {
    F y[R][M];
    TK_UNROLL for (int r = 0; r < R; ++r) TK_UNROLL for (int m = 0; m < M; ++m) y[r][m] =
        set1(0.0f);
    const uint8_t* w[R];
    TK_UNROLL for (int r = 0; r < R; ++r) w[r] = from.w[r];
    const int turn = from.groups - kPrefetchBytes / kGroupBytes;
    ptrdiff_t ahead = kPrefetchBytes;
    for (int g = 0; g < from.groups; ++g) {
      I low[R][M], high[R][M];
      C rest[R], v[R];
      if (g == turn) ahead += from.skip;
      TK_UNROLL for (int r = 0; r < R; ++r) {
        if constexpr (!kPanel) {
          prefetch<kGroupBytes, 2>(w[r] + ahead);
          prefetch<64, 2>(reinterpret_cast<const uint8_t*>(from.scales[r] + 16 * g) + 512);
        }
        TK_UNROLL for (int m = 0; m < M; ++m) {
          low[r][m] = part_start(starts[m * starts_stride + g]);
          if constexpr (kInPlace) high[r][m] = part_start(0);
        }
      }
#define TK_WORD(i)                                                                       \
  TK_UNROLL for (int r = 0; r < R; ++r) v[r] = codes<i>(w[r], rest[r]);                  \
  TK_UNROLL for (int m = 0; m < M; ++m) {                                                \
    const A a = broadcast4(x + m * (kPacked ? 4 : x_stride) + i * kWordBytes);           \
    TK_UNROLL for (int r = 0; r < R; ++r) {                                              \
      if constexpr (kInPlace && i % 2)                                                   \
        high[r][m] = part_dot(high[r][m], v[r], a);                                      \
      else                                                                               \
        low[r][m] = part_dot(low[r][m], v[r], a);                                        \
    }                                                                                    \
  }
      TK_WORD(0)
      TK_WORD(1)
      TK_WORD(2)
      TK_WORD(3)
      TK_WORD(4)
      TK_WORD(5)
      TK_WORD(6)
      TK_WORD(7)
#undef TK_WORD
      TK_UNROLL for (int r = 0; r < R; ++r) {
        const F scale = load_f16(from.scales[r] + 16 * g);
        TK_UNROLL for (int m = 0; m < M; ++m) {
          I sum = part_end(low[r][m], starts[m * starts_stride + g]);
          if constexpr (kInPlace) sum = iadd(sum, ishr<4>(part_end(high[r][m], 0)));
          y[r][m] = add(y[r][m], mul(to_float(sum), scale));
        }
        w[r] += kGroupBytes;
      }
      x += 8 * kWordBytes;
    }
    TK_UNROLL for (int m = 0; m < M; ++m) TK_UNROLL for (int r = 0; r < R; ++r)
        store(out + (m * R + r) * 16, y[r][m]);
  }
};

// Rows of INT8 activations for INT4 tiles; packed: the words of kMaxRows rows side by side.
struct Int4Rows {
  const int8_t* q;
  ptrdiff_t stride;
  bool packed;
  const int32_t* starts;
  ptrdiff_t starts_stride;
};

template <bool kPanel, int R, int M>
inline void run_int4_tile(const Int4Stretch<R>& from, const Int4Rows& rows, float* out) {
  if constexpr (M == kInt4Rows)
    if (rows.packed)
      return Int4Tile<kPanel, R, M, true>::run(from, rows.q, 0, rows.starts, rows.starts_stride,
                                               out);
  Int4Tile<kPanel, R, M, false>::run(from, rows.q, rows.stride, rows.starts, rows.starts_stride,
                                     out);
}

template <bool kPanel, int R>
void run_int4(const Int4Stretch<R>& from, const Int4Rows& rows, int M, float* out) {
  switch (M) {
    case 1:
      return run_int4_tile<kPanel, R, 1>(from, rows, out);
    case 2:
      return run_int4_tile<kPanel, R, 2>(from, rows, out);
  }
  if constexpr (kInt4Rows > 2) switch (M) {
      case 3:
        return run_int4_tile<kPanel, R, 3>(from, rows, out);
      case 4:
        return run_int4_tile<kPanel, R, 4>(from, rows, out);
      case 6:
        return run_int4_tile<kPanel, R, 6>(from, rows, out);
    }
}

}  // namespace TK_NS
