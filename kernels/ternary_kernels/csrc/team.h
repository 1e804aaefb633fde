// The library's own team of threads.
//
// A call opens a door; the threads of the team that come in time run the same function beside
// the caller and walk through its steps. A step is a list of items, handed out in portions, and
// is over when its *items* are done, not when all threads have arrived: a thread that the system
// holds up between portions delays nobody, so on a busy machine a team is hardly slower than
// its caller alone. Waiting spins (a fraction of a microsecond, where waking a sleeping thread
// costs tens); between calls the others spin for a short while, since the next token is near,
// and then sleep. Which thread computes an item never changes its result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace tk {

class Team;

// A thread's view of the team inside run().
class Worker {
 public:
  Worker(Team& team, int id, uint32_t first_step) : team_(team), id_(id), step_(first_step) {}

  // Calls f(i) for each i in [0, items), `portion` at a time; returns when all are done. All
  // threads must come by the same steps with the same items.
  template <class F>
  void for_each(int items, int portion, const F& f);

  // At least `bytes` of this thread's own memory, 64-byte aligned, valid until the next call.
  void* scratch(size_t bytes);
  int threads() const;

 private:
  Team& team_;
  int id_;
  uint32_t step_;
};

class Team {
 public:
  static Team& instance();

  int size() const { return static_cast<int>(members_.size()) + 1; }
  void resize(int threads);

  // Runs f(worker) on the caller's thread and on those of the team that come while it lasts.
  // One call at a time; others wait.
  template <class F>
  void run(const F& f) {
    const std::lock_guard<std::mutex> guard(entry_);
    start([](const void* body, Worker& worker) { (*static_cast<const F*>(body))(worker); }, &f);
  }

 private:
  friend class Worker;
  using Body = void (*)(const void*, Worker&);

  Team() = default;
  void start(Body body, const void* argument);
  void serve(int id, uint32_t seen);
  void sleep_until_called(uint32_t seen);
  bool enter(uint32_t& seen);
  void dismiss();

  int claim(uint32_t step, int items, int portion);
  void complete(uint32_t step, int items, int count);
  void await_end(uint32_t step);

  std::mutex entry_;
  std::vector<std::thread> members_;
  std::vector<std::vector<unsigned char>> scratch_{1};

  // High half: number of the call. Low half: open flag and how many members are inside.
  static constexpr uint64_t kOpen = 1u << 31;
  alignas(64) std::atomic<uint64_t> door_{0};
  Body body_ = nullptr;
  const void* argument_ = nullptr;
  uint32_t first_step_ = 0;
  bool leaving_ = false;

  std::atomic<int> asleep_{0};
  std::mutex bed_;
  std::condition_variable alarm_;

  // High half: the step in progress. Low half: its next item.
  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<int> done_{0};
};

template <class F>
void Worker::for_each(int items, int portion, const F& f) {
  if (items <= 0) return;
  const uint32_t step = step_++;
  for (int from; (from = team_.claim(step, items, portion)) >= 0;) {
    const int to = items - from < portion ? items : from + portion;
    for (int i = from; i < to; ++i) f(i);
    team_.complete(step, items, to - from);
  }
  team_.await_end(step);
}

}  // namespace tk
