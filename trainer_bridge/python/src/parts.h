// parts.h names what each file of the extension module adds to it.
#pragma once

#include <nanobind/nanobind.h>

#include "trainer_bridge/client.h"

namespace exact::python {

void bind_messages(nanobind::module_& module);
void bind_client(nanobind::module_& module);
void bind_weights(nanobind::module_& module);
void bind_ops(nanobind::module_& module);

// (request_id, what): a TokenChunk, a Completion that is done, a MaskWanted, a MaskRefused as the
// tuple (sample_index, index, exception); at the end the exception or (contract_id, seed,
// completions).
nanobind::object to_python(bridge::Event event);

}  // namespace exact::python
