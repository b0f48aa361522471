// context.h owns what every operation of the CPU backend works with: the kernels of the instruction
// set, the threads, and working memory.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include "kernels/base/result.h"
#include "kernels/cpu/chain.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace exact::cpu {

struct CpuContext {
  CpuContext(CpuIsa isa, int thread_count, bool profiling_in)
      : kernels(*chain_kernels(isa)),
        rows(*row_kernels(isa)),
        profiling(profiling_in),
        pool(thread_count),
        thread_scratch(static_cast<size_t>(thread_count)),
        chain_times(static_cast<size_t>(thread_count)) {}

  const ChainKernels& kernels;
  const RowKernels& rows;
  const bool profiling;
  ThreadPool pool;
  ScratchBlock shared_scratch;
  std::vector<ScratchBlock> thread_scratch;  // one a thread; in use within one operation

  struct alignas(kCacheLine) ChainTime {
    double seconds = 0;
  };
  std::vector<ChainTime> chain_times;  // one a thread, while profiling

  // kernels.chain, timed when asked for.
  void chain(int thread, const ChainRows& operands, const ChainPanel& panel, int64_t steps) {
    if (!profiling) return kernels.chain(operands, panel, steps);
    const auto start = std::chrono::steady_clock::now();
    kernels.chain(operands, panel, steps);
    chain_times[static_cast<size_t>(thread)].seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  // The time inside the chain since the last call, as a mean over the threads.
  double take_chain_time() {
    double sum = 0;
    for (ChainTime& time : chain_times) {
      sum += time.seconds;
      time.seconds = 0;
    }
    return sum / static_cast<double>(chain_times.size());
  }

  // At least `bytes` for each thread.
  Status reserve_thread_scratch(size_t bytes) {
    for (ScratchBlock& block : thread_scratch) {
      if (block.reserve(bytes) == nullptr) return out_of_memory();
    }
    return {};
  }

  void* scratch_of(int thread) { return thread_scratch[static_cast<size_t>(thread)].data(); }

  static Status out_of_memory() {
    return Status(Code::exhausted,
                  "no memory for the CPU backend's working space: free some, or lower the limits");
  }
};

// Splits `count` items into pieces of at most `piece`: how many tasks that makes.
constexpr int64_t piece_count(int64_t count, int64_t piece) {
  return (count + piece - 1) / piece;
}

}  // namespace exact::cpu
