// The tile-Hadamard sketch of one parameter, on its factors, on a gradient, and on look-ups.
//
//   T_IJ = H_ko D_I G_IJ D'_J H_ki
//   phi[r, c ^ gamma_I] += S_IJ[r, c] T_IJ[r ^ rho_J, c ^ gamma_J]
//
// Plain pointers and sizes, float32. Samples are shared out among threads; a row of phi is written by
// one thread, in an order that does not depend on their number.
#pragma once

#include <cstdint>

namespace pntk {

struct Level;

// One parameter's map. Shapes and names are those of pntk/projection/tiles.py.
struct TileMap {
  std::int64_t rows, channels, positions;  // O, C, P
  std::int64_t ko, ki;
  std::int64_t row_blocks, channel_blocks, column_blocks;
  bool per_position, vector;
  const float* row_diagonal;          // [row_blocks * ko]
  const float* column_diagonal;       // [channel_blocks * ki]
  const std::int32_t* rho;            // [column_blocks]
  const std::int32_t* gamma_columns;  // [column_blocks], in groups of eight
  const std::int32_t* gamma_rows;     // [row_blocks]
  std::uint64_t seed, stream;         // of the entry signs
};

constexpr int kAxes = 3;  // of a convolution; missing ones are leading ones of size 1

// The factors of b gradients: G = sum over t of rows[:, t] columns[:, window(t)]^T, strides in
// elements. A linear layer is a convolution over its positions with a kernel of one.
struct Factors {
  std::int64_t batch, groups;
  const float* rows;  // [b, O, T]
  std::int64_t rows_batch, rows_feature, rows_position;
  const float* columns;  // [b, groups * C, n0, n1, n2]
  std::int64_t columns_batch, columns_channel, columns_axis[kAxes];
  std::int64_t size[kAxes], padding[kAxes], kernel[kAxes], stride[kAxes], dilation[kAxes],
      grid[kAxes];
};

// All add to out [b, k]. bias: null, or the map of a vector of O numbers whose gradients are the
// sums of the row factors over positions.
void hadamard_factors(const Level&, const TileMap&, const Factors&, const TileMap* bias, float* out,
                      int threads);

// gradient: [b, O, C, P], or [b, size] of a vector; contiguous.
void hadamard_gradient(const Level&, const TileMap&, std::int64_t batch, std::int64_t size,
                       const float* gradient, float* out, int threads);

// G[ids[b, t]] += delta[b, t]; ids [b, T] in [0, O), delta [b, T, C]; contiguous.
void hadamard_lookup(const Level&, const TileMap&, std::int64_t batch, std::int64_t tokens,
                     const std::int64_t* ids, const float* delta, float* out, int threads);

}  // namespace pntk
