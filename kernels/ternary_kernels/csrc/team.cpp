// See team.h.
#include "team.h"

#include <pthread.h>

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace tk {
namespace {

constexpr auto kSpinBeforeSleep = std::chrono::microseconds(200);
// A barrier's wait lasts microseconds; longer means that the processor is shared.
constexpr int kSpinsBeforeYield = 4000;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

Team* the_team = nullptr;
std::once_flag made;

}  // namespace

Team& Team::instance() {
  std::call_once(made, [] {
    the_team = new Team;
    // A forked child has none of the threads and perhaps a locked mutex: it gets a new team of
    // one and leaves the old one's memory alone.
    pthread_atfork(nullptr, nullptr, [] { the_team = new Team; });
  });
  return *the_team;
}

void Team::resize(int threads) {
  const std::lock_guard<std::mutex> guard(entry_);
  if (threads == size()) return;
  dismiss();
  scratch_.resize(static_cast<size_t>(threads));
  for (Counter& counter : counters_) counter.next = 0;
  // The ticket is read here: a member that starts late must not miss the next call.
  const unsigned seen = ticket_.load();
  for (int id = 1; id < threads; ++id)
    members_.emplace_back([this, id, seen] { serve(id, seen); });
}

void Team::dismiss() {
  leaving_ = true;
  {
    const std::lock_guard<std::mutex> guard(bed_);
    ++ticket_;
  }
  alarm_.notify_all();
  for (std::thread& member : members_) member.join();
  members_.clear();
  leaving_ = false;
}

void Team::start(Body body, const void* argument) {
  body_ = body;
  argument_ = argument;
  ticket_.fetch_add(1);
  if (asleep_.load() > 0) {
    // Taking the lock orders this after a member's last look at the ticket.
    { const std::lock_guard<std::mutex> guard(bed_); }
    alarm_.notify_all();
  }
  Worker worker(*this, 0);
  body(argument, worker);
  // Nobody may still look at the body or a counter when the next call sets them.
  barrier();
  for (Counter& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
}

void Team::serve(int id, unsigned seen) {
  for (;;) {
    const auto since = std::chrono::steady_clock::now();
    for (int spins = 0; ticket_.load(std::memory_order_acquire) == seen; ++spins) {
      relax();
      if (spins % 64 != 63 || std::chrono::steady_clock::now() - since < kSpinBeforeSleep) continue;
      std::unique_lock<std::mutex> lock(bed_);
      ++asleep_;
      alarm_.wait(lock, [&] { return ticket_.load() != seen; });
      --asleep_;
    }
    ++seen;
    if (leaving_) return;
    Worker worker(*this, id);
    body_(argument_, worker);
    barrier();
  }
}

void Team::barrier() {
  const int all = size();
  if (all == 1) return;
  const unsigned round = round_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == all - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    relax();
    if (spins >= kSpinsBeforeYield) std::this_thread::yield();
  }
}

int Worker::threads() const { return team_.size(); }

void* Worker::scratch(size_t bytes) {
  auto& own = team_.scratch_[static_cast<size_t>(id_)];
  if (own.size() < bytes + 64) own.resize(bytes + 64);
  const auto address = reinterpret_cast<size_t>(own.data());
  return own.data() + (64 - address % 64) % 64;
}

}  // namespace tk
