// Buffers for a batch of activations in the forms that its consumers need.
#pragma once
#include <vector>

#include "kernel_table.h"

namespace tk {

class Activations {
 public:
  Activations(int rows, int max_K)
      : normed_(static_cast<size_t>(rows) * static_cast<size_t>(max_K)),
        q_(static_cast<size_t>(rows) * static_cast<size_t>(q_stride(max_K))),
        packed_(rounded(rows) * static_cast<size_t>(q_stride(max_K))),
        bf16_(rows < 16 ? 0 : rounded(rows) / 16 * static_cast<size_t>(bf16_tile_bytes(max_K))),
        x_scale_(static_cast<size_t>(rows)),
        sums_(static_cast<size_t>(rows) * static_cast<size_t>(sums_stride(max_K))),
        starts_(static_cast<size_t>(rows) * static_cast<size_t>(small_k_groups(max_K))) {}

  // Row m of M, of K floats: norm (eps < 0: none), rotation, then the forms asked for.
  // False if the row holds NaN or Inf.
  bool prepare(const Kernels& k, int m, int M, const float* x, int K, const float* norm, float eps,
               const Forms& forms) {
    const float* row = x;
    if (eps >= 0 || forms.floats || forms.hadamard > 1) {
      float* own = normed_.data() + static_cast<ptrdiff_t>(m) * K;
      if (eps >= 0)
        k.norm_row(x, norm, eps, K, own);
      else
        __builtin_memcpy(own, x, static_cast<size_t>(K) * sizeof(float));
      if (forms.hadamard > 1) k.hadamard_row(own, K, forms.hadamard);
      row = own;
    }
    const bool tiles = on_unit(k, M);
    if (!forms.int8) {
      if (!k.finite_row(row, K)) return false;
      if (tiles) k.tile_bf16_row(row, m, K, bf16_.data());
      return true;
    }
    if (!k.quantize_row(row, K, q_.data() + m * q_stride(K), x_scale_.data() + m,
                        sums_.data() + m * sums_stride(K)))
      return false;
    if (forms.starts)
      k.start_row(q_.data() + m * q_stride(K), K, starts_.data() + m * small_k_groups(K));
    if (tiles && forms.floats) k.tile_bf16_row(row, m, K, bf16_.data());
    if (tiles)
      tile_q(k, m, M, K);
    else if (M > k.tile_rows && m < M / k.tile_rows * k.tile_rows)
      pack(m, k.tile_rows, K);
    return true;
  }
  // Row m of M of q to the tile unit's layout, where there is one that takes M rows.
  void tile_q(const Kernels& k, int m, int M, int K) {
    if (!on_unit(k, M)) return;
    k.tile_q_row(q_.data() + m * q_stride(K), m, K, reinterpret_cast<uint8_t*>(packed_.data()));
  }

  // What the kernels read, once all M rows are prepared.
  Acts view(const Kernels& k, int M, int K) const {
    const bool tiles = on_unit(k, M);
    const int8_t* packed = !tiles && M > k.tile_rows ? packed_.data() : nullptr;
    const auto* q_tiles = reinterpret_cast<const uint8_t*>(packed_.data());
    return {M,       normed_.data(), K,           q_.data(),      packed,
            q_tiles, bf16_.data(),   x_scale_.data(), sums_.data(), starts_.data(), nullptr};
  }
  int8_t* q() { return q_.data(); }
  float* x_scale() { return x_scale_.data(); }
  int32_t* sums() { return sums_.data(); }

 private:
  static size_t rounded(int rows) { return static_cast<size_t>((rows + 15) / 16 * 16); }
  static bool on_unit(const Kernels& k, int M) { return k.unit_rows && M >= k.unit_rows; }

  // Row m's words of four k to its place in its tile.
  void pack(int m, int tile, int K) {
    const ptrdiff_t words = q_stride(K) / 4;
    const int8_t* from = q_.data() + m * words * 4;
    int8_t* to = packed_.data() + (m / tile * tile) * words * 4 + (m % tile) * 4;
    for (ptrdiff_t w = 0; w < words; ++w) __builtin_memcpy(to + w * tile * 4, from + w * 4, 4);
  }

  std::vector<float> normed_;
  std::vector<int8_t> q_, packed_;  // packed_: as Acts::packed, or as Acts::q_tiles
  std::vector<uint8_t> bf16_;
  std::vector<float> x_scale_;
  std::vector<int32_t> sums_, starts_;
};

// Tables of looked-up sums for weights of kTernary3 among those that read one activation: each
// thread's own, in its scratch behind `scratch` bytes for its items.
class Lookups {
 public:
  Lookups(const Kernels& k, const Linear* linears, int count, int rows, size_t scratch)
      : begin_((scratch + 63) / 64 * 64) {
    bool wanted = false;
    for (int j = 0; j < count; ++j)
      for (const Weight* w : {linears[j].first, linears[j].second})
        wanted |= w && w->kind == kTernary3;
    if (wanted && rows <= k.lookup_rows) stride_ = lookup_stride(linears[0].first->K);
    bytes_ = static_cast<size_t>(rows) * static_cast<size_t>(stride_) * sizeof(int16_t);
  }
  bool any() const { return bytes_ > 0; }
  size_t scratch_bytes() const { return begin_ + bytes_; }
  void make(const Kernels& k, Acts& acts, void* scratch) const {
    if (!bytes_) return;
    auto* tables = reinterpret_cast<int16_t*>(static_cast<char*>(scratch) + begin_);
    const int K = static_cast<int>(acts.x_stride);
    for (int m = 0; m < acts.M; ++m)
      k.lookup_row(acts.q + m * q_stride(K), K, tables + m * stride_);
    acts.lookups = tables;
  }

 private:
  size_t begin_, bytes_ = 0;
  ptrdiff_t stride_ = 0;
};

// Portions that keep the threads even to the end without a fetch for every item; of a quarter of
// what a thread does where an item asks ahead for much of the next one.
inline int portion_of(int items, int threads, const Lookups& lookups) {
  const int portion = items / (threads * (lookups.any() ? 4 : 16));
  return portion < 1 ? 1 : portion;
}

}  // namespace tk
