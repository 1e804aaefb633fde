// Sixteen lanes in one 512-bit register, AVX-512 with VNNI; with VBMI base-3 codes by tables.
//
// The vocabulary that every simd_*.h defines (F: 16 floats, I: 16 int32, C: 64 codes of 16
// rows x 4 k, A: 4 activations broadcast to all rows) is listed in simd.h.
#pragma once
#include <immintrin.h>

namespace TK_NS {

using F = __m512;
using I = __m512i;
using C = __m512i;
using A = __m512i;

// Register budget of the tiles: row groups side by side, and rows of activations.
constexpr int kRowGroups = 2;
constexpr int kMaxRows = 12;
// vpdpbusd takes any unsigned byte: two-bit codes stay where they lie in the byte, and signed
// bytes enter with 128 added.
constexpr bool kInPlacePlanes = true;
constexpr int kInt8Zero = 128;

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_n(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F set1(float v) { return _mm512_set1_ps(v); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F vmax(F a, F b) { return _mm512_max_ps(a, b); }
inline F vmin(F a, F b) { return _mm512_min_ps(a, b); }
inline float hsum(F v) { return _mm512_reduce_add_ps(v); }
inline float hmax(F v) { return _mm512_reduce_max_ps(v); }
inline F to_float(I v) { return _mm512_cvtepi32_ps(v); }
inline I to_int(F v) { return _mm512_cvtps_epi32(v); }  // nearest, ties to even
inline F scale_by_power_of_2(F v, I n) {
  return mul(
      v, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)));
}

inline I izero() { return _mm512_setzero_si512(); }
inline I iset1(int32_t v) { return _mm512_set1_epi32(v); }
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
template <int n>
inline I ishr(I v) {
  return _mm512_srai_epi32(v, n);
}
inline I iload(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void istore(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
inline int32_t hsum(I v) { return _mm512_reduce_add_epi32(v); }
inline I magnitude_bits(F v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
inline I imax(I a, I b) { return _mm512_max_epi32(a, b); }
inline int32_t hmax(I v) { return _mm512_reduce_max_epi32(v); }
inline void store_int8(int8_t* p, I v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}

inline F load_bf16(const uint16_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline F load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_f16(uint16_t* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* p, F v) {
  const I bits = _mm512_castps_si512(v);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
// Two rows of sixteen bf16 to sixteen pairs.
inline void pair_rows(const uint16_t* rows, uint8_t* out) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6, 22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512(
      out, _mm512_permutexvar_epi16(_mm512_load_si512(order), _mm512_loadu_si512(rows)));
}

inline C load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_codes(uint8_t* p, C v) { _mm512_storeu_si512(p, v); }
template <int p>
inline C plane_in_place(C v) {
  return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(3 << (2 * p))));
}
template <int p>
inline C plane(C v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 2 * p), _mm512_set1_epi8(3));
}
// The carry of 3 * byte is the next base-3 digit: floor(0.75 * byte) / 64. avg rounds up, so
// two of them with zero give ceil(byte / 4), and the difference rounds down, as it must.
inline C next_trit(C& rest) {
  const C zero = _mm512_setzero_si512();
  const C quarter = _mm512_avg_epu8(_mm512_avg_epu8(rest, zero), zero);
  const C three_quarters = _mm512_sub_epi8(rest, quarter);
  const C digit = _mm512_and_si512(_mm512_srli_epi16(three_quarters, 6), _mm512_set1_epi8(3));
  rest = _mm512_add_epi8(rest, _mm512_add_epi8(rest, rest));
  return digit;
}
#if defined(__AVX512VBMI__)
// A byte's first four digits as two-bit codes, the first one lowest, and its fifth.
constexpr bool kTritTables = true;
struct alignas(64) TritTables {
  uint8_t four[256], fifth[256];
  constexpr TritTables() : four(), fifth() {
    for (int byte = 0; byte < 256; ++byte) {
      int rest = byte, codes = 0;
      for (int p = 0; p < 4; ++p) {
        codes |= (rest * 3 / 256) << (2 * p);
        rest = rest * 3 % 256;
      }
      four[byte] = static_cast<uint8_t>(codes);
      fifth[byte] = static_cast<uint8_t>(rest * 3 / 256);
    }
  }
};
constexpr TritTables kTables;
inline C look_up(const uint8_t (&table)[256], C index) {
  const C low = _mm512_permutex2var_epi8(_mm512_load_si512(table), index,
                                         _mm512_load_si512(table + 64));
  const C high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), index,
                                          _mm512_load_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
}
inline C four_trits(C v) { return look_up(kTables.four, v); }
inline C fifth_trit(C v) { return look_up(kTables.fifth, v); }
#else
constexpr bool kTritTables = false;
#endif

template <int p>
inline C nibble(C v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 4 * p), _mm512_set1_epi8(0x0f));
}
template <int p>
inline C nibble_in_place(C v) {
  return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(0x0f << (4 * p))));
}
inline C less_8(C v) { return _mm512_sub_epi8(v, _mm512_set1_epi8(8)); }
inline A broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
inline I dot_codes(I acc, C w, A x) { return _mm512_dpbusd_epi32(acc, w, x); }
inline I dot_int8(I acc, C w, A x) { return _mm512_dpbusd_epi32(acc, w, x); }
inline I part_start(int32_t start) { return iset1(start); }
inline I part_dot(I acc, C w, A x) { return _mm512_dpbusd_epi32(acc, w, x); }
inline I part_end(I acc, int32_t) { return acc; }

// Codes of three weights in five bits (lookup.h). W: 32 words.
#define TK_LOOKUPS
using W = __m512i;
constexpr int kLookupRows = 12;
inline W no_words() { return _mm512_setzero_si512(); }
inline W add_words(W a, W b) { return _mm512_add_epi16(a, b); }
inline W less_word(W a, int16_t b) { return _mm512_sub_epi16(a, _mm512_set1_epi16(b)); }
// The three digits in base 3 of the numbers 0 to 26 as bytes; four numbers in of[0], the next four
// in of[1] and so on, as two registers of sums come together when they are packed into one.
struct alignas(64) TripleDigits {
  uint8_t of[2][64];
  constexpr TripleDigits() : of() {
    for (int code = 0; code < 27; ++code) {
      uint8_t* digits = of[code / 4 % 2] + 4 * (code / 8 * 4 + code % 4);
      digits[0] = static_cast<uint8_t>(code % 3);
      digits[1] = static_cast<uint8_t>(code / 3 % 3);
      digits[2] = static_cast<uint8_t>(code / 9);
    }
  }
};
constexpr TripleDigits kDigits;
// Sums of digits times three activations from x on; a fourth is read.
inline void store_sums(int16_t* table, const int8_t* x) {
  const A three = broadcast4(x);
  const I low = dot_codes(izero(), _mm512_load_si512(kDigits.of[0]), three);
  const I high = dot_codes(izero(), _mm512_load_si512(kDigits.of[1]), three);
  _mm512_store_si512(table, _mm512_packs_epi32(low, high));
}
// Kept in its register: GCC would read the words again for every code in them.
inline W load_words(const uint8_t* p) {
  W words = _mm512_loadu_si512(p);
  asm("" : "+v"(words));
  return words;
}
inline W load_table(const int16_t* p) { return _mm512_load_si512(p); }
// The code at bit 5 * n of each word, which ends in the lowest five bits. Multiplied and not shifted:
// shifts take the units that permute.
template <int n>
inline W code_at(W words) {
  return n ? _mm512_mulhi_epu16(words, _mm512_set1_epi16(1 << (16 - 5 * n))) : words;
}
// What was there, and each word's top bit behind it.
inline W with_top_bit(W before, W words) {
#if defined(__AVX512VBMI2__)
  return _mm512_shldi_epi16(before, words, 1);
#else
  return _mm512_or_si512(add_words(before, before), _mm512_srli_epi16(words, 15));
#endif
}
// Added up in this order: GCC would put all additions last, and keep what it found on the stack.
inline W add_looked_up(W sum, W table, W codes) {
  sum = _mm512_add_epi16(sum, _mm512_permutexvar_epi16(codes, table));
  asm("" : "+v"(sum));
  return sum;
}
inline void add_widened(int32_t* out, W sums) {
  const I low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(sums));
  const I high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sums, 1));
  istore(out, iadd(iload(out), low));
  istore(out + 16, iadd(iload(out + 16), high));
}
// Three codes a number, each in a byte of its own, for the numbers 0 to 31.
struct alignas(64) TripleBytes {
  uint32_t of[32];
  constexpr TripleBytes() : of() {
    for (uint32_t code = 0; code < 27; ++code)
      of[code] = code % 3 | code / 3 % 3 << 8 | code / 9 << 16;
  }
};
constexpr TripleBytes kTripleBytes;
inline void unpack_triple_block(const uint8_t* words, uint8_t* out) {
  const I low = _mm512_load_si512(kTripleBytes.of), high = _mm512_load_si512(kTripleBytes.of + 16);
  I triple[16], top = izero();
  for (int i = 0; i < 5; ++i) {
    const I v = _mm512_cvtepu16_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 64 * i)));
    for (int j = 0; j < 3; ++j)
      triple[3 * i + j] = _mm512_permutex2var_epi32(low, _mm512_srli_epi32(v, 5 * j), high);
    top = _mm512_or_si512(_mm512_slli_epi32(top, 1), _mm512_srli_epi32(v, 15));
  }
  triple[15] = _mm512_permutex2var_epi32(low, top, high);
  for (int i = 0; i < 16; i += 4, out += 3 * 64) {
    const I* t = triple + i;
    store_codes(out, _mm512_or_si512(t[0], _mm512_slli_epi32(t[1], 24)));
    store_codes(out + 64,
                _mm512_or_si512(_mm512_srli_epi32(t[1], 8), _mm512_slli_epi32(t[2], 16)));
    store_codes(out + 128,
                _mm512_or_si512(_mm512_srli_epi32(t[2], 16), _mm512_slli_epi32(t[3], 8)));
  }
}

}  // namespace TK_NS
