// device_tensor.h owns a tensor in a backend's memory, for tests that run on each backend.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace exact {

class DeviceTensor {
 public:
  DeviceTensor(Backend& backend, int64_t rows, int64_t columns) : backend_(backend) {
    auto memory = backend.allocate(static_cast<size_t>(rows * columns) * sizeof(uint16_t));
    EXACT_CHECK(memory.is_ok(), "no memory for a test's tensor");
    memory_ = std::move(memory).value();
    view_ = memory_.view(DType::bf16, rows, columns);
  }
  DeviceTensor(Backend& backend, const std::vector<uint16_t>& values, int64_t rows, int64_t columns)
      : DeviceTensor(backend, rows, columns) {
    backend.upload(view_, std::as_bytes(std::span(values)));
    EXACT_CHECK(backend.finish().is_ok(), "an upload failed");
  }

  const TensorView& view() const { return view_; }
  std::vector<uint16_t> to_host() const {
    std::vector<uint16_t> values(static_cast<size_t>(view_.rows * view_.columns));
    backend_.download(std::as_writable_bytes(std::span(values)), view_);
    const Status status = backend_.finish();
    EXACT_CHECK(status.is_ok(), status.to_string().c_str());
    return values;
  }

 private:
  Backend& backend_;
  Buffer memory_;
  TensorView view_;
};

}  // namespace exact
