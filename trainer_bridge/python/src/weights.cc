// Binds what takes a trainer's weights: the publisher and the scorer. Tensors come through DLPack,
// without a copy.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/config.h"
#include "trainer_bridge/python/src/arrays.h"
#include "trainer_bridge/python/src/errors.h"
#include "trainer_bridge/python/src/parts.h"
#include "trainer_bridge/scorer.h"
#include "trainer_bridge/shared_client.h"
#include "trainer_bridge/weight_publisher.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace exact::python {
namespace {

using bridge::NamedTensor;

using TensorArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using NamedArrays = std::vector<std::tuple<std::string, TensorArray>>;

bool holds_bf16(const TensorArray& array) {
  const nb::dlpack::dtype dtype = array.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  return dtype.bits == 16 && dtype.lanes == 1 &&
         (code == nb::dlpack::dtype_code::Bfloat || code == nb::dlpack::dtype_code::UInt);
}

// Views of the arrays' memory.
std::vector<NamedTensor> tensors_of(const NamedArrays& arrays) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, array] : arrays) {
    if (!holds_bf16(array)) {
      check(Status(Code::invalid, "tensor '" + name +
                                      "' is not bfloat16: cast the parameters to it (or view bf16 "
                                      "bits as uint16)"));
    }
    NamedTensor tensor;
    tensor.name = name;
    for (size_t i = 0; i < array.ndim(); i++) {
      tensor.shape.push_back(static_cast<int64_t>(array.shape(i)));
    }
    tensor.bytes = {static_cast<const std::byte*>(array.data()), array.nbytes()};
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

bridge::PublishReport publish(bridge::SharedClient& client, const NamedArrays& arrays,
                              uint64_t version, uint8_t policy, uint64_t bucket_bytes) {
  const std::vector<NamedTensor> tensors = tensors_of(arrays);
  bridge::PublishOptions options;
  options.version = version;
  options.policy = policy;
  options.bucket_bytes = bucket_bytes;
  return unwrap(without_gil([&] {
    return client.with([&](bridge::Client& c) { return bridge::publish(c, tensors, options); });
  }));
}

// A scorer that several threads may call: they take turns.
class SharedScorer {
 public:
  explicit SharedScorer(std::unique_ptr<bridge::Scorer> scorer) : scorer_(std::move(scorer)) {}

  static std::unique_ptr<SharedScorer> from_directory(const std::string& directory, int threads,
                                                      int32_t max_context) {
    return std::make_unique<SharedScorer>(unwrap(without_gil([&] {
      return bridge::Scorer::from_directory(directory, {threads, max_context});
    })));
  }
  static std::unique_ptr<SharedScorer> from_tensors(const std::string& config_json,
                                                    const NamedArrays& arrays, int threads,
                                                    int32_t max_context) {
    const ModelConfig config = unwrap(parse_config(config_json));
    const std::vector<NamedTensor> tensors = tensors_of(arrays);
    return std::make_unique<SharedScorer>(unwrap(without_gil([&] {
      return bridge::Scorer::from_tensors(config, tensors, {threads, max_context});
    })));
  }

  void set_weights(const NamedArrays& arrays) {
    const std::vector<NamedTensor> tensors = tensors_of(arrays);
    check(without_gil([&] {
      const std::lock_guard lock(mutex_);
      return scorer_->set_weights(tensors);
    }));
  }
  nb::list score(const std::vector<IdArray>& texts) {
    std::vector<std::vector<int32_t>> ids;
    for (const IdArray& text : texts) ids.push_back(copy_of(text));
    auto logprobs = unwrap(without_gil([&] {
      const std::lock_guard lock(mutex_);
      return scorer_->score(ids);
    }));
    nb::list arrays;
    for (auto& values : logprobs) arrays.append(array_of(std::move(values)));
    return arrays;
  }
  std::string contract_id() const { return scorer_->contract_id(); }
  std::string weights_digest() {
    return without_gil([&] {
      const std::lock_guard lock(mutex_);
      return scorer_->weights_digest();
    });
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<bridge::Scorer> scorer_;
};

double seconds(std::chrono::microseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

void bind_weights(nb::module_& module) {
  using bridge::PublishReport;
  nb::class_<PublishReport>(module, "PublishReport", "What an update took; times are in seconds.")
      .def_ro("version", &PublishReport::version)
      .def_ro("weights_digest", &PublishReport::weights_digest)
      .def_ro("bytes", &PublishReport::bytes)
      .def_prop_ro("digest_s", [](const PublishReport& r) { return seconds(r.digest_time); })
      .def_prop_ro("transfer_s", [](const PublishReport& r) { return seconds(r.transfer_time); })
      .def_prop_ro("commit_s", [](const PublishReport& r) { return seconds(r.commit_time); })
      .def("__repr__", [](const PublishReport& r) {
        return "PublishReport(version=" + std::to_string(r.version) +
               ", bytes=" + std::to_string(r.bytes) + ", weights_digest='" + r.weights_digest +
               "')";
      });
  module.def("publish", &publish, "client"_a, "tensors"_a, "version"_a, "policy"_a,
             "bucket_bytes"_a);
  nb::class_<SharedScorer>(module, "Scorer")
      .def_static("from_directory", &SharedScorer::from_directory, "directory"_a, "threads"_a,
                  "max_context"_a)
      .def_static("from_tensors", &SharedScorer::from_tensors, "config_json"_a, "tensors"_a,
                  "threads"_a, "max_context"_a)
      .def("set_weights", &SharedScorer::set_weights)
      .def("score", &SharedScorer::score)
      .def("contract_id", &SharedScorer::contract_id)
      .def("weights_digest", &SharedScorer::weights_digest);
}

}  // namespace exact::python
