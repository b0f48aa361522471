// fault.h owns the faults: each a name and what is done to a worker, a trainer or the bytes between
// them at a point of an update (points.h). Doing one leaves the worker's process running.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/faults/faulty_worker.h"

namespace exact::fault_tests {

struct Fault {
  std::string name;
  int weight = 1;              // how often among random ones
  bool at_points = false;      // false: `point` does not matter
  bool waits_timeout = false;  // lasts as long as the worker waits for a silent trainer
  // Expects all that the fault itself must be answered with, and that expect_whole() holds.
  std::function<void(FaultyWorker&, uint64_t point, std::mt19937_64&)> strike;
};

const std::vector<Fault>& all_faults();

}  // namespace exact::fault_tests
