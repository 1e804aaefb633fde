// Every instruction set of this build against plain C++, bit for bit where the arithmetic is
// integer: for processors that can only be emulated, where no Python runs (test_emulated.py).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "abi.h"

namespace {

std::mt19937 rng(1);

int below(int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); }

std::vector<float> floats(size_t count) {
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

// A random weight of a kind, tiled as packing.py does it, with scales for each of its groups.
struct RandomWeight {
  tk::Weight weight{};
  std::vector<uint8_t> tiles;
  std::vector<float> scales;
  std::vector<uint16_t> small_scales;

  RandomWeight(tk::Kind kind, tk::Scaling scaling, int N, int K) {
    const size_t groups = static_cast<size_t>(tk::row_groups(N));
    const bool half = kind == tk::kBf16 || kind == tk::kF16;
    const int a_block = kind == tk::kTernary5 ? 20 : 16, small_groups = tk::small_k_groups(K);
    const size_t blocks = static_cast<size_t>(kind == tk::kInt4 ? small_groups * 4 : (K + a_block - 1) / a_block);
    const size_t bytes = half ? static_cast<size_t>(K) * 32 : blocks * (kind == tk::kInt8 ? 256 : 64);
    tiles.resize(groups * bytes + 64);
    for (size_t i = 0; i < tiles.size(); ++i) {
      if (kind == tk::kTernary)
        tiles[i] = static_cast<uint8_t>(below(3) | below(3) << 2 | below(3) << 4 | below(3) << 6);
      else if (kind == tk::kTernary5)
        tiles[i] = static_cast<uint8_t>((below(243) * 256 + 242) / 243);
      else if (half && i % 2)  // the high byte: about one, either sign, in both half types
        tiles[i] = static_cast<uint8_t>(0x3c | below(2) << 7);
      else
        tiles[i] = static_cast<uint8_t>(below(256));
    }
    const size_t vectors = scaling == tk::kByGroup ? static_cast<size_t>(tk::k_groups(K)) : 1;
    scales = floats((scaling == tk::kByTensor ? 1 : groups * vectors) * 16);
    weight = {kind, N, K, scaling, tiles.data(), scales.data()};
    if (kind == tk::kInt4) {  // fp16 of about one, either sign
      small_scales.resize(groups * static_cast<size_t>(small_groups) * 16);
      for (uint16_t& s : small_scales)
        s = static_cast<uint16_t>(0x3800 + below(0x800) + (below(2) << 15));
      weight.scaling = tk::kBySmallGroup;
      weight.scales = small_scales.data();
    }
  }
};

std::vector<float> products(const char* isa, const tk::Weight& w, const std::vector<float>& x,
                            int M, int gate_mode) {
  if (tk_force_isa(isa)) std::abort();
  std::vector<float> out(static_cast<size_t>(M) * static_cast<size_t>(w.N));
  const float* no_bias = nullptr;
  float* to = out.data();
  const tk::Weight* weights = &w;
  const int failed =
      gate_mode ? tk_gated(&w, &w, x.data(), M, nullptr, 1e-5f, nullptr, nullptr, gate_mode, to)
                : tk_linears(&weights, 1, x.data(), M, nullptr, -1.0f, &no_bias, &to);
  if (failed) std::abort();
  return out;
}

// Activations that bf16 holds exactly, so that rounding them again changes nothing.
std::vector<float> in_bf16(std::vector<float> values) {
  for (float& v : values) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    bits &= 0xffff0000;
    std::memcpy(&v, &bits, 4);
  }
  return values;
}

bool equal(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= tolerance * (1.0f + std::fabs(b[i])))) return false;
  return true;
}

}  // namespace

int main() {
  const int shapes[][3] = {{1, 1, 1},    {2, 17, 60},   {3, 33, 129}, {4, 16, 128},  {5, 70, 300},
                           {8, 40, 257}, {13, 31, 640}, {1, 48, 3001}, {40, 33, 200}, {16, 16, 64}, {33, 50, 63}};
  const tk::Kind kinds[] = {tk::kTernary, tk::kTernary5, tk::kInt8, tk::kInt4, tk::kBf16, tk::kF16};
  int cases = 0;
  for (int i = 0; tk_available_isas(i); ++i) {
    const char* isa = tk_available_isas(i);
    if (!std::strcmp(isa, "plain")) continue;
    for (const auto& shape : shapes)
      for (const tk::Kind kind : kinds)
        for (const tk::Scaling scaling : {tk::kByTensor, tk::kByRow, tk::kByGroup})
          for (const int mode : {0, static_cast<int>(tk::kGateSilu), static_cast<int>(tk::kGateRelu2)}) {
            const int M = shape[0], N = shape[1], K = shape[2];
            if (scaling != tk::kByRow && kind > tk::kTernary5) continue;
            if (scaling == tk::kByGroup && kind != tk::kTernary) continue;
            const RandomWeight w(kind, scaling, N, K);
            const std::vector<float> x = floats(static_cast<size_t>(M) * static_cast<size_t>(K));
            const bool exact = !w.weight.is_float() && mode == 0;
            // A tile unit takes the activations of bf16 weights in bf16: x is one that loses nothing by it.
            tk_force_isa(isa);
            const bool rounds = kind == tk::kBf16 && tk_unit_rows() && M >= tk_unit_rows();
            if (!equal(products(isa, w.weight, rounds ? in_bf16(x) : x, M, mode),
                       products("plain", w.weight, rounds ? in_bf16(x) : x, M, mode),
                       exact ? 0.0f : 1e-3f)) {
              std::printf("%s differs from plain: M %d N %d K %d kind %d scaling %d mode %d\n", isa, M,
                          N, K, kind, scaling, mode);
              return 1;
            }
            ++cases;
          }
    std::printf("%s equals plain in %d cases\n", isa, cases);
  }
  return cases ? 0 : 2;
}
