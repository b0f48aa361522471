// bench_update_cuda times weight updates between two processes on GPUs: the trainer's tensors, of a
// model's shape, to the worker's staging slot, digests compared. Prints the rate beside that of a
// plain copy on the same GPU. Exit code 1: a digest differs; 3: no GPU, or too few.
//
//   bench_update_cuda [ipc|ipc-one|nccl] [layers]
//
// ipc: an allocation a tensor, as PyTorch has them; ipc-one: all in one allocation; nccl: trainer
// on GPU 0, worker on GPU 1.
#include <cuda_runtime.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/tensor_table.h"
#include "engine/weights.h"
#include "ipc/codec.h"
#include "ipc/weight_cuda_ipc.h"
#include "ipc/weight_nccl.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/tensor_digests.h"

namespace exact {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kIpcBucket = 1ull << 30, kNcclBucket = 256ull << 20;

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

[[noreturn]] void stop(const std::string& why, int code = 1) {
  std::fprintf(stderr, "bench_update_cuda: %s\n", why.c_str());
  std::_Exit(code);
}
void check(const Status& status) {
  if (!status.is_ok()) stop(status.to_string());
}
template <class T>
T value_of(Result<T> result) {
  check(result.status());
  return std::move(result).value();
}

// Qwen3-8B with fewer layers if asked for.
ModelConfig config_of(int layers) {
  return value_of(parse_config(
      R"({"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
          "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
          "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
          "max_position_embeddings": 40960, "tie_word_embeddings": false,
          "hidden_act": "silu", "attention_bias": false, "num_hidden_layers": )" +
      std::to_string(layers) + "}"));
}

// ---- a pipe with the other process
void write_all(int file, const void* data, size_t bytes) {
  for (auto* p = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t done = write(file, p, bytes);
    if (done <= 0) stop("the other process is gone");
    p += done, bytes -= static_cast<size_t>(done);
  }
}
void read_all(int file, void* data, size_t bytes) {
  for (auto* p = static_cast<char*>(data); bytes > 0;) {
    const ssize_t done = read(file, p, bytes);
    if (done <= 0) stop("the other process is gone");
    p += done, bytes -= static_cast<size_t>(done);
  }
}
void send_begin(int file, const ipc::UpdateBegin& begin) {
  const ipc::Frames frames = ipc::encode(begin, 1);
  const uint64_t bytes = frames.body.size();
  write_all(file, frames.header.data(), frames.header.size());
  write_all(file, &bytes, sizeof(bytes));
  write_all(file, frames.body.data(), bytes);
}
ipc::UpdateBegin receive_begin(int file) {
  std::string header(ipc::kHeaderBytes, '\0');
  read_all(file, header.data(), header.size());
  uint64_t bytes = 0;
  read_all(file, &bytes, sizeof(bytes));
  std::string body(bytes, '\0');
  read_all(file, body.data(), bytes);
  return value_of(ipc::decode_body<ipc::UpdateBegin>(
      value_of(ipc::decode_header(std::as_bytes(std::span(header)))),
      std::as_bytes(std::span(body))));
}

// ---- the trainer
__global__ void fill(uint16_t* values, uint64_t count, uint64_t seed) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count;
       i += uint64_t{gridDim.x} * blockDim.x) {
    uint64_t x = (i + seed) * 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    values[i] = static_cast<uint16_t>(x * 0xBF58476D1CE4E5B9ull >> 48);
  }
}

int run_trainer(int file, const std::string& mode, int layers) {
  const auto table = tensor_table(config_of(layers));
  uint64_t total = 0;
  for (const TensorSpec& spec : table) total += static_cast<uint64_t>(spec.bytes());
  std::byte* pool = nullptr;
  if (mode == "ipc-one" && cudaMalloc(&pool, total) != cudaSuccess) stop("no room for tensors");
  std::vector<ipc::DeviceTensor> tensors;
  for (const TensorSpec& spec : table) {
    const auto bytes = static_cast<uint64_t>(spec.bytes());
    std::byte* data = pool;
    if (pool == nullptr) {
      if (cudaMalloc(&data, bytes) != cudaSuccess) stop("no room for tensors");
    } else {
      pool += bytes;
    }
    fill<<<1024, 256>>>(reinterpret_cast<uint16_t*>(data), bytes / 2, tensors.size() << 40);
    tensors.push_back({data, bytes});
  }
  if (cudaDeviceSynchronize() != cudaSuccess) stop("filling the tensors failed");

  std::string uuids(32, ' ');  // the worker's, for the check of the group
  read_all(file, uuids.data(), 32);
  for (int round = 0; round < 4; round++) {
    ipc::UpdateBegin begin;
    std::vector<std::span<const std::byte>> spans;
    for (const ipc::DeviceTensor& tensor : tensors) spans.emplace_back(tensor.data, tensor.bytes);
    auto started = Clock::now();
    const auto digests = value_of(cuda::device_tensor_digests(spans));
    const double digest_ms = ms_since(started);
    for (size_t i = 0; i < table.size(); i++) {
      begin.tensors.push_back({table[i].name, "BF16", {}, digests[i].to_hex()});
    }
    if (round == 0) {  // xxHash's own digest, of the bytes on the host
      for (const size_t i : {size_t{1}, table.size() - 1}) {
        std::vector<std::byte> host(tensors[i].bytes);
        cudaMemcpy(host.data(), tensors[i].data, host.size(), cudaMemcpyDeviceToHost);
        if (tensor_digest(host).to_hex() != digests[i].to_hex())
          stop("the GPU's digest is not xxHash's");
      }
    }
    std::unique_ptr<ipc::CudaExport> exported;
    std::unique_ptr<ipc::NcclRoot> root;
    started = Clock::now();
    if (mode == "nccl") {
      check(ipc::check_nccl_devices(std::span(&uuids, 1)));
      begin.nccl = {value_of(ipc::make_nccl_unique_id()), 1, 2};
      root = value_of(ipc::NcclRoot::create(begin.nccl.unique_id, 2, spans, kNcclBucket));
    } else {
      exported = value_of(ipc::CudaExport::create(tensors));
      begin.cuda = exported->memory();
    }
    std::printf("trainer: %.1f GB, digests %.2f ms (%.0f GB/s), export %.2f ms, %zu allocations\n",
                static_cast<double>(total) / 1e9, digest_ms,
                static_cast<double>(total) / 1e6 / digest_ms, ms_since(started),
                begin.cuda.allocations.size());
    std::fflush(stdout);
    send_begin(file, begin);
    if (root != nullptr) {
      for (uint64_t sent = 0, answered = 0; answered < root->bucket_count();) {
        if (sent < root->bucket_count() && sent < answered + ipc::kBucketsInFlight) {
          check(root->send(sent++));
        }
        check(root->advance());
        char answer = 0;
        if (recv(file, &answer, 1, MSG_DONTWAIT) == 1) answered++;
      }
    }
    char done = 0;
    read_all(file, &done, 1);
  }
  return 0;
}

// ---- the worker
double copy_rate(uint64_t bytes) {
  void *from = nullptr, *to = nullptr;
  if (cudaMalloc(&from, bytes) != cudaSuccess || cudaMalloc(&to, bytes) != cudaSuccess) return 0;
  double best = 0;
  for (int i = 0; i < 5; i++) {
    const auto started = Clock::now();
    cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
    cudaDeviceSynchronize();
    best = std::max(best, static_cast<double>(bytes) / 1e6 / ms_since(started));
  }
  cudaFree(from), cudaFree(to);
  return best;
}

int run_worker(int file, const std::string& mode, int layers) {
  const ModelConfig config = config_of(layers);
  CudaOptions options;
  options.device = mode == "nccl" ? 1 : 0;
  const auto backend = value_of(make_cuda_backend(options));
  write_all(file, backend->device_uuid().data(), 32);
  const double copy = copy_rate(4ull << 30);
  WeightSlot slot(config, *backend);
  std::vector<uint64_t> sizes;
  uint64_t total = 0;
  for (const TensorSpec& spec : slot.table()) sizes.push_back(static_cast<uint64_t>(spec.bytes()));
  for (const uint64_t bytes : sizes) total += bytes;
  for (int round = 0; round < 4; round++) {
    const ipc::UpdateBegin begin = receive_begin(file);
    const auto started = Clock::now();
    double polls_ms = 0;
    slot.begin();
    auto channel = value_of(
        mode == "nccl" ? ipc::open_nccl(begin.nccl, sizes, kNcclBucket)
                       : ipc::open_cuda_ipc(begin.cuda, sizes, kIpcBucket, backend->device_uuid()));
    uint64_t expected = 0;
    for (uint64_t bucket = 0; bucket < channel->bucket_count();) {
      while (expected < channel->bucket_count() && expected < bucket + ipc::kBucketsInFlight) {
        check(channel->expect(expected++));
      }
      const auto polled = Clock::now();
      const auto pieces = value_of(channel->poll());
      polls_ms += ms_since(polled);
      if (!pieces) continue;
      for (const ipc::TensorPiece& piece : pieces->pieces) {
        check(slot.append_on_device(piece.tensor_index, piece.tensor_offset, piece.data,
                                    piece.bytes));
      }
      while (!value_of(slot.device_copies_done())) {
      }
      for (const ipc::TensorPiece& piece : pieces->pieces) {
        if (piece.tensor_offset + piece.bytes != sizes[piece.tensor_index]) continue;
        check(slot.verify(piece.tensor_index,
                          value_of(Digest128::from_hex(begin.tensors[piece.tensor_index].digest))));
      }
      channel->release();
      bucket++;
      if (mode == "nccl") write_all(file, "b", 1);
    }
    check(slot.complete());
    const double ms = ms_since(started), rate = static_cast<double>(total) / 1e6 / ms;
    channel.reset();
    std::printf(
        "worker : %s, %.1f GB in %.2f ms: %.0f GB/s of payload, %.0f %% of a copy's "
        "%.0f GB/s; opening and waiting %.2f ms, closing %.2f ms%s\n",
        mode.c_str(), static_cast<double>(total) / 1e9, ms, rate, 100 * rate / copy, copy, polls_ms,
        ms_since(started) - ms, round == 0 ? " (first: allocates)" : "");
    std::fflush(stdout);
    write_all(file, "d", 1);
  }
  return 0;
}

int run(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "ipc";
  const int layers = argc > 2 ? std::atoi(argv[2]) : 36;
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0) stop("no socket pair", 3);
  const pid_t child = fork();  // before CUDA is touched
  if (child == 0) {
    close(sockets[0]);
    std::_Exit(run_trainer(sockets[1], mode, layers));
  }
  close(sockets[1]);
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < (mode == "nccl" ? 2 : 1)) {
    stop("too few GPUs", 3);
  }
  const int code = run_worker(sockets[0], mode, layers);
  int status = 0;
  waitpid(child, &status, 0);
  return code != 0 || status != 0;
}

}  // namespace
}  // namespace exact

int main(int argc, char** argv) {
  return exact::run(argc, argv);
}
