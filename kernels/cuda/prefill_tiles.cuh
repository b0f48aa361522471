// prefill_tiles.cuh owns what moves in prefill attention: which tile a block takes next, the ring
// of key and value blocks in shared memory, and the warp that fills it from the pages.
#pragma once

#include <cstdint>

#include "kernels/contract/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace exact::cuda::prefill {

inline constexpr int kGroups = 2;      // warpgroups that compute
inline constexpr int kGroupRows = 64;  // query rows of a warpgroup
inline constexpr int kRowBytes = 128;  // of a column block
inline constexpr int kStages = 4;      // of the ring, for keys and for values
static_assert(kGroups * kGroupRows == kQueryTile);

// Queries of one sequence and one head; what every warp of the block has to know.
struct Work {
  int first_row;       // of the step
  int rows;            // 1 to kQueryTile; 0: no more work
  int first_position;  // of the first row
  int last_written;    // the sequence's last position whose key and value are in its pages
  int head;
};

template <int kHeadWidth>
struct Shared {
  static constexpr int kKeys = contract::key_block(kHeadWidth);
  static constexpr int kColumnBlocks = kHeadWidth / kColumnBlock;
  static constexpr int kBlockBytes = kKeys * kRowBytes;  // of one column block
  static constexpr int kStageBytes = kColumnBlocks * kBlockBytes;
  static constexpr int kQueryPitch = kHeadWidth * 2 + 16;  // bytes: ldmatrix without conflicts

  alignas(1024) uint8_t keys[kStages][kStageBytes];
  alignas(1024) uint8_t values[kStages][kStageBytes];
  alignas(16) uint8_t query[kQueryTile * kQueryPitch];
  alignas(16) uint8_t out[kQueryTile * kQueryPitch];
  Work work;
  uint64_t query_full, query_empty;
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};

// A stage of the ring and the parity of its use: keys and values take turns in step.
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

// Tiles are sorted by work: blocks take them in turn, every second round in reverse, so that each
// block has about the same sum. Heads of a tile follow one another: they share keys and values.
struct Schedule {
  int items;
  int round = 0;

  // -1: nothing is left.
  __device__ int next() {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int item = round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
    round++;
    return item < items ? item : round * blocks < items ? next() : -1;
  }
};

// The warps that copy: two take the keys and two the values, each every second copy of a block. A
// lane has one copy: a run of slots of one column block, contiguous in its page and in the tile.
inline constexpr int kCopyWarps = 4;

template <int kHeadWidth>
class Producer {
  using Tile = Shared<kHeadWidth>;

 public:
  __device__ Producer(Tile& shared, const AttentionInputs& inputs, int warp, int lane)
      : shared_(shared),
        inputs_(inputs),
        warp_(warp),
        lane_(lane),
        values_(warp % 2 != 0),
        run_(min(inputs.pages.page_size, Tile::kKeys)) {
    const int copy = lane * 2 + warp / 2;
    column_block_ = copy % Tile::kColumnBlocks;
    first_key_ = copy / Tile::kColumnBlocks * run_;  // kKeys or more: this lane has nothing to do
  }

  __device__ void run() {
    Schedule schedule{inputs_.step.query_tiles * inputs_.query_heads};
    for (int item = schedule.next(); item >= 0; item = schedule.next()) {
      const int head = item % inputs_.query_heads;
      const QueryTile tile = inputs_.step.tiles[item / inputs_.query_heads];
      if (tile.sequence < 0) continue;
      const DeviceSequence sequence = inputs_.step.sequences[tile.sequence];
      const int left = sequence.row_count - tile.first;
      if (left <= 0) continue;
      const Work work{sequence.first_row + tile.first, min(left, kQueryTile),
                      sequence.first_position + tile.first,
                      sequence.first_position + sequence.row_count - 1, head};
      copy_query(work);
      copy_blocks(work, inputs_.step.pages + sequence.first_page);
    }
    copy_query({0, 0, 0, 0, 0});
  }

 private:
  // Each warp its share of the rows.
  __device__ void copy_query(const Work& work) {
    barrier_wait(shared_address(&shared_.query_empty), query_parity_ ^ 1u);
    query_parity_ ^= 1u;
    const uint32_t full = shared_address(&shared_.query_full);
    const int row = warp_ * 32 + lane_;
    if (lane_ == 0) {
      if (warp_ == 0) shared_.work = work;
      barrier_expect(full,
                     static_cast<uint32_t>(max(0, min(work.rows - row, 32)) * kHeadWidth * 2));
    }
    __syncwarp();
    if (row >= work.rows) return;
    copy_bytes(
        shared_address(shared_.query) + static_cast<uint32_t>(row * Tile::kQueryPitch),
        inputs_.query + (work.first_row + row) * inputs_.query_stride + work.head * kHeadWidth,
        kHeadWidth * 2, full);
  }

  // Every key block from that of the last row down to 0. Runs that no token has written are left
  // out: the page table may end before them.
  __device__ void copy_blocks(const Work& work, const int32_t* table) {
    const int kv_head = work.head / (inputs_.query_heads / inputs_.pages.kv_heads);
    const int last_position = work.first_position + work.rows - 1;
    const int blocks = last_position / Tile::kKeys + 1;
    const bool mine = first_key_ < Tile::kKeys;
    int position = (blocks - 1) * Tile::kKeys + first_key_;
    bool written = mine && position <= work.last_written;
    int page = written ? table[position / inputs_.pages.page_size] : 0;
    for (int block = 0; block < blocks; block++) {
      const int slot = position & (inputs_.pages.page_size - 1);
      const uint16_t* from = (values_ ? inputs_.pages.values(page, kv_head, column_block_)
                                      : inputs_.pages.keys(page, kv_head, column_block_)) +
                             slot * kColumnBlock;
      const bool copies = written;
      position -= Tile::kKeys;  // the next block's page, long before it is needed
      written = mine && position >= 0;
      page = written ? table[position / inputs_.pages.page_size] : 0;
      copy(copies, from);
    }
  }

  __device__ void copy(bool mine, const uint16_t* from) {
    const int stage = turn_.stage;
    barrier_wait(shared_address((values_ ? shared_.values_empty : shared_.keys_empty) + stage),
                 turn_.parity ^ 1u);
    turn_.advance();
    const uint32_t full =
        shared_address((values_ ? shared_.values_full : shared_.keys_full) + stage);
    const auto bytes = static_cast<uint32_t>(run_ * kRowBytes);
    const int copies = __popc(__ballot_sync(~0u, mine));
    if (lane_ == 0) barrier_expect(full, static_cast<uint32_t>(copies) * bytes);
    __syncwarp();
    if (!mine) return;
    const uint8_t* to = (values_ ? shared_.values : shared_.keys)[stage];
    copy_bytes(shared_address(to) + static_cast<uint32_t>(column_block_ * Tile::kBlockBytes +
                                                          first_key_ * kRowBytes),
               from, bytes, full);
  }

  Tile& shared_;
  const AttentionInputs& inputs_;
  int warp_, lane_;
  bool values_;
  int run_, first_key_, column_block_;
  uint32_t query_parity_ = 0;
  Turn turn_;
};

}  // namespace exact::cuda::prefill
