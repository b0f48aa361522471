// server_delivery.cc owns what goes out: what a step made, answers and refusals. What a client's
// socket does not take waits in its outbox; a client that can't be reached is dropped.
#include <algorithm>
#include <utility>

#include "worker/convert.h"
#include "worker/server_impl.h"

namespace exact::worker {

void Server::Impl::deliver(SampleProgress progress) {
  const InFlight* request = clients_.find_request(progress.request);
  if (request == nullptr) return;  // its client was dropped
  const std::string peer = request->peer;
  const uint64_t request_id = request->request_id;
  Client* client = clients_.find(peer);
  ipc::TokenChunk chunk = to_chunk(std::move(progress));
  if (client->outbox.empty()) {
    const Status sent = socket_->send(peer, ipc::encode(chunk, request_id));
    if (sent.is_ok()) return;
    if (sent.code() != Code::exhausted) return drop_client(peer, sent.message());
    client->took = Clock::now();
  }
  if (!client->outbox.push(request_id, std::move(chunk))) {
    drop_client(peer, "it reads its tokens too slowly");
  }
}

void Server::Impl::deliver(const MaskWanted& wanted) {
  const InFlight* request = clients_.find_request(wanted.request);
  if (request == nullptr) return;  // its client was dropped
  const std::string peer = request->peer;
  send(peer, ipc::encode(ipc::MaskWanted{wanted.sample_index, wanted.index, wanted.previous_token},
                         request->request_id));
}

void Server::Impl::deliver(SampleResult result) {
  const RequestId id = result.request;
  ipc::Completion completion = to_completion(std::move(result));
  completion.record_id = recorder_.completed(id, completion);
  InFlight* request = clients_.find_request(id);
  if (request == nullptr) return;  // its client was dropped
  if (request->mode == ipc::ReplyMode::whole) {
    request->reply.completions.push_back(std::move(completion));
  } else {
    const std::string peer = request->peer;
    ipc::Frames frames =
        ipc::encode(ipc::SampleDone{contract_id_, std::move(completion)}, request->request_id);
    if (const Status fits = check_size(frames); !fits.is_ok()) {
      const InFlight failed = clients_.take(id);
      (void)engine_.cancel(id);  // not_found: this was the last sample
      return refuse_recorded(failed.peer, failed.request_id, fits);
    }
    send_recorded(peer, std::move(frames));
    request = clients_.find_request(id);
    if (request == nullptr) return;  // its client was dropped just now
  }
  if (--request->samples_left > 0) return;
  InFlight done = clients_.take(id);
  std::sort(done.reply.completions.begin(), done.reply.completions.end(),
            [](const ipc::Completion& a, const ipc::Completion& b) {
              return a.sample_index < b.sample_index;
            });
  answer_recorded(done.peer, done.request_id, done.reply);
}

void Server::Impl::deliver(ScoreResult result) {
  recorder_.scored(result);
  if (clients_.find_request(result.request) == nullptr) return;  // its client was dropped
  const InFlight done = clients_.take(result.request);
  if (!result.error.is_ok()) return refuse(done.peer, done.request_id, result.error);
  answer_recorded(done.peer, done.request_id, to_reply(std::move(result), engine_.contract()));
}

// What of an update has arrived goes to the engine; buckets that are done are answered.
void Server::Impl::deliver_buckets(Clock::time_point now) {
  session_.advance(now);
  for (const WeightSession::BucketAnswer& bucket : session_.take_answers()) {
    if (bucket.done) {
      answer(bucket.peer, bucket.request_id, *bucket.done);
    } else {
      log(LogLevel::warning, "update_refused error=\"" + bucket.done.status().message() + "\"");
      refuse(bucket.peer, bucket.request_id, bucket.done.status());
    }
  }
}

void Server::Impl::deliver_commit() {
  const EngineStatus status = engine_.status();
  const WeightSession::Commit commit = session_.take_commit();
  recorder_.updated(status);
  const ipc::UpdateCommitted committed{status.version.value, status.weights_digest.to_hex()};
  log(LogLevel::info, "update_live version=" + std::to_string(committed.weight_version) +
                          " weights_digest=" + committed.weights_digest);
  if (options_.weights_keeper != nullptr) {
    const Status begun =
        options_.weights_keeper->begin(engine_.live_weights(), committed.weight_version);
    if (!begun.is_ok()) {
      log(LogLevel::error,
          "weights_not_stored version=" + std::to_string(committed.weight_version) + " error=\"" +
              begun.message() + "\"");
    }
  }
  if (!commit.peer.empty()) answer_recorded(commit.peer, commit.request_id, committed);
}

// The engine can't go on: everybody who waits is told.
void Server::Impl::fail_all(const Status& reason) {
  for (const RequestId id : clients_.all_requests()) {
    if (clients_.find_request(id) == nullptr) continue;  // went with its client just now
    const InFlight request = clients_.take(id);
    refuse(request.peer, request.request_id, reason);
  }
  if (session_.state() == UpdateState::committing) {
    const WeightSession::Commit commit = session_.take_commit();
    if (!commit.peer.empty()) refuse(commit.peer, commit.request_id, reason);
  }
}

void Server::Impl::refuse(const std::string& peer, uint64_t request_id, const Status& reason) {
  log(LogLevel::debug, "refused request_id=" + std::to_string(request_id) +
                           " code=" + std::string(code_name(reason.code())) + " error=\"" +
                           reason.message() + "\"");
  send(peer, ipc::encode(ipc::ErrorReply{static_cast<uint8_t>(reason.code()), reason.message()},
                         request_id));
}

Status Server::Impl::check_size(const ipc::Frames& frames) const {
  const uint64_t bytes = frames.body.size();
  if (bytes <= options_.limits.max_message_bytes) return {};
  return Status(Code::exhausted, "the answer has " + std::to_string(bytes) +
                                     " bytes, more than the " +
                                     std::to_string(options_.limits.max_message_bytes) +
                                     " of one message: ask for less at once");
}

void Server::Impl::send(const std::string& peer, ipc::Frames frames) {
  Client* client = clients_.find(peer);
  if (client == nullptr) {
    (void)socket_->send(peer, frames);  // a stranger is told once; it has nothing to lose
    return;
  }
  if (client->outbox.empty()) {
    const Status sent = socket_->send(peer, frames);
    if (sent.is_ok()) return;
    if (sent.code() != Code::exhausted) return drop_client(peer, sent.message());
    client->took = Clock::now();
  }
  if (!client->outbox.push(std::move(frames))) {
    drop_client(peer, "its queue is full: it asks for more answers than it reads");
  }
}

void Server::Impl::flush_unsent(Clock::time_point now) {
  for (const std::string& peer : clients_.with_unsent()) {
    Client& client = *clients_.find(peer);
    const Result<bool> took =
        client.outbox.flush([&](const ipc::Frames& frames) { return socket_->send(peer, frames); });
    if (!took) {
      drop_client(peer, took.status().message());
    } else if (*took) {
      client.took = now;
    }
  }
}

void Server::Impl::drop_stalled(Clock::time_point time) {
  for (const std::string& peer : clients_.with_unsent()) {
    if (clients_.find(peer)->took < time) {
      drop_client(peer, "it reads nothing, and messages wait for it");
    }
  }
}

void Server::Impl::drop_client(const std::string& peer, std::string_view why) {
  const Client* client = clients_.find(peer);
  if (client == nullptr) return;
  const std::string name = client->name;
  const std::vector<RequestId> requests = clients_.forget(peer);
  for (const RequestId id : requests) {
    // Its last sample may have ended in this very step: then there is nothing left to cancel.
    (void)engine_.cancel(id);
  }
  recorder_.forget(peer);
  const bool had_update = session_.drop(peer);
  log(LogLevel::warning,
      "client_dropped client=" + name + " requests=" + std::to_string(requests.size()) +
          (had_update ? " update=dropped" : "") + " why=\"" + std::string(why) + "\"");
}

void Server::Impl::log(LogLevel level, const std::string& line) const {
  if (options_.log) options_.log(level, line);
}

}  // namespace exact::worker
