// check.h owns EXACT_CHECK: a condition that only a bug can break. On in every build. Expected
// errors are Status (result.h), never a check.
#pragma once

namespace exact {

// Prints "file:line: check failed: expression: message" to standard error and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* expression,
                               const char* message);

}  // namespace exact

#define EXACT_CHECK(condition, message) \
  ((condition) ? (void)0 : ::exact::check_failed(__FILE__, __LINE__, #condition, (message)))
