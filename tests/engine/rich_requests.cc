#include "tests/engine/rich_requests.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <sstream>
#include <vector>

#include "tests/support/random_choices.h"

namespace exact {
namespace {

// Texts that begin alike, so that there is something to find in the cache.
std::vector<int32_t> random_text(RandomData& random, const ModelConfig& config, int32_t size) {
  std::vector<int32_t> ids(static_cast<size_t>(size));
  const int32_t kind = between(random, 0, 3);
  for (int32_t i = 0; i < size; i++) {
    ids[static_cast<size_t>(i)] = (i * 7 + kind) % config.vocabulary;
  }
  if (one_in(random, 2)) {
    ids[static_cast<size_t>(between(random, 0, size - 1))] =
        between(random, 0, config.vocabulary - 1);
  }
  return ids;
}

std::vector<int32_t> random_ids(RandomData& random, const ModelConfig& config, int32_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = between(random, 0, config.vocabulary - 1);
  return ids;
}

SamplingParams random_sampling(RandomData& random, const ModelConfig& config) {
  constexpr float kTemperatures[] = {0.0f, 0.5f, 1.0f, 1.0f, 1.7f};
  constexpr float kTopPs[] = {0.3f, 0.9f, 1.0f, 1.0f};
  constexpr float kPenalties[] = {-0.7f, 0.25f, 1.5f};
  SamplingParams params;
  params.temperature = random.pick(std::span(kTemperatures));
  params.top_p = random.pick(std::span(kTopPs));
  if (one_in(random, 3)) params.top_k = between(random, 1, config.vocabulary);
  if (one_in(random, 4)) params.min_p = 0.05f * static_cast<float>(between(random, 1, 10));
  params.seed = one_in(random, 3) ? 7 : random.bits();
  if (one_in(random, 4)) params.repetition_penalty = one_in(random, 2) ? 0.8f : 1.3f;
  if (one_in(random, 4)) params.presence_penalty = random.pick(std::span(kPenalties));
  if (one_in(random, 4)) params.frequency_penalty = random.pick(std::span(kPenalties));
  if (one_in(random, 5)) {
    for (int32_t token = between(random, 0, 9); token < config.vocabulary; token += 11) {
      params.logit_bias.push_back({token, 0.5f * static_cast<float>(between(random, -6, 6))});
    }
  }
  if (one_in(random, 8)) params.allowed_ids = random_ids(random, config, 12);
  if (one_in(random, 6)) params.banned_ids = random_ids(random, config, 6);
  return params;
}

}  // namespace

ModelConfig rich_config() {
  auto config = parse_config(R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 40, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16",
    "tie_word_embeddings": true})");
  EXPECT_TRUE(config.is_ok()) << config.status().to_string();
  config->eos_ids = {5, 39};
  return *config;
}

EngineLimits starved_limits(RandomData& random) {
  EngineLimits limits;
  limits.max_context = between(random, 40, 70);
  limits.page_size = 16;
  const int32_t pages_of_one = (limits.max_context + 15) / 16;
  limits.page_count = pages_of_one + between(random, 0, 4);
  limits.max_step_tokens = one_in(random, 4) ? between(random, 1, 6) : between(random, 16, 120);
  limits.max_running = between(random, 2, 10);
  limits.prefix_reuse = !one_in(random, 5);
  limits.swap_bytes = one_in(random, 3) ? 0 : 1 << 16;
  limits.row_cost_bytes = one_in(random, 2) ? 1 << 20 : 300;
  return limits;
}

GenerateRequest rich_generate(RandomData& random, const ModelConfig& config,
                              const EngineLimits& limits, RequestId id) {
  GenerateRequest request;
  request.id = id;
  const int32_t size =
      between(random, 1, one_in(random, 3) ? limits.max_context - 1 : limits.max_context / 3);
  request.prompt = random_text(random, config, size);
  if (one_in(random, 4)) request.n = between(random, 2, 4);
  const int32_t most = limits.max_context - size;
  request.max_new_tokens = between(random, 1, std::min(most, one_in(random, 6) ? 40 : 10));
  request.sampling = random_sampling(random, config);
  if (one_in(random, 4)) request.stop_ids = random_ids(random, config, 2);
  if (one_in(random, 4)) {
    request.stop_sequences = {random_ids(random, config, 1), random_ids(random, config, 2)};
  }
  if (one_in(random, 4)) request.min_new_tokens = between(random, 1, request.max_new_tokens);
  request.ignore_eos = one_in(random, 2);
  if (one_in(random, 6)) {
    request.forced_ids =
        random_ids(random, config, between(random, 1, std::min(4, request.max_new_tokens)));
  }
  if (one_in(random, 3)) request.report.top_logprobs = between(random, 1, 6);
  request.report.entropy = one_in(random, 3);
  request.report.kept_set = one_in(random, 3);
  request.report.prompt_logprobs = one_in(random, 5);
  if (one_in(random, 4)) request.priority = between(random, -1, 1);
  request.client = static_cast<uint32_t>(between(random, 0, 2));
  request.stream = one_in(random, 3);
  request.masked = one_in(random, 6);
  return request;
}

ScoreRequest rich_score(RandomData& random, const ModelConfig& config, const EngineLimits& limits,
                        RequestId id) {
  ScoreRequest request;
  request.id = id;
  request.tokens = random_text(random, config, between(random, 2, limits.max_context));
  request.priority = between(random, -1, 1);
  return request;
}

void answer_mask(Engine& engine, const MaskWanted& mask) {
  const int32_t vocabulary = engine.config().vocabulary;
  RandomData random(mask.request.value * 1'000'003 +
                    static_cast<uint64_t>(mask.sample_index * 1009 + mask.index));
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary; id++) {
    if (one_in(random, 3)) ids.push_back(id);
  }
  Status status = engine.allow(mask.request, mask.sample_index, mask.index, ids);
  if (status.code() == Code::invalid) {  // none of them may be drawn
    ids.resize(static_cast<size_t>(vocabulary));
    std::iota(ids.begin(), ids.end(), 0);
    status = engine.allow(mask.request, mask.sample_index, mask.index, ids);
  }
  EXPECT_TRUE(status.is_ok()) << status.to_string();
}

std::string describe_rich(const GenerateRequest& request) {
  std::ostringstream text;
  const SamplingParams& s = request.sampling;
  text << "request " << request.id.value << ": prompt of " << request.prompt.size() << ", n "
       << request.n << ", max " << request.max_new_tokens << ", min " << request.min_new_tokens
       << ", temperature " << s.temperature << ", top_k " << s.top_k << ", top_p " << s.top_p
       << ", min_p " << s.min_p << ", penalties " << s.repetition_penalty << " "
       << s.presence_penalty << " " << s.frequency_penalty << ", biases " << s.logit_bias.size()
       << ", allowed " << s.allowed_ids.size() << ", banned " << s.banned_ids.size() << ", stops "
       << request.stop_ids.size() << " " << request.stop_sequences.size() << ", forced "
       << request.forced_ids.size() << ", priority " << request.priority
       << (request.ignore_eos ? ", ignore_eos" : "") << (request.masked ? ", masked" : "")
       << (request.stream ? ", stream" : "")
       << (request.report.prompt_logprobs ? ", prompt_logprobs" : "");
  return text.str();
}

}  // namespace exact
