// bench_update measures a weight update through shared memory, CPU to CPU: a trainer in this
// process, a worker in another. Beside each rate stands what memcpy moves between the same two
// kinds of memory in the same run, one thread.
//
//   bench_update [--mib N] [--bucket-kib N] [--repeats N]
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "bench/host_limits.h"
#include "engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "trainer_bridge/weight_publisher.h"
#include "worker/server.h"

namespace exact::bench {
namespace {

using Clock = std::chrono::steady_clock;

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "bench_update: {}\n", message);
  std::exit(2);
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int64_t kLayerMib = 50;

// As many layers as fill `mib`.
ModelConfig config_of(int64_t mib) {
  const std::string text = fmt::format(
      R"({{"model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16", "hidden_size": 2048,
      "intermediate_size": 2560, "num_hidden_layers": {}, "num_attention_heads": 16,
      "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 4096,
      "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
      "rope_parameters": {{"rope_type": "default", "rope_theta": 10000.0}}}})",
      std::max<int64_t>(1, mib / kLayerMib));
  auto config = parse_config(text);
  if (!config) fail(config.status().to_string());
  return *config;
}

struct Tensors {
  std::vector<std::vector<uint64_t>> memory;
  std::vector<bridge::NamedTensor> named;
};

Tensors random_tensors(const ModelConfig& config) {
  Tensors tensors;
  uint64_t state = 0x9e3779b97f4a7c15;
  for (const TensorSpec& spec : tensor_table(config)) {
    auto& words = tensors.memory.emplace_back(static_cast<size_t>(spec.bytes() + 7) / 8);
    for (uint64_t& word : words) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      word = state;
    }
    bridge::NamedTensor named;
    named.name = spec.name;
    named.shape = {spec.rows, spec.columns};
    if (spec.is_vector) named.shape = {spec.columns};
    named.bytes = std::as_bytes(std::span(words)).first(static_cast<size_t>(spec.bytes()));
    tensors.named.push_back(named);
  }
  return tensors;
}

// The worker's process: never returns.
[[noreturn]] void serve(const ModelConfig& config, const Tensors& tensors,
                        const std::string& endpoint) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto backend = make_cpu_backend({best_cpu_isa(), 1});
  if (!backend) fail(backend.status().to_string());
  auto slot = std::make_unique<WeightSlot>(config, **backend);
  for (size_t i = 0; i < tensors.named.size(); i++) {
    if (const Status status = slot->append(i, tensors.named[i].bytes); !status.is_ok()) {
      fail(status.to_string());
    }
  }
  if (const Status status = slot->complete(); !status.is_ok()) fail(status.to_string());
  auto engine = Engine::create(config, **backend, std::move(slot), {.max_context = 256});
  if (!engine) fail(engine.status().to_string());
  worker::ServerOptions options;
  options.endpoint = endpoint;
  options.backend_name = "cpu";
  auto server = worker::Server::create(**engine, options);
  if (!server) fail(server.status().to_string());
  const Status ended = (*server)->run();
  if (!ended.is_ok()) fail(ended.to_string());
  std::exit(0);
}

// The model's bytes copied once, from memory that no cache holds to memory that has its pages.
double memcpy_seconds(const Tensors& tensors, std::vector<std::byte>& out) {
  const auto start = Clock::now();
  size_t offset = 0;
  for (const auto& tensor : tensors.named) {
    std::memcpy(out.data() + offset, tensor.bytes.data(), tensor.bytes.size());
    offset += tensor.bytes.size();
  }
  return seconds_since(start);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void run(int64_t mib, uint64_t bucket_kib, int repeats) {
  const ModelConfig config = config_of(mib);
  const Tensors tensors = random_tensors(config);
  const std::string directory = fmt::format("/dev/shm/bench_update.{}", ::getpid());
  std::filesystem::create_directory(directory);
  const std::string endpoint = "ipc://" + directory + "/worker.sock";
  const pid_t child = ::fork();
  if (child < 0) fail("can't start a worker");
  if (child == 0) serve(config, tensors, endpoint);

  bridge::ClientOptions client_options;
  client_options.endpoint = endpoint;
  client_options.timeout = std::chrono::seconds(120);
  client_options.connect_timeout = std::chrono::seconds(60);
  auto client = bridge::Client::connect(client_options);
  if (!client) fail(client.status().to_string());

  std::vector<double> digest, transfer, commit, copy;
  uint64_t bytes = 0;
  for (const auto& tensor : tensors.named) bytes += tensor.bytes.size();
  std::vector<std::byte> out(bytes);
  for (int i = 0; i <= repeats; i++) {
    const double copied = memcpy_seconds(tensors, out);
    bridge::PublishOptions options;
    options.version = static_cast<uint64_t>(i) + 2;
    options.bucket_bytes = bucket_kib << 10;
    const auto report = bridge::publish(**client, tensors.named, options);
    if (!report) fail(report.status().to_string());
    if (i == 0) continue;  // the staging slot takes its memory in the first one
    copy.push_back(copied);
    digest.push_back(static_cast<double>(report->digest_time.count()) * 1e-6);
    transfer.push_back(static_cast<double>(report->transfer_time.count()) * 1e-6);
    commit.push_back(static_cast<double>(report->commit_time.count()) * 1e-6);
  }
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  std::filesystem::remove_all(directory);

  const double gigabytes = static_cast<double>(bytes) * 1e-9;
  std::vector<double> update;
  for (size_t i = 0; i < transfer.size(); i++) update.push_back(transfer[i] + commit[i]);
  const double copy_rate = gigabytes / median(copy);
  const double update_rate = gigabytes / median(update);
  fmt::print("{}: {:.0f} MB in buckets of {} KiB, median of {} updates\n", cpu_model_name(),
             gigabytes * 1e3, bucket_kib, repeats);
  fmt::print("memcpy, one thread      {:8.1f} ms {:6.2f} GB/s\n", median(copy) * 1e3, copy_rate);
  fmt::print("trainer's digests       {:8.1f} ms {:6.2f} GB/s\n", median(digest) * 1e3,
             gigabytes / median(digest));
  fmt::print("begin to last bucket    {:8.1f} ms\ncommit                  {:8.1f} ms\n",
             median(transfer) * 1e3, median(commit) * 1e3);
  fmt::print("begin to live           {:8.1f} ms {:6.2f} GB/s, {:.0f} % of memcpy\n",
             median(update) * 1e3, update_rate, 100 * update_rate / copy_rate);
  fmt::print(R"({{"bench":"update","commit":"{}","bytes":{},"bucket_kib":{},"memcpy_gb_s":{:.2f},)"
             R"("update_gb_s":{:.2f},"share":{:.3f}}})"
             "\n",
             EXACT_COMMIT, bytes, bucket_kib, copy_rate, update_rate, update_rate / copy_rate);
}

}  // namespace
}  // namespace exact::bench

int main(int argc, char** argv) {
  int64_t mib = 384;
  uint64_t bucket_kib = 4096;
  int repeats = 5;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const long long value = std::atoll(argv[i + 1]);
    if (value < 1) exact::bench::fail(name + " must be at least 1");
    if (name == "--mib") {
      mib = value;
    } else if (name == "--bucket-kib") {
      bucket_kib = static_cast<uint64_t>(value);
    } else if (name == "--repeats") {
      repeats = static_cast<int>(value);
    } else {
      exact::bench::fail("what is '" + name + "'? say --mib, --bucket-kib or --repeats");
    }
  }
  exact::bench::run(mib, bucket_kib, repeats);
  return 0;
}
