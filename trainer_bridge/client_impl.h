// client_impl.h owns the inside of a client: its connection, its rollouts, and the way of what
// comes from one to the other. What is read in the middle of any call finds its rollout.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "trainer_bridge/client.h"
#include "trainer_bridge/connection.h"
#include "trainer_bridge/rollouts.h"

namespace exact::bridge {

class Client::Impl {
 public:
  explicit Impl(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {
    connection_->set_sink([this](Purpose purpose, uint64_t id, const Connection::Answer& answer) {
      if (purpose == Purpose::rollout) return receive(id, answer);
      finish_mask(id, answer.error);
      return true;
    });
  }

  Connection& connection() { return *connection_; }
  const Connection& connection() const { return *connection_; }
  Rollouts& rollouts() { return rollouts_; }
  const Rollouts& rollouts() const { return rollouts_; }

  // What HelloReply says can't be served; ids and ranges are the worker's to judge.
  Status check_context(const char* field, size_t ids) const {
    const int32_t limit = connection_->worker().max_context;
    if (limit <= 0 || ids <= static_cast<size_t>(limit)) return {};
    return Status(Code::invalid, std::string(field) + " has " + std::to_string(ids) +
                                     " ids; the worker's max_context is " + std::to_string(limit));
  }

  // Reads until `condition` holds. False: it did not before the deadline.
  template <class Condition>
  Result<bool> wait_until(Condition condition, Deadline deadline) {
    while (!condition()) {
      EXACT_ASSIGN(const bool in_time, connection_->pump(deadline));
      cancel_broken();
      if (!in_time) return condition();
    }
    return true;
  }

  // Reads until `condition` holds. timeout: it did not; invalid: nothing is in flight.
  template <class Condition>
  Status wait_for_rollouts(const std::string& caller, Condition condition,
                           std::chrono::milliseconds timeout) {
    if (rollouts_.in_flight() == 0) {
      return Status(Code::invalid, "no request is in flight: call submit before " + caller);
    }
    EXACT_ASSIGN(const bool in_time,
                 wait_until(condition, std::chrono::steady_clock::now() + timeout));
    if (in_time) return {};
    return Status(Code::timeout, "nothing came for " + std::to_string(rollouts_.in_flight()) +
                                     " requests in flight within " +
                                     std::to_string(timeout.count()) + " ms: wait on");
  }

  void interrupt() {
    interrupted_ = true;
    connection_->wake();
  }
  void forget_interruption() { interrupted_ = false; }
  bool is_interrupted() const { return interrupted_; }

  // Sends ids for a mask; waits only when very many of them are unanswered.
  Status send_mask(const ipc::Allow& message) {
    constexpr size_t kMaxOpenMasks = 4096;
    const Deadline deadline = connection_->deadline();
    EXACT_ASSIGN(const bool has_room,
                 wait_until([&] { return masks_.size() < kMaxOpenMasks; }, deadline));
    if (!has_room) return connection_->no_answer(masks_.begin()->first);
    EXACT_ASSIGN(const uint64_t id, connection_->post(message, Purpose::mask, "ids", deadline));
    masks_.emplace(id, Mask{message.target_request_id, message.sample_index, message.index});
    return {};
  }

  // Nobody will read what comes for it: free the worker's pages.
  void abandon(uint64_t id) {
    connection_->forget(id);
    rollouts_.forget(id);
    send_cancel(id);
  }

 private:
  struct Mask {
    uint64_t rollout = 0;
    int32_t sample_index = 0, index = 0;
  };

  // True: the rollout is over.
  bool receive(uint64_t id, const Connection::Answer& answer) {
    if (!rollouts_.contains(id)) return true;
    const Status taken = take_in(id, answer);
    if (!taken) {
      rollouts_.fail(id, taken);
      if (answer.error) broken_.push_back(id);
    }
    return rollouts_.is_done(id);
  }

  Status take_in(uint64_t id, const Connection::Answer& answer) {
    switch (answer.header.type) {
      case ipc::MessageType::token_chunk:
        return take_in_as<ipc::TokenChunk>(id, answer);
      case ipc::MessageType::sample_done:
        return take_in_as<ipc::SampleDone>(id, answer);
      case ipc::MessageType::mask_wanted:
        return take_in_as<ipc::MaskWanted>(id, answer);
      default:
        return take_in_as<ipc::GenerateReply>(id, answer);
    }
  }
  template <class Message>
  Status take_in_as(uint64_t id, const Connection::Answer& answer) {
    EXACT_ASSIGN(Message message, read_answer<Message>(id, answer));
    return rollouts_.receive(id, std::move(message));
  }

  void finish_mask(uint64_t id, const Status& error) {
    const auto found = masks_.find(id);
    if (found == masks_.end()) return;
    const Mask mask = found->second;
    masks_.erase(found);
    if (!error) rollouts_.refuse_mask(mask.rollout, {mask.sample_index, mask.index, error});
  }

  // Rollouts that failed here still run there.
  void cancel_broken() {
    for (const uint64_t id : std::exchange(broken_, {})) send_cancel(id);
  }
  // Its own answer does not matter.
  void send_cancel(uint64_t id) {
    ipc::Cancel cancel;
    cancel.target_request_id = id;
    const auto sent = connection_->post(cancel, Purpose::call, "", connection_->deadline());
    if (sent) connection_->forget(*sent);
  }

  std::unique_ptr<Connection> connection_;
  Rollouts rollouts_;
  std::unordered_map<uint64_t, Mask> masks_;  // sent and unanswered
  std::vector<uint64_t> broken_;              // rollouts to cancel
  std::atomic<bool> interrupted_{false};
};

}  // namespace exact::bridge
