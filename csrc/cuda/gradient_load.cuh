// Loads of gradients for the tile kernel: eight columns of a row with the signs of D, D' and of the
// shifts, since an XOR after a Hadamard transform is a Walsh sign before it.
#pragma once

#include <cstdint>

#include "numbers.cuh"
#include "walsh.cuh"

namespace pntk::cuda {

struct GradientPlan {
  Gradient g;
  int units;                      // row macro blocks: 64 rows, or ko where that is larger
  int macros;                     // column macro blocks of one position: 64 columns, or ki
  int positions;                  // that have macro blocks of their own
  int row_halves, column_halves;  // blocks of 64 in ko and in ki
  int log_ko, log_ki;
  bool vectors;                   // whether eight columns are aligned in memory
  float scale;
};

// A macro tile of a sample, and the 64 x 64 numbers of phi that are wanted of it: those from row
// 64 high_row, column 64 high_column.
struct GradientTile {
  std::int64_t sample;
  int unit, macro, position;
  int high_row, high_column;
};

// Where a column of the macro tile belongs; columns of padding to the last block.
struct GradientColumn {
  int block;         // within its position
  int column_block;  // J
  bool inside;
};

__device__ __forceinline__ GradientColumn column_of(const GradientPlan& plan,
                                                    const GradientTile& at, int column) {
  const Tiles& t = plan.g.tiles;
  const int blocks = static_cast<int>(t.channel_blocks);
  const int block =
      t.ki < kTile ? at.macro * (kTile >> plan.log_ki) + (column >> plan.log_ki) : at.macro;
  const bool inside = block < blocks;
  const int clamped = inside ? block : blocks - 1;
  return {clamped, at.position * blocks + clamped, inside};
}

// The row block of a row of the macro tile, or the last one.
__device__ __forceinline__ int row_block_of(const GradientPlan& plan, const GradientTile& at,
                                            int row) {
  const Tiles& t = plan.g.tiles;
  const int block =
      t.ko < kTile ? at.unit * (kTile >> plan.log_ko) + (row >> plan.log_ko) : at.unit;
  const int last = static_cast<int>(t.row_blocks) - 1;
  return block < last ? block : last;
}

__device__ __forceinline__ std::int64_t first_row_of(const GradientPlan& plan,
                                                     const GradientTile& at) {
  const int ko = plan.g.tiles.ko;
  return std::int64_t{at.unit} * (ko < kTile ? kTile : ko);
}

// Numbers of columns `first` to first + 7 of one position, zeros after the last.
template <Type type>
__device__ __forceinline__ void load_columns(const GradientPlan& plan, const GradientTile& at,
                                             std::int64_t row, int first, float (&x)[8]) {
  const Gradient& g = plan.g;
  const Tiles& t = g.tiles;
  const std::int64_t sample = at.sample * g.size;
  if (!t.per_position) {
    const auto channels = static_cast<int>(t.channels), positions = static_cast<int>(t.positions);
    int position = first / channels;
    int channel = first - position * channels;
    const std::int64_t at_row = sample + row * t.channels * t.positions;
    PNTK_UNROLL
    for (int i = 0; i < 8; ++i) {
      x[i] = position < positions
                 ? number<type>(g.gradient, at_row + channel * positions + position)
                 : 0.0f;
      if (++channel == channels) channel = 0, ++position;
    }
    return;
  }
  const std::int64_t start = t.vector ? row * t.ki + first
                                      : (row * t.channels + first) * t.positions + at.position;
  const std::int64_t end = t.vector ? g.size : start + (t.channels - first) * t.positions;
  if (plan.vectors && start + 8 <= end) {
    eight_numbers<type>(g.gradient, sample + start, x);
    return;
  }
  PNTK_UNROLL
  for (int i = 0; i < 8; ++i) {
    const std::int64_t entry = start + i * t.positions;
    x[i] = entry < end ? number<type>(g.gradient, sample + entry) : 0.0f;
  }
}

// Eight columns of a row of the macro tile; of larger tiles the sum of what lies 64 rows or columns
// apart, which is the part of their transform that the low bits of rows and columns leave.
template <Type type>
__device__ __forceinline__ void load_eight(const GradientPlan& plan, const GradientTile& at,
                                           int row, int column, float (&sum)[8]) {
  const Tiles& t = plan.g.tiles;
  const GradientColumn place = column_of(plan, at, column);
  const int row_block = row_block_of(plan, at, row);
  const int gamma = 8 * (__ldg(t.gamma_rows + row_block) ^
                         __ldg(t.gamma_columns + place.column_block));
  const int row_shift = __ldg(t.rho + place.column_block) ^ (kTile * at.high_row);
  const int column_shift = gamma ^ (kTile * at.high_column);
  PNTK_UNROLL
  for (int i = 0; i < 8; ++i) sum[i] = 0.0f;
  if (!place.inside) return;
  for (int a = 0; a < plan.row_halves; ++a) {
    const std::int64_t global_row = first_row_of(plan, at) + a * kTile + row;
    if (global_row >= t.rows) break;
    const float row_sign =
        flip(__ldg(t.row_diagonal + global_row),
             walsh_sign(static_cast<int>(global_row) & (t.ko - 1), row_shift));
    for (int b = 0; b < plan.column_halves; ++b) {
      const int within = (column & (t.ki - 1)) + b * kTile;
      const int first = place.block * t.ki + within;
      const float sign = flip(row_sign, walsh_sign(within, column_shift));
      float x[8];
      load_columns<type>(plan, at, global_row, first, x);
      PNTK_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] += x[i] * (sign * __ldg(t.column_diagonal + first + i));
    }
  }
}

}  // namespace pntk::cuda
