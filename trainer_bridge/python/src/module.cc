// The module exact_rollout._core: the C++ bridge as Python sees it. What a user sees is the package
// around it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "ipc/endpoint.h"
#include "trainer_bridge/python/src/errors.h"
#include "trainer_bridge/python/src/parts.h"

NB_MODULE(_core, module) {
  nanobind::set_leak_warnings(false);  // a program may end with objects that it still holds
  module.doc() = "The C++ bridge of exact-rollout; use the package exact_rollout.";
  exact::python::register_errors();
  exact::python::bind_messages(module);
  exact::python::bind_client(module);
  exact::python::bind_weights(module);
  exact::python::bind_ops(module);
  module.def("default_endpoint", &exact::ipc::default_endpoint);
}
