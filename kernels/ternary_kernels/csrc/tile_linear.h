// Linear layers on a tile unit (tile_unit.h): prefill, and batches of kUnitRows rows or more.
//
// An item is four row groups of one weight, or two of gate and two of up. Its weights become
// panels, once for all rows: [K/64][16][64] bytes of codes, or [K/32][16][64] bytes of pairs of
// bf16. Ternary codes are unpacked, INT8 weights lie in memory as the unit wants them,
// bf16 rows are paired, INT4 codes become signed bytes. Rows of activations come in tiles too (Kernels::tile_q_row). A block of
// two tiles of rows meets two panels at a time, four products for four loads, and both pairs of
// panels within kStretch steps, so that half of the activations come from the first-level cache:
// what bounds the products is the way from the second one.
//
// INT4 has a scale for each 32 k, half of what a tile holds: its products are of half tiles, four
// groups of them at a time into memory, from where vectors scale them and add them up. That keeps
// the products exact at half of the unit's rate, and the vectors' share takes longer anyway. (Codes
// times scales as bf16 would need no such pass, and no longer be the numbers of the file.)
//
// Integer sums are exact and the scales are applied in the vector kernels' order, so results
// are theirs to the bit. bf16 weights meet activations rounded to bf16, with float32 sums.
// Weights of fp16 have no tiles: they stay with the vector kernels.
#pragma once
#include "linear.h"
#include "tile_unit.h"

namespace TK_NS {

// From so many rows on: below, most of a tile is padding (measured: docs/log.md).
constexpr int kUnitRows = 16;
constexpr int kTileRows = 16;
constexpr size_t kTileBytes = 1024;
constexpr int kBlockTiles = 2;  // tiles of rows in a block
constexpr int kBlockRows = kBlockTiles * kTileRows;
constexpr int kPairs = 2;    // of panels in an item
constexpr int kStretch = 8;  // steps: 16 KB of activations

inline bool has_tiles(const Weight& w) { return w.kind != tk::kF16; }
inline bool on_unit(const Linear& linear, int M) {
  return M >= kUnitRows && has_tiles(*linear.first) &&
         (!linear.second || has_tiles(*linear.second));
}
// Products of whole tiles along K.
inline int unit_steps(const Weight& w) { return w.is_float() ? (w.K + 31) / 32 : (w.K + 63) / 64; }
inline size_t unit_panel_bytes(const Weight& w) {
  const size_t steps = kTileBytes * static_cast<size_t>(unit_steps(w));
  const bool longer = w.kind == tk::kTernary5 || w.kind == tk::kTernary3;  // blocks of 20, 48 k
  return longer ? largest(steps, panel_bytes(w)) : steps;
}

// One row group of a weight, tile after tile: `whole` of them at `tiles`, then perhaps one more.
struct UnitPanel {
  const uint8_t* tiles;
  int whole;
  const uint8_t* last;

  const uint8_t* at(int step) const {
    return step < whole ? tiles + kTileBytes * static_cast<size_t>(step) : last;
  }
};

inline UnitPanel unit_panel(const Weight& w, int group, uint8_t* scratch) {
  const int steps = unit_steps(w);
  const size_t bytes = kTileBytes * static_cast<size_t>(steps);
  const uint8_t* from = w.kind == tk::kTernary3 ? nullptr : group_tiles(w, group);
  if (w.kind == tk::kInt8) {
    const size_t tail = group_bytes(w) % kTileBytes;
    if (tail) {
      __builtin_memcpy(scratch, from + group_bytes(w) - tail, tail);
      __builtin_memset(scratch + tail, 0, kTileBytes - tail);
    }
    return {from, tail ? steps - 1 : steps, scratch};
  }
  if (w.kind == tk::kBf16) {
    const auto* rows = reinterpret_cast<const uint16_t*>(from);
    uint8_t* out = scratch;
    for (int k = 0; k + 2 <= w.K; k += 2, out += 64) pair_rows(rows + k * 16, out);
    if (w.K % 2) {
      alignas(64) uint16_t last[32] = {};
      __builtin_memcpy(last, rows + (w.K - 1) * 16, 32);
      pair_rows(last, out);
      out += 64;
    }
    __builtin_memset(out, 0, bytes - static_cast<size_t>(out - scratch));
  } else {
    if (w.kind == tk::kInt4)
      unpack_panel<true>(w, group, scratch);
    else
      unpack_panel(w, group, scratch);
    const size_t used = panel_bytes(w);
    if (used < bytes) __builtin_memset(scratch + used, 0, bytes - used);
  }
  return {scratch, steps, nullptr};
}

// Sums of a block of rows with R groups: [tiles of rows][R][16 rows][16 words].
template <int R>
struct Sums {
  alignas(64) uint8_t tiles[kBlockTiles * R * kTileBytes];

  const uint8_t* row(int m, int r) const { return tiles + at(m, r); }
  uint8_t* row(int m, int r) { return tiles + at(m, r); }

 private:
  static int at(int m, int r) {
    return ((m / kTileRows * R + r) * kTileRows + m % kTileRows) * 64;
  }
};

// R row groups of weights, all of integers or all of bf16, of one K and kind of scaling.
template <int R>
struct UnitOperand {
  UnitPanel panels[R];
  const float* scales[R];
  const uint16_t* small_scales[R];
  int32_t zeros[R];
  int K, steps;
  bool bf16, grouped, int4;

  // Returns what is left of the scratch.
  uint8_t* prepare(const Weight* const (&weights)[R], const int (&groups)[R], uint8_t* scratch) {
    K = weights[0]->K;
    steps = unit_steps(*weights[0]);
    bf16 = weights[0]->is_float();
    int4 = weights[0]->kind == tk::kInt4;
    grouped = columns_a_sum(*weights[0]) > 0;
    for (int r = 0; r < R; ++r) {
      const Weight& w = *weights[r];
      panels[r] = unit_panel(w, groups[r], scratch);
      scratch += unit_panel_bytes(w);
      zeros[r] = w.kind == tk::kInt8 ? 128 : 1;
      scales[r] = group_scales(w, groups[r]);
      small_scales[r] = small_group_scales(w, groups[r]);
    }
    return scratch;
  }

  // Sums over the steps [from, to) of T tiles of rows, to out[t][r][16 rows][16]; `more`: on
  // top of those that are there.
  template <int T, bool kHalf>
  void sum_tiles(const uint8_t* rows, int from, int to, bool more, uint8_t* out) const {
    const size_t tile_stride = kTileBytes * static_cast<size_t>(steps);
    begin_sum<0>(more, out);
    if constexpr (R == 2) begin_sum<1>(more, out + kTileBytes);
    if constexpr (T == 2) begin_sum<2>(more, out + R * kTileBytes);
    if constexpr (T == 2 && R == 2) begin_sum<3>(more, out + 3 * kTileBytes);
    const uint8_t* a = rows + kTileBytes * static_cast<size_t>(from);
    for (int s = from; s < to; ++s, a += kTileBytes) {
      TileUnit::load<4>(a);
      TileUnit::load<6>(panels[0].at(s));
      dot<kHalf, 0, 4, 6>();
      if constexpr (R == 2) {
        TileUnit::load<7>(panels[1].at(s));
        dot<kHalf, 1, 4, 7>();
      }
      if constexpr (T == 2) {
        TileUnit::load<5>(a + tile_stride);
        dot<kHalf, 2, 5, 6>();
        if constexpr (R == 2) dot<kHalf, 3, 5, 7>();
      }
    }
    TileUnit::store<0>(out);
    if constexpr (R == 2) TileUnit::store<1>(out + kTileBytes);
    if constexpr (T == 2) TileUnit::store<2>(out + R * kTileBytes);
    if constexpr (T == 2 && R == 2) TileUnit::store<3>(out + 3 * kTileBytes);
  }

  void sum(const Acts& acts, int m0, int M, int from, int to, bool more, Sums<R>& out) const {
    const size_t at = kTileBytes * static_cast<size_t>(m0 / kTileRows * steps);
    const uint8_t* rows = (bf16 ? acts.bf16_tiles : acts.q_tiles) + at;
    if (bf16)
      return M > kTileRows ? sum_tiles<2, true>(rows, from, to, more, out.tiles)
                           : sum_tiles<1, true>(rows, from, to, more, out.tiles);
    return M > kTileRows ? sum_tiles<2, false>(rows, from, to, more, out.tiles)
                         : sum_tiles<1, false>(rows, from, to, more, out.tiles);
  }

  // The dot product of row m0 + m with group r: its sum less what the codes stand too high.
  I dot(const Acts& acts, const Sums<R>& sums, int m0, int m, int r, int sum_index) const {
    const int32_t sum = acts.sums[(m0 + m) * tk::sums_stride(K) + sum_index];
    // Unsigned: the product may wrap where the result does not (INT8 at large K).
    const I excess = iset1(
        static_cast<int32_t>(static_cast<uint32_t>(sum) * static_cast<uint32_t>(zeros[r])));
    return isub(iload(reinterpret_cast<const int32_t*>(sums.row(m, r))), excess);
  }

  // The scaled product of row m0 + m with group r, from its finished sum (grouped: from what
  // sum_groups left).
  F product(const Acts& acts, const Sums<R>& sums, int m0, int m, int r) const {
    const F sum = load(reinterpret_cast<const float*>(sums.row(m, r)));
    if (bf16) return sum;
    const F x_scale = set1(acts.x_scale[m0 + m]);
    if (grouped) return mul(sum, x_scale);
    return mul(mul(to_float(dot(acts, sums, m0, m, r, 0)), load(scales[r])), x_scale);
  }

  // INT4: the groups' sums of T tiles of rows, scaled and added up as floats.
  template <int T>
  void sum_small_groups(const uint8_t* rows, Sums<R>& out) const {
    constexpr int kTogether = 4;  // groups: 16 KB of sums, and an eighth of the panels' steps
    constexpr size_t kSums = T * R * kTileBytes;
    alignas(64) uint8_t sums[kTogether * kSums];
    const size_t tile_stride = kTileBytes * static_cast<size_t>(steps);
    const int groups = tk::small_k_groups(K);
    for (int from = 0; from < groups; from += kTogether) {
      const int count = least(kTogether, groups - from);
      for (int i = 0; i < count; ++i) {
        const int g = from + i;
        const uint8_t* a = rows + kTileBytes * static_cast<size_t>(g / 2) + g % 2 * 32;
        const size_t b = kTileBytes / 2 * static_cast<size_t>(g);
        uint8_t* to = sums + kSums * static_cast<size_t>(i);
        TileUnit::zero<0>();
        TileUnit::load<4>(a);
        TileUnit::load<6>(panels[0].tiles + b);
        TileUnit::dot_half<0, 4, 6>();
        if constexpr (R == 2) {
          TileUnit::zero<1>();
          TileUnit::load<7>(panels[1].tiles + b);
          TileUnit::dot_half<1, 4, 7>();
        }
        if constexpr (T == 2) {
          TileUnit::zero<2>();
          TileUnit::load<5>(a + tile_stride);
          TileUnit::dot_half<2, 5, 6>();
          if constexpr (R == 2) {
            TileUnit::zero<3>();
            TileUnit::dot_half<3, 5, 7>();
          }
        }
        TileUnit::store<0>(to);
        if constexpr (R == 2) TileUnit::store<1>(to + kTileBytes);
        if constexpr (T == 2) TileUnit::store<2>(to + R * kTileBytes);
        if constexpr (T == 2 && R == 2) TileUnit::store<3>(to + 3 * kTileBytes);
      }
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r)
          add_scaled(sums + (t * R + r) * kTileBytes, kSums, count, small_scales[r] + 16 * from,
                     from > 0, reinterpret_cast<float*>(out.row(t * kTileRows, r)));
    }
  }
  void sum_small_groups(const Acts& acts, int m0, int M, Sums<R>& out) const {
    const uint8_t* rows =
        acts.q_tiles + kTileBytes * static_cast<size_t>(m0 / kTileRows * steps);
    TileUnit::begin_half();
    if (M > kTileRows)
      sum_small_groups<2>(rows, out);
    else
      sum_small_groups<1>(rows, out);
    TileUnit::begin();
  }

  // Where each 128 columns have a scale of their own: their scaled sums, added up as floats.
  void sum_groups(const Acts& acts, int m0, int M, Sums<R>& out) const {
    constexpr int kStep = tk::kGroupK / 64;
    Sums<R> sums;
    __builtin_memset(out.tiles, 0, sizeof out.tiles);
    for (int g = 0; g * kStep < steps; ++g) {
      sum(acts, m0, M, g * kStep, least(steps, (g + 1) * kStep), false, sums);
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r) {
          auto* at = reinterpret_cast<float*>(out.row(m, r));
          const F part = mul(to_float(dot(acts, sums, m0, m, r, 1 + g)), load(scales[r] + 16 * g));
          store(at, add(load(at), part));
        }
    }
  }

 private:
  // y[16 rows][16] of a tile: its `count` groups' sums times their scales, in the groups' order.
  static inline void add_scaled(const uint8_t* sums, size_t stride, int count,
                                const uint16_t* scales, bool more, float* y) {
    F own[kTileRows];
    TK_UNROLL for (int m = 0; m < kTileRows; ++m) own[m] = more ? load(y + 16 * m) : set1(0.0f);
    for (int i = 0; i < count; ++i) {
      const F scale = load_f16(scales + 16 * i);
      const auto* from = reinterpret_cast<const int32_t*>(sums + stride * static_cast<size_t>(i));
      TK_UNROLL for (int m = 0; m < kTileRows; ++m) own[m] =
          add(own[m], mul(to_float(iload(from + 16 * m)), scale));
    }
    TK_UNROLL for (int m = 0; m < kTileRows; ++m) store(y + 16 * m, own[m]);
  }

  template <int c>
  static inline void begin_sum(bool more, const uint8_t* from) {
    if (more)
      TileUnit::load<c>(from);
    else
      TileUnit::zero<c>();
  }
  template <bool kHalf, int c, int a, int b>
  static inline void dot() {
    if constexpr (kHalf)
      TileUnit::dot_bf16<c, a, b>();
    else
      TileUnit::dot_bytes<c, a, b>();
  }
};

// `count` operands of one weight kind over rows m0 .. m0 + M: all their sums.
template <int R>
void sum_together(const UnitOperand<R>* operands, int count, const Acts& acts, int m0, int M,
                  Sums<R>* sums) {
  const int steps = operands[0].steps;
  for (int s = 0; s < steps; s += kStretch)
    for (int p = 0; p < count; ++p)
      operands[p].sum(acts, m0, M, s, least(steps, s + kStretch), s > 0, sums[p]);
}

// What UnitOperand::product takes.
template <int R>
void sum_block(const UnitOperand<R>* operands, int count, const Acts& acts, int m0, int M,
               Sums<R>* sums) {
  if (!operands[0].grouped) return sum_together(operands, count, acts, m0, M, sums);
  for (int p = 0; p < count; ++p)
    if (operands[p].int4)
      operands[p].sum_small_groups(acts, m0, M, sums[p]);
    else
      operands[p].sum_groups(acts, m0, M, sums[p]);
}

// `count` times R row groups of one weight, from `group` on.
template <int R>
void prepare_groups(UnitOperand<R>* operands, const Weight& w, int group, int count,
                    uint8_t* scratch) {
  for (int p = 0; p < count; ++p) {
    const Weight* weights[R];
    int groups[R];
    for (int r = 0; r < R; ++r) weights[r] = &w, groups[r] = group + p * R + r;
    scratch = operands[p].prepare(weights, groups, scratch);
  }
}

template <int R>
void unit_groups(const Linear& linear, const Acts& acts, int group, int count, uint8_t* scratch) {
  UnitOperand<R> operands[kPairs];
  prepare_groups(operands, *linear.first, group, count, scratch);
  Sums<R> sums[kPairs];
  for (int m0 = 0, M; m0 < acts.M; m0 += M) {
    M = least(kBlockRows, acts.M - m0);
    sum_block(operands, count, acts, m0, M, sums);
    for (int m = 0; m < M; ++m)
      for (int p = 0; p < count; ++p)
        for (int r = 0; r < R; ++r)
          finish(linear, m0 + m, group + p * R + r,
                 operands[p].product(acts, sums[p], m0, m, r), set1(0.0f));
  }
}

// `count` row groups of gate and up.
inline void unit_gated_groups(const Linear& linear, const Acts& acts, int group, int count,
                              uint8_t* scratch) {
  const Weight *gate = linear.first, *up = linear.second;
  if (gate->is_float() == up->is_float() &&
      columns_a_sum(*gate) == columns_a_sum(*up)) {
    UnitOperand<2> operands[kPairs];
    for (int p = 0; p < count; ++p)
      scratch = operands[p].prepare({gate, up}, {group + p, group + p}, scratch);
    Sums<2> sums[kPairs];
    for (int m0 = 0, M; m0 < acts.M; m0 += M) {
      M = least(kBlockRows, acts.M - m0);
      sum_block(operands, count, acts, m0, M, sums);
      for (int m = 0; m < M; ++m)
        for (int p = 0; p < count; ++p)
          finish(linear, m0 + m, group + p, operands[p].product(acts, sums[p], m0, m, 0),
                 operands[p].product(acts, sums[p], m0, m, 1));
    }
    return;
  }
  for (int p = 0; p < count; ++p) {
    UnitOperand<1> first, second;
    second.prepare({up}, {group + p}, first.prepare({gate}, {group + p}, scratch));
    Sums<1> sums, sums2;
    for (int m0 = 0, M; m0 < acts.M; m0 += M) {
      M = least(kBlockRows, acts.M - m0);
      sum_block(&first, 1, acts, m0, M, &sums);
      sum_block(&second, 1, acts, m0, M, &sums2);
      for (int m = 0; m < M; ++m)
        finish(linear, m0 + m, group + p, first.product(acts, sums, m0, m, 0),
               second.product(acts, sums2, m0, m, 0));
    }
  }
}

int unit_linear_items(const Linear& linear, int M) {
  if (!on_unit(linear, M)) return linear_items(linear, M);
  const int groups = tk::row_groups(linear.first->N), per_item = linear.second ? kPairs : 2 * kPairs;
  return (groups + per_item - 1) / per_item;
}

void unit_linear_item(const Linear& linear, const Acts& acts, int item, void* scratch) {
  if (!on_unit(linear, acts.M)) return linear_item(linear, acts, item, scratch);
  auto* bytes = static_cast<uint8_t*>(scratch);
  const int all = tk::row_groups(linear.first->N);
  TileUnit::begin();
  if (linear.second) {
    const int group = kPairs * item;
    unit_gated_groups(linear, acts, group, least(kPairs, all - group), bytes);
  } else {
    const int group = 2 * kPairs * item, pairs = least(2 * kPairs, all - group) / 2;
    if (pairs) unit_groups<2>(linear, acts, group, pairs, bytes);
    const int rest = group + 2 * pairs;
    if (pairs < kPairs && rest < all) unit_groups<1>(linear, acts, rest, 1, bytes);
  }
  TileUnit::end();
}

template <int R>
void unit_int_groups(const Weight& w, const Acts& acts, int group, int count, int32_t* out,
                     uint8_t* scratch) {
  UnitOperand<R> operands[kPairs];
  prepare_groups(operands, w, group, count, scratch);
  Sums<R> sums[kPairs];
  for (int m0 = 0, M; m0 < acts.M; m0 += M) {
    M = least(kBlockRows, acts.M - m0);
    sum_together(operands, count, acts, m0, M, sums);
    for (int p = 0; p < count; ++p)
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < R; ++r) {
          const int column = (group + p * R + r) * 16, lanes = least(16, w.N - column);
          alignas(64) int32_t dots[16];
          istore(dots, operands[p].dot(acts, sums[p], m0, m, r, 0));
          __builtin_memcpy(out + static_cast<size_t>(m0 + m) * static_cast<size_t>(w.N) + column,
                           dots, static_cast<size_t>(lanes) * sizeof(int32_t));
        }
  }
}

void unit_linear_int_item(const Linear& linear, const Acts& acts, int item, int32_t* out,
                          void* scratch) {
  if (acts.M < kUnitRows) return linear_int_item(linear, acts, item, out, scratch);
  const Weight& w = *linear.first;
  auto* bytes = static_cast<uint8_t*>(scratch);
  const int all = tk::row_groups(w.N), group = 2 * kPairs * item;
  const int pairs = least(2 * kPairs, all - group) / 2, rest = group + 2 * pairs;
  TileUnit::begin();
  if (pairs) unit_int_groups<2>(w, acts, group, pairs, out, bytes);
  if (pairs < kPairs && rest < all) unit_int_groups<1>(w, acts, rest, 1, out, bytes);
  TileUnit::end();
}

size_t unit_linear_scratch(const Weight& w) {
  const size_t vectors = linear_scratch(w);
  return has_tiles(w) ? largest(vectors, 2 * kPairs * unit_panel_bytes(w)) : vectors;
}

// Row m's 64 bytes of each step to their place in its tile.
void tile_q_row(const int8_t* q, int m, int K, uint8_t* tiles) {
  const int steps = (K + 63) / 64;
  uint8_t* to = tiles + kTileBytes * static_cast<size_t>(m / kTileRows * steps) + m % kTileRows * 64;
  for (int s = 0; s < steps; ++s, q += 64, to += kTileBytes) __builtin_memcpy(to, q, 64);
}

void tile_bf16_row(const float* x, int m, int K, uint8_t* tiles) {
  const int steps = (K + 31) / 32;
  uint8_t* to = tiles + kTileBytes * static_cast<size_t>(m / kTileRows * steps) + m % kTileRows * 64;
  for (int k = 0; k < 32 * steps; k += 16) {
    const F v = k + 16 <= K ? load(x + k) : load_n(x + k, largest(0, K - k));
    store_bf16(reinterpret_cast<uint16_t*>(to + k / 32 * kTileBytes + k % 32 * 2), v);
  }
}

// See dot_peak: products of tiles that hold whatever they hold.
uint64_t unit_dot_peak(uint64_t rounds, int32_t* sink) {
  alignas(64) int32_t tile[256] = {*sink};
  TileUnit::begin();
  TileUnit::zero<0>();
  TileUnit::zero<1>();
  TileUnit::zero<2>();
  TileUnit::zero<3>();
  TileUnit::load<4>(tile);
  TileUnit::load<5>(tile);
  TileUnit::load<6>(tile);
  TileUnit::load<7>(tile);
  for (uint64_t round = 0; round < rounds; ++round) {
    TileUnit::dot_bytes<0, 4, 6>();
    TileUnit::dot_bytes<1, 4, 7>();
    TileUnit::dot_bytes<2, 5, 6>();
    TileUnit::dot_bytes<3, 5, 7>();
  }
  TileUnit::store<0>(tile);
  TileUnit::end();
  *sink = tile[0];
  return rounds * 4 * 16384;
}

}  // namespace TK_NS
