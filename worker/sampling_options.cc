#include "worker/sampling_options.h"

#include <fmt/format.h>

#include <charconv>
#include <string_view>
#include <utility>

#include "worker/request_fields.h"

namespace exact::worker {
namespace {

template <class T>
bool parse_whole(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

Result<TokenBias> parse_bias(const std::string& text) {
  const std::string_view all = text;
  const size_t colon = all.find(':');
  TokenBias bias;
  if (colon == std::string_view::npos || !parse_whole(all.substr(0, colon), bias.token) ||
      !parse_whole(all.substr(colon + 1), bias.bias)) {
    return Status(Code::invalid,
                  "--logit-bias '" + text + "' must be TOKEN:BIAS, for example 17:-2.5");
  }
  return bias;
}

Result<std::vector<int32_t>> parse_ids(const std::string& text) {
  std::vector<int32_t> ids;
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    if (!parse_whole(rest.substr(0, comma), ids.emplace_back())) {
      return Status(Code::invalid,
                    "--stop-sequence '" + text + "' must be token ids, for example 13,10,13");
    }
    if (comma == std::string_view::npos) return ids;
    rest.remove_prefix(comma + 1);
  }
}

// ---- one text for each value
template <class T>
std::string text_of(const T& value) {
  return fmt::format("{}", value);
}
std::string text_of(float value) {
  return fmt::format("{:.9g}", value);
}
std::string text_of(const TokenBias& bias) {
  return fmt::format("{}:{:.9g}", bias.token, bias.bias);
}
template <class T>
std::string text_of(const std::vector<T>& values) {
  std::string text = "[";
  for (const T& value : values) text += (text.size() > 1 ? "," : "") + text_of(value);
  return text + "]";
}

void add_drawing_options(CLI::App& command, SamplingOptions& options, const std::string& group) {
  SamplingParams& sampling = options.defaults.sampling;
  const auto number = [&](const char* name, auto& value, const char* help) {
    command.add_option(name, value, help)->group(group)->capture_default_str();
  };
  number("--seed", sampling.seed, "Sample i draws with (seed, i)");
  number("--temperature", sampling.temperature, "0: greedy");
  number("--top-k", sampling.top_k, "Draw from the k likeliest; 0: off");
  number("--top-p", sampling.top_p, "Draw from the likeliest of this much probability; 1: off");
  number("--min-p", sampling.min_p, "Draw from those at least this share of the likeliest; 0: off");
  number("--repetition-penalty", sampling.repetition_penalty,
         "Of tokens in prompt or output: divides a logit above 0, multiplies others; 1: off");
  number("--presence-penalty", sampling.presence_penalty,
         "Subtracted from the logits of tokens in the output");
  number("--frequency-penalty", sampling.frequency_penalty,
         "Subtracted for each time a token is in the output");
  command
      .add_option("--logit-bias", options.logit_bias,
                  "TOKEN:BIAS, added to that token's logit; may be repeated")
      ->group(group);
  command.add_option("--allowed-id", sampling.allowed_ids, "Draw no other ids; may be repeated")
      ->group(group);
  command.add_option("--banned-id", sampling.banned_ids, "Never draw this id; may be repeated")
      ->group(group);
}

void add_length_options(CLI::App& command, SamplingOptions& options, const std::string& group) {
  GenerateRequest& defaults = options.defaults;
  command.add_option("--n", defaults.n, "Samples of each prompt")
      ->group(group)
      ->capture_default_str();
  command.add_option("--max-new-tokens", defaults.max_new_tokens, "0: up to the context")
      ->group(group)
      ->capture_default_str();
  command
      .add_option("--min-new-tokens", defaults.min_new_tokens,
                  "No stop before a sample has this many")
      ->group(group)
      ->capture_default_str();
  command.add_option("--stop-id", defaults.stop_ids, "Ends a sample, and is kept; may be repeated")
      ->group(group);
  command
      .add_option("--stop-sequence", options.stop_sequences,
                  "ID,ID,...: ends a sample, and is kept; may be repeated")
      ->group(group);
  command.add_flag("--ignore-eos", defaults.ignore_eos, "Don't stop at the config's eos_token_id")
      ->group(group);
  command
      .add_option("--forced-id", defaults.forced_ids,
                  "Every sample begins with these, reported as if drawn; may be repeated")
      ->group(group);
  command.add_option("--priority", defaults.priority, "Prompts of a higher one are run first")
      ->group(group)
      ->capture_default_str();
}

void add_report_options(CLI::App& command, ReportParams& report, const std::string& group) {
  command
      .add_option("--top-logprobs", report.top_logprobs,
                  "Report the K likeliest tokens at each position")
      ->group(group)
      ->capture_default_str();
  command.add_flag("--entropy", report.entropy, "Report each position's entropy")->group(group);
  command.add_flag("--kept-set", report.kept_set, "Report the ids that could have been drawn")
      ->group(group);
  command
      .add_flag("--prompt-logprobs", report.prompt_logprobs,
                "Report the log-probabilities of the prompt")
      ->group(group);
}

}  // namespace

void add_sampling_options(CLI::App& command, SamplingOptions& options) {
  const std::string group = "Defaults for lines that do not say";
  add_length_options(command, options, group);
  add_drawing_options(command, options, group);
  add_report_options(command, options.defaults.report, group);
}

Result<GenerateRequest> resolve(const SamplingOptions& options) {
  GenerateRequest request = options.defaults;
  for (const std::string& text : options.logit_bias) {
    EXACT_ASSIGN(const TokenBias bias, parse_bias(text));
    request.sampling.logit_bias.push_back(bias);
  }
  for (const std::string& text : options.stop_sequences) {
    EXACT_ASSIGN(std::vector<int32_t> ids, parse_ids(text));
    request.stop_sequences.push_back(std::move(ids));
  }
  return request;
}

std::vector<std::pair<std::string, std::string>> facts_of(const GenerateRequest& request) {
  std::vector<std::pair<std::string, std::string>> facts;
  for_each_field(request, [&](std::string_view name, const auto& value) {
    if (name != "prompt") facts.emplace_back(name, text_of(value));
  });
  return facts;
}

}  // namespace exact::worker
