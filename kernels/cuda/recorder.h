// recorder.h owns recorded steps: what a key's operations launched, as a CUDA graph that is
// launched again when the key comes back. The first time, operations run as they are (libraries
// may have to make choices); the second time they are recorded.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "kernels/base/result.h"

namespace exact::cuda {

class Recorder {
 public:
  using Key = std::vector<uint64_t>;

  Recorder() = default;
  ~Recorder() { forget_all(); }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Runs, records or repeats `operations`, which launch on `stream` and report through `failed`.
  Status run(const Key& key, cudaStream_t stream, const std::function<void()>& operations,
             const std::function<bool()>& failed);
  // Memory that records point to has moved. The stream must be idle or about to be waited for.
  void forget_all();
  int64_t records() const;

 private:
  // Records beyond this are made anew when they come back: the oldest go first.
  static constexpr size_t kMaxRecords = 256;

  struct Record {
    cudaGraphExec_t graph = nullptr;  // null: seen once
    uint64_t last_use = 0;
  };
  Status record(cudaStream_t stream, const std::function<void()>& operations, Record& out,
                const std::function<bool()>& failed);
  void forget_oldest();

  std::map<Key, Record> records_;
  uint64_t uses_ = 0;
};

}  // namespace exact::cuda
