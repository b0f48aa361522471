// messages.h owns every message between a client and the worker, and nothing about how it travels;
// those of a rollout are in rollout_messages.h, those of a weight update in weight_messages.h.
// Names and limits are part of the protocol (docs/protocol.md). A message is one struct with a
// serialize() that names each field; codec.h turns it into bytes and back, and refuses what lies.
//
// Direction: -> client to worker, <- worker to client. Every -> message has exactly one answer with
// the same request_id: its <- message, or ErrorReply. GenerateReply may come many steps later.
#pragma once

#include <cereal/cereal.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/vector.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "ipc/message_type.h"
#include "ipc/rollout_messages.h"
#include "ipc/weight_messages.h"

namespace exact::ipc {

struct ErrorReply {  // <-
  static constexpr MessageType kType = MessageType::error_reply;
  uint8_t code = 0;  // exact::Code
  std::string message;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(code), CEREAL_NVP(message));
  }
};

struct Hello {  // -> first message of a client; an empty contract_id asks, a set one demands
  static constexpr MessageType kType = MessageType::hello;
  std::string client;       // free text for the log, at most 256 bytes
  std::string contract_id;  // 32 hex digits, or empty
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(client), CEREAL_NVP(contract_id));
  }
};

struct HelloReply {  // <-
  static constexpr MessageType kType = MessageType::hello_reply;
  std::string server;  // "exact-rollout 0.1.0"
  std::string backend;
  std::string contract_id;
  std::string weights_digest;
  uint64_t weight_version = 0;
  int32_t vocabulary = 0;
  int32_t max_context = 0;
  uint64_t max_message_bytes = 0;
  int32_t max_requests = 0;    // of one client, unanswered
  int32_t heartbeat_ms = 0;    // a client silent for three of these is taken for dead
  uint32_t transports = 0;     // bit t: weights may come by WeightTransport t
  bool in_place_only = false;  // no memory for a second set of weights
  std::string device_uuid;     // of the worker's GPU, as the driver writes it; empty: no GPU
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(server), CEREAL_NVP(backend), CEREAL_NVP(contract_id), CEREAL_NVP(weights_digest),
      CEREAL_NVP(weight_version), CEREAL_NVP(vocabulary), CEREAL_NVP(max_context),
      CEREAL_NVP(max_message_bytes), CEREAL_NVP(max_requests), CEREAL_NVP(heartbeat_ms),
      CEREAL_NVP(transports), CEREAL_NVP(in_place_only), CEREAL_NVP(device_uuid));
  }
};

struct Ping {  // -> keeps the client's requests alive while it waits
  static constexpr MessageType kType = MessageType::ping;
  template <class A>
  void serialize(A&) {}
};

struct Pong {  // <-
  static constexpr MessageType kType = MessageType::pong;
  uint64_t steps = 0;  // advances while the worker works
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(steps));
  }
};

struct Score {  // ->
  static constexpr MessageType kType = MessageType::score;
  std::vector<int32_t> tokens;  // at least two
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(tokens));
  }
};

struct ScoreReply {  // <-
  static constexpr MessageType kType = MessageType::score_reply;
  std::string contract_id;
  uint64_t weight_version = 0;
  std::string weights_digest;
  std::vector<float> logprobs;  // tokens - 1
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(contract_id), CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest),
      CEREAL_NVP(logprobs));
  }
};

struct StatusQuery {  // ->
  static constexpr MessageType kType = MessageType::status;
  template <class A>
  void serialize(A&) {}
};

struct StatusReply {  // <-
  static constexpr MessageType kType = MessageType::status_reply;
  int32_t running = 0, waiting = 0, pages_free = 0, pages_total = 0, clients = 0;
  uint64_t pages_evicted = 0, pages_copied = 0;  // since the start
  uint64_t weight_version = 0;
  std::string weights_digest;
  uint64_t steps = 0, tokens_generated = 0, last_logits_hash = 0;
  bool draining = false;
  std::string update_state;  // idle, receiving, verified, committing
  std::string health;        // serving, sleeping, poisoned
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(running), CEREAL_NVP(waiting), CEREAL_NVP(pages_free), CEREAL_NVP(pages_total),
      CEREAL_NVP(clients), CEREAL_NVP(pages_evicted), CEREAL_NVP(pages_copied),
      CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest), CEREAL_NVP(steps),
      CEREAL_NVP(tokens_generated), CEREAL_NVP(last_logits_hash), CEREAL_NVP(draining),
      CEREAL_NVP(update_state), CEREAL_NVP(health));
  }
};

}  // namespace exact::ipc
