#include "kernels/cuda/detailed_rows.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "kernels/cuda/detailed_sample.h"

namespace exact::cuda {
namespace {

void check_detail(const SampleDetail& detail, int64_t vocabulary) {
  for (const LogitEdit& edit : detail.edits) {
    EXACT_CHECK(edit.token >= 0 && edit.token < vocabulary, "an edit of a token of the vocabulary");
  }
  EXACT_CHECK(detail.allowed.empty() ||
                  static_cast<int64_t>(detail.allowed.size()) == contract::mask_words(vocabulary),
              "a mask of the vocabulary");
  EXACT_CHECK(detail.forced_token < vocabulary, "a forced token of the vocabulary");
  const auto top = static_cast<int64_t>(detail.top_ids.size());
  EXACT_CHECK(detail.top_ids.size() == detail.top_logprobs.size(), "a log-probability a top id");
  EXACT_CHECK(top <= vocabulary && top <= contract::kMaxTopLogprobs, "too many top tokens");
}

template <class T>
Result<const T*> push(TransferArena& arena, const std::vector<T>& values, cudaStream_t stream) {
  if (values.empty()) return static_cast<const T*>(nullptr);
  EXACT_ASSIGN(const void* device, arena.push(std::as_bytes(std::span(values)), stream));
  return static_cast<const T*>(device);
}

void unpack(const DetailedOutcome& from, const RowToDraw& to) {
  const SampleDetail& detail = *to.row->detail;
  *to.outcome = from.outcome;
  std::copy_n(from.top_ids, detail.top_ids.size(), detail.top_ids.begin());
  std::copy_n(from.top_logprobs, detail.top_logprobs.size(), detail.top_logprobs.begin());
  if (detail.entropy != nullptr) *detail.entropy = from.entropy;
}

void unpack_mask(const uint32_t* words, int64_t count, std::vector<int32_t>& ids) {
  ids.clear();
  for (int64_t w = 0; w < count; w++) {
    for (uint32_t left = words[w]; left != 0; left &= left - 1) {
      ids.push_back(static_cast<int32_t>(32 * w + std::countr_zero(left)));
    }
  }
}

// Where the kernel writes the kept set of a row; null where it is not wanted.
Result<uint32_t*> expect_mask(const SampleDetail& detail, int64_t vocabulary,
                              TransferArena& arena) {
  if (detail.kept_ids == nullptr) return static_cast<uint32_t*>(nullptr);
  const int64_t words = contract::mask_words(vocabulary);
  std::vector<int32_t>* const ids = detail.kept_ids;
  EXACT_ASSIGN(
      void* device,
      arena.expect(static_cast<size_t>(words) * sizeof(uint32_t), [=](const std::byte* bytes) {
        unpack_mask(reinterpret_cast<const uint32_t*>(bytes), words, *ids);
      }));
  return static_cast<uint32_t*>(device);
}

}  // namespace

Status DetailedRows::reserve_scratch(size_t bytes, cudaStream_t stream) {
  if (bytes <= scratch_.bytes()) return {};
  EXACT_RETURN_IF_ERROR(cuda_status(cudaStreamSynchronize(stream), "the rows before"));
  scratch_.reset();
  EXACT_ASSIGN(scratch_, allocate_device(bytes));
  return {};
}

Status DetailedRows::sample(const uint16_t* logits, int64_t vocabulary,
                            std::span<const RowToDraw> rows, TransferArena& arena,
                            cudaStream_t stream) {
  const auto count = static_cast<int64_t>(rows.size());
  EXACT_RETURN_IF_ERROR(reserve_scratch(detailed_sample_scratch(vocabulary, count), stream));
  std::vector<LogitEdit> edits;
  std::vector<uint32_t> masks;
  for (const RowToDraw& to_draw : rows) {
    const SampleDetail& detail = *to_draw.row->detail;
    check_detail(detail, vocabulary);
    edits.insert(edits.end(), detail.edits.begin(), detail.edits.end());
    masks.insert(masks.end(), detail.allowed.begin(), detail.allowed.end());
  }
  EXACT_ASSIGN(const LogitEdit* next_edit, push(arena, edits, stream));
  EXACT_ASSIGN(const uint32_t* next_mask, push(arena, masks, stream));
  std::vector<DetailedRow> device_rows;
  for (const RowToDraw& to_draw : rows) {
    const SampleDetail& detail = *to_draw.row->detail;
    DetailedRow& row = device_rows.emplace_back();
    row.sample = *to_draw.row;
    row.penalties = {detail.repetition_penalty, detail.presence_penalty, detail.frequency_penalty};
    row.edits = next_edit;
    row.edit_count = static_cast<int32_t>(detail.edits.size());
    row.allowed = detail.allowed.empty() ? nullptr : next_mask;
    row.forced_token = detail.forced_token;
    row.top_count = static_cast<int32_t>(detail.top_ids.size());
    row.wants_entropy = detail.entropy != nullptr;
    EXACT_ASSIGN(row.kept, expect_mask(detail, vocabulary, arena));
    next_edit += detail.edits.size();
    next_mask += detail.allowed.size();
  }
  EXACT_ASSIGN(const DetailedRow* input, push(arena, device_rows, stream));
  const std::vector<RowToDraw> wanted(rows.begin(), rows.end());
  EXACT_ASSIGN(void* output,
               arena.expect(rows.size() * sizeof(DetailedOutcome), [wanted](const std::byte* at) {
                 const auto* outcomes = reinterpret_cast<const DetailedOutcome*>(at);
                 for (size_t i = 0; i < wanted.size(); i++) unpack(outcomes[i], wanted[i]);
               }));
  return launch_detailed_sample(logits, vocabulary, input, count, scratch_.data(),
                                static_cast<DetailedOutcome*>(output), stream);
}

}  // namespace exact::cuda
