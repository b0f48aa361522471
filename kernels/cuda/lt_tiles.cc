// Without split K a small output has few chains, and a tile's time is that of copying its operands:
// (features + tokens) * K. So the tile to take is the one with the least of both whose tiles still
// fit on the multiprocessors all at once. The heuristic expects to split K there and, asked not to,
// names tiles meant for that, or none.
#include "kernels/cuda/lt_tiles.h"

#include <algorithm>

namespace exact::cuda {
namespace {

// cuBLASLt 13's kernels for Hopper, by the copy engine and wgmma.
constexpr int kHopperAlgorithm = 66;
constexpr int64_t kMostEdges = 320;  // features + tokens; beyond it arithmetic decides
constexpr size_t kMostConfigs = 12;

struct Tile {
  cublasLtMatmulTile_t id;
  int features, tokens;
};

// One side is a multiple of 64: the rows of a wgmma.
constexpr Tile kTiles[] = {
    {CUBLASLT_MATMUL_TILE_8x64, 8, 64},       {CUBLASLT_MATMUL_TILE_16x64, 16, 64},
    {CUBLASLT_MATMUL_TILE_24x64, 24, 64},     {CUBLASLT_MATMUL_TILE_32x64, 32, 64},
    {CUBLASLT_MATMUL_TILE_40x64, 40, 64},     {CUBLASLT_MATMUL_TILE_48x64, 48, 64},
    {CUBLASLT_MATMUL_TILE_56x64, 56, 64},     {CUBLASLT_MATMUL_TILE_64x64, 64, 64},
    {CUBLASLT_MATMUL_TILE_80x64, 80, 64},     {CUBLASLT_MATMUL_TILE_96x64, 96, 64},
    {CUBLASLT_MATMUL_TILE_112x64, 112, 64},   {CUBLASLT_MATMUL_TILE_128x64, 128, 64},
    {CUBLASLT_MATMUL_TILE_160x64, 160, 64},   {CUBLASLT_MATMUL_TILE_192x64, 192, 64},
    {CUBLASLT_MATMUL_TILE_256x64, 256, 64},   {CUBLASLT_MATMUL_TILE_64x8, 64, 8},
    {CUBLASLT_MATMUL_TILE_64x16, 64, 16},     {CUBLASLT_MATMUL_TILE_64x32, 64, 32},
    {CUBLASLT_MATMUL_TILE_64x96, 64, 96},     {CUBLASLT_MATMUL_TILE_64x128, 64, 128},
    {CUBLASLT_MATMUL_TILE_64x192, 64, 192},   {CUBLASLT_MATMUL_TILE_64x256, 64, 256},
    {CUBLASLT_MATMUL_TILE_128x32, 128, 32},   {CUBLASLT_MATMUL_TILE_128x96, 128, 96},
    {CUBLASLT_MATMUL_TILE_80x128, 80, 128},   {CUBLASLT_MATMUL_TILE_96x128, 96, 128},
    {CUBLASLT_MATMUL_TILE_112x128, 112, 128}, {CUBLASLT_MATMUL_TILE_128x128, 128, 128},
    {CUBLASLT_MATMUL_TILE_128x160, 128, 160}, {CUBLASLT_MATMUL_TILE_160x128, 160, 128},
    {CUBLASLT_MATMUL_TILE_128x192, 128, 192}, {CUBLASLT_MATMUL_TILE_192x128, 192, 128},
};

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

std::vector<LtConfig> one_wave_configs(int64_t tokens, int64_t out_features, int multiprocessors) {
  std::vector<Tile> fitting;
  for (const Tile& tile : kTiles) {
    const int64_t tiles = divide_up(out_features, tile.features) * divide_up(tokens, tile.tokens);
    if (tiles <= multiprocessors && tile.features + tile.tokens <= kMostEdges)
      fitting.push_back(tile);
  }
  // Of equal sums the first in the table.
  std::stable_sort(fitting.begin(), fitting.end(), [](const Tile& a, const Tile& b) {
    return a.features + a.tokens < b.features + b.tokens;
  });
  std::vector<LtConfig> configs;
  for (const Tile& tile : fitting) {
    for (const uint32_t custom : {0u, 1u}) {  // which operand gives the rows of a wgmma
      if (configs.size() == kMostConfigs) return configs;
      configs.push_back({.id = kHopperAlgorithm,
                         .tile = static_cast<uint32_t>(tile.id),
                         .stages = CUBLASLT_MATMUL_STAGES_64xAUTO,
                         .cluster = CUBLASLT_CLUSTER_SHAPE_1x1x1,
                         .custom = custom});
    }
  }
  return configs;
}

}  // namespace exact::cuda
