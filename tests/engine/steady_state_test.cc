// A step in the steady state, 1,000 sequences that decode, takes nothing from the heap: not to
// plan, not for pages, not for rows, not to apply what came out.
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/engine/allocations.h"
#include "tests/engine/chain_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/model_fixture.h"

namespace exact {
namespace {

GenerateRequest request(uint64_t id) {
  GenerateRequest request;
  request.id = RequestId{id};
  for (int32_t i = 0; i < 20; i++) request.prompt.push_back((i * static_cast<int32_t>(id)) % 128);
  request.max_new_tokens = 200;
  request.sampling.seed = id;
  request.stop_sequences = {{1, 2, 3, 4, 5, 6}};
  request.client = static_cast<uint32_t>(id % 3);
  request.priority = static_cast<int32_t>(id % 2);
  if (id % 2 == 0) request.sampling.frequency_penalty = 0.5f;
  if (id % 3 == 0) request.report.entropy = true;
  if (id % 5 == 0) request.report.top_logprobs = 4;
  if (id % 7 == 0) request.min_new_tokens = 50;
  if (id % 11 == 0) request.forced_ids.assign(60, 3);
  if (id % 13 == 0) request.report.prompt_logprobs = true;
  return request;
}

TEST(SteadyState, AStepOfAThousandSequencesAllocatesNothing) {
  ChainBackend backend;
  EngineLimits limits;
  limits.max_context = 256;
  limits.page_size = 16;
  limits.page_count = 20'000;
  limits.max_running = 1000;
  limits.max_step_tokens = 1024;
  const ModelConfig config = small_config("qwen3", true);
  auto made = Engine::create(config, backend, hash_slot(config, backend, 1), limits);
  ASSERT_TRUE(made.is_ok()) << made.status().to_string();
  Engine& engine = **made;
  for (uint64_t id = 1; id <= 1100; id++) ASSERT_TRUE(engine.submit(request(id)).is_ok());
  while (engine.status().running < 1000) ASSERT_TRUE(engine.step().is_ok());
  // The last ones finish their prompts, and vectors reach their sizes.
  for (int i = 0; i < 40; i++) ASSERT_TRUE(engine.step().is_ok());
  const uint64_t before = allocation_count();
  for (int i = 0; i < 60; i++) {
    const auto report = engine.step();
    ASSERT_TRUE(report.is_ok());
    ASSERT_EQ(report->decode_rows, 1000);
    ASSERT_EQ(report->prefill_rows, 0);
#ifdef EXACT_CHECK_INTEGRITY
    continue;  // looking takes memory
#endif
    ASSERT_EQ(allocation_count(), before) << "in step " << i;
  }
}

}  // namespace
}  // namespace exact
