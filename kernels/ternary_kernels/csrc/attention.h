// Grouped-query attention of a few queries over one slot's cache.
//
// A tile holds up to twelve queries that share a KV head: the heads of its group, for one row
// in decode or several neighbouring rows in prefill, so each key and value is loaded (and
// widened) once for all of them. Keys lie sixteen positions side by side: a score block is then
// plain multiply-adds over D without a horizontal sum. Softmax runs over the finished scores
// of a query; positions that a query does not see get weight zero.
#pragma once
#include "rows.h"

namespace TK_NS {

using tk::AttentionTile;

// Rows of values asked for in advance: half a page and more for heads of 128.
constexpr int kValueRowsAhead = 16;

template <tk::FloatType type>
struct Stored;
template <>
struct Stored<tk::kFloat32> {
  using T = float;
  static inline F get(const T* p) { return load(p); }
  static inline void put(T* p, F v) { store(p, v); }
};
template <>
struct Stored<tk::kFloat16> {
  using T = uint16_t;
  static inline F get(const T* p) { return load_f16(p); }
  static inline void put(T* p, F v) { store_f16(p, v); }
};
template <>
struct Stored<tk::kBfloat16> {
  using T = uint16_t;
  static inline F get(const T* p) { return load_bf16(p); }
  static inline void put(T* p, F v) { store_bf16(p, v); }
};

template <tk::FloatType type>
void store_key_as(void* keys, int position, int D, const float* key) {
  using T = typename Stored<type>::T;
  T* block = static_cast<T*>(keys) +
             static_cast<size_t>(position / 16) * static_cast<size_t>(D) * 16 + position % 16;
  alignas(64) T narrow[16];
  for (int d = 0; d < D; d += 16) {
    const int lanes = least(16, D - d);
    Stored<type>::put(narrow, load_at(key, d, D));
    for (int i = 0; i < lanes; ++i) block[static_cast<size_t>(d + i) * 16] = narrow[i];
  }
}

template <tk::FloatType type>
void store_value_as(void* values, int position, int D, const float* value) {
  const int stride = (D + 15) / 16 * 16;
  auto* row = static_cast<typename Stored<type>::T*>(values) +
              static_cast<size_t>(position) * static_cast<size_t>(stride);
  for (int d = 0; d < D; d += 16) Stored<type>::put(row + d, load_at(value, d, D));
}

inline size_t padded_context(int context) { return static_cast<size_t>((context + 15) / 16 * 16); }

size_t attention_scratch(int, int context) {
  return (padded_context(context) + 16) * tk::kMaxQueries * sizeof(float);
}

// scores[j][c] = scale * q_j . k_c for n queries and the position blocks [first, last).
template <tk::FloatType type, int n>
void score_blocks(const AttentionTile& tile, int j0, int first, int last, float* scores,
                  size_t stride) {
  using S = Stored<type>;
  constexpr int U = 2;  // sums side by side; the same for any n, so that no query's sum hangs on it
  const int D = tile.head_dim;
  for (int block = first; block < last; ++block) {
    const auto* k = static_cast<const typename S::T*>(tile.keys) +
                    static_cast<size_t>(block) * static_cast<size_t>(D) * 16;
    F acc[n][U];
    for (int j = 0; j < n; ++j)
      for (int u = 0; u < U; ++u) acc[j][u] = set1(0.0f);
    int d = 0;
    for (; d + U <= D; d += U) {
      // The next block's lines: a block is a page, and the hardware prefetcher stops there.
      prefetch<U * 16 * sizeof(*k)>(reinterpret_cast<const uint8_t*>(k + (D + d) * 16));
      TK_UNROLL for (int u = 0; u < U; ++u) {
        const F key = S::get(k + (d + u) * 16);
        TK_UNROLL for (int j = 0; j < n; ++j) acc[j][u] =
            fma(key, set1(tile.q[j0 + j][d + u]), acc[j][u]);
      }
    }
    for (; d < D; ++d)
      for (int j = 0; j < n; ++j)
        acc[j][0] = fma(S::get(k + d * 16), set1(tile.q[j0 + j][d]), acc[j][0]);
    for (int j = 0; j < n; ++j) {
      F sum = acc[j][0];
      for (int u = 1; u < U; ++u) sum = add(sum, acc[j][u]);
      store(scores + static_cast<size_t>(j0 + j) * stride + block * 16, mul(sum, set1(tile.scale)));
    }
  }
}

// Weights exp(s - max) in place, zero outside [begin, end); returns 1 / their sum.
inline float softmax(float* s, int from, int begin, int end, int to) {
  for (int c = from; c < begin; ++c) s[c] = 0.0f;
  for (int c = end; c < to; ++c) s[c] = 0.0f;
  float peak = s[begin];
  int c = begin;
  F peaks = set1(peak);
  for (; c + 16 <= end; c += 16) peaks = vmax(peaks, load(s + c));
  peak = hmax(peaks);
  for (; c < end; ++c) peak = largest(peak, s[c]);
  F sums = set1(0.0f);
  for (c = begin; c < end; c += 16) {
    const int lanes = least(16, end - c);
    F e = exp(sub(load_at(s, c, end), set1(peak)));
    write_lanes(s + c, e, lanes);
    if (lanes < 16) e = load_n(s + c, lanes);
    sums = add(sums, e);
  }
  return 1.0f / hsum(sums);
}

// out_j = sum over positions of weight[j][c] * v_c, for V vectors of 16 dimensions from d on.
template <tk::FloatType type, int n, int V>
void weigh_values(const AttentionTile& tile, int j0, int d, int from, int to, const float* scores,
                  size_t stride, const float* inverse) {
  using S = Stored<type>;
  const int D = tile.head_dim, row = (D + 15) / 16 * 16;
  const auto* v = static_cast<const typename S::T*>(tile.values) +
                  static_cast<size_t>(from) * static_cast<size_t>(row) + d;
  F acc[n][V];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < V; ++i) acc[j][i] = set1(0.0f);
  const float* s = scores + static_cast<size_t>(j0) * stride;
  for (int c = from; c < to; ++c, v += row) {
    prefetch<V * 16 * sizeof(*v)>(reinterpret_cast<const uint8_t*>(v + kValueRowsAhead * row));
    F value[V];
    TK_UNROLL for (int i = 0; i < V; ++i) value[i] = S::get(v + 16 * i);
    TK_UNROLL for (int j = 0; j < n; ++j) {
      const F weight = set1(s[static_cast<size_t>(j) * stride + c]);
      TK_UNROLL for (int i = 0; i < V; ++i) acc[j][i] = fma(weight, value[i], acc[j][i]);
    }
  }
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < V; ++i)
      write_lanes(tile.out[j0 + j] + d + 16 * i, mul(acc[j][i], set1(inverse[j0 + j])),
                  least(16, D - d - 16 * i));
}

template <tk::FloatType type, int n>
void attend_some(const AttentionTile& tile, int j0, float* scores) {
  const size_t stride = padded_context(tile.context);
  int from = tile.begin[j0], to = tile.end[j0];
  for (int j = j0; j < j0 + n; ++j) {
    from = least(from, tile.begin[j]);
    to = largest(to, tile.end[j]);
  }
  score_blocks<type, n>(tile, j0, from / 16, (to + 15) / 16, scores, stride);
  float inverse[tk::kMaxQueries];
  for (int j = j0; j < j0 + n; ++j)
    inverse[j] =
        softmax(scores + static_cast<size_t>(j) * stride, from, tile.begin[j], tile.end[j], to);
  constexpr int V = n <= 4 ? 4 : 2;
  int d = 0;
  for (; d + 16 * V <= tile.head_dim; d += 16 * V)
    weigh_values<type, n, V>(tile, j0, d, from, to, scores, stride, inverse);
  for (; d < tile.head_dim; d += 16)
    weigh_values<type, n, 1>(tile, j0, d, from, to, scores, stride, inverse);
}

template <tk::FloatType type>
void attend_as(const AttentionTile& tile, float* scores) {
  for (int j = 0, n; j < tile.queries; j += n) {
    n = tile.queries - j;
    if (kMaxRows > 4 && n >= 12) {
      n = 12;
      attend_some<type, kMaxRows>(tile, j, scores);
    } else if (kMaxRows > 4 && n >= 6) {
      n = 6;
      attend_some<type, kMaxRows / 2>(tile, j, scores);
    } else if (n >= 4) {
      n = 4;
      attend_some<type, 4>(tile, j, scores);
    } else if (n == 3)
      attend_some<type, 3>(tile, j, scores);
    else if (n == 2)
      attend_some<type, 2>(tile, j, scores);
    else
      attend_some<type, 1>(tile, j, scores);
  }
}

void attend(const AttentionTile& tile, void* scratch) {
  auto* scores = static_cast<float*>(scratch);
  switch (tile.type) {
    case tk::kFloat32:
      return attend_as<tk::kFloat32>(tile, scores);
    case tk::kFloat16:
      return attend_as<tk::kFloat16>(tile, scores);
    case tk::kBfloat16:
      return attend_as<tk::kBfloat16>(tile, scores);
  }
}

void store_key(void* keys, tk::FloatType type, int position, int D, const float* key) {
  switch (type) {
    case tk::kFloat32:
      return store_key_as<tk::kFloat32>(keys, position, D, key);
    case tk::kFloat16:
      return store_key_as<tk::kFloat16>(keys, position, D, key);
    case tk::kBfloat16:
      return store_key_as<tk::kBfloat16>(keys, position, D, key);
  }
}

void store_value(void* values, tk::FloatType type, int position, int D, const float* value) {
  switch (type) {
    case tk::kFloat32:
      return store_value_as<tk::kFloat32>(values, position, D, value);
    case tk::kFloat16:
      return store_value_as<tk::kFloat16>(values, position, D, value);
    case tk::kBfloat16:
      return store_value_as<tk::kBfloat16>(values, position, D, value);
  }
}

}  // namespace TK_NS
