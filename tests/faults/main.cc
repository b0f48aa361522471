// The test program, and the trainers that its tests start.
#include <gtest/gtest.h>

#include <csignal>
#include <string>

#include "tests/faults/trainer_process.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc == 5 && std::string(argv[1]) == "--trainer") {
    return exact::fault_tests::trainer_main(argv[2], std::stoull(argv[3]), std::stoull(argv[4]));
  }
  std::signal(SIGPIPE, SIG_IGN);  // of a trainer that is gone
  std::signal(SIGXFSZ, SIG_IGN);  // a worker that may write no more gets an error, as with ENOSPC
  return RUN_ALL_TESTS();
}
