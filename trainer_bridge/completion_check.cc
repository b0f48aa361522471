#include "trainer_bridge/completion_check.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "engine/engine.h"
#include "kernels/base/bf16.h"

namespace exact::bridge {
namespace {

// Tokens [begin, end) of one completion, made by one version.
struct VersionPiece {
  const ipc::Completion* completion;
  size_t begin, end;
};

Status broken(const ipc::Completion& completion, const std::string& what) {
  return Status(Code::corrupt, "sample " + std::to_string(completion.sample_index) + " " + what);
}

const ScoredVersion* find_version(std::span<const ScoredVersion> versions, uint64_t version) {
  const auto found = std::find_if(versions.begin(), versions.end(), [&](const auto& known) {
    return known.weight_version == version;
  });
  return found == versions.end() ? nullptr : &*found;
}

Status check_shape(const ipc::Completion& completion) {
  const auto reason = static_cast<FinishReason>(completion.finish_reason);
  if (reason == FinishReason::error || reason > FinishReason::deadline) {
    return broken(completion, "ended with an error: " + completion.error);
  }
  const size_t tokens = completion.tokens.size();
  if (completion.logprobs.size() != tokens || completion.processed_logprobs.size() != tokens) {
    return broken(completion, "has another number of log-probabilities than of tokens");
  }
  // A sample that was cancelled or aborted before its first token has no span.
  if (completion.versions.empty() != (tokens == 0)) {
    return broken(completion, "has tokens and no version, or a version and no tokens");
  }
  int64_t previous = -1;
  for (const ipc::VersionSpan& span : completion.versions) {
    if (span.begin <= previous || span.begin >= static_cast<int64_t>(tokens) ||
        (previous < 0 && span.begin != 0)) {
      return broken(completion, "has version spans that do not ascend through its tokens");
    }
    previous = span.begin;
  }
  return {};
}

// The pieces that `version` made; every span is checked against what was published.
Result<std::vector<VersionPiece>> pieces_of(const ipc::GenerateReply& reply,
                                            const ScoredVersion& version) {
  std::vector<VersionPiece> pieces;
  const std::string digest = version.scorer->weights_digest();
  for (const ipc::Completion& completion : reply.completions) {
    for (size_t i = 0; i < completion.versions.size(); i++) {
      const ipc::VersionSpan& span = completion.versions[i];
      if (span.weight_version != version.weight_version) continue;
      if (span.weights_digest != digest) {
        return broken(completion, "names weights " + span.weights_digest + " for version " +
                                      std::to_string(span.weight_version) +
                                      ", which was published as " + digest);
      }
      const bool is_last = i + 1 == completion.versions.size();
      const size_t end = is_last ? completion.tokens.size()
                                 : static_cast<size_t>(completion.versions[i + 1].begin);
      pieces.push_back({&completion, static_cast<size_t>(span.begin), end});
    }
  }
  return pieces;
}

void compare(const VersionPiece& piece, std::span<const float> scores, uint64_t version,
             CompletionCheck& check) {
  for (size_t t = piece.begin; t < piece.end; t++) {
    const uint32_t worker = float_bits(piece.completion->logprobs[t]);
    const uint32_t trainer = float_bits(scores[t]);
    check.logprobs_checked++;
    if (worker == trainer) continue;
    check.mismatches++;
    if (check.first_difference) continue;
    check.first_difference = BitDifference{piece.completion->sample_index, static_cast<int32_t>(t),
                                           version, worker, trainer};
  }
}

}  // namespace

std::string BitDifference::to_string() const {
  char text[192];
  std::snprintf(text, sizeof text,
                "sample %d, token %d, version %llu: worker 0x%08x (%.9g), trainer 0x%08x (%.9g)",
                sample_index, token_index, static_cast<unsigned long long>(weight_version),
                worker_bits, static_cast<double>(float_from_bits(worker_bits)), trainer_bits,
                static_cast<double>(float_from_bits(trainer_bits)));
  return text;
}

Result<CompletionCheck> check_completions(std::span<const int32_t> prompt,
                                          const ipc::GenerateReply& reply,
                                          std::span<const ScoredVersion> versions) {
  if (prompt.empty()) return Status(Code::invalid, "prompt is empty; give at least one id");
  for (const ipc::Completion& completion : reply.completions) {
    EXACT_RETURN_IF_ERROR(check_shape(completion));
    for (const ipc::VersionSpan& span : completion.versions) {
      if (find_version(versions, span.weight_version) != nullptr) continue;
      return broken(completion, "was made by version " + std::to_string(span.weight_version) +
                                    ", which is none of those in force");
    }
  }
  CompletionCheck check;
  for (const ScoredVersion& version : versions) {
    if (version.scorer->contract_id() != reply.contract_id) {
      return Status(Code::contract_mismatch, "the completion's contract id is " +
                                                 reply.contract_id + ", the trainer's is " +
                                                 version.scorer->contract_id());
    }
    EXACT_ASSIGN(const auto pieces, pieces_of(reply, version));
    std::vector<std::vector<int32_t>> texts;
    for (const VersionPiece& piece : pieces) {
      // Later tokens can't matter: a token's log-probability depends on its own prefix.
      std::vector<int32_t>& text = texts.emplace_back(prompt.begin(), prompt.end());
      const auto& tokens = piece.completion->tokens;
      text.insert(text.end(), tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(piece.end));
    }
    if (texts.empty()) continue;
    EXACT_ASSIGN(const auto scores, version.scorer->score(texts));
    for (size_t i = 0; i < pieces.size(); i++) {
      const std::span<const float> of_text(scores[i]);
      compare(pieces[i], of_text.subspan(prompt.size() - 1), version.weight_version, check);
    }
  }
  return check;
}

}  // namespace exact::bridge
