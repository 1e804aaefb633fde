// The C interface that Python loads (native.py mirrors it field by field).
//
// Calls return 0, or -(row + 1) for the first row of activations that holds NaN or Inf. Shapes
// and pointers are checked on the Python side; nothing here throws across the border.
#pragma once
#include "kernel_table.h"

#define TK_API extern "C" __attribute__((visibility("default")))

struct TkLayer {
  tk::Weight linears[7];  // q, k, v, o, gate, up, down
  const float* biases[7];
  const float *attn_norm, *ffn_norm, *q_norm, *k_norm, *attn_sub_norm, *ffn_sub_norm;
};

struct TkLlama {
  int32_t hidden, inter, layers, heads, kv_heads, head_dim, vocab;
  int32_t slots, context, kv_type, gate_mode, window;
  float eps, rope_scaling;
  const float* inv_freq;
  tk::Table embed, head;
  const float* norm;
  const TkLayer* layer;
};

// Every field of Weight, Table, TkLayer and TkLlama with its offset and size, and their own sizes: what
// native.py holds its mirrors against when it loads this library (layout.cpp).
TK_API const char* tk_layout();

TK_API const char* tk_isa();
TK_API const char* tk_available_isas(int index);  // null past the last
TK_API const char* tk_tile_unit_refused();        // why, or empty
TK_API int tk_unit_rows();                        // see Kernels::unit_rows
TK_API int tk_force_isa(const char* name);        // 0, or 1 if unavailable
TK_API void tk_set_threads(int threads);
TK_API int tk_threads();

TK_API int tk_quantize(const float* x, int M, int K, const float* norm, float eps, int hadamard,
                       int8_t* q, float* x_scale);
TK_API void tk_linear_int(const tk::Weight* w, const int8_t* q, int M, int32_t* out);
// `count` weights over one activation; norm may be null; eps < 0: no norm.
TK_API int tk_linears(const tk::Weight* const* weights, int count, const float* x, int M,
                      const float* norm, float eps, const float* const* biases, float* const* outs);
TK_API int tk_gated(const tk::Weight* gate, const tk::Weight* up, const float* x, int M,
                    const float* norm, float eps, const float* gate_bias, const float* up_bias,
                    int mode, float* out);

TK_API void* tk_llama_create(const TkLlama* spec);  // null: out of memory
TK_API void tk_llama_free(void* model);
TK_API uint64_t tk_llama_kv_bytes(const void* model);
// 0, or 1 + 4 * layer + (0 q/k/v, 1 o, 2 gate/up, 3 down), or -1 for the head.
TK_API int tk_llama_forward(void* model, const int32_t* tokens, const int32_t* slots,
                            const int32_t* positions, int n, const uint8_t* want, float* logits);

TK_API uint64_t tk_read_all(const void* data, uint64_t bytes);
TK_API uint64_t tk_dot_peak(uint64_t rounds);
