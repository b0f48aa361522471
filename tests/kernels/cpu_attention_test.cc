// Attention of the CPU backend against the literal rule: pages of every size in any order, chunks
// of any length, groups of query heads, and memory full of another sequence's leavings.
#include <algorithm>
#include <numeric>

#include "kernels/reference/reference.h"
#include "tests/kernels/cpu_test_support.h"

namespace exact {
namespace {

constexpr uint16_t kStale = 0x7fc1;  // a NaN

struct Sequence {
  std::vector<uint16_t> query, keys, values;
  std::vector<int32_t> pages;
  int32_t length = 0;
};

struct AttentionCase {
  reference::AttentionShape shape;
  int32_t page_size;
  std::vector<int32_t> lengths;
  DataKind kind;
  int32_t longest_chunk;
  uint64_t seed;
};

class CpuAttention : public CpuIsaTest {
 protected:
  // Sequences with scattered pages in a cache filled with NaN.
  void make_sequences(const AttentionCase& c, RandomData& data) {
    int32_t page_count = 3;
    for (const int32_t length : c.lengths) page_count += (length + c.page_size - 1) / c.page_size;
    auto cache =
        backend_->allocate_kv({2, page_count, c.page_size, c.shape.kv_heads, c.shape.head_width});
    ASSERT_TRUE(cache.is_ok());
    cache_ = std::move(cache).value();
    auto* memory = static_cast<uint16_t*>(cache_.storage.data());
    std::fill_n(memory, cache_.storage.bytes() / 2, kStale);
    std::vector<int32_t> free(static_cast<size_t>(page_count));
    std::iota(free.begin(), free.end(), 0);
    for (size_t i = free.size(); i > 1; i--) {
      std::swap(free[i - 1],
                free[static_cast<size_t>(data.between(0, static_cast<int64_t>(i) - 1))]);
    }
    sequences_.clear();
    for (const int32_t length : c.lengths) {
      Sequence s;
      s.length = length;
      s.query = draw(data, c.kind, int64_t{length} * c.shape.query_heads * c.shape.head_width);
      s.keys = draw(data, c.kind, int64_t{length} * c.shape.kv_heads * c.shape.head_width);
      s.values = draw(data, c.kind, int64_t{length} * c.shape.kv_heads * c.shape.head_width);
      for (int32_t p = 0; p * c.page_size < length; p++) {
        s.pages.push_back(free.back());
        free.pop_back();
      }
      sequences_.push_back(std::move(s));
    }
  }

  // One step: the next chunk of every sequence that has one, in one batch.
  bool step(const AttentionCase& c, Backend& backend, RandomData& data, std::vector<int32_t>& done,
            std::vector<std::vector<uint16_t>>& outs) {
    const int64_t query_width = int64_t{c.shape.query_heads} * c.shape.head_width;
    const int64_t kv_width = int64_t{c.shape.kv_heads} * c.shape.head_width;
    std::vector<uint16_t> query, keys, values;
    std::vector<SequenceChunk> chunks;
    std::vector<size_t> owners;
    int64_t rows = 0;
    for (size_t i = 0; i < sequences_.size(); i++) {
      const Sequence& s = sequences_[i];
      const auto count = static_cast<int32_t>(
          std::min<int64_t>(data.between(1, c.longest_chunk), s.length - done[i]));
      if (count == 0) continue;
      const auto take = [&](std::vector<uint16_t>& to, const std::vector<uint16_t>& from,
                            int64_t width) {
        to.insert(to.end(), from.begin() + done[i] * width,
                  from.begin() + (done[i] + count) * width);
      };
      take(query, s.query, query_width);
      take(keys, s.keys, kv_width);
      take(values, s.values, kv_width);
      chunks.push_back({rows, count, done[i], s.pages});
      owners.push_back(i);
      rows += count;
    }
    if (rows == 0) return false;
    std::vector<uint16_t> out(query.size());
    backend.begin_step({{}, {}, chunks});
    backend.store_kv(host_view(keys, rows, kv_width), host_view(values, rows, kv_width), 1, cache_);
    backend.attention(host_view(query, rows, query_width), cache_, 1,
                      host_view(out, rows, query_width));
    EXPECT_TRUE(backend.finish().is_ok());
    for (size_t i = 0; i < chunks.size(); i++) {
      const auto* from = out.data() + chunks[i].first_row * query_width;
      outs[owners[i]].insert(outs[owners[i]].end(), from, from + chunks[i].row_count * query_width);
      done[owners[i]] += chunks[i].row_count;
    }
    return true;
  }

  void check(const AttentionCase& c) {
    RandomData data(c.seed);
    ASSERT_NO_FATAL_FAILURE(make_sequences(c, data));
    std::vector<int32_t> done(sequences_.size(), 0);
    std::vector<std::vector<uint16_t>> outs(sequences_.size());
    while (step(c, *backend_, data, done, outs)) {
    }
    for (size_t i = 0; i < sequences_.size(); i++) {
      const Sequence& s = sequences_[i];
      std::vector<uint16_t> want(s.query.size());
      reference::attention(c.shape, s.query, 0, s.keys, s.values, want);
      expect_same(outs[i], want,
                  "seed " + std::to_string(c.seed) + ", E " + std::to_string(c.shape.head_width) +
                      ", H " + std::to_string(c.shape.query_heads) + ", G " +
                      std::to_string(c.shape.kv_heads) + ", P " + std::to_string(c.page_size) +
                      ", length " + std::to_string(s.length));
    }
  }

  KvCache cache_;
  std::vector<Sequence> sequences_;
};

TEST_P(CpuAttention, PagesOfEverySizeInAnyOrder) {
  uint64_t seed = 20;
  for (const int32_t page_size : {16, 32, 64, 128}) {
    check({{4, 2, 64}, page_size, {150, 1, 37}, DataKind::normal, 160, ++seed});
    check({{2, 2, 128}, page_size, {100, 65, 3}, DataKind::normal, 40, ++seed});
  }
}

TEST_P(CpuAttention, EveryHeadWidthOfTheContract) {
  uint64_t seed = 40;
  for (const int32_t head_width : {32, 64, 80, 96, 128, 256}) {
    check({{2, 1, head_width}, 32, {70, 20}, DataKind::normal, 33, ++seed});
  }
}

TEST_P(CpuAttention, EveryGroupOfQueryHeads) {
  uint64_t seed = 60;
  for (const int32_t group : {1, 2, 3, 5, 7, 8}) {
    check({{group, 1, 64}, 16, {40, 21}, DataKind::normal, 24, ++seed});
  }
}

TEST_P(CpuAttention, DecodeOneTokenAtATime) {
  check({{2, 1, 64}, 16, {140}, DataKind::normal, 1, 70});
  check({{2, 1, 128}, 32, {80}, DataKind::normal, 1, 71});
}

TEST_P(CpuAttention, SparseAndCancellingData) {
  check({{2, 1, 64}, 16, {60, 9}, DataKind::sparse, 30, 80});
  check({{2, 1, 64}, 16, {60, 9}, DataKind::cancellation, 30, 81});
  check({{2, 1, 64}, 16, {60, 9}, DataKind::all_ones, 30, 82});
}

TEST_P(CpuAttention, NumbersAtTheEdge) {
  check({{2, 1, 64}, 16, {20}, DataKind::largest, 20, 90});
  check({{2, 1, 64}, 16, {20}, DataKind::wide_exponents, 20, 91});
  check({{2, 1, 64}, 16, {20}, DataKind::tiny, 20, 92});
}

INSTANTIATE_TEST_SUITE_P(Isa, CpuAttention, testing::ValuesIn(kAllIsas), isa_test_name);

}  // namespace
}  // namespace exact
