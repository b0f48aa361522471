// trainer_loop is a small trainer against a running worker, with no framework and no GPU: it pushes
// weights, pulls rollouts, and checks every log-probability against its own forward pass, bit for
// bit.
//
//   rollout serve --model DIR          in one terminal
//   trainer_loop --model DIR           in another
//
// A step: propose weights (hill_climb.h), publish them as the next version, pull one group of
// completions per prompt, check them, reward them. One more group is sent just before each push, so
// that the update policy has something to decide; its tokens are checked under the version that
// made them and are not rewarded. Prompts and seeds are the same in every step, so two versions are
// compared on the same randomness. The reward is a toy: the share of even token ids.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "examples/hill_climb.h"
#include "examples/step_table.h"
#include "examples/trainer_options.h"
#include "kernels/contract/hash_init.h"
#include "trainer_bridge/client.h"
#include "trainer_bridge/completion_check.h"
#include "trainer_bridge/host_tensors.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/weight_publisher.h"

namespace {

using namespace exact;  // the program's own file
using bridge::Client;
using bridge::Scorer;
using examples::StepRow;
using Options = examples::TrainerOptions;

// A check that failed, unlike an environment that did: exit code 1, not 3.
bool is_failed_check(const Status& status) {
  return status.code() == Code::corrupt || status.code() == Code::contract_mismatch;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

class TrainerLoop {
 public:
  static Result<std::unique_ptr<TrainerLoop>> create(const Options& options) {
    EXACT_ASSIGN(const ModelConfig config, load_config(options.model));
    EXACT_ASSIGN(auto theta, bridge::load_host_tensors(config, options.model));
    std::unique_ptr<TrainerLoop> loop(new TrainerLoop(options, config, std::move(theta)));
    const auto views = bridge::named_tensors(loop->climb_.child());
    EXACT_ASSIGN(loop->live_, Scorer::from_tensors(config, views));
    EXACT_ASSIGN(loop->next_, Scorer::from_tensors(config, views));
    bridge::ClientOptions client;
    client.endpoint = options.endpoint;
    client.name = "trainer_loop";
    client.contract_id = loop->live_->contract_id();
    client.timeout = std::chrono::minutes(10);
    EXACT_ASSIGN(loop->client_, Client::connect(client));
    loop->version_ = loop->client_->worker().weight_version;
    // The worker may have been trained on already: then its first version is none of ours.
    loop->knows_live_ = loop->client_->worker().weights_digest == loop->live_->weights_digest();
    return loop;
  }

  const ipc::HelloReply& worker() const { return client_->worker(); }
  const std::vector<std::string>& differences() const { return differences_; }

  Result<StepRow> step(int32_t index) {
    StepRow row;
    if (index > 0) climb_.propose();
    uint64_t straddling = 0;
    if (knows_live_) {
      EXACT_ASSIGN(straddling, submit_straddling());
    }
    EXACT_RETURN_IF_ERROR(publish(row));
    EXACT_RETURN_IF_ERROR(pull(row, straddling));
    row.best_reward = climb_.best_reward();
    return row;
  }

 private:
  static constexpr uint64_t kStraddlingSeed = 1u << 20;

  TrainerLoop(const Options& options, const ModelConfig& config,
              std::vector<bridge::HostTensor> theta)
      : options_(options), climb_(std::move(theta), options.sigma, options.seed) {
    for (int32_t p = 0; p < options.prompts; p++) {
      const contract::HashStream ids("prompt/" + std::to_string(p), options.seed);
      std::vector<int32_t>& prompt = prompts_.emplace_back();
      for (uint64_t i = 0; i < 8 + static_cast<uint64_t>(p % 8); i++) {
        prompt.push_back(static_cast<int32_t>(ids.bits24(i) % uint32_t(config.vocabulary)));
      }
    }
  }

  ipc::Generate request(size_t prompt, uint64_t stream) const {
    ipc::Generate request;
    request.prompt = prompts_[prompt];
    request.n = options_.n;
    request.max_new_tokens = options_.max_new_tokens;
    request.seed = options_.seed * 0x100000000u + stream + prompt;
    return request;
  }

  // A group that is about half done when this returns, so that the push finds it under way.
  Result<uint64_t> submit_straddling() {
    EXACT_ASSIGN(const auto before, client_->status());
    EXACT_ASSIGN(const uint64_t id, client_->submit(request(0, kStraddlingSeed)));
    const auto half = static_cast<uint64_t>(options_.n * options_.max_new_tokens / 2);
    for (auto now = before; now.tokens_generated < before.tokens_generated + half;) {
      EXACT_ASSIGN(now, client_->status());
      const bool is_over = now.running + now.waiting == 0 && now.steps > before.steps;
      if (is_over) break;
    }
    return id;
  }

  // The worker and the trainer's own scorer get the same bytes; both name them by the same digest.
  Status publish(StepRow& row) {
    const auto begin = std::chrono::steady_clock::now();
    const auto tensors = bridge::named_tensors(climb_.child());
    bridge::PublishOptions options;
    options.version = version_ + 1;
    options.policy = static_cast<uint8_t>(options_.policy);
    EXACT_ASSIGN(const auto report, bridge::publish(*client_, tensors, options));
    row.publish_seconds = seconds_since(begin);
    EXACT_RETURN_IF_ERROR(next_->set_weights(tensors));
    std::swap(live_, next_);
    old_version_ = std::exchange(version_, report.version);
    row.version = report.version;
    row.weights_digest = report.weights_digest;
    if (report.weights_digest == live_->weights_digest()) return {};
    return Status(Code::corrupt, "the worker has weights " + report.weights_digest +
                                     " as version " + std::to_string(version_) +
                                     ", the trainer published " + live_->weights_digest());
  }

  // All groups at once; checked in the order of the prompts, so that a run can be repeated.
  Status pull(StepRow& row, uint64_t straddling) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<uint64_t> ids;
    for (size_t p = 0; p < prompts_.size(); p++) {
      EXACT_ASSIGN(const uint64_t id, client_->submit(request(p, 0)));
      ids.push_back(id);
    }
    std::map<uint64_t, ipc::GenerateReply> replies;
    while (client_->in_flight() > 0) {
      EXACT_ASSIGN(auto reply, client_->next_reply(std::chrono::minutes(10)));
      if (!reply.error) return reply.error;
      replies.emplace(reply.request_id, std::move(reply.value));
    }
    row.rollout_seconds = seconds_since(begin);

    const bridge::ScoredVersion live{version_, live_.get()};
    const bridge::ScoredVersion old{old_version_, next_.get()};
    if (straddling != 0) {
      const ipc::GenerateReply& reply = replies.at(straddling);
      count_straddling(reply, row);
      EXACT_RETURN_IF_ERROR(check(0, reply, {old, live}, row));
    }
    double reward = 0;
    for (size_t p = 0; p < prompts_.size(); p++) {
      const ipc::GenerateReply& reply = replies.at(ids[p]);
      EXACT_RETURN_IF_ERROR(check(p, reply, {live}, row));
      for (const auto& completion : reply.completions) {
        reward += share_of_even_ids(completion.tokens);
        row.tokens += completion.tokens.size();
      }
    }
    row.reward = reward / (options_.prompts * options_.n);
    row.kept = climb_.judge(row.reward);
    row.logits_hash = live_->last_logits_hash();
    knows_live_ = true;
    return {};
  }

  Status check(size_t prompt, const ipc::GenerateReply& reply,
               const std::vector<bridge::ScoredVersion>& versions, StepRow& row) {
    EXACT_ASSIGN(const auto found, bridge::check_completions(prompts_[prompt], reply, versions));
    row.checked += found.logprobs_checked;
    row.mismatches += found.mismatches;
    if (found.first_difference) {
      differences_.push_back(
          fmt::format("prompt {}, {}", prompt, found.first_difference->to_string()));
    }
    return {};
  }

  void count_straddling(const ipc::GenerateReply& reply, StepRow& row) const {
    for (const auto& completion : reply.completions) {
      for (size_t i = 0; i < completion.versions.size(); i++) {
        const bool is_last = i + 1 == completion.versions.size();
        const size_t end =
            is_last ? completion.tokens.size() : size_t(completion.versions[i + 1].begin);
        const bool is_old = completion.versions[i].weight_version == old_version_;
        (is_old ? row.straddled_old : row.straddled_new) +=
            end - size_t(completion.versions[i].begin);
      }
    }
  }

  static double share_of_even_ids(const std::vector<int32_t>& tokens) {
    if (tokens.empty()) return 0;
    int32_t even = 0;
    for (const int32_t token : tokens) even += token % 2 == 0;
    return static_cast<double>(even) / static_cast<double>(tokens.size());
  }

  Options options_;
  examples::HillClimb climb_;
  std::vector<std::vector<int32_t>> prompts_;
  std::unique_ptr<Scorer> live_,
      next_;  // next_ holds the version before live_ until it is refilled
  std::unique_ptr<Client> client_;
  uint64_t version_ = 0, old_version_ = 0;
  bool knows_live_ = false;
  std::vector<std::string> differences_;
};

// Exit codes: 0 every bit was equal, 1 a check failed, 2 usage, 3 environment.
int run(const Options& options) {
  auto loop = TrainerLoop::create(options);
  if (!loop) {
    fmt::print(stderr, "trainer_loop: {}\n", loop.status().to_string());
    return is_failed_check(loop.status()) ? 1 : 3;
  }
  const ipc::HelloReply& worker = (*loop)->worker();
  fmt::print("{} on {}: contract {}, weights version {}, digest {}\n", worker.server,
             worker.backend, worker.contract_id, worker.weight_version, worker.weights_digest);
  fmt::print("seed {}: {} prompts x {} completions x {} tokens, {} steps\n", options.seed,
             options.prompts, options.n, options.max_new_tokens, options.steps);
  std::vector<StepRow> rows;
  for (int32_t index = 0; index < options.steps; index++) {
    auto row = (*loop)->step(index);
    if (!row) {
      fmt::print(stderr, "trainer_loop: step {}: {}\n", index + 1, row.status().to_string());
      return is_failed_check(row.status()) ? 1 : 3;
    }
    rows.push_back(std::move(*row));
    print_step(static_cast<size_t>(index), static_cast<size_t>(options.steps), rows.back());
  }
  print_table(rows);
  for (const std::string& difference : (*loop)->differences()) {
    fmt::print("differs: {}\n", difference);
  }
  return print_statement(rows) ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app;
  examples::TrainerOptions options;
  examples::add_options(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return run(options);
}
