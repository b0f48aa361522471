// random_samples.h owns rows of logits and what is asked of them at random, for the tests that hold
// a backend's draws to the reference: every field of SampleRow and SampleDetail, and its edges.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/random_data.h"

namespace exact {

// What rows of a model's head look like, and what they never do; finite.
std::vector<uint16_t> random_logit_row(RandomData& data, int64_t vocabulary);

SampleRow random_sample_row(RandomData& data, int64_t vocabulary);

// A SampleDetail with the memory that it points to.
class DetailCase {
 public:
  // Fields at random; edges often: no token allowed but one, ties, biases that overflow.
  DetailCase(RandomData& data, int64_t vocabulary);
  // The same input with outputs of its own.
  DetailCase(const DetailCase& other);
  DetailCase& operator=(const DetailCase&) = delete;

  SampleDetail& detail() { return detail_; }
  std::string describe() const;
  // Empty where the reports have equal bits; else what differs, and where.
  std::string difference(const DetailCase& want) const;

 private:
  void point();

  std::vector<LogitEdit> edits_;
  std::vector<uint32_t> allowed_;
  std::vector<int32_t> top_ids_;
  std::vector<float> top_logprobs_;
  std::vector<int32_t> kept_ids_;
  float entropy_ = -1.0f;
  bool wants_kept_ids_ = false, wants_entropy_ = false;
  SampleDetail detail_;
};

}  // namespace exact
