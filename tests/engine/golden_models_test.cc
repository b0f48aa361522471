// Whole models against stock PyTorch on an H200: hidden states, logits and log-probabilities of the
// golden models, every bit. Weights are rebuilt from their hash; nothing but config and bits is
// stored.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/hash_model.h"
#include "engine/model.h"
#include "engine/safetensors.h"
#include "tests/support/backends.h"
#include "tests/support/expect_bits.h"
#include "tests/support/model_fixture.h"

namespace exact {
namespace {

struct Golden {
  ModelConfig config;
  int32_t batch = 0, length = 0;
  std::vector<int32_t> ids;           // (batch, length)
  std::vector<float> logprobs;        // (batch, length - 1)
  std::vector<uint16_t> last_logits;  // (V)
  std::vector<uint16_t> hidden;       // (layers + 1, 48, D)
  uint64_t seed = 0;
};

template <class T>
std::vector<T> read_tensor(const SafetensorsFile& file, const char* name) {
  const SafetensorsEntry* entry = file.find(name);
  EXPECT_NE(entry, nullptr) << name;
  if (entry == nullptr) return {};
  std::vector<T> values(entry->bytes.size() / sizeof(T));
  std::memcpy(values.data(), entry->bytes.data(), entry->bytes.size());
  return values;
}

Golden load_golden(const std::string& name) {
  const std::string directory = std::string(EXACT_GOLDEN_DIR) + "/" + name;
  Golden golden;
  auto config = load_config(directory);
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  golden.config = *config;
  const auto facts = nlohmann::json::parse(read_text(directory + "/config.json")).at("_golden");
  golden.seed = facts.at("seed").get<uint64_t>();
  golden.batch = facts.at("batch").get<int32_t>();
  golden.length = facts.at("length").get<int32_t>();
  auto file = SafetensorsFile::open(directory + "/golden.safetensors");
  EXPECT_TRUE(file.is_ok()) << file.status().to_string();
  golden.ids = read_tensor<int32_t>(*file, "input_ids");
  golden.logprobs = read_tensor<float>(*file, "logprobs");
  golden.last_logits = read_tensor<uint16_t>(*file, "logits_seq0_last");
  golden.hidden = read_tensor<uint16_t>(*file, "hidden_seq0");
  return golden;
}

struct Case {
  const char* model;
  BackendOptions backend;
  int32_t sequences;  // how many of the golden's, and how long: slow paths take a part
  int32_t length;
};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name =
      std::string(info.param.model) + "_" +
      (info.param.backend.kind == "cpu" ? std::string(cpu_isa_name(info.param.backend.cpu.isa))
                                        : info.param.backend.kind);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}

class GoldenModel : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string missing = missing_backend(GetParam().backend);
    if (!missing.empty()) GTEST_SKIP() << missing;
    golden_ = load_golden(GetParam().model);
    auto backend = make_backend(GetParam().backend);
    ASSERT_TRUE(backend.is_ok()) << backend.status().to_string();
    backend_ = std::move(backend).value();
  }
  Golden golden_;
  std::unique_ptr<Backend> backend_;
};

TEST_P(GoldenModel, LogprobsEqualStockPyTorch) {
  const int32_t sequences = std::min(GetParam().sequences, golden_.batch);
  const int32_t length = std::min(GetParam().length, golden_.length);
  EngineLimits limits;
  limits.max_context = 512;
  limits.max_step_tokens = 200;  // chunks that no key block aligns with
  auto engine = Engine::create(golden_.config, *backend_,
                               hash_slot(golden_.config, *backend_, golden_.seed), limits);
  ASSERT_TRUE(engine.is_ok()) << engine.status().to_string();
  for (int32_t s = 0; s < sequences; s++) {
    const auto begin = golden_.ids.begin() + int64_t{s} * golden_.length;
    ScoreRequest request{RequestId{static_cast<uint64_t>(s)}, {begin, begin + length}};
    ASSERT_TRUE((*engine)->submit(request).is_ok());
  }
  int32_t scored = 0;
  while ((*engine)->has_work()) {
    auto report = (*engine)->step();
    ASSERT_TRUE(report.is_ok()) << report.status().to_string();
    for (const ScoreResult& score : report->scores) {
      ASSERT_TRUE(score.error.is_ok()) << score.error.to_string();
      const auto row =
          static_cast<size_t>(score.request.value) * static_cast<size_t>(golden_.length - 1);
      EXPECT_BITS_EQ(
          std::span<const float>(score.logprobs),
          std::span<const float>(golden_.logprobs).subspan(row, static_cast<size_t>(length - 1)),
          "logprobs of sequence " + std::to_string(score.request.value));
      scored++;
    }
  }
  EXPECT_EQ(scored, sequences);
}

TEST_P(GoldenModel, HiddenStatesAndLogitsEqualStockPyTorch) {
  const int32_t length = std::min(GetParam().length, golden_.length);
  const int32_t kept = 48;  // positions of hidden states in a golden
  const auto slot = hash_slot(golden_.config, *backend_, golden_.seed);
  auto model = Model::create(golden_.config, *backend_, {length, 512});
  ASSERT_TRUE(model.is_ok()) << model.status().to_string();
  auto cache = backend_->allocate_kv(
      {golden_.config.layers, 16, 32, golden_.config.kv_heads, golden_.config.head_width});
  ASSERT_TRUE(cache.is_ok()) << cache.status().to_string();

  const auto width = static_cast<size_t>(golden_.config.width);
  const auto rows = static_cast<size_t>(std::min(kept, length));
  (*model)->set_tap([&](int32_t layer, const TensorView& hidden) {
    std::vector<uint16_t> values(rows * width);
    backend_->download(std::as_writable_bytes(std::span(values)),
                       hidden.slice_rows(0, static_cast<int64_t>(rows)));
    ASSERT_TRUE(backend_->finish().is_ok());
    EXPECT_BITS_EQ(std::span<const uint16_t>(values),
                   std::span<const uint16_t>(golden_.hidden)
                       .subspan(static_cast<size_t>(layer) * kept * width, rows * width),
                   "hidden state " + std::to_string(layer));
  });
  std::vector<int32_t> positions(static_cast<size_t>(length));
  for (int32_t i = 0; i < length; i++) positions[static_cast<size_t>(i)] = i;
  const std::vector<int32_t> pages{7, 3, 11, 0, 15, 2, 9, 4, 1, 13, 6, 8, 5, 10, 12, 14};
  const std::vector<SequenceChunk> chunks{{0, length, 0, pages}};
  (*model)->forward(slot->weights(),
                    {std::span(golden_.ids).first(static_cast<size_t>(length)), positions, chunks},
                    *cache);
  const std::vector<int64_t> last{length - 1};
  const TensorView logits = (*model)->logits(slot->weights(), last);
  std::vector<uint16_t> values(static_cast<size_t>(golden_.config.vocabulary));
  backend_->download(std::as_writable_bytes(std::span(values)), logits);
  ASSERT_TRUE(backend_->finish().is_ok());
  if (length == golden_.length) {
    EXPECT_BITS_EQ(std::span<const uint16_t>(values),
                   std::span<const uint16_t>(golden_.last_logits), "logits of the last position");
  }
}

BackendOptions cpu(CpuIsa isa) {
  return {"cpu", {isa, 0}, {}};
}
const BackendOptions kCuda{"cuda", {}, {}};

constexpr int32_t kAll = 1 << 20;
INSTANTIATE_TEST_SUITE_P(Gpu, GoldenModel,
                         testing::Values(Case{"llama-d64", kCuda, kAll, kAll},
                                         Case{"qwen2-d64", kCuda, kAll, kAll},
                                         Case{"qwen3-d64", kCuda, kAll, kAll},
                                         Case{"qwen3-d128", kCuda, kAll, kAll}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Models, GoldenModel,
                         testing::Values(Case{"llama-d64", cpu(best_cpu_isa()), kAll, kAll},
                                         Case{"qwen2-d64", cpu(best_cpu_isa()), kAll, kAll},
                                         Case{"qwen3-d64", cpu(best_cpu_isa()), kAll, kAll},
                                         Case{"qwen3-d128", cpu(best_cpu_isa()), kAll, kAll}),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Narrower, GoldenModel,
                         testing::Values(Case{"llama-d64", cpu(CpuIsa::avx2), 1, kAll},
                                         Case{"qwen2-d64", cpu(CpuIsa::avx2), 1, kAll},
                                         Case{"qwen3-d64", cpu(CpuIsa::avx2), 2, kAll},
                                         Case{"qwen3-d128", cpu(CpuIsa::avx2), 1, kAll},
                                         Case{"llama-d64", cpu(CpuIsa::scalar), 1, 140},
                                         Case{"qwen2-d64", cpu(CpuIsa::scalar), 1, 24},
                                         Case{"qwen3-d64", cpu(CpuIsa::scalar), 1, 150},
                                         Case{"qwen3-d128", cpu(CpuIsa::scalar), 1, 72}),
                         case_name);

}  // namespace
}  // namespace exact
