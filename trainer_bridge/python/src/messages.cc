// Binds the messages of a rollout. Names are the wire's (docs/protocol.md); numbers are arrays.
#include "ipc/messages.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "trainer_bridge/python/src/arrays.h"
#include "trainer_bridge/python/src/errors.h"
#include "trainer_bridge/python/src/parts.h"

namespace nb = nanobind;

namespace exact::python {
namespace {

// A read-only property that shows a vector of the message as an array.
template <class Message, class T>
void add_array(nb::class_<Message>& type, const char* name, std::vector<T> Message::*field) {
  type.def_prop_ro(name, [field](nb::handle self) {
    std::vector<T>& values = nb::cast<Message&>(self).*field;
    return view_of(values, self, {values.size()});
  });
}

template <class T>
NumpyArray<T> top_of(nb::handle self, std::vector<T> ipc::Completion::*field) {
  ipc::Completion& completion = nb::cast<ipc::Completion&>(self);
  const size_t rows = completion.tokens.size();
  std::vector<T>& values = completion.*field;
  return view_of(values, self, {rows, rows == 0 ? 0 : values.size() / rows});
}

void bind_generate(nb::module_& module) {
  using ipc::Generate;
  nb::class_<Generate>(module, "Generate", "A request for rollouts; docs/protocol.md has ranges.")
      .def(nb::init<>())
      .def_prop_rw(
          "prompt", [](const Generate& self) { return self.prompt; },
          [](Generate& self, const IdArray& ids) { self.prompt = copy_of(ids); })
      .def_rw("n", &Generate::n)
      .def_rw("max_new_tokens", &Generate::max_new_tokens)
      .def_rw("temperature", &Generate::temperature)
      .def_rw("top_k", &Generate::top_k)
      .def_rw("top_p", &Generate::top_p)
      .def_rw("seed", &Generate::seed)
      .def_rw("stop_ids", &Generate::stop_ids)
      .def_rw("min_p", &Generate::min_p)
      .def_rw("repetition_penalty", &Generate::repetition_penalty)
      .def_rw("presence_penalty", &Generate::presence_penalty)
      .def_rw("frequency_penalty", &Generate::frequency_penalty)
      .def_prop_rw(
          "logit_bias",
          [](const Generate& self) {
            std::vector<std::tuple<int32_t, float>> pairs;
            for (const auto& bias : self.logit_bias) pairs.emplace_back(bias.token, bias.bias);
            return pairs;
          },
          [](Generate& self, const std::vector<std::tuple<int32_t, float>>& pairs) {
            self.logit_bias.clear();
            for (const auto& [token, bias] : pairs) self.logit_bias.push_back({token, bias});
          })
      .def_rw("allowed_ids", &Generate::allowed_ids)
      .def_rw("banned_ids", &Generate::banned_ids)
      .def_prop_rw(
          "stop_sequences",
          [](const Generate& self) {
            std::vector<std::vector<int32_t>> sequences;
            for (const auto& sequence : self.stop_sequences) sequences.push_back(sequence.ids);
            return sequences;
          },
          [](Generate& self, std::vector<std::vector<int32_t>> sequences) {
            self.stop_sequences.clear();
            for (auto& ids : sequences) self.stop_sequences.push_back({std::move(ids)});
          })
      .def_rw("min_new_tokens", &Generate::min_new_tokens)
      .def_rw("ignore_eos", &Generate::ignore_eos)
      .def_rw("forced_ids", &Generate::forced_ids)
      .def_rw("top_logprobs", &Generate::top_logprobs)
      .def_rw("entropy", &Generate::entropy)
      .def_rw("kept_set", &Generate::kept_set)
      .def_rw("prompt_logprobs", &Generate::prompt_logprobs)
      .def_rw("priority", &Generate::priority)
      .def_rw("masked", &Generate::masked)
      .def_rw("reply_mode", &Generate::reply_mode)
      .def_rw("deadline_ms", &Generate::deadline_ms);
}

void bind_completion(nb::module_& module) {
  using ipc::Completion;
  nb::class_<ipc::VersionSpan>(module, "VersionSpan",
                               "Which weights made the tokens from begin on.")
      .def_ro("begin", &ipc::VersionSpan::begin)
      .def_ro("weight_version", &ipc::VersionSpan::weight_version)
      .def_ro("weights_digest", &ipc::VersionSpan::weights_digest);
  nb::class_<Completion> type(module, "Completion", "One sample. Its arrays share its memory.");
  type.def_ro("sample_index", &Completion::sample_index)
      .def_ro("error", &Completion::error)
      .def_ro("versions", &Completion::versions)
      .def_ro("record_id", &Completion::record_id)
      .def_prop_ro("finish_reason",
                   [](const Completion& self) {
                     return finish_reason_name(static_cast<FinishReason>(self.finish_reason));
                   })
      .def_prop_ro("top_ids", [](nb::handle self) { return top_of(self, &Completion::top_ids); })
      .def_prop_ro("top_logprobs",
                   [](nb::handle self) { return top_of(self, &Completion::top_logprobs); })
      .def("__len__", [](const Completion& self) { return self.tokens.size(); })
      .def("__repr__", [](const Completion& self) {
        return "Completion(sample_index=" + std::to_string(self.sample_index) +
               ", tokens=" + std::to_string(self.tokens.size()) + ", finish_reason='" +
               std::string(finish_reason_name(static_cast<FinishReason>(self.finish_reason))) +
               "')";
      });
  add_array(type, "tokens", &Completion::tokens);
  add_array(type, "logprobs", &Completion::logprobs);
  add_array(type, "processed_logprobs", &Completion::processed_logprobs);
  add_array(type, "entropies", &Completion::entropies);
  add_array(type, "kept_counts", &Completion::kept_counts);
  add_array(type, "kept_ids", &Completion::kept_ids);
  add_array(type, "prompt_logprobs", &Completion::prompt_logprobs);
}

void bind_parts(nb::module_& module) {
  using ipc::MaskWanted;
  using ipc::TokenChunk;
  nb::class_<TokenChunk> chunk(module, "TokenChunk", "Tokens [begin, begin + len) of one sample.");
  chunk.def_ro("sample_index", &TokenChunk::sample_index)
      .def_ro("begin", &TokenChunk::begin)
      .def("__len__", [](const TokenChunk& self) { return self.tokens.size(); });
  add_array(chunk, "tokens", &TokenChunk::tokens);
  add_array(chunk, "logprobs", &TokenChunk::logprobs);
  add_array(chunk, "processed_logprobs", &TokenChunk::processed_logprobs);
  nb::class_<MaskWanted>(module, "MaskWanted",
                         "A sample waits for the ids that token index may be.")
      .def_ro("sample_index", &MaskWanted::sample_index)
      .def_ro("index", &MaskWanted::index)
      .def_ro("previous_token", &MaskWanted::previous_token);
}

nb::object reply_to_python(bridge::Reply reply) {
  if (!reply.error) return exception_of(reply.error);
  nb::list completions;
  for (auto& completion : reply.value.completions) completions.append(std::move(completion));
  return nb::make_tuple(reply.value.contract_id, reply.value.seed, completions);
}

}  // namespace

nb::object to_python(bridge::Event event) {
  struct Visitor {
    nb::object operator()(ipc::TokenChunk& chunk) const { return nb::cast(std::move(chunk)); }
    nb::object operator()(ipc::SampleDone& done) const {
      return nb::cast(std::move(done.completion));
    }
    nb::object operator()(ipc::MaskWanted& wanted) const { return nb::cast(wanted); }
    nb::object operator()(bridge::MaskRefused& refused) const {
      return nb::make_tuple(refused.sample_index, refused.index, exception_of(refused.error));
    }
    nb::object operator()(bridge::Reply& reply) const { return reply_to_python(std::move(reply)); }
  };
  const bool is_last = std::holds_alternative<bridge::Reply>(event.what);
  nb::object what = std::visit(Visitor(), event.what);
  return nb::make_tuple(event.request_id, is_last, what);
}

void bind_messages(nb::module_& module) {
  bind_generate(module);
  bind_completion(module);
  bind_parts(module);
  using ipc::HelloReply;
  nb::class_<HelloReply>(module, "WorkerInfo", "What a worker says of itself.")
      .def_ro("server", &HelloReply::server)
      .def_ro("backend", &HelloReply::backend)
      .def_ro("contract_id", &HelloReply::contract_id)
      .def_ro("weights_digest", &HelloReply::weights_digest)
      .def_ro("weight_version", &HelloReply::weight_version)
      .def_ro("vocabulary", &HelloReply::vocabulary)
      .def_ro("max_context", &HelloReply::max_context)
      .def_ro("max_message_bytes", &HelloReply::max_message_bytes)
      .def_ro("max_requests", &HelloReply::max_requests)
      .def_ro("heartbeat_ms", &HelloReply::heartbeat_ms)
      .def_ro("in_place_only", &HelloReply::in_place_only)
      .def_ro("device_uuid", &HelloReply::device_uuid);
  using ipc::StatusReply;
  nb::class_<StatusReply>(module, "WorkerStatus", "What a worker is doing.")
      .def_ro("running", &StatusReply::running)
      .def_ro("waiting", &StatusReply::waiting)
      .def_ro("pages_free", &StatusReply::pages_free)
      .def_ro("pages_total", &StatusReply::pages_total)
      .def_ro("clients", &StatusReply::clients)
      .def_ro("pages_evicted", &StatusReply::pages_evicted)
      .def_ro("pages_copied", &StatusReply::pages_copied)
      .def_ro("weight_version", &StatusReply::weight_version)
      .def_ro("weights_digest", &StatusReply::weights_digest)
      .def_ro("steps", &StatusReply::steps)
      .def_ro("tokens_generated", &StatusReply::tokens_generated)
      .def_ro("last_logits_hash", &StatusReply::last_logits_hash)
      .def_ro("draining", &StatusReply::draining)
      .def_ro("update_state", &StatusReply::update_state)
      .def_ro("health", &StatusReply::health);
}

}  // namespace exact::python
