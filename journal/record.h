// record.h owns what a journal says: one struct a kind of record, each with a serialize() that
// names its fields. docs/journal.md describes them; record_codec.h turns them into bytes and back.
//
// A SessionRecord opens each segment and holds for the records after it. It takes no record id.
#pragma once

#include <cereal/cereal.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/vector.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ipc/messages.h"

namespace exact::journal {

// Values are on disk: append, never renumber.
enum class RecordKind : uint16_t { session = 1, completion = 2, update = 3, score = 4, drops = 5 };
std::string_view record_kind_name(RecordKind kind);  // "completion"; "unknown" for other values

struct Library {
  std::string name;
  std::string version;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(name), CEREAL_NVP(version));
  }
};

// Who wrote the segment, and what else decides a sample beside its request and the weights.
struct SessionRecord {
  static constexpr RecordKind kKind = RecordKind::session;
  uint64_t session = 0;  // random, of one run of the worker: its segments share it
  std::string program;   // "exact-rollout 0.1.0"
  std::string contract_id;
  std::string backend;        // Backend::name()
  std::string model;          // the directory, as given to the worker
  std::string config_digest;  // digest128 of its config.json, 32 hex digits
  int32_t vocabulary = 0;
  int32_t max_context = 0;  // what max_new_tokens = 0 goes up to
  std::vector<Library> libraries;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session), CEREAL_NVP(program), CEREAL_NVP(contract_id), CEREAL_NVP(backend),
      CEREAL_NVP(model), CEREAL_NVP(config_digest), CEREAL_NVP(vocabulary), CEREAL_NVP(max_context),
      CEREAL_NVP(libraries));
  }
};

// One sample, with all that makes it again.
struct CompletionRecord {
  static constexpr RecordKind kKind = RecordKind::completion;
  std::string client;           // as it calls itself
  ipc::Generate request;        // as received
  ipc::Completion completion;   // as answered, but for record_id: the frame has it, here it is 0
  std::string not_replayable;   // why the record does not hold all that is needed; empty: it does
  // Of a masked request: the mask_counts[i] ids that token i could be are in mask_ids after those
  // of the tokens before it. There may be one more than tokens. Empty where not_replayable says so.
  std::vector<int32_t> mask_counts;
  std::vector<int32_t> mask_ids;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(client), CEREAL_NVP(request), CEREAL_NVP(completion), CEREAL_NVP(not_replayable),
      CEREAL_NVP(mask_counts), CEREAL_NVP(mask_ids));
  }
};

// From here on these weights are live. The first one of a session is of the weights at its start.
struct UpdateRecord {
  static constexpr RecordKind kKind = RecordKind::update;
  uint64_t weight_version = 0;
  std::string weights_digest;
  bool at_start = false;      // loaded from `model`; the four fields below it mean nothing
  uint64_t base_version = 0;  // as of ipc::UpdateBegin
  uint8_t policy = 0;         // exact::UpdatePolicy
  uint8_t transport = 0;      // ipc::WeightTransport
  bool in_place = false;
  std::string model;       // directory of the weights at the start; else empty
  std::string weights_at;  // where the weights are kept; empty: not known
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest), CEREAL_NVP(at_start),
      CEREAL_NVP(base_version), CEREAL_NVP(policy), CEREAL_NVP(transport), CEREAL_NVP(in_place),
      CEREAL_NVP(model), CEREAL_NVP(weights_at));
  }
};

struct ScoreRecord {
  static constexpr RecordKind kKind = RecordKind::score;
  std::string client;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // tokens - 1, exact bits
  uint64_t weight_version = 0;
  std::string weights_digest;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(client), CEREAL_NVP(tokens), CEREAL_NVP(logprobs), CEREAL_NVP(weight_version),
      CEREAL_NVP(weights_digest));
  }
};

// So many records are missing here: the queue was full, and the operator chose to drop.
struct DropRecord {
  static constexpr RecordKind kKind = RecordKind::drops;
  uint64_t count = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(count));
  }
};

}  // namespace exact::journal
