#include "worker/prompts.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

namespace exact::worker {
namespace {

using Json = nlohmann::json;

Status wrong(const std::string& field, std::string_view wanted) {
  return Status(Code::invalid, fmt::format("'{}' must be {}", field, wanted));
}

Status read(const std::string& field, const Json& value, int32_t& out) {
  // A number without a sign is unsigned to the parser, one with a sign is not.
  constexpr uint64_t kMax = std::numeric_limits<int32_t>::max();
  constexpr int64_t kMin = std::numeric_limits<int32_t>::min();
  const bool fits = value.is_number_unsigned()  ? value.get<uint64_t>() <= kMax
                    : value.is_number_integer() ? value.get<int64_t>() >= kMin
                                                : false;
  if (!fits) return wrong(field, "a whole number of 32 bits");
  out = static_cast<int32_t>(value.get<int64_t>());
  return {};
}

Status read(const std::string& field, const Json& value, uint64_t& out) {
  if (!value.is_number_unsigned()) return wrong(field, "a whole number from 0 to 2^64 - 1");
  out = value.get<uint64_t>();
  return {};
}

Status read(const std::string& field, const Json& value, float& out) {
  if (!value.is_number()) return wrong(field, "a number");
  out = value.get<float>();
  return {};
}

Status read(const std::string& field, const Json& value, std::vector<int32_t>& out) {
  if (!value.is_array()) return wrong(field, "a list of token ids");
  out.clear();
  out.reserve(value.size());
  for (const Json& element : value) {
    int32_t id = 0;
    if (!read(field, element, id).is_ok()) return wrong(field, "a list of token ids");
    out.push_back(id);
  }
  return {};
}

Status read_field(const std::string& field, const Json& value, PromptLine& line) {
  GenerateRequest& request = line.request;
  if (field == "prompt") return read(field, value, request.prompt);
  if (field == "n") return read(field, value, request.n);
  if (field == "seed") return read(field, value, request.sampling.seed);
  if (field == "max_new_tokens") return read(field, value, request.max_new_tokens);
  if (field == "temperature") return read(field, value, request.sampling.temperature);
  if (field == "top_k") return read(field, value, request.sampling.top_k);
  if (field == "top_p") return read(field, value, request.sampling.top_p);
  if (field == "stop_ids") return read(field, value, request.stop_ids);
  if (field == "id") {
    line.id = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return {};
  }
  return Status(Code::invalid,
                "unknown field '" + field.substr(0, 64) +
                    "'; the fields are prompt, id, n, seed, max_new_tokens, temperature, top_k, "
                    "top_p and stop_ids");
}

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

Result<PromptLine> parse_prompt_line(std::string_view text, const GenerateRequest& defaults) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return Status(Code::invalid, "not valid JSON");
  if (!json.is_object()) return Status(Code::invalid, R"(not an object: write {"prompt": [1, 2]})");
  PromptLine line{"null", defaults};
  for (const auto& [field, value] : json.items()) {
    EXACT_RETURN_IF_ERROR(read_field(field, value, line));
  }
  if (!json.contains("prompt")) return Status(Code::invalid, "'prompt' is missing");
  return line;
}

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
  if (!sample.error.is_ok()) {
    out += ", \"error\": " +
           Json(sample.error.message()).dump(-1, ' ', true, Json::error_handler_t::replace);
  }
  return out + "}";
}

}  // namespace exact::worker
