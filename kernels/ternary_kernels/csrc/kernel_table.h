// What one instruction set offers: a table of functions over plain pointers.
//
// Names: M rows of activations, N outputs, K inputs; a row group is 16 rows of a weight.
// Layouts: see packing.py. Functions work on one row or one item; the thread team hands out
// the items (team.h), so a kernel never knows more of the threads than how large items may be
// (Linear::threads).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace tk {

enum Kind : int32_t {
  kTernary = 0,
  kTernary5 = 1,  // five codes a byte
  kInt8 = 2,
  kBf16 = 3,
  kF16 = 4,
  kInt4 = 5,
  kTernary3 = 6,  // three codes in five bits
};
// How many scales: [N padded to 16], [N/16, groups of 128, 16], one sixteen times, or (INT4, in
// fp16) [N/16, groups of 32, 16].
enum Scaling : int32_t { kByRow = 0, kByGroup = 1, kByTensor = 2, kBySmallGroup = 3 };
enum FloatType : int32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };
enum Mode : int32_t {
  kStore = 0,      // out = y + bias
  kAdd = 1,        // out += y + bias                (residual stream)
  kGateSilu = 2,   // out = silu(y) * (y2 + bias2)   (gate and up of the same rows)
  kGateRelu2 = 3,  // out = relu(y)^2 * (y2 + bias2)
};

constexpr int kGroupK = 128;  // columns that share a scale, where scales are by group
constexpr int kSmallGroupK = 32;  // the same for INT4
constexpr int kLanes = 16;

inline int row_groups(int N) { return (N + kLanes - 1) / kLanes; }
inline int k_groups(int K) { return (K + kGroupK - 1) / kGroupK; }
inline int small_k_groups(int K) { return (K + kSmallGroupK - 1) / kSmallGroupK; }
// Bytes between rows of INT8 activations: whole vectors, and zeros past the longest block.
inline ptrdiff_t q_stride(int K) { return (K + 63) / 64 * 64 + 64; }
// int32 between rows of sums: the whole row's first, then one for each 128 columns.
inline ptrdiff_t sums_stride(int K) { return 1 + k_groups(K); }
// Words of a row's tables of looked-up sums: 32 for each three k, which come in sixteens.
inline ptrdiff_t lookup_stride(int K) { return static_cast<ptrdiff_t>((K + 47) / 48) * 16 * 32; }
// Bytes of sixteen rows in tiles of 64 bytes each: INT8, and bf16.
inline ptrdiff_t q_tile_bytes(int K) { return static_cast<ptrdiff_t>((K + 63) / 64) * 1024; }
inline ptrdiff_t bf16_tile_bytes(int K) { return static_cast<ptrdiff_t>((K + 31) / 32) * 1024; }

struct Weight {
  Kind kind;
  int32_t N, K;
  Scaling scaling;
  const void* tiles;
  const void* scales;  // fp32; of INT4 fp16
  int32_t hadamard;    // inputs that are rotated together before they are rounded; 1: none

  bool is_float() const { return kind == kBf16 || kind == kF16; }
};

// An embedding or a head: one weight, or two that share the rows among them.
struct Table {
  Weight first, second;   // second.N = 0: there is none
  const int32_t* places;  // a token's row, counted through both; null: the token itself

  int place(int token) const { return places ? places[token] : token; }
};

// The forms of an activation that the weights reading it need.
struct Forms {
  bool int8 = false, starts = false, floats = false;
  int hadamard = 1;  // of all weights that read them, which Python sees to

  Forms& add(const Weight& w) {
    hadamard = w.hadamard;
    (w.is_float() ? floats : int8) = true;
    starts |= w.kind == kInt4;
    return *this;
  }
};

// M rows of activations: as floats, as INT8 with their sums, or both.
struct Acts {
  int32_t M;
  const float* x;
  ptrdiff_t x_stride;
  const int8_t* q;       // stride q_stride(K)
  const int8_t* packed;  // null, or whole tiles of q: [M/T][q_stride/4][T][4], T = tile_rows
  const uint8_t* q_tiles;     // for a tile unit: q as [M/16][K/64][16][64], K padded with zeros
  const uint8_t* bf16_tiles;  // and x as bf16 [M/16][K/32][16][32]
  const float* x_scale;  // [M]: absmax / 127; x is about q * x_scale
  const int32_t* sums;   // stride sums_stride(K)
  const int32_t* starts;  // -8 times the sum of each 32 columns, for INT4; stride small_k_groups(K)
  const int16_t* lookups;  // tables of sums for kTernary3, stride lookup_stride(K)
};

// One linear layer, or gate and up together when `second` is set (same N and K then).
struct Linear {
  const Weight* first;
  const Weight* second;
  const float* first_bias;
  const float* second_bias;
  Mode mode;
  float* out;
  ptrdiff_t out_stride;
  int threads = 1;  // that share its items: how large they may be
};

// One query tile of attention over a slot's cache in one layer and KV head.
constexpr int kMaxQueries = 12;
struct AttentionTile {
  int32_t queries, head_dim, context;
  float scale;
  const float* q[kMaxQueries];
  float* out[kMaxQueries];
  int32_t begin[kMaxQueries], end[kMaxQueries];  // positions seen
  FloatType type;
  const void* keys;    // [context/16, head_dim, 16]: sixteen positions side by side
  const void* values;  // [context, head_dim padded to 16]
};

struct Kernels {
  const char* name;
  int tile_rows;  // rows of activations in the largest register tile
  int unit_rows;  // batches of so many rows or more go to the tile unit; 0: there is none
  int lookup_rows;  // so many rows at most meet kTernary3 by looked-up sums

  // Bytes of scratch that linear_item needs for a weight.
  size_t (*linear_scratch)(const Weight& w);
  // Items of `linear_item` in a Linear over M rows: each makes one or two row groups of out.
  int (*linear_items)(const Linear& linear, int M);
  void (*linear_item)(const Linear& linear, const Acts& acts, int item, void* scratch);
  // The exact integer products of one item, [M, N] at `out`.
  void (*linear_int_item)(const Linear& linear, const Acts& acts, int item, int32_t* out,
                          void* scratch);

  // RMSNorm of a row (weight may be null) or a copy where eps < 0. y may be x.
  void (*norm_row)(const float* x, const float* weight, float eps, int K, float* y);
  // Blocks of a row, in place, times the Hadamard matrix over sqrt(block); a power of two.
  void (*hadamard_row)(float* x, int K, int block);
  // Per-token INT8. False if the row holds NaN or Inf.
  bool (*quantize_row)(const float* x, int K, int8_t* q, float* x_scale, int32_t* sums);
  // A row's Acts::starts.
  void (*start_row)(const int8_t* q, int K, int32_t* starts);
  // A row's Acts::lookups from its q, aligned to 64 bytes; null where lookup_rows is 0.
  void (*lookup_row)(const int8_t* q, int K, int16_t* tables);
  bool (*finite_row)(const float* x, int K);
  // Row m to its place in Acts::q_tiles and bf16_tiles; null without a tile unit.
  void (*tile_q_row)(const int8_t* q, int m, int K, uint8_t* tiles);
  void (*tile_bf16_row)(const float* x, int m, int K, uint8_t* tiles);
  // Rotary embedding in place; cos and sin are [D/2].
  void (*rotate_head)(float* x, const float* cos, const float* sin, int D);
  // A row of an embedding as floats, times its scales.
  void (*embed_row)(const Weight& w, int row, float* out);

  void (*store_key)(void* keys, FloatType type, int position, int D, const float* key);
  void (*store_value)(void* values, FloatType type, int position, int D, const float* value);
  size_t (*attention_scratch)(int head_dim, int context);
  void (*attend)(const AttentionTile& tile, void* scratch);

  // Micro-benchmarks: the sum of all bytes as 64-bit words; dot products in registers.
  uint64_t (*read_all)(const void* data, size_t bytes);
  // Runs `rounds` rounds and returns multiply-adds done.
  uint64_t (*dot_peak)(uint64_t rounds, int32_t* sink);
};

}  // namespace tk
