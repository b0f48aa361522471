#include "tests/replay/journal_maker.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "engine/hash_model.h"
#include "journal/journal_writer.h"
#include "journal/record_codec.h"
#include "tests/support/random_choices.h"
#include "worker/convert.h"

namespace exact {
namespace {

// Ascending, each once.
std::vector<int32_t> id_set(RandomData& random, int32_t vocabulary, int32_t count) {
  std::set<int32_t> ids;
  while (std::ssize(ids) < count) ids.insert(between(random, 0, vocabulary - 1));
  return {ids.begin(), ids.end()};
}

void random_edits(RandomData& random, int32_t vocabulary, ipc::Generate& asked) {
  if (one_in(random, 4)) asked.repetition_penalty = one_in(random, 2) ? 0.8f : 1.3f;
  if (one_in(random, 4)) asked.presence_penalty = 0.75f;
  if (one_in(random, 4)) asked.frequency_penalty = -0.4f;
  if (one_in(random, 5)) {
    for (const int32_t id : id_set(random, vocabulary, 6)) {
      asked.logit_bias.push_back({id, 0.5f * static_cast<float>(between(random, -6, 12))});
    }
  }
  if (one_in(random, 5)) {
    asked.allowed_ids = id_set(random, vocabulary, 12);
    asked.stop_ids = {asked.allowed_ids[3]};
    asked.stop_sequences = {{{asked.allowed_ids[5], asked.allowed_ids[7]}}};
    if (one_in(random, 3)) asked.min_new_tokens = 6;
  } else if (one_in(random, 5)) {
    asked.banned_ids = id_set(random, vocabulary, 8);
  }
}

ipc::Generate random_ask(RandomData& random, int32_t vocabulary) {
  constexpr float kTemperatures[] = {0.0f, 0.5f, 1.0f, 1.0f, 1.7f};
  ipc::Generate asked;
  asked.prompt.resize(static_cast<size_t>(between(random, 4, 40)));
  for (int32_t& id : asked.prompt) id = between(random, 0, vocabulary - 1);
  if (one_in(random, 5)) asked.n = between(random, 2, 3);
  asked.max_new_tokens = between(random, 8, 24);
  asked.temperature = random.pick(kTemperatures);
  if (one_in(random, 3)) asked.top_k = between(random, 1, 50);
  if (one_in(random, 3)) asked.top_p = 0.9f;
  if (one_in(random, 4)) asked.min_p = 0.1f;
  asked.seed = random.bits();
  random_edits(random, vocabulary, asked);
  asked.ignore_eos = one_in(random, 2);
  if (one_in(random, 6)) asked.forced_ids = id_set(random, vocabulary, between(random, 1, 4));
  if (one_in(random, 4)) asked.top_logprobs = between(random, 1, 4);
  asked.entropy = one_in(random, 3);
  if (one_in(random, 5)) {
    asked.top_k = between(random, 1, 6);
    asked.kept_set = true;
  }
  asked.prompt_logprobs = one_in(random, 6);
  asked.priority = between(random, 0, 1);
  asked.masked = asked.allowed_ids.empty() && asked.banned_ids.empty() && one_in(random, 8);
  return asked;
}

class Maker {
 public:
  Maker(const MakerOptions& options, const ModelConfig& config, Backend& backend)
      : options_(options), config_(config), backend_(backend), random_(options.seed) {}

  Status run() {
    auto slot = std::make_unique<WeightSlot>(config_, backend_);
    slot->begin();
    EXACT_RETURN_IF_ERROR(fill_by_hash(config_, 1, *slot));
    EngineLimits limits;
    limits.max_context = 64;
    limits.page_size = 16;
    limits.max_running = 12;
    limits.max_step_tokens = 96;
    EXACT_ASSIGN(engine_, Engine::create(config_, backend_, std::move(slot), limits));
    EXACT_RETURN_IF_ERROR(open());
    EXACT_RETURN_IF_ERROR(write_update(UpdatePolicy::wait, true));
    uint64_t version = 1;
    const int32_t every = std::max(options_.requests / options_.versions, 1);
    for (int32_t sent = 0; sent < options_.requests || engine_->has_work();) {
      while (sent < options_.requests && engine_->status().waiting < 2) {
        EXACT_RETURN_IF_ERROR(submit(static_cast<uint64_t>(sent)));
        sent++;
        const bool due = sent % every == every / 2;
        if (due && version < static_cast<uint64_t>(options_.versions)) {
          while (engine_->update_pending()) EXACT_RETURN_IF_ERROR(step());
          EXACT_RETURN_IF_ERROR(update(++version));
        }
      }
      EXACT_RETURN_IF_ERROR(step());
    }
    return writer_->sync();
  }

 private:
  Status open() {
    journal::SessionRecord session;
    session.session = options_.seed;
    session.program = "make_journal";
    session.contract_id = engine_->contract().to_hex();
    session.backend = backend_.name();
    session.vocabulary = config_.vocabulary;
    session.max_context = engine_->limits().max_context;
    journal::WriterOptions options;
    options.directory = options_.directory;
    EXACT_ASSIGN(journal::JournalWriter writer, journal::JournalWriter::open(options, session));
    next_id_ = writer.report().next_id;
    writer_.emplace(std::move(writer));
    return {};
  }

  template <class Record>
  Status write(const Record& record) {
    return writer_->append(Record::kKind, next_id_++, 1, journal::encode_record(record));
  }

  Status write_update(UpdatePolicy policy, bool at_start) {
    journal::UpdateRecord record;
    record.weight_version = engine_->status().version.value;
    record.weights_digest = engine_->status().weights_digest.to_hex();
    record.at_start = at_start;
    record.policy = static_cast<uint8_t>(policy);
    return write(record);
  }

  Status submit(uint64_t id) {
    const ipc::Generate asked = random_ask(random_, config_.vocabulary);
    EXACT_RETURN_IF_ERROR(engine_->submit(worker::to_request(RequestId{id}, asked)));
    asked_[id] = asked;
    if (one_in(random_, 12)) to_cancel_.push_back(id);
    return {};
  }

  Status update(uint64_t version) {
    EXACT_ASSIGN(WeightSlot * slot, engine_->begin_update());
    EXACT_RETURN_IF_ERROR(fill_by_hash(config_, version, *slot));
    constexpr UpdatePolicy kPolicies[] = {UpdatePolicy::recompute, UpdatePolicy::wait,
                                          UpdatePolicy::abort};
    policy_ = kPolicies[(version - 2) % 3];
    return engine_->commit_update(WeightVersion{version}, policy_);
  }

  Status answer(const MaskWanted& wanted) {
    const std::vector<int32_t> ids = id_set(random_, config_.vocabulary, 8);
    EXACT_RETURN_IF_ERROR(engine_->allow(wanted.request, wanted.sample_index, wanted.index, ids));
    auto& record = masks_[{wanted.request.value, wanted.sample_index}];
    record.mask_counts.push_back(8);
    record.mask_ids.insert(record.mask_ids.end(), ids.begin(), ids.end());
    return {};
  }

  Status step() {
    if (!to_cancel_.empty() && one_in(random_, 8)) {
      (void)engine_->cancel(RequestId{to_cancel_.back()});  // not_found: it has ended
      to_cancel_.pop_back();
    }
    EXACT_ASSIGN(StepReport report, engine_->step());
    if (report.committed) EXACT_RETURN_IF_ERROR(write_update(policy_, false));
    for (const MaskWanted& wanted : report.masks_wanted) EXACT_RETURN_IF_ERROR(answer(wanted));
    for (SampleResult& result : report.samples) {
      const uint64_t id = result.request.value;
      journal::CompletionRecord record = std::move(masks_[{id, result.sample_index}]);
      record.client = "maker";
      record.request = asked_[id];
      record.completion = worker::to_completion(std::move(result));
      EXACT_RETURN_IF_ERROR(write(record));
    }
    return {};
  }

  MakerOptions options_;
  ModelConfig config_;
  Backend& backend_;
  RandomData random_;
  std::unique_ptr<Engine> engine_;
  std::optional<journal::JournalWriter> writer_;
  uint64_t next_id_ = 0;
  UpdatePolicy policy_ = UpdatePolicy::wait;
  std::map<uint64_t, ipc::Generate> asked_;
  std::map<std::pair<uint64_t, int32_t>, journal::CompletionRecord> masks_;
  std::vector<uint64_t> to_cancel_;
};

}  // namespace

Status fill_by_hash(const ModelConfig& config, uint64_t seed, WeightSlot& slot) {
  const std::vector<TensorSpec>& table = slot.table();
  for (size_t i = 0; i < table.size(); i++) {
    std::vector<uint16_t> values(static_cast<size_t>(table[i].rows * table[i].columns));
    hash_tensor(table[i], config, seed, values);
    EXACT_RETURN_IF_ERROR(slot.append(i, std::as_bytes(std::span(values))));
  }
  return slot.complete();
}

Status HashWeights::load(const Digest128& weights, WeightSlot& slot) {
  for (uint64_t seed = 1; seed <= versions_; seed++) {
    slot.begin();
    EXACT_RETURN_IF_ERROR(fill_by_hash(config_, seed, slot));
    if (slot.digest() == weights) return {};
  }
  return Status(Code::not_found,
                "no seed up to " + std::to_string(versions_) + " has digest " + weights.to_hex());
}

Status make_test_journal(const MakerOptions& options, const ModelConfig& config, Backend& backend) {
  return Maker(options, config, backend).run();
}

}  // namespace exact
