// result.h owns Status and Result<T>: how every expected error travels. A status is a small code
// and one sentence that says what happened and what to do about it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "kernels/base/check.h"

namespace exact {

// Values travel on the wire (ipc/messages.h): append, never renumber.
enum class Code : uint8_t {
  ok = 0,
  invalid = 1,            // the caller's input is wrong: change it
  unsupported = 2,        // well formed, but the contract can't be kept for it
  not_found = 3,          // a file, tensor or request that is not there
  exhausted = 4,          // a limit is reached: try again later, or raise the limit
  timeout = 5,            // a peer or a deadline
  peer_lost = 6,          // the other side is gone
  corrupt = 7,            // a digest, checksum or format is wrong
  contract_mismatch = 8,  // the two sides run different numerics, configs or versions
  cancelled = 9,          // asked for by the client
  device = 10,            // the operating system, driver or hardware refused
};

// "ok", "invalid", ...; "unknown" for a value outside the enumeration.
std::string_view code_name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {
    EXACT_CHECK(code != Code::ok, "an error status needs an error code");
  }

  bool is_ok() const { return code_ == Code::ok; }
  explicit operator bool() const { return is_ok(); }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  std::string to_string() const;  // "corrupt: tensor 'lm_head.weight' ..."

 private:
  Code code_ = Code::ok;
  std::string message_;
};

// A value, or the status that says why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {
    EXACT_CHECK(!std::get<1>(state_).is_ok(), "a result without a value needs an error");
  }

  bool is_ok() const { return state_.index() == 0; }
  explicit operator bool() const { return is_ok(); }

  T& value() & {
    EXACT_CHECK(is_ok(), "value() of a failed result");
    return std::get<0>(state_);
  }
  const T& value() const& {
    EXACT_CHECK(is_ok(), "value() of a failed result");
    return std::get<0>(state_);
  }
  T&& value() && {
    EXACT_CHECK(is_ok(), "value() of a failed result");
    return std::get<0>(std::move(state_));
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

  // The error; ok when there is a value.
  Status status() const { return is_ok() ? Status() : std::get<1>(state_); }

 private:
  std::variant<T, Status> state_;
};

}  // namespace exact

// Returns the error of a Status expression from the enclosing function.
#define EXACT_RETURN_IF_ERROR(expression)                          \
  do {                                                             \
    if (auto exact_status_ = (expression); !exact_status_.is_ok()) \
      return ::exact::Status(exact_status_);                       \
  } while (false)

#define EXACT_CONCAT_INNER(a, b) a##b
#define EXACT_CONCAT(a, b) EXACT_CONCAT_INNER(a, b)

// EXACT_ASSIGN(auto x, make_x()): the value, or return the error.
#define EXACT_ASSIGN(declaration, expression) \
  EXACT_ASSIGN_INNER(EXACT_CONCAT(exact_result_, __LINE__), declaration, expression)
#define EXACT_ASSIGN_INNER(result, declaration, expression) \
  auto result = (expression);                               \
  if (!result.is_ok()) return result.status();              \
  declaration = std::move(result).value()
