// bench_journal measures what a journal costs the thread that steps: the time that appending takes
// at 256 sequences, and the tokens a second of the quickstart's model with and without one, in
// turns.
//
//   bench_journal --model DIR --directory DIR [--rounds N] [--fsync each|interval|none]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/host_limits.h"
#include "engine/engine.h"
#include "engine/weights.h"
#include "journal/async_journal.h"
#include "kernels/cpu/cpu_backend.h"

namespace exact::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSequences = 256;
constexpr int kTokens = 256;  // of a completion: so of 256 sequences one ends in a step
constexpr int kPrompt = 512;

struct Options {
  std::string model, directory;
  int rounds = 5;
  journal::Fsync fsync = journal::Fsync::interval;
};

[[noreturn]] void fail(const std::string& message) {
  fmt::print(stderr, "bench_journal: {}\n", message);
  std::exit(2);
}

void require(const Status& status) {
  if (!status.is_ok()) fail(status.to_string());
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

std::unique_ptr<journal::AsyncJournal> open_journal(const Options& options) {
  std::filesystem::remove_all(options.directory);
  journal::AsyncOptions async;
  async.writer.directory = options.directory;
  async.fsync = options.fsync;
  async.queue_bytes = uint64_t{1} << 30;
  auto opened = journal::AsyncJournal::open(async, {});
  if (!opened.is_ok()) fail(opened.status().to_string());
  return std::move(*opened);
}

journal::CompletionRecord record_of(int prompt, int tokens) {
  journal::CompletionRecord record;
  record.client = "bench";
  record.request.prompt.assign(static_cast<size_t>(prompt), 7);
  record.completion.tokens.assign(static_cast<size_t>(tokens), 7);
  record.completion.logprobs.assign(static_cast<size_t>(tokens), -1.5f);
  record.completion.processed_logprobs.assign(static_cast<size_t>(tokens), -1.5f);
  record.completion.versions = {{0, 1, std::string(32, 'a')}};
  return record;
}

// One sequence of 256 ends in a step, and then all of them in one.
void measure_append(const Options& options) {
  const auto journal = open_journal(options);
  const journal::CompletionRecord record = record_of(kPrompt, kTokens);
  std::vector<double> one, all;
  for (int step = 0; step < 4000; step++) {
    const auto start = Clock::now();
    require(journal->append(record).status());
    one.push_back(microseconds(Clock::now() - start));
  }
  for (int step = 0; step < 20; step++) {
    const auto start = Clock::now();
    for (int i = 0; i < kSequences; i++) require(journal->append(record).status());
    all.push_back(microseconds(Clock::now() - start));
  }
  require(journal->close());
  std::sort(one.begin(), one.end());
  fmt::print("append, {} sequences, completions of {} tokens, prompts of {}:\n", kSequences,
             kTokens, kPrompt);
  fmt::print(
      "  one ends in a step: median {:.2f} us, slowest of 100 {:.2f} us; all in one: {:.0f} us\n",
      one[one.size() / 2], one[one.size() * 99 / 100], median(all));
  fmt::print(
      "{{\"bench\":\"journal_append\",\"commit\":\"{}\",\"device\":\"{}\",\"append_us\":{:.2f},"
      "\"all_us\":{:.1f}}}\n",
      EXACT_COMMIT, cpu_model_name(), one[one.size() / 2], median(all));
}

journal::CompletionRecord to_record(SampleResult result, const GenerateRequest& request) {
  journal::CompletionRecord record;
  record.request.prompt = request.prompt;
  record.request.seed = request.sampling.seed;
  record.completion.tokens = std::move(result.tokens);
  record.completion.logprobs = std::move(result.logprobs);
  record.completion.processed_logprobs = std::move(result.processed_logprobs);
  return record;
}

// CPU time of all threads, the journal's too: what the machine pays, whoever else wants it
// meanwhile.
double process_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Tokens a second of CPU time, of 64 sequences of 64 tokens.
double tokens_per_second(Engine& engine, journal::AsyncJournal* journal, uint64_t& next_id) {
  GenerateRequest request;
  request.max_new_tokens = 64;
  request.ignore_eos = true;
  for (int i = 0; i < 64; i++) {
    request.id = RequestId{next_id++};
    request.prompt = {1, 2, 3, i};
    request.sampling.seed = static_cast<uint64_t>(i);
    require(engine.submit(request));
  }
  uint64_t tokens = 0;
  const double start = process_seconds();
  while (engine.has_work()) {
    auto report = engine.step();
    require(report.status());
    for (SampleResult& sample : report->samples) {
      tokens += sample.tokens.size();
      if (journal == nullptr) continue;
      require(journal->append(to_record(std::move(sample), request)).status());
    }
  }
  return static_cast<double>(tokens) / (process_seconds() - start);
}

void measure_throughput(const Options& options) {
  auto config = load_config(options.model);
  require(config.status());
  auto backend = make_cpu_backend({best_cpu_isa(), 1});
  require(backend.status());
  auto slot = std::make_unique<WeightSlot>(*config, **backend);
  require(load_weights(options.model, *slot));
  auto engine = Engine::create(*config, **backend, std::move(slot), {.max_context = 256});
  require(engine.status());
  const auto journal = open_journal(options);
  uint64_t next_id = 1;
  (void)tokens_per_second(**engine, nullptr, next_id);  // warms up
  std::vector<double> off, on, ratio;
  for (int round = 0; round < options.rounds; round++) {
    off.push_back(tokens_per_second(**engine, nullptr, next_id));
    on.push_back(tokens_per_second(**engine, journal.get(), next_id));
    ratio.push_back(on.back() / off.back());
  }
  require(journal->close());
  fmt::print(
      "throughput, tokens per second of CPU: off {:.0f}, on {:.0f}; on / off, median of {} pairs: "
      "{:.4f}\n",
      median(off), median(on), options.rounds, median(ratio));
  fmt::print(
      "{{\"bench\":\"journal_throughput\",\"commit\":\"{}\",\"device\":\"{}\",\"off\":{:.1f},"
      "\"on\":{:.1f},\"ratio\":{:.4f}}}\n",
      EXACT_COMMIT, cpu_model_name(), median(off), median(on), median(ratio));
}

int run(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--model") {
      options.model = value;
    } else if (name == "--directory") {
      options.directory = value;
    } else if (name == "--rounds" && std::atoi(argv[i + 1]) > 0) {
      options.rounds = std::atoi(argv[i + 1]);
    } else if (name == "--fsync" && (value == "each" || value == "interval" || value == "none")) {
      options.fsync = value == "each"   ? journal::Fsync::each
                      : value == "none" ? journal::Fsync::none
                                        : journal::Fsync::interval;
    } else {
      options.model.clear();
      break;
    }
  }
  if (options.model.empty() || options.directory.empty()) {
    fail("usage: bench_journal --model DIR --directory DIR [--rounds N] [--fsync each|...]");
  }
  if (std::filesystem::exists(options.directory)) fail("the directory must not exist yet");
  measure_append(options);
  measure_throughput(options);
  std::filesystem::remove_all(options.directory);
  return 0;
}

}  // namespace
}  // namespace exact::bench

int main(int argc, char** argv) {
  return exact::bench::run(argc, argv);
}
