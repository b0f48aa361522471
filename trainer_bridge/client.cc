#include "trainer_bridge/client.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "trainer_bridge/client_impl.h"

namespace exact::bridge {

namespace {

// The list that a message owes most of its bytes to.
std::string_view widest_field(const ipc::Generate& request) {
  const std::pair<std::string_view, size_t> fields[] = {
      {"prompt", request.prompt.size()},           {"stop_ids", request.stop_ids.size()},
      {"allowed_ids", request.allowed_ids.size()}, {"banned_ids", request.banned_ids.size()},
      {"forced_ids", request.forced_ids.size()},   {"logit_bias", 4 * request.logit_bias.size()},
  };
  return std::max_element(std::begin(fields), std::end(fields),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

}  // namespace

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

Result<std::unique_ptr<Client>> Client::connect(const ClientOptions& options) {
  EXACT_ASSIGN(auto connection, Connection::open(options));
  return std::unique_ptr<Client>(new Client(std::make_unique<Impl>(std::move(connection))));
}

const ipc::HelloReply& Client::worker() const {
  return impl_->connection().worker();
}
size_t Client::in_flight() const {
  return impl_->rollouts().in_flight();
}
uint64_t Client::dropped_answers() const {
  return impl_->connection().dropped_answers();
}

Result<uint64_t> Client::submit(const ipc::Generate& request) {
  EXACT_RETURN_IF_ERROR(impl_->check_context("Generate: field 'prompt'", request.prompt.size()));
  const int32_t limit = worker().max_requests;
  if (limit > 0 && in_flight() >= static_cast<size_t>(limit)) {
    return Status(Code::exhausted, std::to_string(in_flight()) +
                                       " requests are in flight, as many as the worker takes from "
                                       "one client: call next_reply first");
  }
  Connection& connection = impl_->connection();
  EXACT_ASSIGN(const uint64_t id, connection.post(request, Purpose::rollout, widest_field(request),
                                                  connection.deadline()));
  impl_->rollouts().add(id, request);
  return id;
}

Result<Reply> Client::next_reply(std::chrono::milliseconds timeout) {
  Rollouts& rollouts = impl_->rollouts();
  EXACT_RETURN_IF_ERROR(impl_->wait_for_rollouts(
      "next_reply", [&] { return rollouts.first_done().has_value(); }, timeout));
  return rollouts.take_reply(*rollouts.first_done());
}

Result<Event> Client::next_event(std::chrono::milliseconds timeout) {
  Rollouts& rollouts = impl_->rollouts();
  EXACT_RETURN_IF_ERROR(impl_->wait_for_rollouts(
      "next_event", [&] { return rollouts.has_event() || impl_->is_interrupted(); }, timeout));
  if (rollouts.has_event()) return rollouts.take_event();
  impl_->forget_interruption();
  return Status(Code::cancelled, "next_event was interrupted: call it again");
}

void Client::interrupt() {
  impl_->interrupt();
}

Result<ipc::GenerateReply> Client::generate(const ipc::Generate& request) {
  const Deadline deadline = impl_->connection().deadline();
  EXACT_ASSIGN(const uint64_t id, submit(request));
  Rollouts& rollouts = impl_->rollouts();
  const auto in_time = impl_->wait_until([&] { return rollouts.is_done(id); }, deadline);
  if (!in_time || !*in_time) {
    impl_->abandon(id);
    return in_time ? impl_->connection().no_answer(id) : in_time.status();
  }
  Reply reply = rollouts.take_reply(id);
  if (!reply.error) return reply.error;
  return std::move(reply.value);
}

Status Client::allow(uint64_t request_id, int32_t sample_index, int32_t index,
                     std::span<const int32_t> ids) {
  return impl_->send_mask({request_id, sample_index, index, {ids.begin(), ids.end()}});
}

Result<bool> Client::cancel(uint64_t request_id) {
  ipc::Cancel message;
  message.target_request_id = request_id;
  EXACT_ASSIGN(const auto reply, impl_->connection().call<ipc::CancelReply>(message, ""));
  return reply.found;
}

Result<ipc::ScoreReply> Client::score(const std::vector<int32_t>& tokens) {
  EXACT_RETURN_IF_ERROR(impl_->check_context("Score: field 'tokens'", tokens.size()));
  ipc::Score message;
  message.tokens = tokens;
  return impl_->connection().call<ipc::ScoreReply>(message, "tokens");
}

Result<ipc::StatusReply> Client::status() {
  return impl_->connection().call<ipc::StatusReply>(ipc::StatusQuery{}, "");
}

Result<ipc::Pong> Client::ping() {
  return impl_->connection().call<ipc::Pong>(ipc::Ping{}, "");
}

Result<ipc::UpdateReady> Client::update_begin(const ipc::UpdateBegin& message) {
  return impl_->connection().call<ipc::UpdateReady>(message, "tensors");
}

Result<uint64_t> Client::send_bucket(uint64_t session, uint64_t index) {
  ipc::UpdateBucket message;
  message.session = session;
  message.index = index;
  Connection& connection = impl_->connection();
  return connection.post(message, Purpose::bucket, "", connection.deadline());
}

Result<ipc::UpdateBucketDone> Client::wait_bucket(uint64_t request_id) {
  Connection& connection = impl_->connection();
  return connection.take<ipc::UpdateBucketDone>(request_id, connection.deadline());
}

Result<ipc::UpdateCommitted> Client::update_commit(uint64_t session) {
  ipc::UpdateCommit message;
  message.session = session;
  return impl_->connection().call<ipc::UpdateCommitted>(message, "");
}

Result<ipc::UpdateAborted> Client::update_abort(uint64_t session) {
  impl_->connection().forget(Purpose::bucket);
  ipc::UpdateAbort message;
  message.session = session;
  return impl_->connection().call<ipc::UpdateAborted>(message, "");
}

}  // namespace exact::bridge
