// What a weight update must survive, done to the program itself: afterwards the worker serves
// exactly the old or exactly the new version, holds no shared memory, and takes the next update.
#include <gtest/gtest.h>

#include <cctype>
#include <iostream>

#include "tests/faults/fault.h"

namespace exact::fault_tests {
namespace {

// How long a worker waits for a silent trainer: each that dies or stops costs as much; the others
// are never too slow, however busy the machine.
constexpr int kHastyMs = 250;
constexpr int kPatientMs = 60'000;
constexpr size_t kRequests = 3;  // in flight when a fault strikes
constexpr int32_t kNewTokens = 24;

constexpr UpdatePolicy kPolicies[] = {UpdatePolicy::recompute, UpdatePolicy::wait,
                                      UpdatePolicy::abort};

// One fault under rollouts, the next update, and every completion checked.
void strike(FaultyWorker& worker, const Fault& fault, uint64_t point, std::mt19937_64& random) {
  ASSERT_NO_FATAL_FAILURE(worker.keep_busy(kRequests, kNewTokens));
  ASSERT_NO_FATAL_FAILURE(fault.strike(worker, point, random));
  ASSERT_NO_FATAL_FAILURE(worker.keep_busy(kRequests, kNewTokens));  // a killed worker's are gone
  ASSERT_NO_FATAL_FAILURE(worker.expect_next_update_works(kPolicies[random() % 3]));
  ASSERT_NO_FATAL_FAILURE(worker.collect(true));
}

class FaultMatrix : public testing::TestWithParam<size_t> {};

TEST_P(FaultMatrix, LeavesOneWholeVersionAtEveryPoint) {
  const Fault& fault = all_faults()[GetParam()];
  FaultyWorker worker(fault.waits_timeout ? kHastyMs : kPatientMs);
  if (HasFailure()) return;
  std::mt19937_64 random(GetParam());
  const uint64_t buckets = worker.bucket_count();
  ASSERT_GE(buckets, 3u);
  const uint64_t points = fault.at_points ? point_count(buckets) : 1;
  for (uint64_t point = 0; point < points && !HasFailure(); point++) {
    SCOPED_TRACE(fault.name + " at point '" + point_name(point, buckets) + "'");
    strike(worker, fault, point, random);
  }
  EXPECT_GT(worker.logprobs_checked(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Each, FaultMatrix, testing::Range(size_t{0}, all_faults().size()),
                         [](const auto& info) {
                           std::string name;
                           bool upper = true;
                           for (const char c : all_faults()[info.param].name) {
                             if (c == ' ') {
                               upper = true;
                               continue;
                             }
                             name += upper ? static_cast<char>(std::toupper(c)) : c;
                             upper = false;
                           }
                           return name;
                         });

TEST(RandomFaults, ThousandOfThemMixNoCompletion) {
  constexpr int kFaults = 1000;
  const uint64_t seed = std::random_device{}();
  std::cout << "seed " << seed << "\n";
  std::mt19937_64 random(seed);
  std::vector<size_t> drawn;  // each fault as often as its weight says
  for (size_t i = 0; i < all_faults().size(); i++) {
    drawn.insert(drawn.end(), static_cast<size_t>(all_faults()[i].weight), i);
  }
  FaultyWorker hasty(kHastyMs), patient(kPatientMs);
  if (testing::Test::HasFailure()) return;
  const uint64_t buckets = patient.bucket_count();
  for (int i = 0; i < kFaults && !testing::Test::HasFailure(); i++) {
    const Fault& fault = all_faults()[drawn[random() % drawn.size()]];
    const uint64_t point = random() % point_count(buckets);
    SCOPED_TRACE("seed " + std::to_string(seed) + ", fault " + std::to_string(i) + ": " +
                 fault.name + " at point '" + point_name(point, buckets) + "'");
    strike(fault.waits_timeout ? hasty : patient, fault, point, random);
  }
  std::cout << hasty.completions_checked() + patient.completions_checked() << " completions, "
            << hasty.logprobs_checked() + patient.logprobs_checked()
            << " log-probabilities checked\n";
}

TEST(UpdatesUnderLoad, TwoHundredOfThemUnderSixtyFourRequestsMixNoCompletion) {
  constexpr int kUpdates = 200;
  constexpr size_t kLoad = 64;
  FaultyWorker worker(kPatientMs);
  if (testing::Test::HasFailure()) return;
  for (int i = 0; i < kUpdates && !testing::Test::HasFailure(); i++) {
    ASSERT_NO_FATAL_FAILURE(worker.keep_busy(kLoad, 40));
    // Of the policies `wait` lets all 64 end first: less often, so that some are always running.
    const UpdatePolicy policy = i % 8 == 7   ? UpdatePolicy::wait
                                : i % 8 == 3 ? UpdatePolicy::abort
                                             : UpdatePolicy::recompute;
    ASSERT_NO_FATAL_FAILURE(worker.expect_next_update_works(policy));
    ASSERT_NO_FATAL_FAILURE(worker.collect(false));
  }
  ASSERT_NO_FATAL_FAILURE(worker.collect(true));
  std::cout << worker.completions_checked() << " completions, " << worker.logprobs_checked()
            << " log-probabilities checked\n";
}

}  // namespace
}  // namespace exact::fault_tests
