// How the structs of abi.h lie in memory here, as text: "Weight.tiles 16 8" is a field with its
// offset and size in bytes, "Weight 32" the size of a struct. One line each.
#include <cstddef>
#include <string>

#include "abi.h"

namespace {

std::string line(const char* name, size_t offset, size_t size) {
  return std::string(name) + " " + std::to_string(offset) + " " + std::to_string(size) + "\n";
}

std::string line(const char* name, size_t size) {
  return std::string(name) + " " + std::to_string(size) + "\n";
}

std::string layout() {
  std::string text;
#define TK_FIELD(field) text += line(TK_STRUCT "." #field, offsetof(Type, field), sizeof(Type::field));
#define TK_STRUCT "Weight"
  {
    using Type = tk::Weight;
    TK_FIELD(kind) TK_FIELD(N) TK_FIELD(K) TK_FIELD(scaling) TK_FIELD(tiles) TK_FIELD(scales)
    TK_FIELD(hadamard)
    text += line(TK_STRUCT, sizeof(Type));
  }
#undef TK_STRUCT
#define TK_STRUCT "Table"
  {
    using Type = tk::Table;
    TK_FIELD(first) TK_FIELD(second) TK_FIELD(places)
    text += line(TK_STRUCT, sizeof(Type));
  }
#undef TK_STRUCT
#define TK_STRUCT "TkLayer"
  {
    using Type = TkLayer;
    TK_FIELD(linears) TK_FIELD(biases) TK_FIELD(attn_norm) TK_FIELD(ffn_norm) TK_FIELD(q_norm)
    TK_FIELD(k_norm) TK_FIELD(attn_sub_norm) TK_FIELD(ffn_sub_norm)
    text += line(TK_STRUCT, sizeof(Type));
  }
#undef TK_STRUCT
#define TK_STRUCT "TkLlama"
  {
    using Type = TkLlama;
    TK_FIELD(hidden) TK_FIELD(inter) TK_FIELD(layers) TK_FIELD(heads) TK_FIELD(kv_heads)
    TK_FIELD(head_dim) TK_FIELD(vocab) TK_FIELD(slots) TK_FIELD(context) TK_FIELD(kv_type)
    TK_FIELD(gate_mode) TK_FIELD(window) TK_FIELD(eps) TK_FIELD(rope_scaling) TK_FIELD(inv_freq)
    TK_FIELD(embed) TK_FIELD(head) TK_FIELD(norm) TK_FIELD(layer)
    text += line(TK_STRUCT, sizeof(Type));
  }
#undef TK_STRUCT
#undef TK_FIELD
  return text;
}

}  // namespace

TK_API const char* tk_layout() {
  static const std::string text = layout();
  return text.c_str();
}
