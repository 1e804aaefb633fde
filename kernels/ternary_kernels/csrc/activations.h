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
        packed_(q_.size()),
        x_scale_(static_cast<size_t>(rows)),
        sums_(static_cast<size_t>(rows) * static_cast<size_t>(sums_stride(max_K))) {}

  // Row m of M, of K floats: norm (eps < 0: none), then INT8 unless only floats are asked for.
  // False if the row holds NaN or Inf.
  bool prepare(const Kernels& k, int m, int M, const float* x, int K, const float* norm, float eps,
               bool quantize, bool floats) {
    const float* row = x;
    if (eps >= 0 || floats) {
      float* own = normed_.data() + static_cast<ptrdiff_t>(m) * K;
      if (eps >= 0)
        k.norm_row(x, norm, eps, K, own);
      else
        __builtin_memcpy(own, x, static_cast<size_t>(K) * sizeof(float));
      row = own;
    }
    if (!quantize) return k.finite_row(row, K);
    if (!k.quantize_row(row, K, q_.data() + m * q_stride(K), x_scale_.data() + m,
                        sums_.data() + m * sums_stride(K)))
      return false;
    if (M > k.tile_rows && m < M / k.tile_rows * k.tile_rows) pack(m, k.tile_rows, K);
    return true;
  }

  // What the kernels read, once all M rows are prepared.
  Acts view(const Kernels& k, int M, int K) const {
    const int8_t* packed = M > k.tile_rows ? packed_.data() : nullptr;
    return {M, normed_.data(), K, q_.data(), packed, x_scale_.data(), sums_.data()};
  }
  int8_t* q() { return q_.data(); }
  float* x_scale() { return x_scale_.data(); }
  int32_t* sums() { return sums_.data(); }

 private:
  // Row m's words of four k to its place in its tile.
  void pack(int m, int tile, int K) {
    const ptrdiff_t words = q_stride(K) / 4;
    const int8_t* from = q_.data() + m * words * 4;
    int8_t* to = packed_.data() + (m / tile * tile) * words * 4 + (m % tile) * 4;
    for (ptrdiff_t w = 0; w < words; ++w) __builtin_memcpy(to + w * tile * 4, from + w * 4, 4);
  }

  std::vector<float> normed_;
  std::vector<int8_t> q_, packed_;
  std::vector<float> x_scale_;
  std::vector<int32_t> sums_;
};

// Portions that keep the threads even to the end without a fetch for every item.
inline int portion_of(int items, int threads) {
  const int portion = items / (threads * 16);
  return portion < 1 ? 1 : portion;
}

}  // namespace tk
