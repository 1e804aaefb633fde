// One instruction set: compiled once for each with its own flags and namespace (build.py),
// it turns the templates into one table of functions.
#include "attention.h"
#if defined(TK_TILES_AMX) || defined(TK_TILES_MODEL)
#include "tile_linear.h"
#define TK_TILES 1
#endif

namespace TK_NS {

// Adds up 64-byte lines in two streams: the fastest plain read there is, and the roofline of
// decode. The hardware prefetcher alone is quickest here; asking ahead costs one thread a tenth.
// Returns the sum so that the loads cannot be left out.
uint64_t read_all(const void* data, size_t bytes) {
  constexpr int kStreams = 2;
  I sums[kStreams] = {izero(), izero()};
  const auto* p = static_cast<const uint8_t*>(data);
  const size_t stream = bytes / (64 * kStreams) * 64;
  for (size_t at = 0; at < stream; at += 64) {
    TK_UNROLL for (int s = 0; s < kStreams; ++s) {
      const uint8_t* line = p + stream * static_cast<size_t>(s) + at;
      sums[s] = iadd(sums[s], iload(reinterpret_cast<const int32_t*>(line)));
    }
  }
  return static_cast<uint32_t>(hsum(iadd(sums[0], sums[1])));
}

// Dot products on registers alone: what the arithmetic units do when no load is in the way.
uint64_t dot_peak(uint64_t rounds, int32_t* sink) {
  constexpr int kChains = kMaxRows > 4 ? 16 : 4;
  alignas(64) uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>((i * 7 + sink[0]) % 3);
  const C w = load_codes(bytes);
  const A x = broadcast4(reinterpret_cast<const int8_t*>(bytes));
  I acc[kChains];
  for (I& a : acc) a = izero();
  for (uint64_t round = 0; round < rounds; ++round) {
    TK_UNROLL for (int c = 0; c < kChains; ++c) acc[c] = dot_codes(acc[c], w, x);
  }
  I total = acc[0];
  for (int c = 1; c < kChains; ++c) total = iadd(total, acc[c]);
  *sink = hsum(total);
  return rounds * kChains * 64;
}

}  // namespace TK_NS

#define TK_TEXT_OF(x) #x
#define TK_TEXT(x) TK_TEXT_OF(x)

extern const tk::Kernels TK_TABLE;
const tk::Kernels TK_TABLE = {
    TK_TEXT(TK_NAME),
    TK_NS::kMaxRows,
#if defined(TK_TILES)
    TK_NS::kUnitRows,
    TK_NS::kLookupRows,
    TK_NS::unit_linear_scratch,
    TK_NS::unit_linear_items,
    TK_NS::unit_linear_item,
    TK_NS::unit_linear_int_item,
#else
    0,
    TK_NS::kLookupRows,
    TK_NS::linear_scratch,
    TK_NS::linear_items,
    TK_NS::linear_item,
    TK_NS::linear_int_item,
#endif
    TK_NS::norm_row,
    TK_NS::hadamard_row,
    TK_NS::quantize_row,
    TK_NS::start_row,
#if defined(TK_LOOKUPS)
    TK_NS::lookup_row,
#else
    nullptr,
#endif
    TK_NS::finite_row,
#if defined(TK_TILES)
    TK_NS::tile_q_row,
    TK_NS::tile_bf16_row,
#else
    nullptr,
    nullptr,
#endif
    TK_NS::rotate_head,
    TK_NS::embed_row,
    TK_NS::store_key,
    TK_NS::store_value,
    TK_NS::attention_scratch,
    TK_NS::attend,
    TK_NS::read_all,
#if defined(TK_TILES)
    TK_NS::unit_dot_peak,
#else
    TK_NS::dot_peak,
#endif
};
