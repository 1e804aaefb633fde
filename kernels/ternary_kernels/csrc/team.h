// The library's own team of threads.
//
// A call enters the team once and all threads run the same function to its end; between the
// steps of a model they meet at a spinning barrier, which costs a fraction of a microsecond
// where waking a sleeping thread costs tens. Between calls the others spin for a short while
// (the next token is near) and then sleep. Work is handed out in small portions by a shared
// counter, so a thread that the system interrupts delays nobody for long; which thread computes
// a portion never changes its result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace tk {

class Team;

// A thread's view of the team inside run().
class Worker {
 public:
  Worker(Team& team, int id) : team_(team), id_(id) {}

  // Calls f(i) for each i in [0, items), `portion` at a time, and waits for all threads.
  template <class F>
  void for_each(int items, int portion, const F& f);

  // At least `bytes` of this thread's own memory, 64-byte aligned, valid until the next call.
  void* scratch(size_t bytes);
  int threads() const;

 private:
  Team& team_;
  int id_;
  unsigned step_ = 0;
};

class Team {
 public:
  static Team& instance();

  int size() const { return static_cast<int>(members_.size()) + 1; }
  void resize(int threads);

  // Runs f(worker) on all threads, the caller's included. One call at a time; others wait.
  template <class F>
  void run(const F& f) {
    const std::lock_guard<std::mutex> guard(entry_);
    start([](const void* body, Worker& worker) { (*static_cast<const F*>(body))(worker); }, &f);
  }

 private:
  friend class Worker;
  using Body = void (*)(const void*, Worker&);
  static constexpr int kCounters = 4;

  Team() = default;
  void start(Body body, const void* argument);
  void serve(int id, unsigned seen);
  void barrier();
  void dismiss();

  std::mutex entry_;
  std::vector<std::thread> members_;
  std::vector<std::vector<unsigned char>> scratch_{1};

  // What the members wait for: a new ticket. The mutex guards their falling asleep alone.
  std::atomic<unsigned> ticket_{0};
  std::atomic<bool> leaving_{false};
  std::atomic<int> asleep_{0};
  std::mutex bed_;
  std::condition_variable alarm_;
  Body body_ = nullptr;
  const void* argument_ = nullptr;

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
  struct alignas(64) Counter {
    std::atomic<int> next{0};
  };
  Counter counters_[kCounters];
};

template <class F>
void Worker::for_each(int items, int portion, const F& f) {
  std::atomic<int>& next = team_.counters_[step_ % Team::kCounters].next;
  for (int i; (i = next.fetch_add(portion, std::memory_order_relaxed)) < items;)
    for (int j = i; j < items && j < i + portion; ++j) f(j);
  // The counter of two steps ahead was last used two steps ago, and all threads have met since.
  if (id_ == 0)
    team_.counters_[(step_ + 2) % Team::kCounters].next.store(0, std::memory_order_relaxed);
  ++step_;
  team_.barrier();
}

}  // namespace tk
