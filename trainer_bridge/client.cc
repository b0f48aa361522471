#include "trainer_bridge/client.h"

#include <string>
#include <string_view>
#include <utility>

#include "trainer_bridge/connection.h"

namespace exact::bridge {

class Client::Impl {
 public:
  explicit Impl(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}

  Connection& connection() { return *connection_; }
  const Connection& connection() const { return *connection_; }

  // What HelloReply says can't be served; ids and ranges are the worker's to judge.
  Status check_context(const char* field, size_t ids) const {
    const int32_t limit = connection_->worker().max_context;
    if (limit <= 0 || ids <= static_cast<size_t>(limit)) return {};
    return Status(Code::invalid, std::string(field) + " has " + std::to_string(ids) +
                                     " ids; the worker's max_context is " + std::to_string(limit));
  }

 private:
  std::unique_ptr<Connection> connection_;
};

namespace {

std::string_view widest_field(const ipc::Generate& request) {
  return request.stop_ids.size() > request.prompt.size() ? "stop_ids" : "prompt";
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
  return impl_->connection().rollouts();
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
  return connection.post(request, Purpose::rollout, widest_field(request), connection.deadline());
}

Result<Reply> Client::next_reply(std::chrono::milliseconds timeout) {
  if (in_flight() == 0) {
    return Status(Code::invalid, "no request is in flight: call submit before next_reply");
  }
  Connection& connection = impl_->connection();
  const Deadline deadline = std::chrono::steady_clock::now() + timeout;
  EXACT_ASSIGN(const auto id, connection.wait_for_rollout(deadline));
  if (!id) {
    return Status(Code::timeout, "none of " + std::to_string(in_flight()) +
                                     " requests in flight was answered within " +
                                     std::to_string(timeout.count()) + " ms: wait on");
  }
  Reply reply;
  reply.request_id = *id;
  auto value = connection.take<ipc::GenerateReply>(*id, deadline);
  if (value) {
    reply.value = std::move(*value);
  } else {
    reply.error = value.status();
  }
  return reply;
}

Result<ipc::GenerateReply> Client::generate(const ipc::Generate& request) {
  Connection& connection = impl_->connection();
  const Deadline deadline = connection.deadline();
  EXACT_ASSIGN(const uint64_t id, submit(request));
  auto reply = connection.take<ipc::GenerateReply>(id, deadline);
  if (!reply && reply.status().code() == Code::timeout) {
    // Nobody will read it: free the worker's pages. Its own answer does not matter any more.
    ipc::Cancel cancel;
    cancel.target_request_id = id;
    const auto sent = connection.post(cancel, Purpose::call, "", connection.deadline());
    if (sent) connection.forget(*sent);
  }
  return reply;
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
