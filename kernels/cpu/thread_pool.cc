#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include "kernels/base/check.h"

namespace exact::cpu {
namespace {

// A step has many short jobs: a thread looks for the next one this many times before it sleeps.
constexpr int kSpins = 2000;
constexpr uint32_t kOpen = 1u << 31;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until value differs from `old`.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; i++) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int allowed_core_count() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

ThreadPool::ThreadPool(int thread_count) {
  EXACT_CHECK(thread_count >= 1, "a pool has at least the calling thread");
  threads_.reserve(static_cast<size_t>(thread_count) - 1);
  for (int i = 1; i < thread_count; i++) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_tasks(int64_t count, void* context, TaskFunction function) {
  if (count <= 0) return;
  if (threads_.empty() || count == 1) {
    for (int64_t i = 0; i < count; i++) function(context, i, 0);
    return;
  }
  count_ = count;
  context_ = context;
  function_ = function;
  next_.store(0, std::memory_order_relaxed);
  job_.store(kOpen, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_tasks(0);
  uint32_t joined = job_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
  for (; joined != 0; joined = job_.load(std::memory_order_acquire)) wait_while(job_, joined);
}

bool ThreadPool::join_job() {
  uint32_t job = job_.load(std::memory_order_relaxed);
  while ((job & kOpen) != 0) {
    if (job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::leave_job() {
  if (job_.fetch_sub(1, std::memory_order_acq_rel) == 1) job_.notify_one();
}

void ThreadPool::take_tasks(int thread) {
  for (;;) {
    const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
    if (index >= count_) return;
    function_(context_, index, thread);
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_while(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    if (!join_job()) continue;
    take_tasks(thread);
    leave_job();
  }
}

}  // namespace exact::cpu
