#include "tests/engine/random_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/hash_model.h"
#include "tests/support/backends.h"
#include "tests/support/model_fixture.h"
#include "tests/support/random_choices.h"

namespace exact {
namespace {

std::vector<int32_t> random_ids(RandomData& random, const ModelConfig& config, int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = between(random, 0, config.vocabulary - 1);
  return ids;
}

// Mostly at most `usual`; one in eight reaches over key blocks and many pages.
int32_t random_length(RandomData& random, int32_t least, int32_t usual, int32_t most) {
  return between(random, least, one_in(random, 8) ? most : std::min(most, usual));
}

SamplingParams random_sampling(RandomData& random, const ModelConfig& config) {
  constexpr float kTemperatures[] = {0.0f, 0.5f, 1.0f, 1.0f, 1.7f, 8.0f};
  constexpr float kTopPs[] = {0.3f, 0.8f, 0.95f, 1.0f, 1.0f, 1.0f};
  SamplingParams params;
  params.temperature = random.pick(std::span(kTemperatures));
  params.top_p = random.pick(std::span(kTopPs));
  params.top_k = one_in(random, 2) ? 0 : between(random, 1, config.vocabulary + 8);
  params.seed = one_in(random, 3) ? 7 : random.bits();  // some share a seed
  return params;
}

}  // namespace

ModelConfig random_config(RandomData& random) {
  constexpr const char* kTypes[] = {"llama", "qwen2", "qwen3"};
  const std::string type = random.pick(std::span(kTypes));
  const int32_t kv_heads = between(random, 1, 2);
  nlohmann::json json = {
      {"model_type", type},
      {"hidden_size", 16 * between(random, 4, 8)},
      {"intermediate_size", 16 * between(random, 3, 9)},
      {"num_hidden_layers", between(random, 1, 3)},
      {"num_attention_heads", kv_heads * between(random, 1, 2)},
      {"num_key_value_heads", kv_heads},
      {"head_dim", 64 * between(random, 1, 2)},
      {"vocab_size", 8 * between(random, 8, 125)},
      {"max_position_embeddings", 4096},
      {"rms_norm_eps", 1e-6},
      {"hidden_act", "silu"},
      {"tie_word_embeddings", one_in(random, 2)},
      {"dtype", "bfloat16"},
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 10000.0}}},
  };
  if (type == "llama") {
    json["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 500000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 64}};
    json["mlp_bias"] = one_in(random, 2);
  }
  if (type != "qwen2") json["attention_bias"] = one_in(random, 2);
  const auto config = parse_config(json.dump());
  EXPECT_TRUE(config.is_ok()) << config.status().to_string() << "\n" << json.dump();
  return config.value();
}

EngineLimits tight_limits(RandomData& random) {
  constexpr int32_t kPageSizes[] = {16, 16, 16, 16, 16, 32, 64, 128};
  EngineLimits limits;
  limits.page_size = random.pick(std::span(kPageSizes));
  limits.max_context = between(random, 24, one_in(random, 4) ? 300 : 110);
  const int32_t pages_of_one = (limits.max_context + limits.page_size - 1) / limits.page_size;
  limits.page_count = pages_of_one + between(random, 0, 2);
  limits.max_step_tokens = between(random, 1, one_in(random, 2) ? 300 : 24);
  limits.max_running = one_in(random, 4) ? between(random, 1, 3) : between(random, 4, 16);
  return limits;
}

EngineLimits roomy_limits(const EngineLimits& tight) {
  EngineLimits limits;
  limits.max_context = tight.max_context;
  limits.max_step_tokens = 512;
  return limits;
}

GenerateRequest random_generate(RandomData& random, const ModelConfig& config,
                                const EngineLimits& limits, RequestId id) {
  GenerateRequest request;
  request.id = id;
  const int32_t prompt_size = random_length(random, 1, 10, limits.max_context - 1);
  request.prompt = random_ids(random, config, prompt_size);
  request.n = between(random, 1, 4);
  request.max_new_tokens = random_length(random, 1, 90, limits.max_context - prompt_size);
  if (one_in(random, 8)) request.max_new_tokens = 0;
  request.sampling = random_sampling(random, config);
  if (one_in(random, 4)) request.stop_ids = random_ids(random, config, between(random, 1, 5));
  return request;
}

ScoreRequest random_score(RandomData& random, const ModelConfig& config, const EngineLimits& limits,
                          RequestId id) {
  return {id, random_ids(random, config, random_length(random, 2, 40, limits.max_context))};
}

BackendOptions random_backend(RandomData& random) {
  if (have_cuda_backend() && one_in(random, 2)) return {"cuda", {}, {0, one_in(random, 2)}};
  std::vector<CpuIsa> available;
  for (const CpuIsa isa : {CpuIsa::scalar, CpuIsa::avx2, CpuIsa::avx512}) {
    if (cpu_isa_available(isa)) available.push_back(isa);
  }
  const CpuIsa isa = random.pick(std::span<const CpuIsa>(available));
  return {"cpu", {isa, between(random, 1, 3)}, {}};
}

LoadedEngine::LoadedEngine(const ModelConfig& config, const BackendOptions& options,
                           const EngineLimits& limits, uint64_t weight_seed)
    : config_(config) {
  auto backend = make_backend(options);
  EXPECT_TRUE(backend.is_ok()) << backend.status().to_string();
  backend_ = std::move(backend).value();
  auto engine =
      Engine::create(config, *backend_, hash_slot(config, *backend_, weight_seed), limits);
  EXPECT_TRUE(engine.is_ok()) << engine.status().to_string();
  engine_ = std::move(engine).value();
}

bool LoadedEngine::step_into(StepReport& all) {
  auto report = engine_->step();
  EXPECT_TRUE(report.is_ok()) << report.status().to_string();
  if (!report.is_ok()) return false;
  std::move(report->samples.begin(), report->samples.end(), std::back_inserter(all.samples));
  std::move(report->scores.begin(), report->scores.end(), std::back_inserter(all.scores));
  all.prefill_rows += report->prefill_rows;
  all.decode_rows += report->decode_rows;
  all.preempted += report->preempted;
  all.swapped_out += report->swapped_out;
  all.swapped_in += report->swapped_in;
  all.reused_rows += report->reused_rows;
  std::move(report->progress.begin(), report->progress.end(), std::back_inserter(all.progress));
  std::move(report->masks_wanted.begin(), report->masks_wanted.end(),
            std::back_inserter(all.masks_wanted));
  return true;
}

StepReport LoadedEngine::run_all() {
  StepReport all;
  while (engine_->has_work() && step_into(all)) {
  }
  return all;
}

void LoadedEngine::update(WeightVersion version, uint64_t weight_seed, UpdatePolicy policy) {
  const auto slot = engine_->begin_update();
  ASSERT_TRUE(slot.is_ok()) << slot.status().to_string();
  const auto& table = (*slot)->table();
  for (size_t i = 0; i < table.size(); i++) {
    std::vector<uint16_t> values(static_cast<size_t>(table[i].rows * table[i].columns));
    hash_tensor(table[i], config_, weight_seed, values);
    ASSERT_TRUE((*slot)->append(i, std::as_bytes(std::span(values))).is_ok());
  }
  ASSERT_TRUE((*slot)->complete().is_ok());
  ASSERT_TRUE(engine_->commit_update(version, policy).is_ok());
}

std::string describe(const ModelConfig& config) {
  std::ostringstream text;
  text << model_type_name(config.type) << " D " << config.width << " L " << config.layers << " H "
       << config.query_heads << " G " << config.kv_heads << " E " << config.head_width << " F "
       << config.feed_forward_width << " V " << config.vocabulary
       << (config.tied_embeddings ? " tied" : "");
  return text.str();
}

std::string describe(const EngineLimits& limits) {
  std::ostringstream text;
  text << "context " << limits.max_context << ", pages " << limits.page_count << " of "
       << limits.page_size << ", rows " << limits.max_step_tokens << ", running "
       << limits.max_running;
  return text.str();
}

std::string describe(const GenerateRequest& request) {
  std::ostringstream text;
  text << "request " << request.id.value << ": prompt of " << request.prompt.size() << ", n "
       << request.n << ", max_new_tokens " << request.max_new_tokens << ", temperature "
       << request.sampling.temperature << ", top_k " << request.sampling.top_k << ", top_p "
       << request.sampling.top_p << ", seed " << request.sampling.seed << ", "
       << request.stop_ids.size() << " stop ids";
  return text.str();
}

}  // namespace exact
