#include "journal/record_json.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <vector>

namespace exact::journal {
namespace {

using Json = nlohmann::ordered_json;

// Takes what serialize() of a record's struct hands out: pairs of a name and a value.
class JsonArchive {
 public:
  template <class... Fields>
  void operator()(Fields&&... fields) {
    (add(fields), ...);
  }
  Json take() { return std::move(object_); }

  template <class T>
  static Json value(T& value) {
    if constexpr (std::is_same_v<T, float>) {
      return std::isfinite(value) ? Json(value) : Json();
    } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
      return Json(value);
    } else {
      JsonArchive inner;
      value.serialize(inner);
      return inner.take();
    }
  }
  template <class T>
  static Json value(std::vector<T>& values) {
    Json list = Json::array();
    for (T& item : values) list.push_back(value(item));
    return list;
  }

 private:
  template <class Pair>
  void add(Pair& pair) {
    object_[pair.name] = value(pair.value);
  }

  Json object_ = Json::object();
};

}  // namespace

RecordKind kind_of(const Record& record) {
  return std::visit([](const auto& body) { return std::decay_t<decltype(body)>::kKind; },
                    record.body);
}

std::string record_json(const Record& record) {
  Json line = {{"record_id", record.id},
               {"time_us", record.time_us},
               {"kind", std::string(record_kind_name(kind_of(record)))}};
  auto body = record.body;  // serialize() is for reading and writing: it wants what it may change
  const Json fields = std::visit([](auto& one) { return JsonArchive::value(one); }, body);
  line.update(fields);
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace exact::journal
