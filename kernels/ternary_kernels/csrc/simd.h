// One vocabulary of sixteen-lane vectors; the file compiled decides what they are made of.
//
// F, I: 16 floats, 16 int32.        C: 64 unsigned bytes = 16 rows x 4 consecutive k.
// A: 4 signed activations, the same for all rows.
// dot_codes(acc, w, x): acc[row] += sum of four w * x for codes 0..2 (or, where kInPlacePlanes,
// codes shifted by 2, 4 or 6 bits); dot_int8 the same for signed weights stored with 128 added,
// whose sum is too large by kInt8Zero * sum(x). part_dot sums at most eight times codes 0..15 (or,
// where kInPlacePlanes, those shifted by 4 bits) between part_start and part_end, which add their
// argument between them, once.
//
// Where sums can be looked up (TK_LOOKUPS) there is also W: 32 words of 16 bits (lookup.h).
//
// Everything sits in a namespace of its own for each instruction set, and nothing here calls an
// inline function of the standard library: the linker keeps one copy of each of those, and it
// must not be the one compiled for a processor that the machine does not have.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#define TK_UNROLL _Pragma("unroll")
#else
#define TK_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(TK_SIMD_AVX512)
#include "simd_avx512.h"
#elif defined(TK_SIMD_AVX2)
#include "simd_avx2.h"
#elif defined(TK_SIMD_NEON)
#include "simd_neon.h"
#else
#include "simd_plain.h"
#endif

namespace TK_NS {

#if !defined(__AVX512VBMI__)
C four_trits(C v);  // never called where kTritTables is not
C fifth_trit(C v);
#endif

#if !defined(TK_LOOKUPS)
constexpr int kLookupRows = 0;
// Five times sixteen words of codes of three weights, 64 bytes apart, to 48 k of a panel.
inline void unpack_triple_block(const uint8_t* words, uint8_t* out) {
  for (int row = 0; row < 16; ++row) {
    int code[16] = {};
    for (int i = 0; i < 5; ++i) {
      uint16_t word;
      __builtin_memcpy(&word, words + 64 * i + 2 * row, 2);
      for (int j = 0; j < 3; ++j) code[3 * i + j] = word >> (5 * j) & 31;
      code[15] = code[15] << 1 | word >> 15;
    }
    for (int k = 0; k < 48; ++k) {
      constexpr int kPowers[] = {1, 3, 9};
      out[k / 4 * 64 + row * 4 + k % 4] =
          static_cast<uint8_t>(code[k / 3] / kPowers[k % 3] % 3);
    }
  }
}
#endif

template <class T>
inline T least(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T largest(T a, T b) {
  return a > b ? a : b;
}

// exp(x), relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2].
inline F exp(F x) {
  x = vmin(vmax(x, set1(-87.0f)), set1(88.0f));
  const I n = to_int(mul(x, set1(1.44269504f)));
  const F k = to_float(n);
  // ln 2 in two parts, so that the remainder keeps its low bits.
  F r = fma(k, set1(-0.693359375f), x);
  r = fma(k, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, set1(1.0f)));
  return scale_by_power_of_2(p, n);
}

}  // namespace TK_NS
