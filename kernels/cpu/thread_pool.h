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

  std::vector<std::thread> threads_;
  // The job: written before generation_ is raised, read after it is seen.
  int64_t count_ = 0;
  void* context_ = nullptr;
  TaskFunction function_ = nullptr;
  std::atomic<int64_t> next_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> busy_{0};  // threads that have not finished the job
  std::atomic<bool> stop_{false};
};

}  // namespace exact::cpu
