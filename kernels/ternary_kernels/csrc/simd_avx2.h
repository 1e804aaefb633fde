// Sixteen lanes in two 256-bit registers: AVX2, and AVX-VNNI where the flags allow it.
#pragma once
#include <immintrin.h>

namespace TK_NS {

struct F {
  __m256 a, b;
};
struct I {
  __m256i a, b;
};
struct C {
  __m256i a, b;
};
using A = __m256i;

constexpr int kRowGroups = 1;
constexpr int kMaxRows = 4;
constexpr bool kTritTables = false;
#ifdef __AVXVNNI__
constexpr bool kInPlacePlanes = true;
constexpr int kInt8Zero = 128;
#else
// maddubs saturates at int16: codes must be shifted down to 0..2 (pairs reach 512), and full
// INT8 goes by |x| times w with the sign of x (pairs reach 2 * 128 * 127 = 32512).
constexpr bool kInPlacePlanes = false;
constexpr int kInt8Zero = 0;
#endif

inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F load_n(const float* p, int n) {
  alignas(32) float lanes[16] = {};
  __builtin_memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return {_mm256_load_ps(lanes), _mm256_load_ps(lanes + 8)};
}
inline void store(float* p, F v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline F set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline F vmax(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F vmin(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline float hsum(F v) {
  const __m256 s = _mm256_add_ps(v.a, v.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float hmax(F v) {
  const __m256 s = _mm256_max_ps(v.a, v.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline F to_float(I v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
inline I to_int(F v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
inline __m256 power_of_2(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline F scale_by_power_of_2(F v, I n) { return mul(v, F{power_of_2(n.a), power_of_2(n.b)}); }

inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I iset1(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
inline I iadd(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline I isub(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int n>
inline I ishr(I v) {
  return {_mm256_srai_epi32(v.a, n), _mm256_srai_epi32(v.b, n)};
}
inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline I iload(const int32_t* p) { return {load256(p), load256(p + 8)}; }
inline void istore(int32_t* p, I v) {
  store256(p, v.a);
  store256(p + 8, v.b);
}
inline I imax(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline int32_t hsum(I v) {
  const __m256i s = _mm256_add_epi32(v.a, v.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
inline int32_t hmax(I v) {
  const __m256i s = _mm256_max_epi32(v.a, v.b);
  __m128i q = _mm_max_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
inline I magnitude_bits(F v) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(v.a), mask),
          _mm256_and_si256(_mm256_castps_si256(v.b), mask)};
}
inline void store_int8(int8_t* p, I v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline F load_bf16(const uint16_t* p) {
  return {widen_bf16(load128(p)), widen_bf16(load128(p + 8))};
}
inline F load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
}
inline void store_f16(uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.a, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.b, 0));
}
inline void store_bf16(uint16_t* p, F v) {
  alignas(32) uint32_t bits[16];
  _mm256_store_ps(reinterpret_cast<float*>(bits), v.a);
  _mm256_store_ps(reinterpret_cast<float*>(bits) + 8, v.b);
  for (int i = 0; i < 16; ++i)
    p[i] = static_cast<uint16_t>((bits[i] + 0x7fff + ((bits[i] >> 16) & 1)) >> 16);
}

inline C load_codes(const uint8_t* p) { return {load256(p), load256(p + 32)}; }
inline void store_codes(uint8_t* p, C v) {
  store256(p, v.a);
  store256(p + 32, v.b);
}
template <int p>
inline C plane_in_place(C v) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(3 << (2 * p)));
  return {_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)};
}
template <int p>
inline C plane(C v) {
  const __m256i mask = _mm256_set1_epi8(3);
  return {_mm256_and_si256(_mm256_srli_epi16(v.a, 2 * p), mask),
          _mm256_and_si256(_mm256_srli_epi16(v.b, 2 * p), mask)};
}
// floor(0.75 * byte) / 64, see simd_avx512.h.
inline __m256i next_trit(__m256i& rest) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i quarter = _mm256_avg_epu8(_mm256_avg_epu8(rest, zero), zero);
  const __m256i three_quarters = _mm256_sub_epi8(rest, quarter);
  rest = _mm256_add_epi8(rest, _mm256_add_epi8(rest, rest));
  return _mm256_and_si256(_mm256_srli_epi16(three_quarters, 6), _mm256_set1_epi8(3));
}
inline C next_trit(C& rest) {
  const __m256i a = next_trit(rest.a), b = next_trit(rest.b);
  return {a, b};
}
template <int p>
inline C nibble(C v) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(_mm256_srli_epi16(v.a, 4 * p), mask),
          _mm256_and_si256(_mm256_srli_epi16(v.b, 4 * p), mask)};
}
template <int p>
inline C nibble_in_place(C v) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(0x0f << (4 * p)));
  return {_mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask)};
}
inline C less_8(C v) {
  const __m256i eight = _mm256_set1_epi8(8);
  return {_mm256_sub_epi8(v.a, eight), _mm256_sub_epi8(v.b, eight)};
}
inline A broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}
#ifdef __AVXVNNI__
inline I dot_codes(I acc, C w, A x) {
  return {_mm256_dpbusd_avx_epi32(acc.a, w.a, x), _mm256_dpbusd_avx_epi32(acc.b, w.b, x)};
}
inline I dot_int8(I acc, C w, A x) { return dot_codes(acc, w, x); }
inline I part_start(int32_t start) { return iset1(start); }
inline I part_dot(I acc, C w, A x) { return dot_codes(acc, w, x); }
inline I part_end(I acc, int32_t) { return acc; }
#else
inline __m256i add_pairs(__m256i acc, __m256i words) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
inline I dot_codes(I acc, C w, A x) {
  return {add_pairs(acc.a, _mm256_maddubs_epi16(w.a, x)),
          add_pairs(acc.b, _mm256_maddubs_epi16(w.b, x))};
}
inline __m256i dot_int8(__m256i acc, __m256i w, __m256i x) {
  const __m256i signed_w = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i words = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(signed_w, x));
  return add_pairs(acc, words);
}
inline I dot_int8(I acc, C w, A x) { return {dot_int8(acc.a, w.a, x), dot_int8(acc.b, w.b, x)}; }
// Parts in 16 bits: eight pairs of products reach 8 * 2 * 15 * 128 = 30720.
inline I part_start(int32_t) { return izero(); }
inline I part_dot(I acc, C w, A x) {
  return {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, x)),
          _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, x))};
}
inline I part_end(I acc, int32_t start) {
  const __m256i from = _mm256_set1_epi32(start);
  return {add_pairs(from, acc.a), add_pairs(from, acc.b)};
}
#endif

}  // namespace TK_NS
