// thread_pool.h owns the threads of the CPU backend. Work is split into tasks by rows and columns,
// never inside a sum, so that the number of threads cannot change a bit.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace exact::cpu {

// Cores that this process may run on.
int allowed_core_count();

class ThreadPool {
 public:
  explicit ThreadPool(int thread_count);  // at least 1; the calling thread is one of them
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int thread_count() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(index, thread) for each index in [0, count), in any order, on any thread; thread is
  // in [0, thread_count()). Returns when all are done. Not to be called from inside a task.
  template <class Task>
  void run(int64_t count, Task&& task) {
    using Plain = std::remove_reference_t<Task>;
    run_tasks(count, &task, [](void* context, int64_t index, int thread) {
      (*static_cast<Plain*>(context))(index, thread);
    });
  }

 private:
  using TaskFunction = void (*)(void* context, int64_t index, int thread);

  void run_tasks(int64_t count, void* context, TaskFunction function);
  void work(int thread);
  void take_tasks(int thread);
  bool join_job();
  void leave_job();

  std::vector<std::thread> threads_;
  // The job: written before it is opened, read by those that joined it.
  int64_t count_ = 0;
  void* context_ = nullptr;
  TaskFunction function_ = nullptr;
  std::atomic<int64_t> next_{0};
  // kOpen while the job may be joined, plus the number of threads that are in it. The caller waits
  // for those alone: a thread that sleeps, or that the system has not run yet, holds nobody up.
  std::atomic<uint32_t> job_{0};
  std::atomic<uint32_t> generation_{0};  // raised for each job; idle threads wait for it
  std::atomic<bool> stop_{false};
};

}  // namespace exact::cpu
