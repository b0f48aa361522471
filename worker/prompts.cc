#include "worker/prompts.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "worker/request_fields.h"

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

Status read(const std::string& field, const Json& value, bool& out) {
  if (!value.is_boolean()) return wrong(field, "true or false");
  out = value.get<bool>();
  return {};
}

Status read(const std::string& field, const Json& value, std::vector<std::vector<int32_t>>& out) {
  constexpr const char* kWanted = "a list of lists of token ids";
  if (!value.is_array()) return wrong(field, kWanted);
  out.clear();
  for (const Json& element : value) {
    if (!read(field, element, out.emplace_back()).is_ok()) return wrong(field, kWanted);
  }
  return {};
}

// {"17": -2.5}, as OpenAI writes it.
Status read(const std::string& field, const Json& value, std::vector<TokenBias>& out) {
  constexpr const char* kWanted = R"(an object of token ids and numbers: {"17": -2.5})";
  if (!value.is_object()) return wrong(field, kWanted);
  out.clear();
  for (const auto& [token, bias] : value.items()) {
    TokenBias& entry = out.emplace_back();
    const char* end = token.data() + token.size();
    const auto parsed = std::from_chars(token.data(), end, entry.token);
    if (parsed.ec != std::errc() || parsed.ptr != end) return wrong(field, kWanted);
    if (!read(field, bias, entry.bias).is_ok()) return wrong(field, kWanted);
  }
  return {};
}

// What other programs call a field that is here under another name.
std::string_view our_name(std::string_view field) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"max_tokens", "max_new_tokens"}, {"max_completion_tokens", "max_new_tokens"},
      {"min_tokens", "min_new_tokens"}, {"stop_token_ids", "stop_ids"},
      {"logprobs", "top_logprobs"},     {"allowed_token_ids", "allowed_ids"},
      {"bad_words_ids", "banned_ids"},  {"stop", "stop_sequences"},
      {"prompt_token_ids", "prompt"},
  };
  for (const auto& [theirs, ours] : kNames) {
    if (field == theirs) return ours;
  }
  return {};
}

Status unknown(const std::string& field) {
  std::string text = "unknown field '" + field.substr(0, 64) + "'";
  if (const std::string_view ours = our_name(field); !ours.empty()) {
    return Status(Code::invalid, text + ": here it is '" + std::string(ours) + "'");
  }
  text += "; the fields are id";
  const GenerateRequest request;
  for_each_field(request, [&](const char* name, const auto&) { text += std::string(", ") + name; });
  return Status(Code::invalid, text);
}

Status read_field(const std::string& field, const Json& value, PromptLine& line) {
  if (field == "id") {
    line.id = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    return {};
  }
  std::optional<Status> status;
  for_each_field(line.request, [&](const char* name, auto& out) {
    if (field == name) status = read(field, value, out);
  });
  return status ? *status : unknown(field);
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

}  // namespace exact::worker
