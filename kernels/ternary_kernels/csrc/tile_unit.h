// A processor's tile unit: eight registers of 16 rows x 64 bytes, and products of whole tiles.
//
// Register c += a times b, where c holds 16 x 16 words of 32 bits, a the rows of activations and
// b the weights of one row group as packing.py lays them: 16 rows of 16 lanes x 4 bytes. So
//
//   dot_bytes  c[m][n] += sum over r, i of a[m][4 r + i] * b[r][4 n + i]   a signed, b unsigned
//   dot_half   the same of both signed, over the 32 k of half tiles (begin_half): a is then 16 rows
//              of 32 bytes, 64 apart, and b eight rows
//   dot_bf16   c[m][n] += sum over r, i of a[m][2 r + i] * b[r][2 n + i]   bf16, float32 sums
//
// Intel's AMX (TK_TILES_AMX), or a plain C++ model of its instructions (TK_TILES_MODEL), which
// tests run on every machine. Between begin() and end() the thread owns tiles; outside it has
// none, so that the system need not save eight kilobytes whenever it switches threads.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace TK_NS {

#if defined(TK_TILES_AMX)

// Not the compiler's intrinsics: GCC 12 takes ldtilecfg to read eight bytes and tileloadd to read
// none, and leaves out the stores before them.
struct TileUnit {
  struct alignas(64) Shape {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static inline void begin() {
    static const Shape shape = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64},
                                {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  // Rows of activations in 4 and 5, weights in 6 and 7.
  static inline void begin_half() {
    static const Shape shape = {1, 0, {}, {64, 64, 64, 64, 32, 32, 64, 64},
                                {16, 16, 16, 16, 16, 16, 8, 8}};
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  static inline void end() { asm volatile("tilerelease" : : : "memory"); }

  template <int t>
  static inline void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  template <int t>
  static inline void load(const void* from) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0"
                 :
                 : "i"(t), "r"(from), "r"(static_cast<ptrdiff_t>(64))
                 : "memory");
  }
  template <int t>
  static inline void store(void* to) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)"
                 :
                 : "i"(t), "r"(to), "r"(static_cast<ptrdiff_t>(64))
                 : "memory");
  }
  template <int c, int a, int b>
  static inline void dot_bytes() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
  template <int c, int a, int b>
  static inline void dot_half() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
  template <int c, int a, int b>
  static inline void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};

#elif defined(TK_TILES_MODEL)

struct TileUnit {
  struct Tile {
    uint8_t bytes[16][64];
  };
  static inline Tile* tiles() {
    static thread_local Tile own[8];
    return own;
  }
  static inline bool& half() {
    static thread_local bool own;
    return own;
  }
  static inline void begin() {
    __builtin_memset(tiles(), 0xff, 8 * sizeof(Tile));
    half() = false;
  }
  static inline void begin_half() {
    begin();
    half() = true;
  }
  static inline void end() {}

  template <int t>
  static inline void zero() {
    __builtin_memset(&tiles()[t], 0, sizeof(Tile));
  }
  template <int t>
  static inline void load(const void* from) {
    if (half() && (t == 4 || t == 5)) {
      for (int m = 0; m < 16; ++m)
        __builtin_memcpy(tiles()[t].bytes[m], static_cast<const uint8_t*>(from) + 64 * m, 32);
      return;
    }
    __builtin_memcpy(&tiles()[t], from, half() && t > 5 ? sizeof(Tile) / 2 : sizeof(Tile));
  }
  template <int t>
  static inline void store(void* to) {
    __builtin_memcpy(to, &tiles()[t], sizeof(Tile));
  }
  template <int c, int a, int b>
  static inline void dot_bytes() {
    const Tile &left = tiles()[a], &right = tiles()[b];
    for (int m = 0; m < 16; ++m) {
      uint32_t sums[16];  // unsigned: the sums wrap, as the unit's do
      __builtin_memcpy(sums, tiles()[c].bytes[m], 64);
      for (int k = 0; k < 64; ++k) {
        const int x = static_cast<int8_t>(left.bytes[m][k]);
        for (int n = 0; n < 16; ++n)
          sums[n] += static_cast<uint32_t>(x * right.bytes[k / 4][4 * n + k % 4]);
      }
      __builtin_memcpy(tiles()[c].bytes[m], sums, 64);
    }
  }
  template <int c, int a, int b>
  static inline void dot_half() {
    const Tile &left = tiles()[a], &right = tiles()[b];
    for (int m = 0; m < 16; ++m) {
      int32_t sums[16];  // 32 products of bytes: far from wrapping
      __builtin_memcpy(sums, tiles()[c].bytes[m], 64);
      for (int k = 0; k < 32; ++k)
        for (int n = 0; n < 16; ++n)
          sums[n] += static_cast<int8_t>(left.bytes[m][k]) *
                     static_cast<int8_t>(right.bytes[k / 4][4 * n + k % 4]);
      __builtin_memcpy(tiles()[c].bytes[m], sums, 64);
    }
  }
  // As Intel's manual has TDPBF16PS: the even and the odd products are summed apart, each sum
  // rounds to nearest, denormal inputs and results count as zero. A product of two bf16 is exact.
  template <int c, int a, int b>
  static inline void dot_bf16() {
    const Tile &left = tiles()[a], &right = tiles()[b];
    for (int m = 0; m < 16; ++m) {
      float sums[16], parts[2][16] = {};
      for (int k = 0; k < 32; ++k) {
        const float x = bf16_at(left.bytes[m] + 2 * k);
        float* part = parts[k % 2];
        for (int n = 0; n < 16; ++n)
          part[n] = flushed(part[n] + x * bf16_at(right.bytes[k / 2] + 4 * n + k % 2 * 2));
      }
      __builtin_memcpy(sums, tiles()[c].bytes[m], 64);
      for (int n = 0; n < 16; ++n)
        sums[n] = flushed(flushed(sums[n]) + flushed(parts[0][n] + parts[1][n]));
      __builtin_memcpy(tiles()[c].bytes[m], sums, 64);
    }
  }

 private:
  static inline float flushed(float v) { return __builtin_fabsf(v) < 0x1p-126f ? 0.0f : v; }
  static inline float bf16_at(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return flushed(value);
  }
};

#endif

}  // namespace TK_NS
