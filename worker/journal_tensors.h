// journal_tensors.h owns a journal's completions as a few flat tensors, exact to the bit: for who
// computes with them. Completion i has tokens [token_end[i - 1], token_end[i]), likewise its
// prompt.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "journal/record.h"
#include "kernels/base/result.h"

namespace exact::worker {

class JournalTensors {
 public:
  void add(uint64_t record_id, const journal::CompletionRecord& record);
  // A safetensors file: record_id, sample_index, prompt_end, token_end (completions) I64; prompt,
  // tokens I32; weight_version I64, logprobs and processed_logprobs F32 (tokens).
  Status write(const std::string& path) const;

 private:
  std::vector<int64_t> record_id_, sample_index_, prompt_end_, token_end_, weight_version_;
  std::vector<int32_t> prompt_, tokens_;
  std::vector<float> logprobs_, processed_logprobs_;
};

}  // namespace exact::worker
