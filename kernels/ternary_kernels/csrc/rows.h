// Work on one row: RMSNorm, INT8 quantisation, rotary embedding, embedding look-up.
#pragma once
#include "linear.h"

namespace TK_NS {

// Sixteen lanes of x at k, or what is left of a row of K.
inline F load_at(const float* x, int k, int K) {
  return k + 16 <= K ? load(x + k) : load_n(x + k, K - k);
}

void norm_row(const float* x, const float* weight, float eps, int K, float* y) {
  F squares[2] = {set1(0.0f), set1(0.0f)};
  for (int k = 0; k < K; k += 16) {
    const F v = load_at(x, k, K);
    F& sum = squares[(k >> 4) & 1];
    sum = fma(v, v, sum);
  }
  const float mean = hsum(add(squares[0], squares[1])) / static_cast<float>(K);
  const F inverse = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (int k = 0; k < K; k += 16) {
    F v = mul(load_at(x, k, K), inverse);
    if (weight) v = mul(v, load_at(weight, k, K));
    write_lanes(y + k, v, least(16, K - k));
  }
}

// Butterflies at distances 1, 2, 4, ...: quantizers.py adds the same pairs, so the bits are equal.
// Within a vector's width the compiler shuffles; beyond it whole vectors are added.
void hadamard_row(float* x, int K, int block) {
  for (int start = 0; start + block <= K; start += block) {
    float* y = x + start;
    int distance = 1;
    for (; distance < least(block, 16); distance *= 2)
      for (int i = 0; i < block; i += 2 * distance)
        for (int j = i; j < i + distance; ++j) {
          const float a = y[j], b = y[j + distance];
          y[j] = a + b;
          y[j + distance] = a - b;
        }
    for (; distance < block; distance *= 2)
      for (int i = 0; i < block; i += 2 * distance)
        for (int j = i; j < i + distance; j += 16) {
          const F a = load(y + j), b = load(y + j + distance);
          store(y + j, add(a, b));
          store(y + j + distance, sub(a, b));
        }
    const auto scale = static_cast<float>(1.0 / __builtin_sqrt(static_cast<double>(block)));
    for (int j = 0; j < block; ++j) y[j] *= scale;
  }
}

// NaN and Inf have the largest magnitudes of all bit patterns, so one integer maximum finds
// both the absmax and the trouble.
constexpr int32_t kInfinityBits = 0x7f800000;

inline int32_t absmax_bits(const float* x, int K) {
  I most = izero();
  for (int k = 0; k < K; k += 16) most = imax(most, magnitude_bits(load_at(x, k, K)));
  return hmax(most);
}

bool finite_row(const float* x, int K) { return absmax_bits(x, K) < kInfinityBits; }

void start_row(const int8_t* q, int K, int32_t* starts) {
  for (int g = 0; g < tk::small_k_groups(K); ++g, q += tk::kSmallGroupK) {
    int32_t sum = 0;
    for (int k = 0; k < tk::kSmallGroupK; ++k) sum += q[k];
    starts[g] = -8 * sum;
  }
}

bool quantize_row(const float* x, int K, int8_t* q, float* x_scale, int32_t* sums) {
  const int32_t bits = absmax_bits(x, K);
  if (bits >= kInfinityBits) return false;
  float absmax;
  __builtin_memcpy(&absmax, &bits, 4);
  absmax = absmax < 1e-5f ? 1e-5f : absmax;
  *x_scale = absmax / 127.0f;
  // Two roundings, as PyTorch takes them for 127 / absmax: the codes must be the same to the bit.
  const F inverse = set1((1.0f / absmax) * 127.0f);
  int32_t total = 0;
  for (int g = 0; g * tk::kGroupK < K; ++g) {
    I sum = izero();
    for (int k = g * tk::kGroupK; k < least(K, (g + 1) * tk::kGroupK); k += 16) {
      const I code = to_int(mul(load_at(x, k, K), inverse));
      store_int8(q + k, code);
      sum = iadd(sum, code);
    }
    sums[1 + g] = hsum(sum);
    total += sums[1 + g];
  }
  sums[0] = total;
  const ptrdiff_t written = (K + 15) / 16 * 16;
  __builtin_memset(q + written, 0, static_cast<size_t>(tk::q_stride(K) - written));
  return true;
}

void rotate_head(float* x, const float* cos, const float* sin, int D) {
  const int half = D / 2;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const F a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, sub(mul(a, c), mul(b, s)));
    store(x + half + i, add(mul(b, c), mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = b * cos[i] + a * sin[i];
  }
}

void embed_row(const Weight& w, int row, float* out) {
  const uint8_t* tiles = group_tiles(w, row / 16);
  const int lane = row % 16;
  if (w.kind == tk::kInt8) {
    const float scale = static_cast<const float*>(w.scales)[row];
    for (int k = 0; k < w.K; ++k) {
      const int code =
          tiles[static_cast<size_t>(k / 4) * 64 + static_cast<size_t>(lane * 4 + k % 4)];
      out[k] = static_cast<float>(code - 128) * scale;
    }
    return;
  }
  if (w.kind == tk::kInt4) {
    alignas(64) uint16_t scales[16];
    float of_group[16];
    for (int k = 0; k < w.K; ++k) {
      if (k % tk::kSmallGroupK == 0) {
        const uint16_t* own = small_group_scales(w, row / 16) + k / tk::kSmallGroupK * 16;
        __builtin_memcpy(scales, own, sizeof(scales));
        store(of_group, load_f16(scales));
      }
      const int byte =
          tiles[static_cast<size_t>(k / 8) * 64 + static_cast<size_t>(lane * 4 + k % 4)];
      const int code = k % 8 < 4 ? byte & 15 : byte >> 4;
      out[k] = static_cast<float>(code - 8) * of_group[lane];
    }
    return;
  }
  const auto* halves = reinterpret_cast<const uint16_t*>(tiles);
  alignas(64) uint16_t gathered[16] = {};
  for (int k = 0; k < w.K; k += 16) {
    const int lanes = least(16, w.K - k);
    for (int i = 0; i < lanes; ++i)
      gathered[i] = halves[static_cast<size_t>(k + i) * 16 + static_cast<size_t>(lane)];
    const F v = w.kind == tk::kBf16 ? load_bf16(gathered) : load_f16(gathered);
    write_lanes(out + k, v, lanes);
  }
}

}  // namespace TK_NS
