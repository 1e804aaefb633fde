// See team.h.
#include "team.h"

#include <pthread.h>

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tk {
namespace {

constexpr auto kSpinBeforeSleep = std::chrono::microseconds(200);
// A step's last portion takes microseconds; longer means that its thread was interrupted.
constexpr int kSpinsBeforeYield = 4000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(const Condition& met) {
  for (int spins = 0; !met(); ++spins) {
    relax();
    if (spins >= kSpinsBeforeYield) std::this_thread::yield();
  }
}

inline uint32_t high(uint64_t word) { return static_cast<uint32_t>(word >> 32); }
inline uint32_t low(uint64_t word) { return static_cast<uint32_t>(word); }
inline uint64_t join(uint32_t high, uint64_t low) {
  return static_cast<uint64_t>(high) << 32 | low;
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
  // The call number is read here: a member that starts late must not take an old call for new.
  const uint32_t seen = high(door_.load());
  for (int id = 1; id < threads; ++id) members_.emplace_back([this, id, seen] { serve(id, seen); });
}

void Team::dismiss() {
  leaving_ = true;
  {
    const std::lock_guard<std::mutex> guard(bed_);
    door_ = join(high(door_) + 1, 0);
  }
  alarm_.notify_all();
  for (std::thread& member : members_) member.join();
  members_.clear();
  leaving_ = false;
}

void Team::start(Body body, const void* argument) {
  body_ = body;
  argument_ = argument;
  first_step_ = high(next_.load());
  door_ = join(high(door_) + 1, kOpen);
  if (asleep_ > 0) {
    // Taking the lock orders this after a member's last look at the door.
    {
      const std::lock_guard<std::mutex> guard(bed_);
    }
    alarm_.notify_all();
  }
  Worker worker(*this, 0, first_step_);
  body(argument, worker);
  door_ &= ~kOpen;
  spin_until([&] { return low(door_.load(std::memory_order_acquire)) == 0; });
}

void Team::serve(int id, uint32_t seen) {
  for (;;) {
    const auto since = std::chrono::steady_clock::now();
    for (int spins = 0; high(door_.load(std::memory_order_acquire)) == seen; ++spins) {
      relax();
      if (spins % 64 == 63 && std::chrono::steady_clock::now() - since > kSpinBeforeSleep)
        sleep_until_called(seen);
    }
    if (!enter(seen)) {
      if (leaving_) return;
      continue;
    }
    Worker worker(*this, id, first_step_);
    body_(argument_, worker);
    door_.fetch_sub(1, std::memory_order_release);
  }
}

void Team::sleep_until_called(uint32_t seen) {
  std::unique_lock<std::mutex> lock(bed_);
  ++asleep_;
  alarm_.wait(lock, [&] { return high(door_.load()) != seen; });
  --asleep_;
}

// Through the door, if it is still open; either way the call counts as seen.
bool Team::enter(uint32_t& seen) {
  uint64_t door = door_.load(std::memory_order_acquire);
  do {
    seen = high(door);
    if (!(door & kOpen)) return false;
  } while (!door_.compare_exchange_weak(door, door + 1, std::memory_order_acq_rel));
  return true;
}

// The first item of a portion of this step, or -1 if none is left.
int Team::claim(uint32_t step, int items, int portion) {
  uint64_t word = next_.load(std::memory_order_acquire);
  do {
    if (high(word) != step || low(word) >= static_cast<uint32_t>(items)) return -1;
  } while (!next_.compare_exchange_weak(word, word + static_cast<uint32_t>(portion),
                                        std::memory_order_acq_rel));
  return static_cast<int>(low(word));
}

void Team::complete(uint32_t step, int items, int count) {
  if (done_.fetch_add(count, std::memory_order_acq_rel) + count < items) return;
  done_.store(0, std::memory_order_relaxed);
  next_.store(join(step + 1, 0), std::memory_order_release);
}

void Team::await_end(uint32_t step) {
  spin_until([&] { return high(next_.load(std::memory_order_acquire)) != step; });
}

int Worker::threads() const { return team_.size(); }

void* Worker::scratch(size_t bytes) {
  auto& own = team_.scratch_[static_cast<size_t>(id_)];
  if (own.size() < bytes + 64) own.resize(bytes + 64);
  const auto address = reinterpret_cast<size_t>(own.data());
  return own.data() + (64 - address % 64) % 64;
}

}  // namespace tk
