// contract_id.h owns the names that a contract id digests (rule N11): the version of the rules and
// the forms in force. A change of any bit that a rule gives is a new version.
#pragma once

#include <string_view>

namespace exact::contract {

inline constexpr std::string_view kRulesVersion = "exact-rollout-rules-1";
inline constexpr std::string_view kDevice = "hopper-sm90";            // whose arithmetic it is
inline constexpr std::string_view kLinearForm = "bf16-k16-chain";     // N1
inline constexpr std::string_view kNormFormHf = "rms-norm-hf";        // N2, the modules' form
inline constexpr std::string_view kNormFormFused = "rms-norm-fused";  // N2, F.rms_norm
inline constexpr std::string_view kAttentionForm = "fa2-pytorch-no-split";  // N5
inline constexpr std::string_view kLogSoftmaxForm = "log-softmax-pytorch";  // N7
inline constexpr std::string_view kRandomForm = "philox4x32-10";            // N8
inline constexpr std::string_view kSamplingForm = "integer-weights-40";     // N9

}  // namespace exact::contract
