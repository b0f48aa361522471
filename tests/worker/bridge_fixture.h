// bridge_fixture.h owns what the tests of trainer_bridge share: a private endpoint, a worker that
// says what a test scripts, a real worker in a thread, and weights rebuilt from their hash.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/hash_model.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/model_fixture.h"
#include "tests/worker/private_endpoint.h"
#include "trainer_bridge/client.h"
#include "trainer_bridge/host_tensors.h"
#include "worker/server.h"

namespace exact::bridge_tests {

inline constexpr char kTinyConfig[] = R"({
  "model_type": "qwen3", "hidden_act": "silu", "dtype": "bfloat16", "hidden_size": 64,
  "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 256, "max_position_embeddings": 512,
  "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "attention_bias": false,
  "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})";

inline ModelConfig tiny_config() {
  auto config = parse_config(kTinyConfig);
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  return *config;
}

// The weights of `seed` in the trainer's memory.
inline std::vector<bridge::HostTensor> hash_tensors(const ModelConfig& config, uint64_t seed) {
  std::vector<bridge::HostTensor> tensors;
  for (const TensorSpec& spec : tensor_table(config)) {
    bridge::HostTensor& tensor = tensors.emplace_back();
    tensor.name = spec.name;
    tensor.shape = {spec.rows, spec.columns};
    if (spec.is_vector) tensor.shape = {spec.columns};
    tensor.values.resize(static_cast<size_t>(spec.rows * spec.columns));
    hash_tensor(spec, config, seed, tensor.values);
  }
  return tensors;
}

// A real worker: engine, server and its loop in a thread.
class InProcessWorker {
 public:
  InProcessWorker(const ModelConfig& config, uint64_t weights_seed, const std::string& endpoint,
                  const EngineLimits& limits = {.max_context = 256},
                  const worker::ServerLimits& server_limits = {}) {
    auto backend = make_cpu_backend({best_cpu_isa(), 1});
    EXPECT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(*backend);
    auto engine =
        Engine::create(config, *backend_, hash_slot(config, *backend_, weights_seed), limits);
    EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
    engine_ = std::move(*engine);
    worker::ServerOptions options;
    options.endpoint = endpoint;
    options.backend_name = std::string(backend_->name());
    options.limits = server_limits;
    auto server = worker::Server::create(*engine_, options);
    EXPECT_TRUE(server.is_ok()) << server.status().to_string();
    server_ = std::move(*server);
    thread_ = std::thread([this] {
      const Status ended = server_->run();
      EXPECT_TRUE(ended.is_ok()) << ended.to_string();
    });
  }
  ~InProcessWorker() {
    server_->stop();
    thread_.join();
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<worker::Server> server_;
  std::thread thread_;
};

inline std::unique_ptr<bridge::Client> connect(
    const std::string& endpoint, std::chrono::milliseconds timeout = std::chrono::seconds(30)) {
  bridge::ClientOptions options;
  options.endpoint = endpoint;
  options.timeout = timeout;
  auto client = bridge::Client::connect(options);
  EXPECT_TRUE(client.is_ok()) << client.status().to_string();
  return client.is_ok() ? std::move(*client) : nullptr;
}

}  // namespace exact::bridge_tests
