#include "kernels/cpu/attention.h"

#include <algorithm>

#include "kernels/contract/attention.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/widened_rows.h"

namespace exact::cpu {
namespace {

// Query rows (positions times the heads of a group) that share a widened block of keys.
constexpr int64_t kTaskRows = 64;
constexpr float kMinusInfinity = -__builtin_inff();

struct Shape {
  int64_t head_width;    // E
  int64_t padded_width;  // E rounded up to panels
  int64_t group;         // query heads to a kv head
  int64_t block;         // keys in a block
  int64_t row_capacity;  // of a task
  float scale;           // of scores
};

Shape make_shape(const KvGeometry& geometry, int64_t query_width) {
  Shape shape{};
  shape.head_width = geometry.head_width;
  shape.padded_width = round_up(geometry.head_width, kPanelColumns);
  shape.group = query_width / geometry.head_width / geometry.kv_heads;
  shape.block = contract::key_block(geometry.head_width);
  shape.row_capacity = std::max<int64_t>(1, kTaskRows / shape.group) * shape.group;
  shape.scale = contract::score_scale(geometry.head_width);
  return shape;
}

// Working memory of one task. Row r is query r / group of the task, head r % group of the group.
struct TaskScratch {
  WidenedRows queries;        // [rows][E]
  WidenedRows probabilities;  // [rows][block]
  uint16_t* panel;            // E rows of 32, for what does not fill a panel of the cache
  uint8_t* wild;              // of the panel's steps
  float* scores;              // [rows][block]
  float* sums;                // [rows][padded E]
  SoftmaxState* states;       // [rows]
  size_t bytes;

  TaskScratch(void* base, const Shape& shape) {
    ScratchCutter cutter(base);
    const auto rows = static_cast<size_t>(shape.row_capacity);
    const auto panel_rows = static_cast<size_t>(std::max(shape.head_width, shape.block));
    queries = WidenedRows::take(cutter, shape.row_capacity, shape.head_width);
    probabilities = WidenedRows::take(cutter, shape.row_capacity, shape.block);
    panel = cutter.take<uint16_t>(static_cast<size_t>(shape.head_width) * kPanelColumns);
    wild = cutter.take<uint8_t>(panel_rows / kChainStep);
    scores = cutter.take<float>(rows * static_cast<size_t>(shape.block));
    sums = cutter.take<float>(rows * static_cast<size_t>(shape.padded_width));
    states = cutter.take<SoftmaxState>(rows);
    bytes = cutter.used();
  }
};

// One task: all of the arithmetic of some query rows against their own prefix.
class TaskRunner {
 public:
  TaskRunner(CpuContext& context, int thread, const Shape& shape, const SequenceChunk& chunk,
             const AttentionTask& task, const HeadPages& pages)
      : context_(context),
        thread_(thread),
        shape_(shape),
        chunk_(chunk),
        task_(task),
        pages_(pages),
        scratch_(context.scratch_of(thread), shape),
        row_count_(task.query_count * shape.group),
        key_end_(int64_t{chunk.first_position} + chunk.row_count) {}

  void run(const TensorView& query, const TensorView& out) {
    begin(query);
    const int64_t last = position_of(row_count_ - 1);
    for (int64_t block = last / shape_.block; block >= 0; block--) {
      const int64_t first_key = block * shape_.block;
      const int64_t first_row = first_active_row(first_key);
      const int64_t keys = std::min(shape_.block, key_end_ - first_key);
      score(first_row, first_key, keys);
      for (int64_t r = first_row; r < row_count_; r++) take_block(r, first_key);
      add_values(first_row, first_key, keys);
    }
    end(out);
  }

 private:
  int64_t position_of(int64_t row) const {
    return int64_t{chunk_.first_position} + task_.first_query + row / shape_.group;
  }
  int64_t query_row(int64_t row) const {
    return chunk_.first_row + task_.first_query + row / shape_.group;
  }
  int64_t query_column(int64_t row) const {
    return (task_.kv_head * shape_.group + row % shape_.group) * shape_.head_width;
  }
  // Rows before it stand before the block; positions ascend with rows.
  int64_t first_active_row(int64_t first_key) const {
    const int64_t first_position = position_of(0);
    return first_key <= first_position ? 0 : (first_key - first_position) * shape_.group;
  }

  void begin(const TensorView& query) {
    for (int64_t r = 0; r < row_count_; r++) {
      const uint16_t* row = query.row<const uint16_t>(query_row(r)) + query_column(r);
      context_.kernels.widen_row(row, shape_.head_width, scratch_.queries.row(r));
      scratch_.states[r] = {kMinusInfinity, {0.0f, 0.0f, 0.0f, 0.0f}, true};
    }
    std::fill_n(scratch_.sums, row_count_ * shape_.padded_width, 0.0f);
  }

  int32_t page_of(int64_t key) const {
    return chunk_.pages[static_cast<size_t>(key / pages_.page_size)];
  }

  ChainPanel checked_panel(const uint16_t* values, int64_t steps) {
    context_.kernels.find_wild(values, steps, scratch_.wild);
    return {values, scratch_.wild, values};
  }

  // Where a key's panel, or a value's columns, lie in the cache.
  const uint16_t* key_address(int64_t key) const {
    return pages_.key_panel(page_of(key), key % pages_.page_size);
  }
  const uint16_t* value_address(int64_t key, int64_t column) const {
    return pages_.value_panel(page_of(key), key % pages_.page_size, column);
  }
  // What follows the values of keys [.., key) in these columns, when the block ends at `key_end`:
  // more values, other columns, the keys of the block below; in the end the first key's again.
  const uint16_t* after_values(int64_t first_key, int64_t key, int64_t key_end,
                               int64_t column) const {
    if (key < key_end) return value_address(key, column);
    if (column + kPanelColumns < shape_.head_width) {
      return value_address(first_key, column + kPanelColumns);
    }
    return key_address(first_key > 0 ? first_key - shape_.block : 0);
  }

  // Keys [first_key, first_key + 32) as columns; those from `valid` on are zeros: what lies there
  // is another sequence's, or stale.
  ChainPanel key_panel(int64_t first_key, int64_t valid) {
    const int64_t steps = shape_.head_width / kChainStep;
    if (valid == kPanelColumns && pages_.key_run == kPanelColumns) {
      return checked_panel(key_address(first_key), steps);
    }
    std::fill_n(scratch_.panel, shape_.head_width * kPanelColumns, uint16_t{0});
    for (int64_t column = 0; column < valid; column += pages_.key_run) {
      const int64_t key = first_key + column;
      const uint16_t* from = key_address(key);
      const int64_t columns = std::min(pages_.key_run, valid - column);
      for (int64_t d = 0; d < shape_.head_width; d++) {
        std::copy_n(from + d * pages_.key_run, columns,
                    scratch_.panel + d * kPanelColumns + column);
      }
    }
    return checked_panel(scratch_.panel, steps);
  }

  void score(int64_t first_row, int64_t first_key, int64_t keys) {
    const int64_t rows = row_count_ - first_row;
    float* scores = scratch_.scores + first_row * shape_.block;
    std::fill_n(scores, rows * shape_.block, 0.0f);
    for (int64_t column = 0; column < keys; column += kPanelColumns) {
      const int64_t next = column + kPanelColumns;
      ChainPanel panel = key_panel(first_key + column, std::min(keys, next) - column);
      panel.next = next < keys ? key_address(first_key + next) : value_address(first_key, 0);
      context_.chain(thread_,
                     scratch_.queries.operands(first_row, rows, 0, scores + column, shape_.block),
                     panel, shape_.head_width / kChainStep);
    }
  }

  // The softmax of one row over one block; its probabilities become operands.
  void take_block(int64_t row, int64_t first_key) {
    float* scores = scratch_.scores + row * shape_.block;
    const int64_t seen = std::min(shape_.block, position_of(row) + 1 - first_key);
    std::fill(scores + seen, scores + shape_.block, kMinusInfinity);
    SoftmaxState& state = scratch_.states[row];
    const bool first = state.first_block;
    uint16_t probabilities[contract::kMaxKeyBlock];
    const float factor =
        context_.rows.softmax_block(state, scores, shape_.block, shape_.scale, probabilities);
    context_.kernels.widen_row(probabilities, shape_.block, scratch_.probabilities.row(row));
    if (!first) {
      context_.rows.scale(scratch_.sums + row * shape_.padded_width, shape_.padded_width, factor);
    }
  }

  // Steps beyond the last key multiply zeros with zeros: they change nothing and are left out.
  void add_values(int64_t first_row, int64_t first_key, int64_t keys) {
    for (int64_t column = 0; column < shape_.head_width; column += kPanelColumns) {
      for (int64_t i = 0; i < keys;) {
        const int64_t slot = (first_key + i) % pages_.page_size;
        const int64_t run = std::min(keys - i, pages_.page_size - slot);
        const uint16_t* values = value_address(first_key + i, column);
        const int64_t steps = run / kChainStep;
        if (steps > 0) {
          ChainPanel panel = checked_panel(values, steps);
          panel.next = after_values(first_key, first_key + i + run, first_key + keys, column);
          multiply_values(first_row, i, column, panel, steps);
        }
        const int64_t left = run % kChainStep;  // at the end of the sequence alone
        if (left > 0) {
          const uint16_t* last = values + steps * kChainStep * kPanelColumns;
          multiply_values(first_row, i + steps * kChainStep, column, last_step(last, left), 1);
        }
        i += run;
      }
    }
  }

  // A step of values of which the first `count` exist: zeros beyond.
  ChainPanel last_step(const uint16_t* values, int64_t count) {
    std::fill_n(scratch_.panel, kChainStep * kPanelColumns, uint16_t{0});
    std::copy_n(values, count * kPanelColumns, scratch_.panel);
    return checked_panel(scratch_.panel, 1);
  }

  // Probabilities [first, first + 16 * steps) of the block times as many values.
  void multiply_values(int64_t first_row, int64_t first, int64_t column, const ChainPanel& panel,
                       int64_t steps) {
    float* sums = scratch_.sums + first_row * shape_.padded_width + column;
    context_.chain(thread_,
                   scratch_.probabilities.operands(first_row, row_count_ - first_row, first, sums,
                                                   shape_.padded_width),
                   panel, steps);
  }

  void end(const TensorView& out) {
    for (int64_t r = 0; r < row_count_; r++) {
      context_.rows.finish_attention(scratch_.sums + r * shape_.padded_width,
                                     scratch_.states[r].lane_sums, shape_.head_width,
                                     out.row<uint16_t>(query_row(r)) + query_column(r));
    }
  }

  CpuContext& context_;
  const int thread_;
  const Shape& shape_;
  const SequenceChunk& chunk_;
  const AttentionTask& task_;
  const HeadPages& pages_;
  TaskScratch scratch_;
  int64_t row_count_;
  int64_t key_end_;  // keys from here on do not exist for this chunk
};

void split_into_tasks(std::span<const SequenceChunk> chunks, int32_t kv_heads, const Shape& shape,
                      std::vector<AttentionTask>& tasks) {
  const auto most = static_cast<int32_t>(shape.row_capacity / shape.group);
  tasks.clear();
  for (size_t c = 0; c < chunks.size(); c++) {
    for (int32_t first = 0; first < chunks[c].row_count; first += most) {
      const int32_t count = std::min(most, chunks[c].row_count - first);
      for (int32_t head = 0; head < kv_heads; head++) {
        tasks.push_back({static_cast<int64_t>(c), head, first, count});
      }
    }
  }
}

}  // namespace

Status attention(CpuContext& context, const TensorView& query, const KvCache& cache,
                 std::span<const SequenceChunk> chunks, int32_t layer,
                 std::vector<AttentionTask>& tasks, const TensorView& out) {
  const Shape shape = make_shape(cache.geometry, query.columns);
  EXACT_RETURN_IF_ERROR(context.reserve_thread_scratch(TaskScratch(nullptr, shape).bytes));
  split_into_tasks(chunks, cache.geometry.kv_heads, shape, tasks);
  context.pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t index, int thread) {
    const AttentionTask& task = tasks[static_cast<size_t>(index)];
    const HeadPages pages(cache, layer, task.kv_head);
    TaskRunner runner(context, thread, shape, chunks[static_cast<size_t>(task.chunk)], task, pages);
    runner.run(query, out);
  });
  return {};
}

}  // namespace exact::cpu
