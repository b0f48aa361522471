#include "engine/config.h"

#include <algorithm>
#include <optional>

#include "engine/config_fields.h"
#include "engine/config_rope.h"
#include "engine/file.h"
#include "kernels/contract/shape.h"

namespace exact {
namespace {

constexpr size_t kMaxConfigBytes = 16u << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadWidth = 1024;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxVocabulary = int64_t{1} << 22;

const char* architecture_name(ModelType type) {
  switch (type) {
    case ModelType::llama:
      return "LlamaForCausalLM";
    case ModelType::qwen2:
      return "Qwen2ForCausalLM";
    case ModelType::qwen3:
      return "Qwen3ForCausalLM";
  }
  return "unknown";
}

ModelType read_type(ConfigFields& fields) {
  const std::string name = fields.text("model_type");
  for (const ModelType type : {ModelType::llama, ModelType::qwen2, ModelType::qwen3}) {
    if (name == model_type_name(type)) return type;
  }
  fields.fail(Code::unsupported, "model_type",
              "is '" + name + "': only llama, qwen2 and qwen3 are inside the contract");
  return ModelType::llama;
}

// ---- what must have its only supported value, where it is there at all

void refuse_text(ConfigFields& fields, const char* name, const char* supported) {
  const std::string value = fields.text(name, supported);
  if (value != supported) {
    fields.fail(Code::unsupported, name, "is '" + value + "': it must be '" + supported + "'");
  }
}

void refuse_true(ConfigFields& fields, const char* name, const char* why) {
  if (fields.boolean(name, false)) {
    fields.fail(Code::unsupported, name, std::string("is true: ") + why);
  }
}

void check_architectures(ConfigFields& fields, ModelType type) {
  const Json* list = fields.find("architectures");
  if (list == nullptr) return;
  if (list->is_array() && list->size() == 1 && (*list)[0] == architecture_name(type)) return;
  fields.fail(Code::unsupported, "architectures",
              std::string("must be [\"") + architecture_name(type) + "\"] for this model_type");
}

// Whether `layer_types`, which goes before `max_window_layers`, has a layer that slides.
bool layer_types_slide(ConfigFields& fields, const ModelConfig& config) {
  const Json& list = *fields.find("layer_types");
  if (!list.is_array() || list.size() != static_cast<size_t>(config.layers)) {
    fields.fail(Code::invalid, "layer_types", "must name the attention of each layer");
    return false;
  }
  bool slides = false;
  for (const Json& type : list) {
    if (type == "sliding_attention" && config.type != ModelType::llama) {
      slides = true;
    } else if (type != "full_attention") {
      fields.fail(Code::unsupported, "layer_types",
                  "has " + type.dump().substr(0, 40) + ", which " +
                      std::string(model_type_name(config.type)) + " does not have here");
    }
  }
  return slides;
}

// Qwen's layers from max_window_layers on see the last sliding_window keys alone. No default is
// taken for what decides that; without use_sliding_window the numbers mean nothing.
int32_t read_attention_window(ConfigFields& fields, const ModelConfig& config) {
  const bool uses_window = fields.boolean("use_sliding_window", false);
  if (uses_window && config.type == ModelType::llama) {
    fields.fail(Code::unsupported, "use_sliding_window", "is true: llama has no layers that slide");
  }
  bool slides = false;
  if (fields.has("layer_types")) {
    slides = layer_types_slide(fields, config);
  } else if (uses_window) {
    slides = fields.integer("max_window_layers", 0, kMaxWidth) < config.layers;
  }
  if (slides && !uses_window) {
    fields.fail(Code::unsupported, "layer_types",
                "has \"sliding_attention\", but use_sliding_window is not true");
  }
  return slides ? fields.integer("sliding_window", 3, kMaxConfigPositions) : 0;
}

void refuse_unsupported(ConfigFields& fields, const ModelConfig& config) {
  check_architectures(fields, config.type);
  refuse_text(fields, "hidden_act", "silu");
  refuse_text(fields, "dtype", "bfloat16");        // transformers 5
  refuse_text(fields, "torch_dtype", "bfloat16");  // transformers 4
  fields.must_be("partial_rotary_factor", 1);
  fields.must_be("pretraining_tp", 1);
  fields.must_be("attention_dropout", 0);
  if (fields.has("quantization_config")) {
    fields.fail(Code::unsupported, "quantization_config",
                "is there: quantized weights are outside the contract, give the bf16 model");
  }
  if (config.type != ModelType::llama) {
    refuse_true(fields, "mlp_bias", "only llama's feed-forward layers can have biases");
  }
}

// ---- shapes

void read_heads(ConfigFields& fields, ModelConfig& config) {
  config.query_heads = fields.integer("num_attention_heads", 1, kMaxHeads);
  // Old llama configs have no num_key_value_heads: one for each query head.
  const bool is_optional = config.type == ModelType::llama;
  config.kv_heads = fields.integer("num_key_value_heads", 1, kMaxHeads,
                                   is_optional ? std::optional(config.query_heads) : std::nullopt);
  if (!fields.status().is_ok()) return;
  if (config.query_heads % config.kv_heads != 0) {
    fields.fail(Code::invalid, "num_key_value_heads", "must divide num_attention_heads");
  }
  // Qwen3's default is a constant of the library, not a quotient: it must be written down.
  if (config.type == ModelType::qwen3 || fields.has("head_dim")) {
    config.head_width = fields.integer("head_dim", 1, kMaxHeadWidth);
  } else if (config.width % config.query_heads == 0) {
    config.head_width = config.width / config.query_heads;
  } else {
    fields.fail(Code::invalid, "hidden_size", "must be a multiple of num_attention_heads");
  }
  if (config.head_width % 2 != 0) fields.fail(Code::invalid, "head_dim", "must be even");
}

void read_biases(ConfigFields& fields, ModelConfig& config) {
  const bool is_qwen2 = config.type == ModelType::qwen2;
  const bool attention_bias = fields.boolean("attention_bias", is_qwen2);
  config.qkv_bias = is_qwen2 || attention_bias;
  config.output_bias = !is_qwen2 && attention_bias;
  config.mlp_bias = config.type == ModelType::llama && fields.boolean("mlp_bias", false);
}

// An id or a list of ids, each once; none where the field is null or not there.
std::vector<int32_t> read_eos_ids(ConfigFields& fields, int32_t vocabulary) {
  constexpr const char* kName = "eos_token_id";
  std::vector<int32_t> ids;
  const Json* field = fields.find(kName);
  if (field == nullptr) return ids;
  const Json list = field->is_array() ? *field : Json::array({*field});
  for (const Json& id : list) {
    if (!id.is_number_integer()) {
      fields.fail(Code::invalid, kName, "must be an integer or a list of integers");
      return {};
    }
    // An unsigned value beyond int64 turns negative here.
    const auto value = id.get<int64_t>();
    if (value < 0 || value >= vocabulary) {
      fields.fail(Code::invalid, kName,
                  "has " + id.dump() + ", outside the vocabulary of " + std::to_string(vocabulary));
      return {};
    }
    const auto token = static_cast<int32_t>(value);
    if (std::find(ids.begin(), ids.end(), token) == ids.end()) ids.push_back(token);
  }
  return ids;
}

// The contract's domain (kernels/contract/shape.h), in the config's own words.
void check_shapes(ConfigFields& fields, const ModelConfig& config) {
  const auto check = [&](const char* name, const Status& status) {
    if (!status.is_ok()) fields.fail(status.code(), name, "is refused: " + status.message());
  };
  const int64_t query_width = int64_t{config.query_heads} * config.head_width;
  const int64_t kv_width = int64_t{config.kv_heads} * config.head_width;
  const int64_t inner = config.feed_forward_width;
  check("hidden_size", contract::check_norm_width(config.width));
  check("hidden_size", contract::check_linear_shape(config.width, config.width));
  check("head_dim", contract::check_head_width(config.head_width));
  check("num_attention_heads", contract::check_linear_shape(query_width, query_width));
  check("num_key_value_heads", contract::check_linear_shape(kv_width, config.width));
  check("intermediate_size", contract::check_linear_shape(inner, inner));
  check("vocab_size", contract::check_vocabulary(config.vocabulary));
}

Result<ModelConfig> read_config(const Json& object) {
  ConfigFields fields(object, "");
  ModelConfig config;
  config.type = read_type(fields);
  if (!fields.status().is_ok()) return fields.status();
  config.width = fields.integer("hidden_size", 1, kMaxWidth);
  config.layers = fields.integer("num_hidden_layers", 1, kMaxLayers);
  read_heads(fields, config);
  config.feed_forward_width = fields.integer("intermediate_size", 1, kMaxWidth);
  config.vocabulary = fields.integer("vocab_size", 1, kMaxVocabulary);
  config.max_positions = fields.integer("max_position_embeddings", 1, kMaxConfigPositions);
  config.norm_epsilon = static_cast<float>(fields.number("rms_norm_eps", 1e-12, 1));
  config.tied_embeddings = fields.boolean("tie_word_embeddings", false);
  config.attention_window = read_attention_window(fields, config);
  read_biases(fields, config);
  config.head_norm = config.type == ModelType::qwen3;
  config.rope.head_width = config.head_width;
  config.eos_ids = read_eos_ids(fields, config.vocabulary);
  const Status rope = read_rope(fields, config.max_positions, config.rope);
  refuse_unsupported(fields, config);
  if (fields.status().is_ok()) check_shapes(fields, config);
  if (!fields.status().is_ok()) return fields.status();
  if (!rope.is_ok()) return rope;
  return config;
}

Result<Json> parse_object(std::string_view text, const char* file) {
  if (text.size() > kMaxConfigBytes) {
    return Status(Code::invalid,
                  std::string("the config is larger than any ") + file + ": give the right file");
  }
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return Status(Code::invalid,
                  std::string("the config is not a JSON object: give a Hugging Face ") + file);
  }
  return object;
}

// A file that is not there, or says nothing of eos_token_id, changes nothing.
Status read_generation_config(const std::string& path, ModelConfig& config) {
  const auto text = read_file(path, kMaxConfigBytes);
  if (!text.is_ok() && text.status().code() == Code::not_found) return {};
  if (!text.is_ok()) return text.status();
  EXACT_ASSIGN(const Json object, parse_object(*text, "generation_config.json"));
  ConfigFields fields(object, "");
  if (fields.has("eos_token_id")) config.eos_ids = read_eos_ids(fields, config.vocabulary);
  return fields.status();
}

}  // namespace

std::string_view model_type_name(ModelType type) {
  switch (type) {
    case ModelType::llama:
      return "llama";
    case ModelType::qwen2:
      return "qwen2";
    case ModelType::qwen3:
      return "qwen3";
  }
  return "unknown";
}

int32_t longest_context(const ModelConfig& config) {
  if (config.attention_window == 0) return config.max_positions;
  return std::min(config.max_positions, config.attention_window - 1);
}

Result<ModelConfig> parse_config(std::string_view json_text) {
  EXACT_ASSIGN(const Json object, parse_object(json_text, "config.json"));
  try {
    return read_config(object);
  } catch (const Json::exception& error) {
    return Status(Code::invalid, std::string("the config can't be read: ") + error.what());
  }
}

Result<ModelConfig> load_config(const std::string& model_directory) {
  const std::string path = model_directory + "/config.json";
  EXACT_ASSIGN(const std::string text, read_file(path, kMaxConfigBytes));
  auto config = parse_config(text);
  if (!config.is_ok()) {
    return Status(config.status().code(), "'" + path + "': " + config.status().message());
  }
  const std::string beside = model_directory + "/generation_config.json";
  if (const Status status = read_generation_config(beside, *config); !status.is_ok()) {
    return Status(status.code(), "'" + beside + "': " + status.message());
  }
  return config;
}

}  // namespace exact
