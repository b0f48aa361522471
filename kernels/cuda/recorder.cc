#include "kernels/cuda/recorder.h"

#include <algorithm>

#include "kernels/cuda/memory.h"

namespace exact::cuda {

Status Recorder::run(const Key& key, cudaStream_t stream, const std::function<void()>& operations,
                     const std::function<bool()>& failed) {
  const auto found = records_.find(key);
  if (found == records_.end()) {
    if (records_.size() >= kMaxRecords) forget_oldest();
    records_[key].last_use = ++uses_;
    operations();
    return {};
  }
  Record& known = found->second;
  known.last_use = ++uses_;
  if (known.graph == nullptr) EXACT_RETURN_IF_ERROR(record(stream, operations, known, failed));
  return cuda_status(cudaGraphLaunch(known.graph, stream), "a recorded step");
}

Status Recorder::record(cudaStream_t stream, const std::function<void()>& operations, Record& out,
                        const std::function<bool()>& failed) {
  EXACT_RETURN_IF_ERROR(cuda_status(
      cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "recording a step"));
  operations();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (failed() || ended != cudaSuccess) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return cuda_status(ended, "recording a step");
  }
  const cudaError_t made = cudaGraphInstantiate(&out.graph, graph, 0);
  cudaGraphDestroy(graph);
  return cuda_status(made, "making a recorded step");
}

void Recorder::forget_oldest() {
  const auto oldest = std::min_element(
      records_.begin(), records_.end(),
      [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  if (oldest->second.graph != nullptr) cudaGraphExecDestroy(oldest->second.graph);
  records_.erase(oldest);
}

void Recorder::forget_all() {
  for (auto& [key, record] : records_) {
    if (record.graph != nullptr) cudaGraphExecDestroy(record.graph);
  }
  records_.clear();
}

int64_t Recorder::records() const {
  return std::count_if(records_.begin(), records_.end(),
                       [](const auto& entry) { return entry.second.graph != nullptr; });
}

}  // namespace exact::cuda
