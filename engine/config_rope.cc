#include "engine/config_rope.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace exact {
namespace {

// What transformers 5.17 reads for one of the kinds below. For another kind it passes over such a
// field, and so does this parser. What is not here may be meant by another library to change bits.
constexpr std::array<std::string_view, 14> kKnownFields = {
    "rope_type",        "type",
    "rope_theta",       "partial_rotary_factor",
    "factor",           "original_max_position_embeddings",
    "low_freq_factor",  "high_freq_factor",
    "attention_factor", "beta_fast",
    "beta_slow",        "mscale",
    "mscale_all_dim",   "truncate"};

// One outside of the rope's object goes before the one inside; without either, yarn alone has the
// model's own number of positions.
void read_original_positions(ConfigFields& fields, ConfigFields& rope, RopeConfig& config,
                             std::optional<int32_t> otherwise) {
  constexpr const char* kName = "original_max_position_embeddings";
  if (fields.has(kName)) otherwise = fields.integer(kName, 1, kMaxConfigPositions);
  config.original_max_positions = rope.integer(kName, 1, kMaxConfigPositions, otherwise);
  if (fields.has(kName) && config.original_max_positions != *otherwise) {
    fields.fail(Code::invalid, kName, "differs from the one in the rope's own object");
  }
}

void read_llama3(ConfigFields& rope, RopeConfig& config) {
  config.kind = RopeKind::llama3;
  config.factor = rope.number("factor", 1, 1e6);
  config.low_frequency_factor = rope.number("low_freq_factor", 1e-6, 1e6);
  config.high_frequency_factor = rope.number("high_freq_factor", 1e-6, 1e6);
  if (rope.status().is_ok() && config.high_frequency_factor <= config.low_frequency_factor) {
    rope.fail(Code::invalid, "high_freq_factor", "must be above low_freq_factor");
  }
}

void read_yarn(ConfigFields& rope, RopeConfig& config) {
  config.kind = RopeKind::yarn;
  config.factor = rope.number("factor", 1, 1e6);
  config.beta_fast = rope.number("beta_fast", 1e-6, 1e6, 32);
  config.beta_slow = rope.number("beta_slow", 1e-6, 1e6, 1);
  if (config.beta_fast < config.beta_slow) {
    rope.fail(Code::invalid, "beta_fast", "must not be below beta_slow");
  }
  if (rope.is_null("truncate")) {  // Python would take it for false, not for the default
    rope.fail(Code::invalid, "truncate", "is null: it must be true or false, or not there");
  }
  config.truncate = rope.boolean("truncate", true);
  if (rope.has("attention_factor")) {
    config.attention_factor = rope.number("attention_factor", 1e-6, 1e6);
  }
  config.mscale = rope.number("mscale", 0, 1e6, 0);
  config.mscale_all_dim = rope.number("mscale_all_dim", 0, 1e6, 0);
}

void read_theta(ConfigFields& fields, ConfigFields& rope, RopeConfig& config) {
  ConfigFields& owner = rope.has("rope_theta") ? rope : fields;
  config.theta = owner.number("rope_theta", 1.5, 1e12);
  if (rope.has("rope_theta") && fields.has("rope_theta") &&
      fields.number("rope_theta", 1.5, 1e12) != config.theta) {
    fields.fail(Code::invalid, "rope_theta", "differs from the one in the rope's own object");
  }
}

void read_kind(ConfigFields& fields, ConfigFields& rope, int32_t max_positions,
               RopeConfig& config) {
  const char* key = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string type = rope.text(key, "default");
  if (type == "llama3") {
    read_llama3(rope, config);
    read_original_positions(fields, rope, config, std::nullopt);
  } else if (type == "yarn") {
    read_yarn(rope, config);
    read_original_positions(fields, rope, config, max_positions);
  } else if (type == "linear") {
    config.kind = RopeKind::linear;
    config.factor = rope.number("factor", 1, 1e6);
  } else if (type == "dynamic") {
    rope.fail(
        Code::unsupported, key,
        "is 'dynamic': its frequencies depend on the longest sequence in the trainer's batch, "
        "so a token's bits would depend on more than its own prefix; use 'yarn' or 'linear'");
  } else if (type != "default") {
    rope.fail(Code::unsupported, key,
              "is '" + type.substr(0, 40) +
                  "': only 'default', 'linear', 'llama3' and 'yarn' are supported");
  }
}

}  // namespace

Status read_rope(ConfigFields& fields, int32_t max_positions, RopeConfig& config) {
  const bool is_new = fields.has("rope_parameters");
  const char* key = is_new ? "rope_parameters" : "rope_scaling";
  if (is_new && fields.has("rope_scaling")) {
    fields.fail(Code::invalid, "rope_scaling", "stands beside 'rope_parameters': keep one of them");
    return fields.status();
  }
  const Json none = Json::object();
  const Json& object = fields.has(key) ? *fields.find(key) : none;
  if (!object.is_object()) {
    fields.fail(Code::invalid, key, "must be an object or null");
    return fields.status();
  }
  ConfigFields rope(object, std::string(key) + ".");
  read_theta(fields, rope, config);
  rope.must_be("partial_rotary_factor", 1);
  read_kind(fields, rope, max_positions, config);
  rope.must_be_among(kKnownFields, "is unknown to transformers 5.17, which would pass over it");
  return rope.status();
}

}  // namespace exact
