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
        undo_(static_cast<size_t>(rows)),
        sums_(static_cast<size_t>(rows) * static_cast<size_t>(sums_stride(max_K))) {}

  // Row m of K floats: norm (eps < 0: none), then INT8 unless only floats are asked for.
  // False if the row holds NaN or Inf.
  bool prepare(const Kernels& k, int m, const float* x, int K, const float* norm, float eps,
               bool quantize, bool floats) {
    const float* row = x;
    if (eps >= 0 || floats) {
      float* own = normed_.data() + static_cast<ptrdiff_t>(m) * K;
      if (eps >= 0) k.norm_row(x, norm, eps, K, own);
      else __builtin_memcpy(own, x, static_cast<size_t>(K) * sizeof(float));
      row = own;
    }
    if (!quantize) return k.finite_row(row, K);
    return k.quantize_row(row, K, q_.data() + m * q_stride(K), undo_.data() + m,
                          sums_.data() + m * sums_stride(K));
  }

  Acts view(int M, int K) const {
    return {M, normed_.data(), K, q_.data(), undo_.data(), sums_.data()};
  }
  int8_t* q() { return q_.data(); }
  float* undo() { return undo_.data(); }
  int32_t* sums() { return sums_.data(); }

 private:
  std::vector<float> normed_;
  std::vector<int8_t> q_;
  std::vector<float> undo_;
  std::vector<int32_t> sums_;
};

// Portions that keep the threads even to the end without a fetch for every item.
inline int portion_of(int items, int threads) {
  const int portion = items / (threads * 16);
  return portion < 1 ? 1 : portion;
}

}  // namespace tk
