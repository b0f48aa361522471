// config_fields.h owns typed, checked access to the fields of one JSON object of a config.json.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/result.h"

namespace exact {

using Json = nlohmann::json;

constexpr int64_t kMaxConfigPositions = int64_t{1} << 24;  // beyond, one is not an exact fp32

// Typed access to one JSON object. The first field that is wrong is kept; later reads give zeros,
// so that a parser reads straight through and asks status() once. A null is a missing field.
class ConfigFields {
 public:
  ConfigFields(const Json& object, std::string prefix)
      : object_(object), prefix_(std::move(prefix)) {}

  const Json* find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const char* name) const { return find(name) != nullptr; }
  bool is_null(const char* name) const {
    const auto it = object_.find(name);
    return it != object_.end() && it->is_null();
  }

  int32_t integer(const char* name, int64_t least, int64_t most,
                  std::optional<int32_t> otherwise = {}) {
    const Json* value = find(name);
    if (value == nullptr && otherwise) return *otherwise;
    if (!expect(value, name, "an integer", value != nullptr && value->is_number_integer()))
      return 0;
    // An unsigned value beyond int64 turns negative here, and is out of range like any other.
    const auto number = value->get<int64_t>();
    if (number < least || number > most) {
      fail(Code::invalid, name,
           "is " + value->dump() + ", outside " + std::to_string(least) + " to " +
               std::to_string(most));
      return 0;
    }
    return static_cast<int32_t>(number);
  }
  double number(const char* name, double least, double most, std::optional<double> otherwise = {}) {
    const Json* value = find(name);
    if (value == nullptr && otherwise) return *otherwise;
    if (!expect(value, name, "a number", value != nullptr && value->is_number())) return 0;
    const auto number = value->get<double>();
    if (!(number >= least && number <= most)) {
      std::ostringstream range;
      range << "is " << value->dump() << ", outside " << least << " to " << most;
      fail(Code::invalid, name, range.str());
      return 0;
    }
    return number;
  }
  bool boolean(const char* name, bool otherwise) {
    const Json* value = find(name);
    if (value == nullptr) return otherwise;
    return expect(value, name, "true or false", value->is_boolean()) && value->get<bool>();
  }
  std::string text(const char* name, std::optional<std::string> otherwise = {}) {
    const Json* value = find(name);
    if (value == nullptr && otherwise) return *otherwise;
    if (!expect(value, name, "a string", value != nullptr && value->is_string())) return {};
    return value->get<std::string>();
  }

  // Refuses any other number.
  void must_be(const char* name, double only) {
    const double value = number(name, -1e30, 1e30, only);
    if (value == only) return;
    std::ostringstream what;
    what << "is " << value << ": it must be " << only;
    fail(Code::unsupported, name, what.str());
  }
  // Refuses a field whose name is not in the list.
  void must_be_among(std::span<const std::string_view> names, const std::string& what) {
    for (const auto& [name, value] : object_.items()) {
      if (value.is_null() || std::find(names.begin(), names.end(), name) != names.end()) continue;
      fail(Code::unsupported, name.substr(0, 40).c_str(), what);
    }
  }

  void fail(Code code, const char* name, const std::string& what) {
    if (status_.is_ok()) status_ = Status(code, "config field '" + prefix_ + name + "' " + what);
  }
  const Status& status() const { return status_; }

 private:
  bool expect(const Json* value, const char* name, const char* type, bool is_right) {
    if (is_right) return true;
    fail(Code::invalid, name,
         value == nullptr ? std::string("is missing: it must be ") + type
                          : "is " + value->dump().substr(0, 40) + ": it must be " + type);
    return false;
  }

  const Json& object_;
  std::string prefix_;
  Status status_;
};

}  // namespace exact
