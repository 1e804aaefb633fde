// A Llama-type model: one call runs all layers for a batch of rows.
//
// All threads walk through the layers together; each step hands out its items and ends at a
// barrier. Rows may belong to different slots: everything but attention treats them alike, and
// attention gathers neighbouring rows of one slot into query tiles. Long batches are cut into
// chunks so that the buffers stay small and in cache.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "abi.h"
#include "activations.h"
#include "dispatch.h"
#include "team.h"

namespace {

using namespace tk;

constexpr int kChunkRows = 256;
enum Which { kQ, kK, kV, kO, kGate, kUp, kDown };

// Keys and values of all slots and layers. Pages that no position has touched cost nothing.
class Cache {
 public:
  Cache(const TkLlama& m)
      : keys_(row_blocks(m) * static_cast<size_t>(m.head_dim) * 16 * item_bytes(m)),
        values_(static_cast<size_t>(m.context) * padded_dim(m) * item_bytes(m)),
        heads_(static_cast<size_t>(m.kv_heads)),
        layers_(static_cast<size_t>(m.layers)),
        bytes_(static_cast<size_t>(m.slots) * layers_ * heads_ * (keys_ + values_)) {
    void* memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(memory);
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes_, MADV_HUGEPAGE);
#endif
  }
  ~Cache() { munmap(data_, bytes_); }
  Cache(const Cache&) = delete;

  char* keys(int slot, int layer, int head) const {
    const size_t at = (static_cast<size_t>(slot) * layers_ + static_cast<size_t>(layer)) * heads_ +
                      static_cast<size_t>(head);
    return data_ + at * (keys_ + values_);
  }
  char* values(int slot, int layer, int head) const { return keys(slot, layer, head) + keys_; }
  size_t bytes() const { return bytes_; }

 private:
  static size_t row_blocks(const TkLlama& m) { return static_cast<size_t>(m.context + 15) / 16; }
  static size_t padded_dim(const TkLlama& m) {
    return static_cast<size_t>(m.head_dim + 15) / 16 * 16;
  }
  static size_t item_bytes(const TkLlama& m) { return m.kv_type == kFloat32 ? 4 : 2; }

  size_t keys_, values_, heads_, layers_, bytes_;
  char* data_;
};

// Neighbouring rows of one slot whose queries share an attention tile.
struct RowRun {
  int first, count;
};

class Model {
 public:
  explicit Model(const TkLlama& spec)
      : spec_(spec),
        layers_(spec.layer, spec.layer + spec.layers),
        cache_(spec),
        inv_freq_(spec.inv_freq, spec.inv_freq + spec.head_dim / 2) {}

  uint64_t kv_bytes() const { return cache_.bytes(); }

  int forward(const int32_t* tokens, const int32_t* slots, const int32_t* positions, int n,
              const uint8_t* want, float* logits) {
    failure_ = 0;
    for (int from = 0; from < n && !failure_; from += kChunkRows) {
      rows_ = std::min(kChunkRows, n - from);
      tokens_ = tokens + from;
      slots_ = slots + from;
      positions_ = positions + from;
      wanted_.clear();
      for (int m = 0; m < rows_; ++m)
        if (want[from + m]) wanted_.push_back(m);
      make_room(rows_);
      if (spec_.head.places)
        by_place_.resize(
            std::max(by_place_.size(), wanted_.size() * static_cast<size_t>(spec_.vocab)));
      find_runs();
      Team::instance().run([&](Worker& worker) { run_chunk(worker, logits); });
      logits += static_cast<size_t>(spec_.vocab) * wanted_.size();
    }
    return failure_;
  }

 private:
  int heads_width() const { return spec_.heads * spec_.head_dim; }
  int kv_width() const { return spec_.kv_heads * spec_.head_dim; }
  int queries_per_kv() const { return spec_.heads / spec_.kv_heads; }
  int heads_per_tile() const { return std::min(queries_per_kv(), kMaxQueries); }

  void make_room(int rows) {
    if (rows <= room_) return;
    const auto take = [&](std::vector<float>& v, int width) {
      v.resize(static_cast<size_t>(rows) * static_cast<size_t>(width));
    };
    const int widest = std::max({spec_.hidden, heads_width(), spec_.inter});
    acts_ = std::make_unique<Activations>(rows, widest);
    take(x_, spec_.hidden);
    take(q_, heads_width());
    take(k_, kv_width());
    take(v_, kv_width());
    take(mixed_, heads_width());
    take(inner_, spec_.inter);
    take(cos_, spec_.head_dim / 2);
    take(sin_, spec_.head_dim / 2);
    room_ = rows;
  }

  void find_runs() {
    const int most = std::max(1, kMaxQueries / queries_per_kv());
    runs_.clear();
    for (int m = 0; m < rows_; ++m) {
      if (m > 0 && slots_[m] == slots_[m - 1] && runs_.back().count < most)
        ++runs_.back().count;
      else
        runs_.push_back({m, 1});
    }
  }

  void run_chunk(Worker& worker, float* logits) {
    const Kernels& k = kernels();
    worker.for_each(rows_, 1, [&](int m) {
      embed(k, tokens_[m], row(x_, m, spec_.hidden));
      fill_rotation(m);
    });
    for (int i = 0; i < spec_.layers; ++i) {
      attention_block(worker, k, i);
      feed_forward(worker, k, i);
    }
    if (!wanted_.empty()) head(worker, k, logits);
  }

  void attention_block(Worker& worker, const Kernels& k, int i) {
    const TkLayer& layer = layers_[static_cast<size_t>(i)];
    prepare(worker, k, x_, spec_.hidden, layer.attn_norm, spec_.eps,
            {&layer.linears[kQ], &layer.linears[kK], &layer.linears[kV]}, 1 + 4 * i);
    float* outs[] = {q_.data(), k_.data(), v_.data()};
    Linear linears[3];
    for (int j = 0; j < 3; ++j) {
      const Weight& w = layer.linears[kQ + j];
      linears[j] = {&w, nullptr, layer.biases[kQ + j], nullptr, kStore, outs[j], w.N};
    }
    multiply(worker, k, linears, 3, rows_, spec_.hidden);

    worker.for_each(rows_ * spec_.kv_heads, 1, [&](int item) {
      place_head(k, layer, i, item / spec_.kv_heads, item % spec_.kv_heads);
    });
    const int per_tile = heads_per_tile();
    const int splits = (queries_per_kv() + per_tile - 1) / per_tile;
    void* scratch = worker.scratch(k.attention_scratch(spec_.head_dim, spec_.context));
    worker.for_each(static_cast<int>(runs_.size()) * spec_.kv_heads * splits, 1, [&](int item) {
      const int split = item % splits, head = item / splits % spec_.kv_heads;
      attend(k, i, runs_[static_cast<size_t>(item / splits / spec_.kv_heads)], head,
             split * per_tile, scratch);
    });

    const Weight& o = layer.linears[kO];
    prepare(worker, k, mixed_, heads_width(), layer.attn_sub_norm,
            layer.attn_sub_norm ? spec_.eps : -1.0f, {&o}, 2 + 4 * i);
    Linear out = {&o, nullptr, layer.biases[kO], nullptr, kAdd, x_.data(), spec_.hidden};
    multiply(worker, k, &out, 1, rows_, heads_width());
  }

  void feed_forward(Worker& worker, const Kernels& k, int i) {
    const TkLayer& layer = layers_[static_cast<size_t>(i)];
    const Weight &gate = layer.linears[kGate], &up = layer.linears[kUp],
                 &down = layer.linears[kDown];
    prepare(worker, k, x_, spec_.hidden, layer.ffn_norm, spec_.eps, {&gate, &up}, 3 + 4 * i);
    Linear inner = {&gate,
                          &up,
                          layer.biases[kGate],
                          layer.biases[kUp],
                          static_cast<Mode>(spec_.gate_mode),
                          inner_.data(),
                          spec_.inter};
    multiply(worker, k, &inner, 1, rows_, spec_.hidden);
    prepare(worker, k, inner_, spec_.inter, layer.ffn_sub_norm,
            layer.ffn_sub_norm ? spec_.eps : -1.0f, {&down}, 4 + 4 * i);
    Linear out = {&down, nullptr,   layer.biases[kDown], nullptr,
                        kAdd,  x_.data(), spec_.hidden};
    multiply(worker, k, &out, 1, rows_, spec_.inter);
  }

  void head(Worker& worker, const Kernels& k, float* logits) {
    const Table& table = spec_.head;
    const int wanted = static_cast<int>(wanted_.size()), parts = table.second.N ? 2 : 1;
    Forms forms = Forms().add(table.first);
    if (parts == 2) forms.add(table.second);
    worker.for_each(wanted, 1, [&](int j) {
      const float* x = row(x_, wanted_[static_cast<size_t>(j)], spec_.hidden);
      if (!acts_->prepare(k, j, wanted, x, spec_.hidden, spec_.norm, spec_.eps, forms))
        fail(-1);
    });
    float* out = table.places ? by_place_.data() : logits;
    Linear linears[] = {
        {&table.first, nullptr, nullptr, nullptr, kStore, out, spec_.vocab},
        {&table.second, nullptr, nullptr, nullptr, kStore, out + table.first.N, spec_.vocab}};
    multiply(worker, k, linears, parts, wanted, spec_.hidden);
    if (table.places) order_by_token(worker, table.places, wanted, logits);
  }

  void embed(const Kernels& k, int token, float* out) const {
    const Table& table = spec_.embed;
    const int place = table.place(token);
    const bool early = place < table.first.N;
    const Weight& w = early ? table.first : table.second;
    k.embed_row(w, early ? place : place - table.first.N, out);
    if (w.hadamard > 1) k.hadamard_row(out, w.K, w.hadamard);
  }

  void order_by_token(Worker& worker, const int32_t* places, int wanted, float* logits) {
    constexpr int kTokens = 8192;  // an item's
    const int items = (spec_.vocab + kTokens - 1) / kTokens;
    worker.for_each(wanted * items, 1, [&](int item) {
      const size_t row = static_cast<size_t>(item / items) * static_cast<size_t>(spec_.vocab);
      const int end = std::min(spec_.vocab, (item % items + 1) * kTokens);
      for (int t = item % items * kTokens; t < end; ++t)
        logits[row + static_cast<size_t>(t)] = by_place_[row + static_cast<size_t>(places[t])];
    });
  }

  // Norm and quantise all rows of x for the weights that read them.
  void prepare(Worker& worker, const Kernels& k, const std::vector<float>& x, int K,
               const float* norm, float eps, std::initializer_list<const Weight*> readers,
               int where) {
    Forms forms;
    for (const Weight* w : readers) forms.add(*w);
    worker.for_each(rows_, 1, [&](int m) {
      const float* from = x.data() + static_cast<size_t>(m) * static_cast<size_t>(K);
      if (!acts_->prepare(k, m, rows_, from, K, norm, eps, forms)) fail(where);
    });
  }

  // Several linear layers over the prepared activations as one list of items.
  void multiply(Worker& worker, const Kernels& k, Linear* linears, int count, int rows, int K) {
    size_t scratch = 0;
    int ends[3] = {}, items = 0;
    for (int j = 0; j < count; ++j) {
      linears[j].threads = worker.threads();
      ends[j] = items += k.linear_items(linears[j], rows);
      for (const Weight* w : {linears[j].first, linears[j].second})
        if (w) scratch = std::max(scratch, k.linear_scratch(*w));
    }
    const Lookups lookups(k, linears, count, rows, scratch);
    void* memory = worker.scratch(lookups.scratch_bytes());
    Acts acts = acts_->view(k, rows, K);
    lookups.make(k, acts, memory);
    worker.for_each(items, portion_of(items, worker.threads(), lookups), [&](int item) {
      int j = 0;
      while (item >= ends[j]) ++j;
      k.linear_item(linears[j], acts, item - (j ? ends[j - 1] : 0), memory);
    });
  }

  void fill_rotation(int m) {
    const int half = spec_.head_dim / 2;
    float *cos = row(cos_, m, half), *sin = row(sin_, m, half);
    for (int d = 0; d < half; ++d) {
      const float angle = static_cast<float>(positions_[m]) * inv_freq_[static_cast<size_t>(d)];
      cos[d] = static_cast<float>(std::cos(static_cast<double>(angle))) * spec_.rope_scaling;
      sin[d] = static_cast<float>(std::sin(static_cast<double>(angle))) * spec_.rope_scaling;
    }
  }

  // One KV head of one row: norms, rotation of its key and queries, key and value to the cache.
  void place_head(const Kernels& k, const TkLayer& layer, int i, int m, int head) {
    const int D = spec_.head_dim, half = D / 2, group = queries_per_kv();
    const float *cos = row(cos_, m, half), *sin = row(sin_, m, half);
    float* queries = row(q_, m, heads_width()) + head * group * D;
    for (int j = 0; j < group; ++j) {
      float* q = queries + j * D;
      if (layer.q_norm) k.norm_row(q, layer.q_norm, spec_.eps, D, q);
      k.rotate_head(q, cos, sin, D);
    }
    float* key = row(k_, m, kv_width()) + head * D;
    if (layer.k_norm) k.norm_row(key, layer.k_norm, spec_.eps, D, key);
    k.rotate_head(key, cos, sin, D);
    const auto type = static_cast<FloatType>(spec_.kv_type);
    k.store_key(cache_.keys(slots_[m], i, head), type, positions_[m], D, key);
    k.store_value(cache_.values(slots_[m], i, head), type, positions_[m], D,
                  row(v_, m, kv_width()) + head * D);
  }

  void attend(const Kernels& k, int i, RowRun run, int head, int first_query, void* scratch) {
    const int D = spec_.head_dim, group = queries_per_kv();
    const int count = std::min(heads_per_tile(), group - first_query);
    AttentionTile tile;
    tile.queries = 0;
    tile.head_dim = D;
    tile.context = spec_.context;
    tile.scale = 1.0f / std::sqrt(static_cast<float>(D));
    for (int m = run.first; m < run.first + run.count; ++m)
      for (int j = 0; j < count; ++j) {
        const int at = (head * group + first_query + j) * D, n = tile.queries++;
        tile.q[n] = row(q_, m, heads_width()) + at;
        tile.out[n] = row(mixed_, m, heads_width()) + at;
        tile.end[n] = positions_[m] + 1;
        tile.begin[n] = spec_.window ? std::max(0, tile.end[n] - spec_.window) : 0;
      }
    tile.type = static_cast<FloatType>(spec_.kv_type);
    tile.keys = cache_.keys(slots_[run.first], i, head);
    tile.values = cache_.values(slots_[run.first], i, head);
    k.attend(tile, scratch);
  }

  static float* row(std::vector<float>& v, int m, int width) {
    return v.data() + static_cast<size_t>(m) * static_cast<size_t>(width);
  }
  void fail(int where) {
    int none = 0;
    failure_.compare_exchange_strong(none, where);
  }

  TkLlama spec_;
  std::vector<TkLayer> layers_;
  Cache cache_;
  std::vector<float> inv_freq_;

  int room_ = 0;
  std::unique_ptr<Activations> acts_;
  std::vector<float> x_, q_, k_, v_, mixed_, inner_, cos_, sin_;
  std::vector<float> by_place_;  // logits in the order of a table's rows

  int rows_ = 0;
  const int32_t *tokens_ = nullptr, *slots_ = nullptr, *positions_ = nullptr;
  std::vector<int> wanted_;
  std::vector<RowRun> runs_;
  std::atomic<int> failure_{0};
};

}  // namespace

TK_API void* tk_llama_create(const TkLlama* spec) {
  try {
    return new Model(*spec);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

TK_API void tk_llama_free(void* model) { delete static_cast<Model*>(model); }

TK_API uint64_t tk_llama_kv_bytes(const void* model) {
  return static_cast<const Model*>(model)->kv_bytes();
}

TK_API int tk_llama_forward(void* model, const int32_t* tokens, const int32_t* slots,
                            const int32_t* positions, int n, const uint8_t* want, float* logits) {
  return static_cast<Model*>(model)->forward(tokens, slots, positions, n, want, logits);
}
