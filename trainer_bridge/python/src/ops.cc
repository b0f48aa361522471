// Binds the forward operations of the contract, on arrays in the caller's memory.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "engine/config.h"
#include "kernels/contract/rope.h"
#include "trainer_bridge/contract_ops.h"
#include "trainer_bridge/python/src/arrays.h"
#include "trainer_bridge/python/src/errors.h"
#include "trainer_bridge/python/src/parts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace exact::python {
namespace {

using bridge::Bf16Out;
using bridge::Bf16Span;
using bridge::ContractOps;

// bf16 of any library, or its bits as uint16; what is passed is read or written where it lies.
using InArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using OutArray = nb::ndarray<nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Array>
void check_bf16(const char* name, const Array& array) {
  const nb::dlpack::dtype dtype = array.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (dtype.bits == 16 && dtype.lanes == 1 &&
      (code == nb::dlpack::dtype_code::Bfloat || code == nb::dlpack::dtype_code::UInt)) {
    return;
  }
  check(Status(Code::invalid, std::string(name) + " is not bfloat16: the contract's operations "
                                                  "are in it; cast the tensor"));
}
Bf16Span in(const char* name, const InArray& array) {
  check_bf16(name, array);
  return {static_cast<const uint16_t*>(array.data()), array.size()};
}
Bf16Out out_of(const OutArray& array) {
  check_bf16("out", array);
  return {static_cast<uint16_t*>(array.data()), array.size()};
}

// Operations that several threads may call: they take turns.
class SharedOps {
 public:
  explicit SharedOps(std::unique_ptr<ContractOps> ops) : ops_(std::move(ops)) {}
  template <class Call>
  void run(Call call) {
    check(without_gil([&] {
      const std::lock_guard lock(mutex_);
      return call(*ops_);
    }));
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<ContractOps> ops_;
};

void linear(SharedOps& self, const InArray& x, const InArray& weight,
            const std::optional<InArray>& bias, const OutArray& out) {
  if (weight.ndim() != 2) check(Status(Code::invalid, "weight must have two dimensions"));
  const auto in_features = static_cast<int64_t>(weight.shape(1));
  const Bf16Span x_span = in("x", x), weight_span = in("weight", weight);
  const Bf16Out out_span = out_of(out);
  Bf16Span bias_span;
  if (bias) bias_span = in("bias", *bias);
  self.run([&](ContractOps& ops) {
    return ops.linear(in_features, x_span, weight_span, bias_span, out_span);
  });
}

void rms_norm(SharedOps& self, const InArray& x, const InArray& weight, float epsilon,
              const OutArray& out) {
  const Bf16Span x_span = in("x", x), weight_span = in("weight", weight);
  const Bf16Out out_span = out_of(out);
  self.run([&](ContractOps& ops) { return ops.rms_norm(x_span, weight_span, epsilon, out_span); });
}

void rope(SharedOps& self, const OutArray& x, const IdArray& positions, int64_t head_width,
          const InArray& cos_sin) {
  const Bf16Out x_span = out_of(x);
  const Bf16Span table = in("cos_sin", cos_sin);
  self.run(
      [&](ContractOps& ops) { return ops.rope(x_span, ids_of(positions), head_width, table); });
}

void attention(SharedOps& self, const InArray& query, const InArray& keys, const InArray& values,
               int32_t head_width, const IdArray& lengths, const OutArray& out) {
  if (query.ndim() != 2 || keys.ndim() != 2 || head_width <= 0) {
    check(Status(Code::invalid,
                 "query and keys must have two dimensions: rows, and heads times "
                 "head_width"));
  }
  const bridge::AttentionSizes sizes{static_cast<int32_t>(query.shape(1)) / head_width,
                                     static_cast<int32_t>(keys.shape(1)) / head_width, head_width};
  const Bf16Span q = in("query", query), k = in("keys", keys), v = in("values", values);
  const Bf16Out out_span = out_of(out);
  self.run(
      [&](ContractOps& ops) { return ops.attention(sizes, ids_of(lengths), q, k, v, out_span); });
}

void silu_mul(SharedOps& self, const InArray& gate, const InArray& up, const OutArray& out) {
  const Bf16Span gate_span = in("gate", gate), up_span = in("up", up);
  const Bf16Out out_span = out_of(out);
  self.run([&](ContractOps& ops) { return ops.silu_mul(gate_span, up_span, out_span); });
}

void target_logprobs(SharedOps& self, const InArray& logits, const IdArray& targets,
                     const FloatArray& out) {
  if (logits.ndim() != 2) check(Status(Code::invalid, "logits must have two dimensions"));
  const auto vocabulary = static_cast<int64_t>(logits.shape(1));
  const Bf16Span logits_span = in("logits", logits);
  self.run([&](ContractOps& ops) {
    return ops.target_logprobs(vocabulary, logits_span, ids_of(targets), {out.data(), out.size()});
  });
}

}  // namespace

void bind_ops(nb::module_& module) {
  nb::class_<SharedOps>(module, "ContractOps", "The contract's forward operations on a CPU.")
      .def_static(
          "create",
          [](int threads) {
            return std::make_unique<SharedOps>(unwrap(ContractOps::create(threads)));
          },
          "threads"_a)
      .def("linear", &linear, "x"_a, "weight"_a, "bias"_a.none(), "out"_a)
      .def("rms_norm", &rms_norm, "x"_a, "weight"_a, "epsilon"_a, "out"_a)
      .def("rope", &rope, "x"_a, "positions"_a, "head_width"_a, "cos_sin"_a)
      .def("attention", &attention, "query"_a, "keys"_a, "values"_a, "head_width"_a, "lengths"_a,
           "out"_a)
      .def("silu_mul", &silu_mul, "gate"_a, "up"_a, "out"_a)
      .def("target_logprobs", &target_logprobs, "logits"_a, "targets"_a, "out"_a);
  module.def(
      "rope_table",
      [](const std::string& config_json, int32_t count) {
        return array_of(bridge::rope_table(unwrap(parse_config(config_json)), count));
      },
      "config_json"_a, "count"_a,
      "Cosines and sines of positions 0 to count - 1: (count * 2 * head width) bf16 bits.");
  module.def(
      "rope_frequencies",
      [](const std::string& config_json) {
        return array_of(inverse_frequencies(unwrap(parse_config(config_json)).rope));
      },
      "config_json"_a, "The E / 2 inverse frequencies, fp32, as a GPU computes them.");
}

}  // namespace exact::python
