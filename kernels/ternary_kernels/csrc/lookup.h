// Ternary weights of three codes in five bits: sums of activations are looked up, not multiplied.
//
// For three neighbouring k a register holds what each of their 27 combinations of codes 0..2 makes
// of a row's activations (Acts::lookups, built once for all outputs, by each thread for itself:
// that is sooner done than fetched from another core). A code of five bits is then an index: one
// permutation adds three products of 32 outputs. Sixteen codes fill five words of 16 bits: three
// in each, at bits 0, 5 and 10, which the permutation reads where they lie, and the last one in
// the five top bits.
//
// Few rows only (kLookupRows): more of them meet the codes unpacked to bytes, as two-bit ones do.
// The tables of a stretch of k stay in the first-level cache while all outputs of an item pass.
#pragma once
#include "kernel_table.h"
#include "simd.h"

namespace TK_NS {

using tk::Acts;
using tk::Linear;
using tk::Weight;

constexpr int kCodesABlock = 16;         // of three k each
constexpr int kBlockWords = 5;           // vectors of 32 words
constexpr int kVectorBytes = 64;
constexpr int kTripleBlockBytes = kBlockWords * kVectorBytes;
constexpr int kVectorsAnItem = 4;        // of 32 outputs, of each weight
// How far ahead a streaming read asks (see tiles.h); near its end for the next item's vectors.
constexpr int kAheadBlocks = 20;
// Sums are kept modulo 2^16 over a stretch: with weights -1, 0, 1 they are 80 times 3 * 128 at most,
// which fits, and what codes 0..2 add to that is taken off at its end.
constexpr int kBlocksAStretch = 5;

inline int triple_blocks(const Weight& w) {
  return (w.K + 3 * kCodesABlock - 1) / (3 * kCodesABlock);
}
inline int row_vectors(const Weight& w) { return (tk::row_groups(w.N) + 1) / 2; }
inline const uint8_t* vector_tiles(const Weight& w, int vector) {
  return static_cast<const uint8_t*>(w.tiles) +
         static_cast<size_t>(vector) * static_cast<size_t>(triple_blocks(w)) * kTripleBlockBytes;
}

// The codes of one row group as bytes 0..2 in the order of a panel: [k/4][16 rows][4 k].
inline void unpack_triples(const Weight& w, int group, uint8_t* out) {
  const uint8_t* block = vector_tiles(w, group / 2) + group % 2 * 32;
  for (int b = triple_blocks(w); b > 0; --b, block += kTripleBlockBytes, out += 12 * 64)
    unpack_triple_block(block, out);
}

#if defined(TK_LOOKUPS)

// Sixteen tables of a block, each of 32 words.
constexpr int kTableWords = 32;
constexpr ptrdiff_t kBlockTableWords = kCodesABlock * kTableWords;
constexpr int kExcess = 31;  // place of a stretch's sum of activations in its first table

void lookup_row(const int8_t* q, int K, int16_t* tables) {
  constexpr int kStretchCodes = kBlocksAStretch * kCodesABlock;
  const int codes = static_cast<int>(tk::lookup_stride(K) / kTableWords);
  for (int from = 0; from < codes; from += kStretchCodes) {
    const int until = least(codes, from + kStretchCodes);
    int32_t sum = 0;
    for (int k = 3 * from; k < 3 * until; ++k) sum += q[k];
    for (int code = from; code < until; ++code)
      store_sums(tables + code * kTableWords, q + 3 * code);
    tables[from * kTableWords + kExcess] = static_cast<int16_t>(sum);
  }
}

inline bool looks_up(const Linear& linear, int M) {
  return M <= kLookupRows && linear.first->kind == tk::kTernary3 &&
         (!linear.second || linear.second->kind == tk::kTernary3);
}
// Vectors of each weight in an item: as many as leave every thread two items, for fewer readings
// of the tables.
inline int lookup_vectors(const Linear& linear) {
  const int all = row_vectors(*linear.first);
  int vectors = kVectorsAnItem;
  while (vectors > 1 && (all + vectors - 1) / vectors < 2 * linear.threads) vectors /= 2;
  return vectors;
}
inline int lookup_items(const Linear& linear) {
  const int each = lookup_vectors(linear);
  return (row_vectors(*linear.first) + each - 1) / each;
}

// Sums of `blocks` blocks of V vectors with M rows, on top of what is in out[vector][32], a row
// `out_stride` further on.
template <int V, int M>
inline void look_up_stretch(const uint8_t* const (&vectors)[V], int blocks, ptrdiff_t ahead,
                            const int16_t* tables, ptrdiff_t stride, int32_t* const (&out)[V],
                            ptrdiff_t out_stride) {
  W sums[V][M];
  int16_t excess[M];
  for (int m = 0; m < M; ++m) excess[m] = tables[m * stride + kExcess];
  TK_UNROLL for (int v = 0; v < V; ++v) TK_UNROLL for (int m = 0; m < M; ++m)
      sums[v][m] = no_words();
  const uint8_t* words[V];
  TK_UNROLL for (int v = 0; v < V; ++v) words[v] = vectors[v];
  for (int b = 0; b < blocks; ++b) {
    W part[V], top[V];
    TK_UNROLL for (int v = 0; v < V; ++v) top[v] = no_words();
#define TK_CODE(code)                                                                \
  TK_UNROLL for (int m = 0; m < M; ++m) {                                            \
    const W table = load_table(tables + m * stride + (code) * kTableWords);          \
    TK_UNROLL for (int v = 0; v < V; ++v) sums[v][m] =                               \
        add_looked_up(sums[v][m], table, codes[v]);                                  \
  }
#define TK_FIELD(i, n)                                                               \
  {                                                                                  \
    W codes[V];                                                                      \
    TK_UNROLL for (int v = 0; v < V; ++v) codes[v] = code_at<n>(part[v]);            \
    TK_CODE(3 * (i) + (n))                                                           \
  }
#define TK_WORDS(i)                                                                  \
  TK_UNROLL for (int v = 0; v < V; ++v) {                                            \
    part[v] = load_words(words[v] + (i) * kVectorBytes);                             \
    __builtin_prefetch(words[v] + ahead + (i) * kVectorBytes, 0, 2);                 \
    top[v] = with_top_bit(top[v], part[v]);                                          \
  }                                                                                  \
  TK_FIELD(i, 0) TK_FIELD(i, 1) TK_FIELD(i, 2)
    TK_WORDS(0)
    TK_WORDS(1)
    TK_WORDS(2)
    TK_WORDS(3)
    TK_WORDS(4)
    {
      const W(&codes)[V] = top;
      TK_CODE(15)
    }
#undef TK_WORDS
#undef TK_FIELD
#undef TK_CODE
    tables += kBlockTableWords;
    TK_UNROLL for (int v = 0; v < V; ++v) words[v] += kTripleBlockBytes;
  }
  TK_UNROLL for (int v = 0; v < V; ++v) TK_UNROLL for (int m = 0; m < M; ++m)
      add_widened(out[v] + m * out_stride, less_word(sums[v][m], excess[m]));
}

// Where a stretch of an item's vectors lies, and what meets it.
struct Stretches {
  const uint8_t* words;
  ptrdiff_t vector_bytes;
  int blocks;
  ptrdiff_t ahead;
  const int16_t* tables;
  ptrdiff_t stride;
  int32_t* out;
  int M;
};

template <int V, int M>
inline void look_up_vectors(const Stretches& s, int v, int m) {
  const uint8_t* words[V];
  int32_t* out[V];
  for (int i = 0; i < V; ++i) {
    words[i] = s.words + (v + i) * s.vector_bytes;
    out[i] = s.out + ((v + i) * s.M + m) * kTableWords;
  }
  look_up_stretch<V, M>(words, s.blocks, s.ahead, s.tables + m * s.stride, s.stride, out,
                        kTableWords);
}
template <int V>
inline void look_up_rows(const Stretches& s, int v) {
  int m = 0;
  for (; m + 4 <= s.M; m += 4) look_up_vectors<V, 4>(s, v, m);
  if (s.M - m >= 2) look_up_vectors<V, 2>(s, v, m), m += 2;
  if (s.M - m) look_up_vectors<V, 1>(s, v, m);
}

// Dot products of all rows with `count` vectors of outputs, to out[vector][m][32].
inline void look_up_sums(const Weight& w, int first, int count, const Acts& acts, int32_t* out) {
  const int blocks = triple_blocks(w), M = acts.M;
  const ptrdiff_t stride = tk::lookup_stride(w.K);
  __builtin_memset(out, 0, static_cast<size_t>(count * M * kTableWords) * sizeof(int32_t));
  const ptrdiff_t vector_bytes = static_cast<ptrdiff_t>(blocks) * kTripleBlockBytes;
  for (int b = 0; b < blocks; b += kBlocksAStretch) {
    const ptrdiff_t skip = b + kAheadBlocks < blocks ? 0 : (count - 1) * vector_bytes;
    const Stretches here = {vector_tiles(w, first) + b * kTripleBlockBytes,
                            vector_bytes,
                            least(kBlocksAStretch, blocks - b),
                            kAheadBlocks * kTripleBlockBytes + skip,
                            acts.lookups + b * kBlockTableWords,
                            stride,
                            out,
                            M};
    int v = 0;
    for (; v + 4 <= count; v += 4) look_up_rows<4>(here, v);
    if (count - v >= 2) look_up_rows<2>(here, v), v += 2;
    if (count - v) look_up_rows<1>(here, v);
  }
}

#endif

}  // namespace TK_NS
