#include "worker/command.h"

#include <fmt/format.h>

namespace exact::worker {

int report(const Status& status) {
  if (status.is_ok()) return kExitGood;
  fmt::print(stderr, "rollout: {}: {}\n", code_name(status.code()), status.message());
  return status.code() == Code::invalid ? kExitUsage : kExitEnvironment;
}

}  // namespace exact::worker
