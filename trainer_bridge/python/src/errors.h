// errors.h owns how a Status becomes a Python exception: exact_rollout.errors has a class a code.
// Here alone is an error thrown, because that is how nanobind takes it.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <utility>

#include "kernels/base/result.h"

namespace exact::python {

class StatusError : public std::exception {
 public:
  explicit StatusError(Status status) : status_(std::move(status)) {}
  const Status& status() const { return status_; }
  const char* what() const noexcept override { return status_.message().c_str(); }

 private:
  Status status_;
};

// Makes StatusError a Python exception of its code's class.
void register_errors();
// The exception that would be raised, as an object.
nanobind::object exception_of(const Status& status);

inline void check(const Status& status) {
  if (!status) throw StatusError(status);
}
template <class T>
T unwrap(Result<T> result) {
  if (!result) throw StatusError(result.status());
  return std::move(result).value();
}

// Calls `call` while other Python threads run: for everything that waits or computes.
template <class Call>
auto without_gil(Call call) {
  const nanobind::gil_scoped_release released;
  return call();
}

}  // namespace exact::python
