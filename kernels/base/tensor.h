// tensor.h owns the two types that stand for memory: Buffer owns bytes, TensorView looks at them.
// Views are trivially copyable and are not kept beyond a step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"

namespace exact {

enum class DType : uint8_t { bf16 = 0, fp32 = 1, int32 = 2 };

constexpr size_t dtype_bytes(DType dtype) {
  return dtype == DType::bf16 ? 2 : 4;
}
// The safetensors names: "BF16", "F32", "I32".
constexpr std::string_view dtype_name(DType dtype) {
  return dtype == DType::bf16 ? "BF16" : dtype == DType::fp32 ? "F32" : "I32";
}

// A row-major matrix (rows, columns) in some backend's memory. A vector is one row. Rows may be
// further apart than their width (a slice of columns); elements of a row are contiguous.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::bf16;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;  // elements from one row to the next

  TensorView() = default;
  TensorView(void* data_in, DType dtype_in, int64_t rows_in, int64_t columns_in)
      : data(data_in),
        dtype(dtype_in),
        rows(rows_in),
        columns(columns_in),
        row_stride(columns_in) {}

  // Host access; only for memory that the host can read.
  template <class T>
  T* row(int64_t index) const {
    EXACT_CHECK(sizeof(T) == dtype_bytes(dtype) && index >= 0 && index < rows, "row out of range");
    return static_cast<T*>(data) + index * row_stride;
  }
  // Rows [begin, begin + count).
  TensorView slice_rows(int64_t begin, int64_t count) const {
    EXACT_CHECK(begin >= 0 && count >= 0 && begin + count <= rows, "slice out of range");
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) +
                static_cast<size_t>(begin * row_stride) * dtype_bytes(dtype);
    view.rows = count;
    return view;
  }
  // Columns [begin, begin + count) of every row.
  TensorView slice_columns(int64_t begin, int64_t count) const {
    EXACT_CHECK(begin >= 0 && count >= 0 && begin + count <= columns, "slice out of range");
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin) * dtype_bytes(dtype);
    view.columns = count;
    return view;
  }
};

// Owns a block of one backend's memory; move-only. The backend that made it frees it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t bytes, std::function<void(void*)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
      release_ = std::move(other.release_);
      other.release_ = nullptr;
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { reset(); }

  void reset() {
    if (data_ != nullptr && release_) release_(data_);
    data_ = nullptr;
    bytes_ = 0;
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  TensorView view(DType dtype, int64_t rows, int64_t columns) const {
    EXACT_CHECK(static_cast<size_t>(rows * columns) * dtype_bytes(dtype) <= bytes_,
                "a view larger than its buffer");
    return TensorView(data_, dtype, rows, columns);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::function<void(void*)> release_;
};

}  // namespace exact
