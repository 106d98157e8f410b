// From a macro tile of sums to phi.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "ptx.cuh"

namespace pntk::cuda {

// Sums of `rows` rows and kTile columns in shared memory, for every tile in its place. Where they
// are swizzled, groups of eight columns are moved by the row, so that eight rows of a group lie in
// different banks.
struct MacroTile {
  float* sums;
  int rows, stride;
  bool swizzled;

  __device__ float* at(int row, int column) const {
    return sums + row * stride + (swizzled ? column ^ (row % 8 * 8) : column);
  }
};

// Write 64 x 64 numbers of phi (all, where ko and ki are no larger), from row 64 high_row and
// column 64 high_column: the sums of all tiles of the macro tile, in a fixed order.
__device__ inline void fold_tiles(const MacroTile& macro, int ko, int ki, int high_row,
                                  int high_column, float scale, float* phi, int threads) {
  const int rows = ko < kTile ? ko : kTile, columns = ki < kTile ? ki : kTile;
  float* to = phi + (std::int64_t{high_row} * ki + high_column) * kTile;
  for (int i = threadIdx.x; i < rows * columns; i += threads) {
    const int row = i / columns, column = i % columns;
    float total = 0.0f;
    for (int r = row; r < macro.rows; r += rows)
      for (int c = column; c < kTile; c += columns) total += *macro.at(r, c);
    to[row * ki + column] = total * scale;
  }
}

}  // namespace pntk::cuda
