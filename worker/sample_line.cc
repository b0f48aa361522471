#include "worker/sample_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

namespace exact::worker {
namespace {

using Json = nlohmann::json;

// JSON has no infinities.
std::string number(float value) {
  return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null";
}

std::string numbers(std::span<const float> values) {
  std::string out = "[";
  for (const float value : values) {
    if (out.size() > 1) out += ", ";
    out += number(value);
  }
  return out + "]";
}

std::string numbers(std::span<const int32_t> values) {
  std::string out = "[";
  for (const int32_t value : values) {
    if (out.size() > 1) out += ", ";
    out += std::to_string(value);
  }
  return out + "]";
}

// One list for each count, of so many values.
template <class T>
std::string lists(const std::vector<int32_t>& counts, std::span<const T> values) {
  std::string out = "[";
  for (const int32_t count : counts) {
    const size_t size = std::min(values.size(), static_cast<size_t>(count));
    if (out.size() > 1) out += ", ";
    out += numbers(values.first(size));
    values = values.subspan(size);
  }
  return out + "]";
}

std::string spans(std::span<const VersionSpan> versions) {
  std::string out = "[";
  for (const VersionSpan& span : versions) {
    if (out.size() > 1) out += ", ";
    out += fmt::format(R"({{"begin": {}, "version": {}, "weights_digest": "{}"}})", span.begin,
                       span.version.value, span.weights_digest.to_hex());
  }
  return out + "]";
}

}  // namespace

std::string sample_line(const PromptLine& prompt, const SampleResult& sample,
                        const Digest128& contract) {
  const Digest128 weights =
      sample.versions.empty() ? Digest128{} : sample.versions.back().weights_digest;
  std::string out = fmt::format(
      R"({{"id": {}, "sample_index": {}, "finish_reason": "{}", "ids": {}, "logprobs": {}, )"
      R"("processed_logprobs": {}, "versions": {}, "seed": {}, "contract_id": "{}", )"
      R"("weights_digest": "{}")",
      prompt.id, sample.sample_index, finish_reason_name(sample.reason), numbers(sample.tokens),
      numbers(sample.logprobs), numbers(sample.processed_logprobs), spans(sample.versions),
      prompt.request.sampling.seed, contract.to_hex(), weights.to_hex());
  const ReportParams& report = prompt.request.report;
  const auto tokens = sample.tokens.size();
  if (report.entropy) out += ", \"entropies\": " + numbers(std::span(sample.entropies));
  if (report.top_logprobs > 0) {
    const std::vector<int32_t> counts(tokens, report.top_logprobs);
    out += ", \"top_ids\": " + lists(counts, std::span(sample.top_ids));
    out += ", \"top_logprobs\": " + lists(counts, std::span(sample.top_logprobs));
  }
  if (report.kept_set) {
    out += ", \"kept_ids\": " + lists(sample.kept_counts, std::span(sample.kept_ids));
  }
  if (report.prompt_logprobs) {
    out += ", \"prompt_logprobs\": " + numbers(std::span(sample.prompt_logprobs));
  }
  if (!sample.error.is_ok()) {
    out += ", \"error\": " +
           Json(sample.error.message()).dump(-1, ' ', true, Json::error_handler_t::replace);
  }
  return out + "}";
}

}  // namespace exact::worker
