// Binds the client. Every call that may wait does so without the interpreter's lock.
#include "trainer_bridge/client.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "trainer_bridge/python/src/arrays.h"
#include "trainer_bridge/python/src/errors.h"
#include "trainer_bridge/python/src/parts.h"
#include "trainer_bridge/shared_client.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace exact::python {
namespace {

using bridge::Client;
using bridge::SharedClient;
using std::chrono::milliseconds;

std::unique_ptr<SharedClient> connect(const std::string& endpoint, const std::string& name,
                                      const std::string& contract_id, int64_t timeout_ms,
                                      int64_t connect_timeout_ms, uint64_t max_message_bytes) {
  bridge::ClientOptions options;
  options.endpoint = endpoint;
  options.name = name;
  options.contract_id = contract_id;
  options.timeout = milliseconds(timeout_ms);
  options.connect_timeout = milliseconds(connect_timeout_ms);
  options.max_message_bytes = max_message_bytes;
  return unwrap(without_gil([&] { return SharedClient::connect(options); }));
}

// Alone with the client, and without the interpreter's lock.
template <class Call>
auto alone(SharedClient& client, Call call) {
  return without_gil([&] { return client.with(call); });
}

nb::object next_event(SharedClient& client, int64_t timeout_ms) {
  auto event = unwrap(without_gil([&] { return client.next_event(milliseconds(timeout_ms)); }));
  if (!event) return nb::none();
  return to_python(std::move(*event));
}

nb::object score(SharedClient& client, const IdArray& ids) {
  const std::vector<int32_t> tokens = copy_of(ids);
  auto reply = unwrap(alone(client, [&](Client& c) { return c.score(tokens); }));
  return nb::make_tuple(array_of(std::move(reply.logprobs)), reply.contract_id,
                        reply.weight_version, reply.weights_digest);
}

void allow(SharedClient& client, uint64_t request_id, int32_t sample_index, int32_t index,
           const IdArray& ids) {
  const auto span = ids_of(ids);
  check(alone(client, [&](Client& c) { return c.allow(request_id, sample_index, index, span); }));
}

}  // namespace

void bind_client(nb::module_& module) {
  nb::class_<SharedClient>(module, "Client")
      .def_static("connect", &connect, "endpoint"_a, "name"_a, "contract_id"_a, "timeout_ms"_a,
                  "connect_timeout_ms"_a, "max_message_bytes"_a)
      .def("worker",
           [](SharedClient& self) {
             return unwrap(
                 alone(self, [](Client& c) { return Result<ipc::HelloReply>(c.worker()); }));
           })
      .def("submit",
           [](SharedClient& self, const ipc::Generate& request) {
             return unwrap(alone(self, [&](Client& c) { return c.submit(request); }));
           })
      .def("cancel",
           [](SharedClient& self, uint64_t request_id) {
             return unwrap(alone(self, [&](Client& c) { return c.cancel(request_id); }));
           })
      .def("allow", &allow)
      .def("next_event", &next_event, "timeout_ms"_a,
           nb::sig("def next_event(self, timeout_ms: int) -> tuple[int, bool, object] | None"))
      .def("score", &score, "tokens"_a,
           nb::sig("def score(self, tokens: numpy.typing.NDArray[numpy.int32]) -> "
                   "tuple[numpy.typing.NDArray[numpy.float32], str, int, str]"))
      .def("status",
           [](SharedClient& self) {
             return unwrap(alone(self, [](Client& c) { return c.status(); }));
           })
      .def("ping",
           [](SharedClient& self) {
             return unwrap(alone(self, [](Client& c) { return c.ping(); })).steps;
           })
      .def("close", [](SharedClient& self) { without_gil([&] { self.close(); }); });
}

}  // namespace exact::python
