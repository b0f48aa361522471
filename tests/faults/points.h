// points.h owns where in a weight update a fault may strike: once it has begun, with each bucket
// written but not announced, with each bucket taken, and with the commit posted but not answered.
#pragma once

#include <cstdint>
#include <string>

#include "tests/worker/update_steps.h"

namespace exact::fault_tests {

inline constexpr uint64_t kBucketBytes = 60'000;  // a few buckets for the tiny model

// Points 0 .. point_count(buckets) - 1, in the order in which an update passes them.
inline uint64_t point_count(uint64_t buckets) {
  return 2 * buckets + 2;
}
inline bool is_commit(uint64_t point, uint64_t buckets) {
  return point == 2 * buckets + 1;
}
inline std::string point_name(uint64_t point, uint64_t buckets) {
  if (point == 0) return "begun";
  if (is_commit(point, buckets)) return "commit posted";
  return "bucket " + std::to_string((point - 1) / 2) + (point % 2 == 1 ? " written" : " taken");
}

// Takes an update that has not begun to the point; the id of the commit if it was posted, else 0.
inline Result<uint64_t> drive_to(worker_tests::UpdateSteps& steps, uint64_t point) {
  EXACT_RETURN_IF_ERROR(steps.begin().status());
  for (uint64_t i = 0; i < steps.bucket_count(); i++) {
    if (point >= 2 * i + 1) steps.write(i);
    if (point >= 2 * i + 2) EXACT_RETURN_IF_ERROR(steps.announce(i).status());
  }
  return is_commit(point, steps.bucket_count()) ? steps.post_commit() : 0;
}

}  // namespace exact::fault_tests
