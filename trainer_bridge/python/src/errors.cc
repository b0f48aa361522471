#include "trainer_bridge/python/src/errors.h"

#include <string>

namespace nb = nanobind;

namespace exact::python {

nb::object exception_of(const Status& status) {
  const std::string code(code_name(status.code()));
  return nb::module_::import_("exact_rollout.errors")
      .attr("make_error")(nb::str(code.c_str()), nb::str(status.message().c_str()));
}

void register_errors() {
  nb::register_exception_translator(
      [](const std::exception_ptr& raised, void*) {
        try {
          std::rethrow_exception(raised);
        } catch (const StatusError& error) {
          const nb::object exception = exception_of(error.status());
          PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
        }
      },
      nullptr);
}

}  // namespace exact::python
