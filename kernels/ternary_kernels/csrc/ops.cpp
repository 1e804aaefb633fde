// Single operations: linear layers over one activation, gated pairs, quantisation, probes.
#include <atomic>
#include <memory>

#include "abi.h"
#include "activations.h"
#include "dispatch.h"
#include "team.h"

namespace {

using namespace tk;

// Prepares all rows; returns 0 or -(row + 1) of the first bad one.
int prepare_rows(Worker& worker, const Kernels& k, Activations& acts, const float* x, int M, int K,
                 const float* norm, float eps, const Forms& forms,
                 std::atomic<int>& bad_row) {
  worker.for_each(M, 1, [&](int m) {
    if (acts.prepare(k, m, M, x + static_cast<ptrdiff_t>(m) * K, K, norm, eps, forms))
      return;
    int seen = bad_row.load();
    while ((seen == 0 || -seen - 1 > m) && !bad_row.compare_exchange_weak(seen, -(m + 1))) {
    }
  });
  return bad_row.load();
}

void run_linear(Worker& worker, const Kernels& k, Linear linear, Acts acts) {
  linear.threads = worker.threads();
  size_t scratch = k.linear_scratch(*linear.first);
  if (linear.second) {
    const size_t other = k.linear_scratch(*linear.second);
    scratch = scratch > other ? scratch : other;
  }
  const Lookups lookups(k, &linear, 1, acts.M, scratch);
  void* memory = worker.scratch(lookups.scratch_bytes());
  lookups.make(k, acts, memory);
  const int items = k.linear_items(linear, acts.M);
  worker.for_each(items, portion_of(items, worker.threads(), lookups),
                  [&](int item) { k.linear_item(linear, acts, item, memory); });
}

}  // namespace

TK_API const char* tk_isa() { return kernels().name; }

TK_API const char* tk_available_isas(int index) {
  const Kernels* const* list = available_kernels();
  for (int i = 0; i < index && *list; ++i) ++list;
  return *list ? (*list)->name : nullptr;
}

TK_API const char* tk_tile_unit_refused() { return tile_unit_refused(); }
TK_API int tk_unit_rows() { return kernels().unit_rows; }
TK_API int tk_force_isa(const char* name) { return force_kernels(name) ? 0 : 1; }
TK_API void tk_set_threads(int threads) { Team::instance().resize(threads); }
TK_API int tk_threads() { return Team::instance().size(); }

TK_API int tk_quantize(const float* x, int M, int K, const float* norm, float eps, int hadamard,
                       int8_t* q, float* x_scale) {
  const Kernels& k = kernels();
  Activations acts(M, K);
  std::atomic<int> bad{0};
  Forms forms;
  forms.int8 = true;
  forms.hadamard = hadamard;
  Team::instance().run(
      [&](Worker& worker) { prepare_rows(worker, k, acts, x, M, K, norm, eps, forms, bad); });
  for (int m = 0; m < M; ++m) {
    __builtin_memcpy(q + static_cast<ptrdiff_t>(m) * K, acts.q() + m * q_stride(K),
                     static_cast<size_t>(K));
    x_scale[m] = acts.x_scale()[m];
  }
  return bad;
}

TK_API void tk_linear_int(const Weight* w, const int8_t* q, int M, int32_t* out) {
  const Kernels& k = kernels();
  const int K = w->K;
  Activations acts(M, K);
  for (int m = 0; m < M; ++m) {
    const int8_t* row = q + static_cast<ptrdiff_t>(m) * K;
    int32_t sum = 0;
    for (int i = 0; i < K; ++i) sum += row[i];
    acts.sums()[m * sums_stride(K)] = sum;
    __builtin_memcpy(acts.q() + m * q_stride(K), row, static_cast<size_t>(K));
    acts.tile_q(k, m, M, K);
  }
  Acts view = acts.view(k, M, K);
  view.packed = nullptr;
  Linear shape{};
  shape.first = w;
  shape.threads = Team::instance().size();
  Team::instance().run([&](Worker& worker) {
    const Lookups lookups(k, &shape, 1, M, k.linear_scratch(*w));
    void* memory = worker.scratch(lookups.scratch_bytes());
    Acts own = view;
    lookups.make(k, own, memory);
    worker.for_each(k.linear_items(shape, M), 1,
                    [&](int item) { k.linear_int_item(shape, own, item, out, memory); });
  });
}

TK_API int tk_linears(const Weight* const* weights, int count, const float* x, int M,
                      const float* norm, float eps, const float* const* biases,
                      float* const* outs) {
  const Kernels& k = kernels();
  const int K = weights[0]->K;
  Forms forms;
  for (int i = 0; i < count; ++i) forms.add(*weights[i]);
  Activations acts(M, K);
  std::atomic<int> bad{0};
  Team::instance().run([&](Worker& worker) {
    if (prepare_rows(worker, k, acts, x, M, K, norm, eps, forms, bad)) return;
    for (int i = 0; i < count; ++i)
      run_linear(worker, k,
                 {weights[i], nullptr, biases[i], nullptr, kStore, outs[i], weights[i]->N},
                 acts.view(k, M, K));
  });
  return bad;
}

TK_API int tk_gated(const Weight* gate, const Weight* up, const float* x, int M, const float* norm,
                    float eps, const float* gate_bias, const float* up_bias, int mode, float* out) {
  const Kernels& k = kernels();
  const int K = gate->K;
  const Forms forms = Forms().add(*gate).add(*up);
  Activations acts(M, K);
  std::atomic<int> bad{0};
  Team::instance().run([&](Worker& worker) {
    if (prepare_rows(worker, k, acts, x, M, K, norm, eps, forms, bad)) return;
    run_linear(worker, k, {gate, up, gate_bias, up_bias, static_cast<Mode>(mode), out, gate->N},
               acts.view(k, M, K));
  });
  return bad;
}

TK_API uint64_t tk_read_all(const void* data, uint64_t bytes) {
  const Kernels& k = kernels();
  constexpr uint64_t kPortion = 1 << 20;
  const int items = static_cast<int>((bytes + kPortion - 1) / kPortion);
  std::atomic<uint64_t> total{0};
  Team::instance().run([&](Worker& worker) {
    uint64_t own = 0;
    worker.for_each(items, 1, [&](int item) {
      const uint64_t from = kPortion * static_cast<uint64_t>(item);
      const uint64_t size = bytes - from < kPortion ? bytes - from : kPortion;
      own += k.read_all(static_cast<const char*>(data) + from, size);
    });
    total += own;
  });
  return total;
}

TK_API uint64_t tk_dot_peak(uint64_t rounds) {
  const Kernels& k = kernels();
  std::atomic<uint64_t> total{0};
  Team::instance().run([&](Worker& worker) {
    worker.for_each(worker.threads(), 1, [&](int) {
      int32_t sink = 1;
      total += k.dot_peak(rounds, &sink);
    });
  });
  return total;
}
