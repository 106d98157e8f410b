// Constants, shared memory and loops of the product kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "ptx.cuh"

namespace pntk::cuda {

// Group: channels that share a column block, ki up to kTile. A block of threads takes `Rows` rows
// and 64 columns of tiles at a time (a macro tile), four warps for 64 x 64, each 32 x 32.
template <int Planes, int Rows, int Group>
struct ProductTraits {
  static constexpr int kPlanes = Planes, kRows = Rows, kGroup = Group;
  static constexpr int kThreads = 2 * Rows;
  static constexpr int kWarpColumns = 32;
  // column blocks that a warp's columns belong to
  static constexpr int kGroups = Group < kWarpColumns ? kWarpColumns / Group : 1;
  // Positions a stage: 128 bytes a row, what eight 16-byte vectors of a swizzle span. Also the most
  // that the tensor cores, which truncate, sum up before the sum is added in float32.
  static constexpr int kChunk = 64;
  static constexpr int kRowBytes = 2 * kChunk;
  // two planes compute three times as long a stage, so that one stage ahead is enough
  static constexpr int kStages = Planes == 1 ? 3 : 2;
  static constexpr int kLeftPlane = Rows * kRowBytes, kRightPlane = kChunk * kRowBytes;
  static constexpr int kLeftBytes = Planes * kLeftPlane, kRightBytes = Planes * kRightPlane;
  // Swizzled, not padded, against bank conflicts: with padding a single block of two planes would
  // fit an A100.
  static constexpr int kSumsBytes = Rows * kTile * static_cast<int>(sizeof(float));
  // offsets in shared memory: sums, right factors, left factors
  static constexpr int kRight = kSumsBytes, kLeft = kRight + kStages * kRightBytes;
  static_assert(kRight % 1024 == 0 && kLeft % 1024 == 0);
  // 128 rows are taken only where two left factors do; devices 8.6 and 8.9 give a block 99 KiB
  static_assert(kLeft + (Rows == kTile ? kStages : 2) * kLeftBytes <= 99 * 1024);
  // Blocks a multiprocessor, which hide each other's barriers: as many as registers and an H100's
  // shared memory hold without spills.
  static constexpr int kBlocks = Planes == 1 && Rows == 64 ? 3 : 2;

  static constexpr std::size_t shared_bytes(int left_slots) {
    return kLeft + static_cast<std::size_t>(left_slots) * kLeftBytes;
  }
};

// A call, in numbers of 32 bits where they fit, since products of 64 take four instructions.
struct ProductPlan {
  const bf16 *left, *right;
  float* to;
  const std::int32_t *rho, *gamma_columns, *gamma_rows;
  const unsigned char* signs;
  std::int64_t batch, splits_rows, splits_columns;
  std::int64_t left_sample, left_plane, right_sample, right_plane;  // distances
  int ko, ki, log_ko;
  int rows, row_blocks, channel_blocks;
  unsigned row_bytes, block_bytes;  // signs of a row, of a column block
  int positions, padded_positions, padded_channels;
  int size[3], padding[3], kernel[3], stride[3], dilation[3], grid[3];
  int units;       // row macro blocks of 64 rows, of ko rows where ko is larger
  int macros;      // column macro blocks of one kernel position: 64 channels, or ki
  int items;       // kernel positions times macros
  int chunks;      // of positions
  int row_halves, column_halves;  // blocks of 64 in ko and in ki
  int left_slots;  // chunks of left factors in shared memory
};

// What one block of threads does: the share of a split, of one sample, and of the 64 x 64 numbers
// of phi that start at row 64 high_row, column 64 high_column.
struct ProductShare {
  int sample, split;
  int high_row, high_column;
  int unit_begin, unit_end, item_begin, item_end;
};

__device__ inline int share_begin(std::int64_t i, int n, std::int64_t splits) {
  return static_cast<int>(i * n / splits);
}

__device__ inline ProductShare share_of(const ProductPlan& plan) {
  const std::int64_t splits = plan.splits_rows * plan.splits_columns, block = blockIdx.x;
  ProductShare s;
  s.split = static_cast<int>(block % splits), s.sample = static_cast<int>(block / splits);
  const std::int64_t i = s.split / plan.splits_columns, j = s.split % plan.splits_columns;
  s.high_row = static_cast<int>(blockIdx.y) / plan.column_halves;
  s.high_column = static_cast<int>(blockIdx.y) % plan.column_halves;
  s.unit_begin = share_begin(i, plan.units, plan.splits_rows);
  s.unit_end = share_begin(i + 1, plan.units, plan.splits_rows);
  s.item_begin = share_begin(j, plan.items, plan.splits_columns);
  s.item_end = share_begin(j + 1, plan.items, plan.splits_columns);
  return s;
}

// The order of work: rows, chunks of positions, then columns, so that left factors are loaded once
// a chunk.
struct ProductWalk {
  int unit, chunk, item, position, macro;

  __device__ ProductWalk(const ProductPlan& plan, const ProductShare& s)
      : unit(s.unit_begin), chunk(0) {
    restart(plan, s);
    if (s.item_begin == s.item_end || plan.chunks == 0) unit = s.unit_end;
  }

  __device__ bool done(const ProductShare& s) const { return unit >= s.unit_end; }
  __device__ bool starts_chunk(const ProductShare& s) const { return item == s.item_begin; }

  // Returns whether these rows are finished.
  __device__ bool advance(const ProductPlan& plan, const ProductShare& s, int units) {
    ++item;
    if (++macro == plan.macros) macro = 0, ++position;
    if (item < s.item_end) return false;
    restart(plan, s);
    if (++chunk < plan.chunks) return false;
    chunk = 0, unit += units;
    return true;
  }

 private:
  __device__ void restart(const ProductPlan& plan, const ProductShare& s) {
    item = s.item_begin, position = item / plan.macros, macro = item % plan.macros;
  }
};

// The column block of group g of a macro block; groups of padding, all zeros, take the last one's.
template <typename T>
__device__ __forceinline__ int column_block(const ProductPlan& plan, const ProductWalk& at, int g) {
  const int block = at.macro * (kTile / T::kGroup) + g, last = plan.channel_blocks - 1;
  return at.position * plan.channel_blocks + (block < last ? block : last);
}

}  // namespace pntk::cuda
