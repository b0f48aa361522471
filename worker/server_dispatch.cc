// server_dispatch.cc owns what each message does. A handler answers, or returns why it won't: then
// the sender gets an ErrorReply with that sentence.
#include <span>
#include <utility>

#include "engine/sampling.h"
#include "worker/convert.h"
#include "worker/server_impl.h"
#include "worker/version.h"

namespace exact::worker {
namespace {

constexpr size_t kMaxClientNameBytes = 256;

// What a rollout asks of the server, not of the engine.
Status check_delivery(const ipc::Generate& message) {
  if (message.reply_mode > static_cast<uint8_t>(ipc::ReplyMode::tokens)) {
    return Status(Code::invalid, "reply_mode is " + std::to_string(message.reply_mode) +
                                     "; it must be whole (0), samples (1) or tokens (2)");
  }
  if (message.deadline_ms < 0) {
    return Status(Code::invalid, "deadline_ms is " + std::to_string(message.deadline_ms) +
                                     "; it must be 0 (none) or more");
  }
  return {};
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

void Server::Impl::handle(const ipc::Incoming& incoming, Clock::time_point now) {
  Client* client = clients_.find(incoming.peer);
  if (client != nullptr) client->heard = now;
  if (!incoming.error.is_ok()) return refuse(incoming.peer, 0, incoming.error);
  const Result<ipc::Header> header = ipc::decode_header(bytes_of(incoming.header));
  if (!header) return refuse(incoming.peer, 0, header.status());

  const Context context{incoming.peer, header->request_id, now};
  if (const Status status = check_sender(*header, context); !status.is_ok()) {
    return refuse(context.peer, context.request_id, status);
  }
  dispatch(*header, incoming.body, context);
}

Status Server::Impl::check_sender(const ipc::Header& header, const Context& context) {
  const Client* client = clients_.find(context.peer);
  if (client == nullptr) {
    if (header.type == ipc::MessageType::hello) return {};
    return Status(Code::invalid, "the first message must be Hello: say Hello, then try again");
  }
  // Two answers with one request_id could not be told apart.
  if (client->requests.contains(context.request_id) ||
      session_.is_unanswered(context.peer, context.request_id)) {
    return Status(Code::invalid, "request_id " + std::to_string(context.request_id) +
                                     " is in flight already: choose another");
  }
  return {};
}

void Server::Impl::dispatch(const ipc::Header& header, const std::string& body,
                            const Context& context) {
  switch (header.type) {
    case ipc::MessageType::hello:
      return decode_and_handle<ipc::Hello>(header, body, context);
    case ipc::MessageType::ping:
      return decode_and_handle<ipc::Ping>(header, body, context);
    case ipc::MessageType::generate:
      return decode_and_handle<ipc::Generate>(header, body, context);
    case ipc::MessageType::score:
      return decode_and_handle<ipc::Score>(header, body, context);
    case ipc::MessageType::cancel:
      return decode_and_handle<ipc::Cancel>(header, body, context);
    case ipc::MessageType::allow:
      return decode_and_handle<ipc::Allow>(header, body, context);
    case ipc::MessageType::status:
      return decode_and_handle<ipc::StatusQuery>(header, body, context);
    case ipc::MessageType::update_begin:
      return decode_and_handle<ipc::UpdateBegin>(header, body, context);
    case ipc::MessageType::update_bucket:
      return decode_and_handle<ipc::UpdateBucket>(header, body, context);
    case ipc::MessageType::update_commit:
      return decode_and_handle<ipc::UpdateCommit>(header, body, context);
    case ipc::MessageType::update_abort:
      return decode_and_handle<ipc::UpdateAbort>(header, body, context);
    case ipc::MessageType::sleep:
      return decode_and_handle<ipc::Sleep>(header, body, context);
    case ipc::MessageType::wake:
      return decode_and_handle<ipc::Wake>(header, body, context);
    default:
      return refuse(context.peer, context.request_id,
                    Status(Code::invalid,
                           "message type " + std::to_string(static_cast<uint16_t>(header.type)) +
                               " (" + std::string(ipc::message_type_name(header.type)) +
                               ") is not one that a client sends"));
  }
}

template <class Message>
void Server::Impl::decode_and_handle(const ipc::Header& header, const std::string& body,
                                     const Context& context) {
  Result<Message> message = ipc::decode_body<Message>(header, bytes_of(body));
  const Status status =
      message ? handle_message(std::move(message).value(), context) : message.status();
  if (!status.is_ok()) refuse(context.peer, context.request_id, status);
}

Status Server::Impl::handle_message(ipc::Hello message, const Context& context) {
  if (message.client.size() > kMaxClientNameBytes) {
    return Status(Code::invalid, "client has " + std::to_string(message.client.size()) +
                                     " bytes; it may have " + std::to_string(kMaxClientNameBytes));
  }
  if (!message.contract_id.empty() && message.contract_id != contract_id_) {
    return Status(Code::contract_mismatch,
                  "contract_id is '" + message.contract_id.substr(0, 32) + "', the worker's is '" +
                      contract_id_ + "': use a worker and a trainer of the same rules and model");
  }
  EXACT_RETURN_IF_ERROR(clients_.greet(context.peer, message.client, context.now));
  log(LogLevel::info, "client_connected client=" + clients_.find(context.peer)->name +
                          " clients=" + std::to_string(clients_.count()));
  const EngineStatus status = engine_.status();
  ipc::HelloReply reply;
  reply.server = "exact-rollout " + std::string(kVersion);
  reply.backend = options_.backend_name;
  reply.contract_id = contract_id_;
  reply.weights_digest = status.weights_digest.to_hex();
  reply.weight_version = status.version.value;
  reply.vocabulary = engine_.config().vocabulary;
  reply.max_context = engine_.limits().max_context;
  reply.max_message_bytes = options_.limits.max_message_bytes;
  reply.max_requests = options_.limits.max_requests;
  reply.heartbeat_ms = options_.limits.heartbeat_ms;
  reply.transports = session_.transports();
  reply.device_uuid = options_.device_uuid;
  reply.in_place_only = engine_.limits().weight_slots == 1;
  answer(context.peer, context.request_id, reply);
  return {};
}

Status Server::Impl::handle_message(ipc::Ping, const Context& context) {
  answer(context.peer, context.request_id, ipc::Pong{engine_.status().steps});
  return {};
}

Status Server::Impl::check_accepting(const Context& context) {
  if (draining_) {
    return Status(Code::exhausted, "the worker is draining and takes no new work: use another");
  }
  return clients_.check_room(context.peer, context.request_id);
}

Status Server::Impl::handle_message(ipc::Generate message, const Context& context) {
  EXACT_RETURN_IF_ERROR(check_accepting(context));
  EXACT_RETURN_IF_ERROR(recorder_.check_room());
  EXACT_RETURN_IF_ERROR(check_delivery(message));
  InFlight in_flight{context.peer, context.request_id, false, message.n, {}, {}, {}};
  in_flight.mode = static_cast<ipc::ReplyMode>(message.reply_mode);
  if (message.deadline_ms > 0) {
    in_flight.deadline = context.now + std::chrono::milliseconds(message.deadline_ms);
  }
  in_flight.reply.contract_id = contract_id_;
  in_flight.reply.seed = message.seed;

  const RequestId id{next_request_++};
  GenerateRequest request = to_request(id, message);
  request.client = clients_.find(context.peer)->number;
  // The size of an answer is the size of what is valid.
  EXACT_RETURN_IF_ERROR(validate(request, engine_.config(), engine_.limits()));
  EXACT_RETURN_IF_ERROR(check_reply_size(request, in_flight.mode));
  EXACT_RETURN_IF_ERROR(engine_.submit(std::move(request)));
  recorder_.accepted(id, clients_.find(context.peer)->name, message);
  clients_.add(id, std::move(in_flight));
  return {};
}

Status Server::Impl::check_reply_size(const GenerateRequest& request, ipc::ReplyMode mode) const {
  const uint64_t bytes = reply_bytes(request, mode, engine_.limits(), engine_.config().vocabulary);
  const uint64_t limit = options_.limits.max_message_bytes;
  if (bytes <= limit) return {};
  const bool whole = mode == ipc::ReplyMode::whole;
  const std::string first = whole ? "n, max_new_tokens" : "max_new_tokens";
  std::string advice =
      whole ? "fewer samples or tokens, or for reply_mode samples" : "fewer tokens";
  if (request.report.kept_set) advice += ", or for a kept_set with a smaller top_k";
  return Status(Code::invalid, first + " and what is to be reported allow " +
                                   (whole ? "an answer of " : "a sample of ") +
                                   std::to_string(bytes) + " bytes, more than the " +
                                   std::to_string(limit) + " of one message: ask for " + advice);
}

Status Server::Impl::handle_message(ipc::Score message, const Context& context) {
  EXACT_RETURN_IF_ERROR(check_accepting(context));
  EXACT_RETURN_IF_ERROR(recorder_.check_room());
  const RequestId id{next_request_++};
  ScoreRequest request;
  request.id = id;
  request.tokens = message.tokens;
  request.client = clients_.find(context.peer)->number;
  EXACT_RETURN_IF_ERROR(engine_.submit(std::move(request)));
  recorder_.accepted(id, clients_.find(context.peer)->name, message);
  clients_.add(id, InFlight{context.peer, context.request_id, true, 1, {}, {}, {}});
  return {};
}

Status Server::Impl::handle_message(ipc::Cancel message, const Context& context) {
  const Client* client = clients_.find(context.peer);
  const auto target = client->requests.find(message.target_request_id);
  const bool found = target != client->requests.end() && engine_.cancel(target->second).is_ok();
  answer(context.peer, context.request_id, ipc::CancelReply{found});
  return {};
}

Status Server::Impl::handle_message(ipc::Allow message, const Context& context) {
  const Client* client = clients_.find(context.peer);
  const auto target = client->requests.find(message.target_request_id);
  if (target == client->requests.end()) {
    return Status(Code::not_found, "target_request_id " +
                                       std::to_string(message.target_request_id) +
                                       " is no request of this client that is in flight");
  }
  EXACT_RETURN_IF_ERROR(
      engine_.allow(target->second, message.sample_index, message.index, message.ids));
  recorder_.allowed(target->second, message.sample_index, message.ids);
  answer(context.peer, context.request_id, ipc::AllowReply{});
  return {};
}

Status Server::Impl::handle_message(ipc::StatusQuery, const Context& context) {
  const EngineStatus status = engine_.status();
  ipc::StatusReply reply;
  reply.running = status.running;
  reply.waiting = status.waiting;
  reply.pages_free = status.pages_free;
  reply.pages_total = status.pages_total;
  reply.pages_evicted = status.pages_evicted;
  reply.pages_copied = status.pages_copied;
  reply.clients = static_cast<int32_t>(clients_.count());
  reply.weight_version = status.version.value;
  reply.weights_digest = status.weights_digest.to_hex();
  reply.steps = status.steps;
  reply.tokens_generated = status.tokens_generated;
  reply.last_logits_hash = engine_.last_logits_hash();
  reply.draining = draining_;
  reply.update_state = update_state_name(session_.state());
  reply.health = engine_health_name(status.health);
  answer(context.peer, context.request_id, reply);
  return {};
}

Status Server::Impl::handle_message(ipc::UpdateBegin message, const Context& context) {
  EXACT_RETURN_IF_ERROR(check_accepting(context));
  if (options_.weights_keeper != nullptr && options_.weights_keeper->is_busy()) {
    // Its bytes are where an update in place would write, or where the one after it would.
    return Status(Code::exhausted,
                  "version " + std::to_string(engine_.status().version.value) +
                      " is still being written to the weights store: begin again when it is there");
  }
  EXACT_ASSIGN(const ipc::UpdateReady ready, session_.begin(context.peer, message, context.now));
  recorder_.update_begun(message);
  log(LogLevel::info, "update_begun version=" + std::to_string(message.weight_version) +
                          " client=" + clients_.find(context.peer)->name +
                          " bucket_bytes=" + std::to_string(ready.bucket_bytes));
  answer(context.peer, context.request_id, ready);
  return {};
}

Status Server::Impl::handle_message(ipc::UpdateBucket message, const Context& context) {
  const Status status = session_.bucket(context.peer, context.request_id, message, context.now);
  if (!status.is_ok()) {
    log(LogLevel::warning, "update_refused error=\"" + status.message() + "\"");
  }
  deliver_buckets(context.now);  // most are there: their sender need not wait for a step
  return status;
}

Status Server::Impl::handle_message(ipc::UpdateCommit message, const Context& context) {
  const Status status = session_.commit(context.peer, context.request_id, message);
  if (!status.is_ok()) {
    log(LogLevel::warning, "update_refused error=\"" + status.message() + "\"");
  }
  return status;
}

Status Server::Impl::handle_message(ipc::UpdateAbort message, const Context& context) {
  EXACT_ASSIGN(const ipc::UpdateAborted aborted, session_.abort(context.peer, message));
  log(LogLevel::info, "update_aborted version=" + std::to_string(aborted.weight_version));
  answer(context.peer, context.request_id, aborted);
  return {};
}

Status Server::Impl::handle_message(ipc::Sleep message, const Context& context) {
  if (draining_) {
    return Status(Code::exhausted, "the worker is draining: asleep it would not end its requests");
  }
  if (options_.weights_keeper != nullptr && options_.weights_keeper->is_busy()) {
    return Status(
        Code::exhausted,
        "the live weights are being written to the weights store: try again when they are "
        "stored");
  }
  EXACT_ASSIGN(const uint64_t freed, engine_.sleep(message.keep_weights));
  log(LogLevel::info, "asleep freed_bytes=" + std::to_string(freed) +
                          " client=" + clients_.find(context.peer)->name);
  answer(context.peer, context.request_id, ipc::SleepReply{freed});
  return {};
}

Status Server::Impl::handle_message(ipc::Wake, const Context& context) {
  EXACT_RETURN_IF_ERROR(engine_.wake());
  const EngineStatus status = engine_.status();
  log(LogLevel::info, "awake version=" + std::to_string(status.version.value) +
                          " client=" + clients_.find(context.peer)->name);
  answer(context.peer, context.request_id,
         ipc::WakeReply{status.version.value, status.weights_digest.to_hex()});
  return {};
}

}  // namespace exact::worker
