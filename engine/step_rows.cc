// step_rows.cc owns what a plan becomes for the backend: rows, the logits that are wanted of them,
// draws and scores; and the run itself.
#include <algorithm>

#include "engine/engine_impl.h"

namespace exact {

void Engine::Impl::gather_inputs(StepReport& report) {
  ids_.clear(), positions_.clear(), chunks_.clear();
  logit_rows_.clear(), drawn_.clear(), sample_rows_.clear();
  scored_.clear(), score_targets_.clear();
  for (const PlannedChunk& planned : plan_.chunks) {
    const Sequence& running = sequence(planned.id);
    const auto first_row = static_cast<int64_t>(ids_.size());
    const int32_t end = planned.first_position + planned.row_count;
    EXACT_CHECK(planned.first_position == running.computed && end <= known_positions(running),
                "a chunk that does not continue its sequence");
    for (int32_t position = planned.first_position; position < end; position++) {
      ids_.push_back(running.tokens[static_cast<size_t>(position)]);
      positions_.push_back(position);
    }
    chunks_.push_back({first_row, planned.row_count, planned.first_position, running.kv.pages});
    const bool decoding = planned.row_count == 1 && planned.first_position >= running.prompt_size;
    (decoding ? report.decode_rows : report.prefill_rows) += planned.row_count;
    if (!running.is_score && end == known_positions(running)) {
      gather_draws(running, first_row + planned.row_count - 1);
    }
  }
  drawn_rows_ = static_cast<int64_t>(logit_rows_.size());
  gather_details();
  // Rows to score come after rows to draw from, so that each kind is one block of logits.
  for (size_t c = 0; c < plan_.chunks.size(); c++) {
    gather_scores(plan_.chunks[c], chunks_[c].first_row);
  }
  outcomes_.assign(sample_rows_.size(), {});
  score_logprobs_.assign(score_targets_.size(), 0.0f);
}

// One row of logits; all samples of a request draw their first token from the leader's.
void Engine::Impl::gather_draws(const Sequence& sequence, int64_t row) {
  const SequenceGroup& group = group_of(sequence);
  const auto logits_row = static_cast<int64_t>(logit_rows_.size());
  logit_rows_.push_back(row);
  const auto draw = [&](const Sequence& sample) {
    drawn_.push_back(sample.id);
    SampleRow& drawn = sample_rows_.emplace_back(sample.draw);
    drawn.row = logits_row;
    drawn.position = static_cast<int32_t>(sequence.tokens.size());
  };
  if (group.forked) return draw(sequence);
  for (const SequenceId id : group.members) draw(this->sequence(id));
}

void Engine::Impl::gather_details() {
  if (kept_ids_.size() < drawn_.size()) kept_ids_.resize(drawn_.size());
  details_.resize(drawn_.size());
  for (size_t i = 0; i < drawn_.size(); i++) {
    kept_ids_[i].clear();
    Sequence& drawn = sequence(drawn_[i]);
    if (drawn.draws_plainly) continue;
    fill_detail(drawn, kept_ids_[i], details_[i]);
    sample_rows_[i].detail = &details_[i];
  }
}

// Makes room in the sequence for what the backend reports.
void Engine::Impl::fill_detail(Sequence& sequence, std::vector<int32_t>& kept,
                               SampleDetail& detail) {
  const GenerateRequest& params = group_of(sequence).params;
  const auto index = sequence.logprobs.size();
  const bool is_forced = index < params.forced_ids.size();
  const ReportParams& report = params.report;
  detail = SampleDetail();
  sequence.edits.fill(detail);
  if (is_forced) detail.forced_token = params.forced_ids[index];
  if (report.top_logprobs > 0) {
    const auto count = static_cast<size_t>(report.top_logprobs);
    sequence.top_ids.resize((index + 1) * count);
    sequence.top_logprobs.resize((index + 1) * count);
    detail.top_ids = std::span(sequence.top_ids).last(count);
    detail.top_logprobs = std::span(sequence.top_logprobs).last(count);
  }
  if (report.entropy) {
    sequence.entropies.resize(index + 1);
    detail.entropy = &sequence.entropies.back();
  }
  if (report.kept_set) detail.kept_ids = &kept;
}

// Rows of a text that is still to be scored.
void Engine::Impl::gather_scores(const PlannedChunk& chunk, int64_t first_row) {
  const Sequence& running = sequence(chunk.id);
  if (!running.scores_text) return;
  const SequenceGroup& group = group_of(running);
  const int32_t end = std::min(chunk.first_position + chunk.row_count, group.text_rows());
  for (int32_t position = std::max(chunk.first_position, group.text_rows_done); position < end;
       position++) {
    scored_.push_back({running.group, position});
    score_targets_.push_back(running.tokens[static_cast<size_t>(position) + 1]);
    logit_rows_.push_back(first_row + position - chunk.first_position);
  }
}

void Engine::Impl::run() {
  const ModelWeights& weights = live_->weights();
  model_->forward(weights, {ids_, positions_, chunks_}, cache_);
  if (logit_rows_.empty()) return;
  const TensorView logits = model_->logits(weights, logit_rows_);
  const auto scores = static_cast<int64_t>(score_targets_.size());
  if (drawn_rows_ > 0) {
    backend_.sample(logits.slice_rows(0, drawn_rows_), sample_rows_, outcomes_);
  }
  if (scores > 0) {
    backend_.target_logprobs(logits.slice_rows(drawn_rows_, scores), score_targets_,
                             score_logprobs_);
  }
  last_logits_ = logits.slice_rows(drawn_rows_ + scores - 1, 1);
}

}  // namespace exact
