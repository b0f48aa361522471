// cuda_backend.cc owns the making of a CUDA backend: what it refuses to run on, its memory, its
// steps and their records.
#include "kernels/cuda/cuda_backend.h"

#include "kernels/contract/shape.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_backend_class.h"

namespace exact {
namespace cuda {
namespace {

constexpr int kMeasuredRuntime = 13;  // major version of CUDA that the contract was measured with

Status unsupported(std::string sentence) {
  return Status(Code::unsupported, std::move(sentence) + "; --backend cpu gives the same bits");
}

// The GPU, if it is one whose arithmetic the contract is.
Status check_device(int device, cudaDeviceProp& properties) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    return unsupported(std::string("no GPU is visible (") + cudaGetErrorString(error) +
                       "): check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  if (device < 0 || device >= count) {
    return unsupported("GPU " + std::to_string(device) + " is not there: " + std::to_string(count) +
                       " are visible, counted from 0");
  }
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaGetDeviceProperties(&properties, device), "the GPU's properties"));
  if (properties.major != 9 || properties.minor != 0) {
    return unsupported("GPU " + std::to_string(device) + " is a " + properties.name + ", sm_" +
                       std::to_string(properties.major * 10 + properties.minor) +
                       ": the contract is the arithmetic of sm_90 (H100, H200)");
  }
  int runtime = 0;
  EXACT_RETURN_IF_ERROR(cuda_status(cudaRuntimeGetVersion(&runtime), "the CUDA runtime"));
  if (runtime / 1000 != kMeasuredRuntime) {
    return unsupported("the CUDA runtime is version " + std::to_string(runtime / 1000) +
                       ", the contract was measured with " + std::to_string(kMeasuredRuntime));
  }
  return {};
}

size_t view_bytes(const TensorView& view) {
  return static_cast<size_t>(view.rows * view.columns) * dtype_bytes(view.dtype);
}

}  // namespace

Result<std::unique_ptr<CudaBackend>> CudaBackend::create(const CudaOptions& options) {
  cudaDeviceProp properties{};
  EXACT_RETURN_IF_ERROR(check_device(options.device, properties));
  EXACT_RETURN_IF_ERROR(cuda_status(cudaSetDevice(options.device), "choosing the GPU"));
  std::unique_ptr<CudaBackend> backend(new CudaBackend(options, properties));
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaStreamCreateWithFlags(&backend->stream_, cudaStreamNonBlocking), "a stream"));
  EXACT_ASSIGN(backend->lt_, LtMatmul::create(properties.multiProcessorCount));
  return backend;
}

CudaBackend::~CudaBackend() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  recorder_.forget_all();
  cudaStreamDestroy(stream_);
}

// ---- memory

Result<Buffer> CudaBackend::allocate(size_t bytes) {
  EXACT_ASSIGN(Buffer buffer, allocate_device(bytes));
  EXACT_RETURN_IF_ERROR(
      cuda_status(cudaMemsetAsync(buffer.data(), 0, bytes, stream_), "zeroing memory"));
  return buffer;
}

void CudaBackend::upload(const TensorView& device, std::span<const std::byte> host) {
  EXACT_CHECK(device.rows <= 1 || device.row_stride == device.columns, "an upload is contiguous");
  EXACT_CHECK(host.size() == view_bytes(device), "an upload of the wrong size");
  note(cuda_status(
      cudaMemcpyAsync(device.data, host.data(), host.size(), cudaMemcpyHostToDevice, stream_),
      "an upload"));
}

void CudaBackend::download(std::span<std::byte> host, const TensorView& device) {
  EXACT_CHECK(device.rows <= 1 || device.row_stride == device.columns, "a download is contiguous");
  EXACT_CHECK(host.size() == view_bytes(device), "a download of the wrong size");
  note(cuda_status(
      cudaMemcpyAsync(host.data(), device.data, host.size(), cudaMemcpyDeviceToHost, stream_),
      "a download"));
}

Status CudaBackend::copy_buffer(const Buffer& from, Buffer& to) {
  EXACT_CHECK(from.bytes() == to.bytes(), "a copy between buffers of different sizes");
  return cuda_status(
      cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyDeviceToDevice, stream_),
      "a copy on the GPU");
}

Result<KvCache> CudaBackend::allocate_kv(const KvGeometry& geometry) {
  const int32_t page = geometry.page_size;
  if (page != 16 && page != 32 && page != 64 && page != 128) {
    return Status(Code::invalid,
                  "page_size is " + std::to_string(page) + ": say 16, 32, 64 or 128");
  }
  EXACT_CHECK(geometry.layers > 0 && geometry.pages > 0 && geometry.kv_heads > 0,
              "a cache has layers, pages and heads");
  EXACT_RETURN_IF_ERROR(contract::check_head_width(geometry.head_width));
  KvCache cache;
  cache.geometry = geometry;
  EXACT_ASSIGN(cache.storage,
               allocate(static_cast<size_t>(geometry.layers) *
                        static_cast<size_t>(layer_elements(geometry)) * sizeof(uint16_t)));
  return cache;
}

// Weights stay as Hugging Face has them: rows of K, one after the other.
Status CudaBackend::reserve_linear(int64_t out_features, int64_t in_features, LinearWeight& out) {
  EXACT_CHECK(out_features > 0 && in_features > 0, "a weight has rows and columns");
  const size_t bytes = static_cast<size_t>(out_features * in_features) * sizeof(uint16_t);
  if (out.storage.bytes() < bytes) {
    out.storage.reset();
    EXACT_ASSIGN(out.storage, allocate(bytes));
  }
  out.out_features = out_features;
  out.in_features = in_features;
  return {};
}

void CudaBackend::pack_linear(const TensorView& host_weight, int64_t first_row, LinearWeight& out) {
  EXACT_CHECK(host_weight.columns == out.in_features && first_row >= 0 &&
                  first_row + host_weight.rows <= out.out_features,
              "rows outside the weight");
  const TensorView whole = out.storage.view(DType::bf16, out.out_features, out.in_features);
  upload(whole.slice_rows(first_row, host_weight.rows),
         {static_cast<const std::byte*>(host_weight.data), view_bytes(host_weight)});
}

Status CudaBackend::unpack_linear(const LinearWeight& weight, int64_t first_row,
                                  const TensorView& host_weight) {
  EXACT_CHECK(host_weight.columns == weight.in_features && first_row >= 0 &&
                  first_row + host_weight.rows <= weight.out_features,
              "rows outside the weight");
  const TensorView whole =
      weight.storage.view(DType::bf16, weight.out_features, weight.in_features);
  download({static_cast<std::byte*>(host_weight.data), view_bytes(host_weight)},
           whole.slice_rows(first_row, host_weight.rows));
  return {};
}

std::byte* CudaBackend::rows_in_place(LinearWeight& weight, int64_t first_row) const {
  const TensorView whole =
      weight.storage.view(DType::bf16, weight.out_features, weight.in_features);
  return static_cast<std::byte*>(whole.slice_rows(first_row, 0).data);
}

Status CudaBackend::supports_linear(int64_t out_features, int64_t in_features) const {
  return contract::check_linear_shape(out_features, in_features);
}
Status CudaBackend::supports_attention(int32_t query_heads, int32_t kv_heads,
                                       int32_t head_width) const {
  return contract::check_attention_shape(query_heads, kv_heads, head_width);
}
Status CudaBackend::supports_vocabulary(int64_t vocabulary) const {
  return contract::check_vocabulary(vocabulary);
}

// ---- steps

int64_t CudaBackend::padded_rows(int64_t rows) const {
  return std::max(rows, padded_decode_rows(std::min(rows, kMaxRecordedRows)));
}

int64_t CudaBackend::begin_step(const StepRows& step) {
  host_step_ = step;
  note(step_.set(step, stream_));
  return std::max<int64_t>(step_.device().rows, static_cast<int64_t>(step.ids.size()));
}

void CudaBackend::run_recorded(std::span<const uint64_t> key,
                               const std::function<void()>& operations) {
  if (!failure_.is_ok()) return;
  if (!options_.graphs || !step_.decode_only()) return operations();
  if (tables_generation_ != step_.generation()) {
    note(cuda_status(cudaStreamSynchronize(stream_), "the steps before"));
    recorder_.forget_all();
    tables_generation_ = step_.generation();
  }
  Recorder::Key whole(key.begin(), key.end());
  whole.push_back(static_cast<uint64_t>(step_.device().rows));
  whole.push_back(static_cast<uint64_t>(step_.device().max_decode_context));
  whole.push_back(reinterpret_cast<uintptr_t>(attention_scratch_.data()));
  note(recorder_.run(whole, stream_, operations, [this] { return !failure_.is_ok(); }));
}

Status CudaBackend::finish() {
  note(arena_.fetch(stream_));
  const cudaError_t waited = cudaStreamSynchronize(stream_);
  note(cuda_status(waited, "a step"));
  arena_.collect(waited != cudaSuccess);
  return std::exchange(failure_, Status());
}

}  // namespace cuda

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options) {
  EXACT_ASSIGN(auto backend, cuda::CudaBackend::create(options));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace exact
