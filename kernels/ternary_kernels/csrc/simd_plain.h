// Sixteen lanes in plain arrays: correct on any machine, and what compilers vectorise best.
#pragma once

namespace TK_NS {

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct C {
  uint8_t v[64];
};
struct A {
  int8_t v[4];
};

constexpr int kRowGroups = 1;
constexpr int kMaxRows = 4;
constexpr bool kInPlacePlanes = false;
constexpr int kInt8Zero = 128;
constexpr bool kTritTables = false;

#define TK_LANES(type, expression)                    \
  type r;                                             \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r

inline F load(const float* p) { TK_LANES(F, p[i]); }
inline F load_n(const float* p, int n) { TK_LANES(F, i < n ? p[i] : 0.0f); }
inline void store(float* p, F x) { __builtin_memcpy(p, x.v, sizeof x.v); }
inline F set1(float x) { TK_LANES(F, x); }
inline F add(F x, F y) { TK_LANES(F, x.v[i] + y.v[i]); }
inline F sub(F x, F y) { TK_LANES(F, x.v[i] - y.v[i]); }
inline F mul(F x, F y) { TK_LANES(F, x.v[i] * y.v[i]); }
inline F div(F x, F y) { TK_LANES(F, x.v[i] / y.v[i]); }
inline F fma(F x, F y, F z) { TK_LANES(F, x.v[i] * y.v[i] + z.v[i]); }
inline F vmax(F x, F y) { TK_LANES(F, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
inline F vmin(F x, F y) { TK_LANES(F, x.v[i] < y.v[i] ? x.v[i] : y.v[i]); }
inline float hsum(F x) {
  float s = 0;
  for (float lane : x.v) s += lane;
  return s;
}
inline float hmax(F x) {
  float m = x.v[0];
  for (float lane : x.v) m = lane > m ? lane : m;
  return m;
}
inline F to_float(I x) { TK_LANES(F, static_cast<float>(x.v[i])); }
inline I to_int(F x) { TK_LANES(I, static_cast<int32_t>(__builtin_rintf(x.v[i]))); }
inline F scale_by_power_of_2(F x, I n) { TK_LANES(F, __builtin_ldexpf(x.v[i], n.v[i])); }

// Wraps around as the vector instructions do: INT8 sums with 128 added may pass 2^31 on the
// way to a result that fits.
inline int32_t wrap(uint32_t x) { return static_cast<int32_t>(x); }
inline uint32_t bits(int32_t x) { return static_cast<uint32_t>(x); }
inline I izero() { TK_LANES(I, 0); }
inline I iset1(int32_t x) { TK_LANES(I, x); }
inline I iadd(I x, I y) { TK_LANES(I, wrap(bits(x.v[i]) + bits(y.v[i]))); }
inline I isub(I x, I y) { TK_LANES(I, wrap(bits(x.v[i]) - bits(y.v[i]))); }
template <int n>
inline I ishr(I x) {
  TK_LANES(I, x.v[i] >> n);
}
inline I iload(const int32_t* p) { TK_LANES(I, p[i]); }
inline void istore(int32_t* p, I x) { __builtin_memcpy(p, x.v, sizeof x.v); }
inline I imax(I x, I y) { TK_LANES(I, x.v[i] > y.v[i] ? x.v[i] : y.v[i]); }
inline int32_t hsum(I x) {
  uint32_t s = 0;
  for (int32_t lane : x.v) s += bits(lane);
  return wrap(s);
}
inline int32_t hmax(I x) {
  int32_t m = x.v[0];
  for (int32_t lane : x.v) m = lane > m ? lane : m;
  return m;
}
inline uint32_t float_bits(float x) {
  uint32_t b;
  __builtin_memcpy(&b, &x, 4);
  return b;
}
inline float bits_float(uint32_t b) {
  float x;
  __builtin_memcpy(&x, &b, 4);
  return x;
}
inline I magnitude_bits(F x) { TK_LANES(I, wrap(float_bits(x.v[i]) & 0x7fffffff)); }
inline void store_int8(int8_t* p, I x) {
  for (int i = 0; i < 16; ++i)
    p[i] = static_cast<int8_t>(x.v[i] < -128 ? -128 : x.v[i] > 127 ? 127 : x.v[i]);
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31, mantissa = h & 1023;
  if (exponent == 31) return bits_float(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -tiny : tiny;
}
inline uint16_t float_to_half(float x) {
  const uint32_t b = float_bits(x), sign = (b >> 16) & 0x8000, magnitude = b & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal half: let the addition round
    const float shifted = bits_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}
inline F load_bf16(const uint16_t* p) { TK_LANES(F, bits_float(uint32_t{p[i]} << 16)); }
inline F load_f16(const uint16_t* p) { TK_LANES(F, half_to_float(p[i])); }
inline void store_f16(uint16_t* p, F x) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(x.v[i]);
}
inline void store_bf16(uint16_t* p, F x) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t b = float_bits(x.v[i]);
    p[i] = static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
  }
}
inline void pair_rows(const uint16_t* rows, uint8_t* out) {
  for (int i = 0; i < 32; ++i) __builtin_memcpy(out + 2 * i, rows + i / 2 + i % 2 * 16, 2);
}
#undef TK_LANES

inline C load_codes(const uint8_t* p) {
  C r;
  __builtin_memcpy(r.v, p, 64);
  return r;
}
inline void store_codes(uint8_t* p, C x) { __builtin_memcpy(p, x.v, 64); }
template <int p>
inline C plane(C x) {
  for (uint8_t& code : x.v) code = (code >> (2 * p)) & 3;
  return x;
}
template <int p>
inline C plane_in_place(C x) {
  return plane<p>(x);
}
inline C next_trit(C& rest) {
  C r;
  for (int i = 0; i < 64; ++i) {
    const unsigned tripled = 3u * rest.v[i];
    r.v[i] = static_cast<uint8_t>(tripled >> 8);
    rest.v[i] = static_cast<uint8_t>(tripled);
  }
  return r;
}
template <int p>
inline C nibble(C x) {
  for (uint8_t& code : x.v) code = (code >> (4 * p)) & 15;
  return x;
}
template <int p>
inline C nibble_in_place(C x) {
  return nibble<p>(x);
}
inline C less_8(C x) {
  for (uint8_t& code : x.v) code = static_cast<uint8_t>(code - 8);
  return x;
}
inline A broadcast4(const int8_t* p) {
  A r;
  __builtin_memcpy(r.v, p, 4);
  return r;
}
inline I dot_codes(I acc, C w, A x) {
  for (int i = 0; i < 16; ++i) {
    int32_t s = 0;
    for (int b = 0; b < 4; ++b) s += w.v[4 * i + b] * x.v[b];
    acc.v[i] = wrap(bits(acc.v[i]) + bits(s));
  }
  return acc;
}
inline I dot_int8(I acc, C w, A x) { return dot_codes(acc, w, x); }
inline I part_start(int32_t start) { return iset1(start); }
inline I part_dot(I acc, C w, A x) { return dot_codes(acc, w, x); }
inline I part_end(I acc, int32_t) { return acc; }

}  // namespace TK_NS
