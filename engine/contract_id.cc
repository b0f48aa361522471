// contract_id.cc owns the text that a contract id digests: every form and number that a bit of the
// model's output can depend on, floats by their bits.
#include "kernels/contract/contract_id.h"

#include <locale>
#include <sstream>

#include "engine/config.h"
#include "kernels/base/bf16.h"

namespace exact {
namespace {

const char* rope_name(RopeKind kind) {
  switch (kind) {
    case RopeKind::standard:
      return "default";
    case RopeKind::llama3:
      return "llama3";
    case RopeKind::yarn:
      return "yarn";
    case RopeKind::linear:
      return "linear";
  }
  return "unknown";
}

}  // namespace

Digest128 contract_id(const ModelConfig& config) {
  const auto bits32 = [](float value) { return float_bits(value); };
  const auto bits64 = [](double value) {
    uint64_t bits;
    __builtin_memcpy(&bits, &value, 8);
    return bits;
  };
  const RopeConfig& rope = config.rope;
  std::ostringstream text;
  text.imbue(std::locale::classic());  // a locale could group the digits
  text << "rules=" << contract::kRulesVersion << "\ndevice=" << contract::kDevice
       << "\nlinear=" << contract::kLinearForm << "\nnorm="
       << (config.norm_form == NormForm::hf ? contract::kNormFormHf : contract::kNormFormFused)
       << "\nattention=" << contract::kAttentionForm
       << "\nlog_softmax=" << contract::kLogSoftmaxForm << "\nrandom=" << contract::kRandomForm
       << "\nsampling=" << contract::kSamplingForm << "\ntype=" << model_type_name(config.type)
       << "\nwidth=" << config.width << "\nlayers=" << config.layers
       << "\nquery_heads=" << config.query_heads << "\nkv_heads=" << config.kv_heads
       << "\nhead_width=" << config.head_width
       << "\nfeed_forward_width=" << config.feed_forward_width
       << "\nvocabulary=" << config.vocabulary << "\nmax_positions=" << config.max_positions
       << "\ntied_embeddings=" << config.tied_embeddings << "\nqkv_bias=" << config.qkv_bias
       << "\noutput_bias=" << config.output_bias << "\nmlp_bias=" << config.mlp_bias
       << "\nhead_norm=" << config.head_norm << std::hex
       << "\nnorm_epsilon=" << bits32(config.norm_epsilon) << "\nrope_theta=" << bits64(rope.theta)
       << "\nrope=" << rope_name(rope.kind);
  if (rope.kind != RopeKind::standard) text << "\nrope_factor=" << bits64(rope.factor);
  if (rope.kind == RopeKind::llama3 || rope.kind == RopeKind::yarn) {
    text << "\nrope_original=" << rope.original_max_positions;
  }
  if (rope.kind == RopeKind::llama3) {
    text << "\nrope_low=" << bits64(rope.low_frequency_factor)
         << "\nrope_high=" << bits64(rope.high_frequency_factor);
  }
  if (rope.kind == RopeKind::yarn) {
    text << "\nrope_fast=" << bits64(rope.beta_fast) << "\nrope_slow=" << bits64(rope.beta_slow)
         << "\nrope_truncate=" << rope.truncate
         << "\nrope_attention=" << bits32(rope_attention_scale(rope));
    if (rope.ramp_on_host) text << "\nrope_ramp=host";
  }
  if (config.attention_window != 0) text << "\nwindow=" << config.attention_window;
  text << '\n';
  return digest128(text.str());
}

}  // namespace exact
