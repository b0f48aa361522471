#include "worker/journal_tensors.h"

#include <span>

#include "engine/safetensors.h"

namespace exact::worker {
namespace {

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

template <class T>
SafetensorsOutput output(const char* name, const char* dtype, const std::vector<T>& values) {
  return {name, dtype, {static_cast<int64_t>(values.size())}, std::as_bytes(std::span(values))};
}

}  // namespace

void JournalTensors::add(uint64_t record_id, const journal::CompletionRecord& record) {
  const ipc::Completion& made = record.completion;
  append(prompt_, record.request.prompt);
  append(tokens_, made.tokens);
  append(logprobs_, made.logprobs);
  append(processed_logprobs_, made.processed_logprobs);
  size_t span = 0;
  for (size_t i = 0; i < made.tokens.size(); i++) {
    while (span + 1 < made.versions.size() &&
           static_cast<size_t>(made.versions[span + 1].begin) <= i) {
      span++;
    }
    const uint64_t version = made.versions.empty() ? 0 : made.versions[span].weight_version;
    weight_version_.push_back(static_cast<int64_t>(version));
  }
  record_id_.push_back(static_cast<int64_t>(record_id));
  sample_index_.push_back(made.sample_index);
  prompt_end_.push_back(static_cast<int64_t>(prompt_.size()));
  token_end_.push_back(static_cast<int64_t>(tokens_.size()));
}

Status JournalTensors::write(const std::string& path) const {
  const SafetensorsOutput outputs[] = {
      output("record_id", "I64", record_id_),
      output("sample_index", "I64", sample_index_),
      output("prompt_end", "I64", prompt_end_),
      output("token_end", "I64", token_end_),
      output("weight_version", "I64", weight_version_),
      output("prompt", "I32", prompt_),
      output("tokens", "I32", tokens_),
      output("logprobs", "F32", logprobs_),
      output("processed_logprobs", "F32", processed_logprobs_),
  };
  return write_safetensors(path, outputs);
}

}  // namespace exact::worker
