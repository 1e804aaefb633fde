// Sixteen lanes in four 128-bit registers: ARMv8.2 NEON with the dot-product extension.
#pragma once
#include <arm_neon.h>

namespace TK_NS {

struct F {
  float32x4_t v[4];
};
struct I {
  int32x4_t v[4];
};
struct C {
  uint8x16_t v[4];
};
using A = int8x16_t;

constexpr int kRowGroups = 1;
constexpr int kMaxRows = 4;
// sdot is signed x signed: codes must be shifted down to 0..2, signed weights need no offset.
constexpr bool kInPlacePlanes = false;
constexpr int kInt8Zero = 0;
constexpr bool kTritTables = false;

#define TK_QUARTERS(type, expression)                \
  type r;                                            \
  for (int i = 0; i < 4; ++i) r.v[i] = (expression); \
  return r

inline F load(const float* p) { TK_QUARTERS(F, vld1q_f32(p + 4 * i)); }
inline F load_n(const float* p, int n) {
  float lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return load(lanes);
}
inline void store(float* p, F x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F set1(float x) { TK_QUARTERS(F, vdupq_n_f32(x)); }
inline F add(F x, F y) { TK_QUARTERS(F, vaddq_f32(x.v[i], y.v[i])); }
inline F sub(F x, F y) { TK_QUARTERS(F, vsubq_f32(x.v[i], y.v[i])); }
inline F mul(F x, F y) { TK_QUARTERS(F, vmulq_f32(x.v[i], y.v[i])); }
inline F div(F x, F y) { TK_QUARTERS(F, vdivq_f32(x.v[i], y.v[i])); }
inline F fma(F x, F y, F z) { TK_QUARTERS(F, vfmaq_f32(z.v[i], x.v[i], y.v[i])); }
inline F vmax(F x, F y) { TK_QUARTERS(F, vmaxq_f32(x.v[i], y.v[i])); }
inline F vmin(F x, F y) { TK_QUARTERS(F, vminq_f32(x.v[i], y.v[i])); }
inline float hsum(F x) {
  return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3])));
}
inline float hmax(F x) {
  return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3])));
}
inline F to_float(I x) { TK_QUARTERS(F, vcvtq_f32_s32(x.v[i])); }
inline I to_int(F x) { TK_QUARTERS(I, vcvtnq_s32_f32(x.v[i])); }
inline F scale_by_power_of_2(F x, I n) {
  TK_QUARTERS(F, vmulq_f32(x.v[i], vreinterpretq_f32_s32(
                                       vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23))));
}

inline I izero() { TK_QUARTERS(I, vdupq_n_s32(0)); }
inline I iset1(int32_t x) { TK_QUARTERS(I, vdupq_n_s32(x)); }
inline I iadd(I x, I y) { TK_QUARTERS(I, vaddq_s32(x.v[i], y.v[i])); }
inline I isub(I x, I y) { TK_QUARTERS(I, vsubq_s32(x.v[i], y.v[i])); }
template <int n>
inline I ishr(I x) {
  if constexpr (n == 0)
    return x;
  else {
    TK_QUARTERS(I, vshrq_n_s32(x.v[i], n));
  }
}
inline I iload(const int32_t* p) { TK_QUARTERS(I, vld1q_s32(p + 4 * i)); }
inline void istore(int32_t* p, I x) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, x.v[i]);
}
inline I imax(I x, I y) { TK_QUARTERS(I, vmaxq_s32(x.v[i], y.v[i])); }
inline int32_t hsum(I x) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3])));
}
inline int32_t hmax(I x) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.v[0], x.v[1]), vmaxq_s32(x.v[2], x.v[3])));
}
inline I magnitude_bits(F x) {
  TK_QUARTERS(I, vandq_s32(vreinterpretq_s32_f32(x.v[i]), vdupq_n_s32(0x7fffffff)));
}
inline void store_int8(int8_t* p, I x) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}

inline F load_bf16(const uint16_t* p) {
  TK_QUARTERS(F, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
inline F load_f16(const uint16_t* p) {
  TK_QUARTERS(F, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
inline void store_f16(uint16_t* p, F x) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline void store_bf16(uint16_t* p, F x) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    vst1_u16(p + 4 * i, vshrn_n_u32(rounded, 16));
  }
}

inline C load_codes(const uint8_t* p) { TK_QUARTERS(C, vld1q_u8(p + 16 * i)); }
inline void store_codes(uint8_t* p, C x) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, x.v[i]);
}
template <int p>
inline C plane(C x) {
  if constexpr (p == 0) {
    TK_QUARTERS(C, vandq_u8(x.v[i], vdupq_n_u8(3)));
  } else if constexpr (p == 3) {
    TK_QUARTERS(C, vshrq_n_u8(x.v[i], 6));
  } else {
    TK_QUARTERS(C, vandq_u8(vshrq_n_u8(x.v[i], 2 * p), vdupq_n_u8(3)));
  }
}
template <int p>
inline C plane_in_place(C x) {
  return plane<p>(x);
}
// The carry of 3 * byte: one for each of the two borders, 256/3 and 512/3, that it has passed.
inline C next_trit(C& rest) {
  C r;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t b = rest.v[i];
    const uint8x16_t passed = vaddq_u8(vcgtq_u8(b, vdupq_n_u8(85)), vcgtq_u8(b, vdupq_n_u8(170)));
    r.v[i] = vsubq_u8(vdupq_n_u8(0), passed);
    rest.v[i] = vaddq_u8(b, vaddq_u8(b, b));
  }
  return r;
}
template <int p>
inline C nibble(C x) {
  if constexpr (p == 0) {
    TK_QUARTERS(C, vandq_u8(x.v[i], vdupq_n_u8(0x0f)));
  } else {
    TK_QUARTERS(C, vshrq_n_u8(x.v[i], 4));
  }
}
template <int p>
inline C nibble_in_place(C x) {
  return nibble<p>(x);
}
inline C less_8(C x) { TK_QUARTERS(C, vsubq_u8(x.v[i], vdupq_n_u8(8))); }
inline A broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
inline I dot_codes(I acc, C w, A x) {
  TK_QUARTERS(I, vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), x));
}
inline I dot_int8(I acc, C w, A x) {
  TK_QUARTERS(I, vdotq_s32(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x));
}
inline I part_start(int32_t start) { return iset1(start); }
inline I part_dot(I acc, C w, A x) { return dot_codes(acc, w, x); }
inline I part_end(I acc, int32_t) { return acc; }
#undef TK_QUARTERS

}  // namespace TK_NS
