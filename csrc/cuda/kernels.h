// What the CUDA kernels compute, as plain structs and functions: no torch, no pybind11.
//
// Pointers are to device memory, sizes and strides in elements. A function launches on the given
// stream and does not wait; it throws std::runtime_error where a launch fails. Every result is
// written whole, never added to, so that what was in memory before does not matter.
//
// Shapes: b batch, T positions summed over, O x C x P a parameter, k = ko * ki.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pntk::cuda {

// Bits of a bfloat16. Numbers are kept as one (planes = 1), or as the sum of two, hi + lo
// (planes = 2), which leaves a relative error of 2^-18.
using bf16 = std::uint16_t;

enum class Type : int { kFloat = 0, kHalf = 1, kBfloat16 = 2 };

// Side of the tiles of the product kernels, to which left and right factors are padded.
constexpr int kTile = 64;
// Largest ko and ki that the kernels take.
constexpr int kLargestOrder = 256;

// One parameter's tile-Hadamard map. Names are those of pntk/projection/tiles.py.
struct Tiles {
  std::int64_t rows, channels, positions;  // O, C, P
  int ko, ki;
  std::int64_t row_blocks, channel_blocks, column_blocks;
  bool per_position, vector;
  const float* row_diagonal;          // [row_blocks * ko]; Products, after Mix, has neither
  const float* column_diagonal;       // [channel_blocks * ki]
  const std::int32_t* rho;            // [column_blocks]
  const std::int32_t* gamma_columns;  // [column_blocks], in groups of eight
  const std::int32_t* gamma_rows;     // [row_blocks], in groups of eight
  // Entry sign n is bit n % 32 of word n / 32; n = (J * row_blocks * ko + row) * ki + c.
  const std::uint32_t* signs;
};

// words[i] = word i of the stream.
struct Bits {
  std::uint64_t seed, stream;
  std::int64_t count;
  std::uint32_t* words;
};
void bits(const Bits&, cudaStream_t);

// y = H D x, block by block of `order` channels: x [b, C, T] in any memory order, y in bfloat16
// planes, padded with zeros. positions_last: y [planes, b, padded_channels, padded_positions];
// otherwise y [planes, b, positions, padded_channels].
struct Mix {
  const void* x;
  Type type;
  std::int64_t batch, channels, positions;
  std::int64_t stride_batch, stride_channel, stride_position;
  const float* diagonal;  // [channels], +1 and -1
  int order;              // a power of two, 1 to kLargestOrder
  std::int64_t padded_channels;   // a multiple of kTile and of order, at least channels
  std::int64_t padded_positions;  // a multiple of 8, at least positions; only for positions_last
  bool positions_last;
  int planes;
  bf16* y;
};
void mix(const Mix&, cudaStream_t);

// to[split] = the sums of signed tile products that fall to a split:
//   phi[r, c ^ gamma_I] += S_IJ[r, c] sum over t of left[I ko + (r ^ rho_J), t]
//                                                   right[window_J(t), J' ki + (c ^ gamma_J)]
// J = p * channel_blocks + J', p a kernel position; window_p(t) is the pixel that kernel position p
// sees at grid position t, zero outside of the image. Splits: of row blocks of kTile rows into
// splits_rows ranges, and of (p, block of kTile channels) into splits_columns ranges; split
// (i, j) writes to[i * splits_columns + j].
struct Products {
  Tiles tiles;  // tiles.positions kernel positions; never a vector
  std::int64_t batch, planes;
  const bf16* left;  // [planes, b, padded_rows, padded_positions], of Mix with positions_last
  std::int64_t padded_rows, positions, padded_positions;
  const bf16* right;  // [planes, b, pixels, padded_channels], of Mix
  std::int64_t padded_channels;
  std::int64_t size[3], padding[3], kernel[3], stride[3], dilation[3], grid[3];
  std::int64_t splits_rows, splits_columns;
  float* to;  // [splits_rows * splits_columns, b, k]
};
void products(const Products&, cudaStream_t);

// to[split] = the sketch of whole gradients, [b, O, C, P] or [b, size] of a vector; contiguous. The
// tiles of kTile x kTile numbers (of ko x ki where those are larger) are shared out among splits.
struct Gradient {
  Tiles tiles;
  const void* gradient;
  Type type;
  std::int64_t batch, size, splits;
  float* to;  // [splits, b, k]
};
void gradient(const Gradient&, cudaStream_t);

// to[split] = the sketch of G, G[ids[b, t]] += delta[b, t], from right = H D' delta. Ids outside of
// [0, O) add nothing. Tokens are shared out among splits.
struct Lookup {
  Tiles tiles;
  const std::int64_t* ids;  // [b, T], contiguous
  const bf16* right;        // [planes, b, T, padded_channels], of Mix
  std::int64_t batch, tokens, padded_channels, planes, splits;
  float* to;  // [splits, b, k]
};
void lookup(const Lookup&, cudaStream_t);

// to[split] = scale P g over the split's share of the p coordinates; P of signs ("rademacher").
enum class Precision : int { kSplit = 0, kTf32 = 1, kBfloat16 = 2 };
struct Dense {
  const float* gradient;  // [b, p], contiguous
  std::int64_t batch, size, proj_dim;
  float scale;
  std::uint64_t seed, stream;
  Precision precision;
  std::int64_t splits;
  bool wgmma;  // false: mma.sync, on a device that has both
  float* to;   // [splits, b, proj_dim]
};
void dense(const Dense&, cudaStream_t);

// Sums over positions of delta (x - mean), and of delta: [b, C, L] in any memory order -> [b, C].
struct Sums {
  const void* delta;
  const void* x;
  Type delta_type, x_type;
  const float* mean;  // [C]
  std::int64_t batch, channels, positions;
  std::int64_t delta_batch, delta_channel, delta_position;
  std::int64_t x_batch, x_channel, x_position;
  float* scale;  // [b, C]
  float* shift;  // [b, C]
};
void sums(const Sums&, cudaStream_t);

}  // namespace pntk::cuda
