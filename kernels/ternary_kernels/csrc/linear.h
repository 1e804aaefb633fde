// Linear layers: tiles over row groups and rows of activations, scales, bias, epilogue.
//
// An item is R row groups of one weight (or one of gate and one of up, so that the activation
// function needs no second pass). Its rows of activations are walked in the largest register
// tiles that fit: 12, 8, 6, 4, 3, 2, 1. Up to kMaxRows rows the weights are unpacked in
// registers on the way; beyond, packed weights are unpacked once into a panel of bytes that stays
// in the second-level cache while all rows pass over it. Codes of three weights in five bits are
// looked up where rows are few (lookup.h), and else always unpacked.
#pragma once
#include <type_traits>

#include "int4_tile.h"
#include "lookup.h"

namespace TK_NS {

using tk::Acts;
using tk::Linear;
using tk::Weight;

constexpr int kMaxGroups = 2;  // row groups in an item, at most

inline int blocks_of(const Weight& w) {
  switch (w.kind) {
    case tk::kTernary5:
      return (w.K + 19) / 20;
    case tk::kTernary3:
      return triple_blocks(w);
    case tk::kInt4:  // of 8 k, in whole groups
      return tk::small_k_groups(w.K) * 4;
    default:
      return (w.K + 15) / 16;
  }
}
inline size_t group_bytes(const Weight& w) {
  switch (w.kind) {
    case tk::kTernary:
    case tk::kTernary5:
    case tk::kInt4:
      return static_cast<size_t>(blocks_of(w)) * 64;
    case tk::kInt8:
      return static_cast<size_t>(blocks_of(w)) * 256;
    default:
      return static_cast<size_t>(w.K) * 32;
  }
}
inline const uint8_t* group_tiles(const Weight& w, int group) {
  return static_cast<const uint8_t*>(w.tiles) + group_bytes(w) * static_cast<size_t>(group);
}
inline const float* group_scales(const Weight& w, int group) {
  if (w.is_float() || w.kind == tk::kInt4) return nullptr;
  const int vectors = w.scaling == tk::kByGroup ? tk::k_groups(w.K) : w.scaling == tk::kByRow;
  return static_cast<const float*>(w.scales) + static_cast<ptrdiff_t>(group) * vectors * 16;
}
inline const uint16_t* small_group_scales(const Weight& w, int group) {
  if (w.kind != tk::kInt4) return nullptr;
  return static_cast<const uint16_t*>(w.scales) +
         static_cast<ptrdiff_t>(group) * tk::small_k_groups(w.K) * 16;
}
// Codes that lie packed and are unpacked into a panel where many rows meet them.
inline bool unpacks(const Weight& w) {
  return w.kind <= tk::kTernary5 || w.kind == tk::kInt4 || w.kind == tk::kTernary3;
}
// Columns with sums of their own: all of them (0), or as many as share a scale.
inline int columns_a_sum(const Weight& w) {
  return w.kind == tk::kInt4 ? tk::kSmallGroupK : w.scaling == tk::kByGroup ? tk::kGroupK : 0;
}
// Bytes of one row group unpacked to a byte a code, in whole blocks of 16 k.
inline size_t panel_bytes(const Weight& w) {
  const int words_a_block = w.kind == tk::kTernary5   ? 5
                            : w.kind == tk::kTernary3 ? 12
                            : w.kind == tk::kInt4     ? 2
                                                      : 4;
  const int words = blocks_of(w) * words_a_block;
  return static_cast<size_t>((words + 3) / 4) * 256;
}

// A source of weights for the tiles: packed as they lie, or an unpacked panel.
enum class Source { kCodes2, kCodes5, kSmallBytes, kInt8, kBf16, kF16 };

// Weights of R row groups; `skip`: see tiles.h.
template <int R>
struct Stretch {
  const uint8_t* w[R];
  int blocks;
  ptrdiff_t skip;
};

// Rows of activations for a tile: INT8 or float; packed: see IntTile.
struct Rows {
  const void* x;
  ptrdiff_t stride;
  bool packed;
};

template <Source s, int R, int M, bool packed = false>
inline void run_tile(const Stretch<R>& from, const Rows& rows, void* out) {
  if constexpr (s == Source::kBf16 || s == Source::kF16) {
    HalfTile<s == Source::kBf16 ? tk::kBf16 : tk::kF16, R, M> tile;
    tile.run(from.w, from.blocks, from.skip, static_cast<const float*>(rows.x), rows.stride,
             static_cast<float*>(out));
  } else {
    constexpr int U = M == 1 ? 4 : M <= 3 ? 2 : 1;
    using Loader = std::conditional_t<
        s == Source::kCodes2, Codes2,
        std::conditional_t<s == Source::kCodes5, Codes5, Bytes<s == Source::kSmallBytes>>>;
    IntTile<Loader, R, M, U, packed>::run(from.w, from.blocks, from.skip,
                                          static_cast<const int8_t*>(rows.x), rows.stride,
                                          static_cast<int32_t*>(out));
  }
}

template <Source s, int R>
void run_rows(const Stretch<R>& from, const Rows& rows, int M, void* out) {
  switch (M) {
    case 1:
      return run_tile<s, R, 1>(from, rows, out);
    case 2:
      return run_tile<s, R, 2>(from, rows, out);
    case 3:
      return run_tile<s, R, 3>(from, rows, out);
    case 4:
      if (kMaxRows == 4 && rows.packed) return run_tile<s, R, 4, true>(from, rows, out);
      return run_tile<s, R, 4>(from, rows, out);
  }
  if constexpr (kMaxRows > 4) {
    switch (M) {
      case 6:
        return run_tile<s, R, 6>(from, rows, out);
      case 8:
        return run_tile<s, R, 8>(from, rows, out);
      case 12:
        if (rows.packed) return run_tile<s, R, 12, true>(from, rows, out);
        return run_tile<s, R, 12>(from, rows, out);
    }
  }
}

// The largest tile height that M rows fill.
inline int tile_rows(int M) {
  if (M >= kMaxRows) return kMaxRows;
  return M >= 8 ? 8 : M >= 6 ? 6 : M >= 4 ? 4 : M;
}

template <int R>
void run_source(Source s, const Stretch<R>& from, const Rows& rows, int M, void* out) {
  switch (s) {
    case Source::kCodes2:
      return run_rows<Source::kCodes2, R>(from, rows, M, out);
    case Source::kCodes5:
      return run_rows<Source::kCodes5, R>(from, rows, M, out);
    case Source::kSmallBytes:
      return run_rows<Source::kSmallBytes, R>(from, rows, M, out);
    case Source::kInt8:
      return run_rows<Source::kInt8, R>(from, rows, M, out);
    case Source::kBf16:
      return run_rows<Source::kBf16, R>(from, rows, M, out);
    case Source::kF16:
      return run_rows<Source::kF16, R>(from, rows, M, out);
  }
}

template <int p>
inline void store_planes2(C v, uint8_t* out) {
  if constexpr (p < 4) {
    store_codes(out + 64 * p, plane<p>(v));
    store_planes2<p + 1>(v, out);
  }
}

// kSigned: codes of INT4 as the signed weights they stand for, for a tile unit.
template <bool kSigned = false>
inline void unpack_panel(const Weight& w, int group, uint8_t* panel) {
  const int blocks = blocks_of(w);
  uint8_t* out = panel;
  if (w.kind == tk::kTernary3) {
    unpack_triples(w, group, panel);
    return;  // its blocks are whole: nothing is left of the panel
  }
  const uint8_t* tiles = group_tiles(w, group);
  for (int b = 0; b < blocks; ++b) {
    C v = load_codes(tiles + 64 * static_cast<size_t>(b));
    if (w.kind == tk::kTernary) {
      store_planes2<0>(v, out);
      out += 256;
    } else if (w.kind == tk::kInt4) {
      const C low = nibble<0>(v), high = nibble<1>(v);
      if constexpr (kSigned) {
        store_codes(out, less_8(low));
        store_codes(out + 64, less_8(high));
      } else {
        store_codes(out, low);
        store_codes(out + 64, high);
      }
      out += 128;
    } else {
      if constexpr (kTritTables) {
        store_planes2<0>(four_trits(v), out);
        store_codes(out + 256, fifth_trit(v));
        out += 320;
      } else {
        for (int p = 0; p < 5; ++p, out += 64) store_codes(out, next_trit(v));
      }
    }
  }
  // The activations are zero past K; the bytes they meet must only be defined.
  const size_t used = static_cast<size_t>(out - panel);
  __builtin_memset(out, 0, panel_bytes(w) - used);
}

// R row groups of weights (of one kind and K), ready for tiles of rows.
template <int R>
struct Operand {
  Source source;
  const uint8_t* w[R];
  const float* scales[R];
  const uint16_t* small_scales[R];
  int blocks, K, zero;
  bool grouped, int4, panel;
  ptrdiff_t skip;

  Operand(const Weight* const (&weights)[R], const int (&groups)[R], int M, uint8_t* scratch) {
    const Weight& first = *weights[0];
    K = first.K;
    // Row groups of one weight stand one after the other, and so do the items' pairs of them.
    panel = unpacks(first) && (M > kMaxRows || first.kind == tk::kTernary3);
    skip = R == 2 && weights[0] == weights[1] && !panel
               ? static_cast<ptrdiff_t>(group_bytes(first))
               : 0;
    grouped = first.scaling == tk::kByGroup;
    blocks = first.is_float() ? K : blocks_of(first);
    zero = first.kind == tk::kInt8 ? kInt8Zero : 1;
    int4 = first.kind == tk::kInt4;
    if (panel) {
      source = Source::kSmallBytes;
      blocks = static_cast<int>(panel_bytes(first) / 256);
    } else {
      constexpr Source by_kind[] = {Source::kCodes2, Source::kCodes5, Source::kInt8, Source::kBf16,
                                    Source::kF16, Source::kSmallBytes};  // INT4: int4_products
      source = by_kind[first.kind];
    }
    for (int r = 0; r < R; ++r) {
      const Weight& weight = *weights[r];
      if (panel) {
        uint8_t* own = scratch + static_cast<size_t>(r) * panel_bytes(weight);
        unpack_panel(weight, groups[r], own);
        w[r] = own;
      } else {
        w[r] = group_tiles(weight, groups[r]);
      }
      scales[r] = group_scales(weight, groups[r]);
      small_scales[r] = small_group_scales(weight, groups[r]);
    }
  }

  // Exact dot products of rows m0 .. m0 + M over the blocks [begin, end), to out[m][r][16].
  void dots(const Acts& acts, int m0, int M, int begin, int end, int sum_index,
            int32_t* out) const {
    const ptrdiff_t stride = tk::q_stride(K);
    const int planes = source == Source::kCodes5 ? 5 : 4;
    const size_t block_bytes = source == Source::kCodes2 || source == Source::kCodes5 ? 64 : 256;
    const bool packed = M == kMaxRows && acts.packed != nullptr;
    Stretch<R> from;
    for (int r = 0; r < R; ++r) from.w[r] = w[r] + block_bytes * static_cast<size_t>(begin);
    from.blocks = end - begin;
    from.skip = end == blocks ? skip : 0;
    const ptrdiff_t k = 4 * planes * begin;
    const int8_t* q = packed ? acts.packed + m0 * stride + k * kMaxRows : acts.q + m0 * stride + k;
    run_source<R>(source, from, {q, stride, packed}, M, out);
    for (int m = 0; m < M; ++m) {
      const int32_t sum = acts.sums[(m0 + m) * tk::sums_stride(K) + sum_index];
      // Unsigned: the product may wrap where the result does not (INT8 at large K).
      const I excess =
          iset1(static_cast<int32_t>(static_cast<uint32_t>(sum) * static_cast<uint32_t>(zero)));
      for (int r = 0; r < R; ++r) {
        int32_t* lane = out + (m * R + r) * 16;
        istore(lane, isub(iload(lane), excess));
      }
    }
  }

  // Scaled products of rows m0 .. m0 + M to y[m][r][16].
  void products(const Acts& acts, int m0, int M, float* y) const {
    if (source == Source::kBf16 || source == Source::kF16) {
      Stretch<R> from;
      for (int r = 0; r < R; ++r) from.w[r] = w[r];
      from.blocks = K;
      from.skip = skip;
      run_source<R>(source, from, {acts.x + m0 * acts.x_stride, acts.x_stride, false}, M, y);
      return;
    }
    if (int4) return int4_products(acts, m0, M, y);
    alignas(64) int32_t sums[kMaxRows * R * 16];
    if (!grouped) {
      dots(acts, m0, M, 0, blocks, 0, sums);
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r) {
          const int at = (m * R + r) * 16;
          store(y + at,
                mul(mul(to_float(iload(sums + at)), load(scales[r])), set1(acts.x_scale[m0 + m])));
        }
      return;
    }
    constexpr int kStep = tk::kGroupK / 16;
    for (int at = 0; at < M * R * 16; at += 16) store(y + at, set1(0.0f));
    for (int g = 0; g * kStep < blocks; ++g) {
      dots(acts, m0, M, g * kStep, least(blocks, (g + 1) * kStep), 1 + g, sums);
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r) {
          const int at = (m * R + r) * 16;
          const F part = mul(to_float(iload(sums + at)), load(scales[r] + 16 * g));
          store(y + at, add(load(y + at), part));
        }
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) {
        const int at = (m * R + r) * 16;
        store(y + at, mul(load(y + at), set1(acts.x_scale[m0 + m])));
      }
  }

  void int4_products(const Acts& acts, int m0, int M, float* y) const {
    Int4Stretch<R> from;
    for (int r = 0; r < R; ++r) from.w[r] = w[r], from.scales[r] = small_scales[r];
    from.groups = tk::small_k_groups(K);
    from.skip = skip;
    const ptrdiff_t stride = tk::q_stride(K);
    const bool packed = M == kMaxRows && acts.packed != nullptr;
    for (int m = 0, rows; m < M; m += rows) {
      rows = int4_rows(M - m);
      const int8_t* q =
          packed ? acts.packed + m0 * stride + m * 4 : acts.q + (m0 + m) * stride;
      const Int4Rows activations = {q, stride, packed, acts.starts + (m0 + m) * from.groups,
                                    from.groups};
      float* out = y + m * R * 16;
      if (panel)
        run_int4<true, R>(from, activations, rows, out);
      else
        run_int4<false, R>(from, activations, rows, out);
    }
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) {
        const int at = (m * R + r) * 16;
        store(y + at, mul(load(y + at), set1(acts.x_scale[m0 + m])));
      }
  }
};

inline void write_lanes(float* out, F y, int lanes) {
  if (lanes == 16) return store(out, y);
  alignas(64) float part[16];
  store(part, y);
  for (int i = 0; i < lanes; ++i) out[i] = part[i];
}

inline F silu(F x) { return div(x, add(set1(1.0f), exp(sub(set1(0.0f), x)))); }

// One row group of one row: bias, activation, residual, store.
inline void finish(const Linear& linear, int m, int group, F y, F y2) {
  const int column = group * 16, lanes = least(16, linear.first->N - column);
  if (linear.first_bias) y = add(y, load_n(linear.first_bias + column, lanes));
  float* out = linear.out + m * linear.out_stride + column;
  switch (linear.mode) {
    case tk::kStore:
      break;
    case tk::kAdd:
      y = add(load_n(out, lanes), y);
      break;
    case tk::kGateSilu:
    case tk::kGateRelu2: {
      if (linear.second_bias) y2 = add(y2, load_n(linear.second_bias + column, lanes));
      const F positive = vmax(y, set1(0.0f));
      y = mul(linear.mode == tk::kGateSilu ? silu(y) : mul(positive, positive), y2);
      break;
    }
  }
  write_lanes(out, y, lanes);
}

template <int R>
void linear_groups(const Linear& linear, const Acts& acts, int group, uint8_t* scratch) {
  const Weight* weights[R];
  int groups[R];
  for (int r = 0; r < R; ++r) weights[r] = linear.first, groups[r] = group + r;
  const Operand<R> operand(weights, groups, acts.M, scratch);
  alignas(64) float y[kMaxRows * R * 16];
  for (int m0 = 0, M; m0 < acts.M; m0 += M) {
    M = tile_rows(acts.M - m0);
    operand.products(acts, m0, M, y);
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r)
        finish(linear, m0 + m, group + r, load(y + (m * R + r) * 16), set1(0.0f));
  }
}

// Gate and up: the same rows of both. Side by side in one tile where they are of one kind.
inline void gated_group(const Linear& linear, const Acts& acts, int group, uint8_t* scratch) {
  const Weight *gate = linear.first, *up = linear.second;
  alignas(64) float y[kMaxRows * 2 * 16], y2[kMaxRows * 16];
  if (gate->kind == up->kind && columns_a_sum(*gate) == columns_a_sum(*up) && kRowGroups == 2) {
    const Operand<2> both({gate, up}, {group, group}, acts.M, scratch);
    for (int m0 = 0, M; m0 < acts.M; m0 += M) {
      M = tile_rows(acts.M - m0);
      both.products(acts, m0, M, y);
      for (int m = 0; m < M; ++m)
        finish(linear, m0 + m, group, load(y + m * 32), load(y + m * 32 + 16));
    }
    return;
  }
  const Operand<1> first({gate}, {group}, acts.M, scratch);
  const Operand<1> second({up}, {group}, acts.M, scratch + panel_bytes(*gate));
  for (int m0 = 0, M; m0 < acts.M; m0 += M) {
    M = tile_rows(acts.M - m0);
    first.products(acts, m0, M, y);
    second.products(acts, m0, M, y2);
    for (int m = 0; m < M; ++m) finish(linear, m0 + m, group, load(y + m * 16), load(y2 + m * 16));
  }
}

#if defined(TK_LOOKUPS)
// All rows with the item's vectors of outputs, 32 each.
void lookup_item(const Linear& linear, const Acts& acts, int item) {
  const int each = lookup_vectors(linear), first = item * each;
  const int count = least(each, row_vectors(*linear.first) - first);
  const int M = acts.M, groups = tk::row_groups(linear.first->N);
  alignas(64) int32_t sums[kLookupRows * kVectorsAnItem * 32];
  alignas(64) int32_t sums2[kLookupRows * kVectorsAnItem * 32];
  look_up_sums(*linear.first, first, count, acts, sums);
  if (linear.second) look_up_sums(*linear.second, first, count, acts, sums2);
  const auto product = [&](const Weight& w, const int32_t* of, int group, int m) {
    return mul(mul(to_float(iload(of)), load(group_scales(w, group))), set1(acts.x_scale[m]));
  };
  for (int v = 0; v < count; ++v)
    for (int m = 0; m < M; ++m)
      for (int half = 0; half < 2; ++half) {
        const int group = 2 * (first + v) + half, at = (v * M + m) * 32 + 16 * half;
        if (group >= groups) continue;
        const F y2 = linear.second ? product(*linear.second, sums2 + at, group, m) : set1(0.0f);
        finish(linear, m, group, product(*linear.first, sums + at, group, m), y2);
      }
}

void lookup_int_item(const Linear& linear, const Acts& acts, int item, int32_t* out) {
  const int each = lookup_vectors(linear), first = item * each, N = linear.first->N;
  const int count = least(each, row_vectors(*linear.first) - first);
  alignas(64) int32_t sums[kLookupRows * kVectorsAnItem * 32];
  look_up_sums(*linear.first, first, count, acts, sums);
  for (int v = 0; v < count; ++v)
    for (int m = 0; m < acts.M; ++m) {
      const int column = (first + v) * 32, lanes = least(32, N - column);
      __builtin_memcpy(out + static_cast<size_t>(m) * static_cast<size_t>(N) + column,
                       sums + (v * acts.M + m) * 32, static_cast<size_t>(lanes) * sizeof(int32_t));
    }
}
#endif

int linear_items(const Linear& linear, [[maybe_unused]] int M) {
#if defined(TK_LOOKUPS)
  if (looks_up(linear, M)) return lookup_items(linear);
#endif
  const int groups = tk::row_groups(linear.first->N);
  return linear.second ? groups : (groups + kRowGroups - 1) / kRowGroups;
}

void linear_item(const Linear& linear, const Acts& acts, int item, void* scratch) {
#if defined(TK_LOOKUPS)
  if (looks_up(linear, acts.M)) return lookup_item(linear, acts, item);
#endif
  auto* bytes = static_cast<uint8_t*>(scratch);
  if (linear.second) return gated_group(linear, acts, item, bytes);
  const int group = item * kRowGroups;
  if (kRowGroups > 1 && group + kRowGroups <= tk::row_groups(linear.first->N))
    return linear_groups<kRowGroups>(linear, acts, group, bytes);
  linear_groups<1>(linear, acts, group, bytes);
}

template <int R>
void int_groups(const Weight& w, const Acts& acts, int group, int32_t* out, uint8_t* scratch) {
  const Weight* weights[R];
  int groups[R];
  for (int r = 0; r < R; ++r) weights[r] = &w, groups[r] = group + r;
  const Operand<R> operand(weights, groups, acts.M, scratch);
  alignas(64) int32_t sums[kMaxRows * R * 16];
  for (int m0 = 0, M; m0 < acts.M; m0 += M) {
    M = tile_rows(acts.M - m0);
    operand.dots(acts, m0, M, 0, operand.blocks, 0, sums);
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) {
        const int column = (group + r) * 16, lanes = least(16, w.N - column);
        __builtin_memcpy(out + static_cast<size_t>(m0 + m) * w.N + column, sums + (m * R + r) * 16,
                         static_cast<size_t>(lanes) * sizeof(int32_t));
      }
  }
}

void linear_int_item(const Linear& linear, const Acts& acts, int item, int32_t* out,
                     void* scratch) {
#if defined(TK_LOOKUPS)
  if (looks_up(linear, acts.M)) return lookup_int_item(linear, acts, item, out);
#endif
  const Weight& w = *linear.first;
  auto* bytes = static_cast<uint8_t*>(scratch);
  const int group = item * kRowGroups;
  if (kRowGroups > 1 && group + kRowGroups <= tk::row_groups(w.N))
    return int_groups<kRowGroups>(w, acts, group, out, bytes);
  int_groups<1>(w, acts, group, out, bytes);
}

size_t linear_scratch(const Weight& w) {
  return unpacks(w) ? kMaxGroups * panel_bytes(w) : 0;
}

}  // namespace TK_NS
