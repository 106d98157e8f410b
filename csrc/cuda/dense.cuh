// Dense projections of signs: to [b, k] = scale G [b, p] P^T, entry (j, i) of P being the sign of
// bit i % 32 of word (i / 32) * k4 + j of the stream. What both kernels share.
//
// The product is taken transposed: rows of a tensor core's tile are output dimensions, columns are
// samples. P is then the A operand, whose registers a thread makes from bits, and never lies in
// memory. A sample is one column, so its row does not depend on the others in the batch.
#pragma once

#include "launch.cuh"
#include "philox.cuh"

namespace pntk::cuda {

// Output dimensions of a block, in both kernels. A number of G, 4 bytes, comes from L2 for each
// block and is worth 2 x 256 flops there: 128 flops a byte, at which a Hopper's L2 (about 5.5 TB/s)
// keeps up with its tensor cores in bfloat16.
constexpr int kDenseRows = 256;
constexpr int kGroup = 32;  // coordinates that share a word

// Tensor cores cut off what does not fit into float32 when they add to an accumulator, so a long
// sum shrinks by about 2^-25 of itself a step. Accumulators are added to a second sum in float32,
// rounded to nearest, after so many coordinates. The error is then about 2e-6 (64 steps) where
// float32's accuracy is kept, and 4e-6 to 8e-6 where operands have ten bits or fewer.
template <Precision precision>
constexpr int kSumCoordinates = precision == Precision::kSplit ? 512 : 2048;

template <Precision precision>
constexpr int kPlanes = precision == Precision::kSplit ? 2 : 1;
template <Precision precision>
constexpr int kBytes = precision == Precision::kTf32 ? 4 : 2;  // of a number in shared memory

// A call, and what follows from it.
struct DenseTask {
  Dense dense;
  std::int64_t padded_dim;  // k4
  std::int64_t row_tiles, batch_tiles;
  std::int64_t chunks;      // of coordinates, shared out among splits
  bool aligned;             // every sample starts at a multiple of 16 bytes
};

inline DenseTask dense_task(const Dense& d, int tile_batch, int coordinates) {
  DenseTask task{};
  task.dense = d;
  task.padded_dim = ceil_div(d.proj_dim, 4) * 4;
  task.row_tiles = ceil_div(d.proj_dim, kDenseRows);
  task.batch_tiles = ceil_div(d.batch, tile_batch);
  task.chunks = ceil_div(d.size, coordinates);
  task.aligned = d.size % 4 == 0 && reinterpret_cast<std::uintptr_t>(d.gradient) % 16 == 0;
  return task;
}

inline dim3 dense_grid(const DenseTask& task) {
  return flat_grid("dense", task.row_tiles * task.batch_tiles * task.dense.splits);
}

// Where a block is. Blocks that read the same numbers of G follow one another.
struct DensePlace {
  std::int64_t row, sample;    // first of the tile
  std::int64_t split;
  std::int64_t chunk, chunks;  // first of its coordinates, and how many
};

__device__ __forceinline__ DensePlace dense_place(const DenseTask& task, int tile_batch) {
  DensePlace place;
  const std::int64_t index = blockIdx.x, tile = index / task.row_tiles;
  place.row = index % task.row_tiles * kDenseRows;
  place.sample = tile % task.batch_tiles * tile_batch;
  place.split = tile / task.batch_tiles;
  place.chunk = place.split * task.chunks / task.dense.splits;
  place.chunks = (place.split + 1) * task.chunks / task.dense.splits - place.chunk;
  return place;
}

// ---- signs -------------------------------------------------------------------------------------

// Makes the words of `groups` groups of coordinates, from `group` on, for the block's output
// dimensions: to [groups][kDenseRows]. Threads 0 to threads - 1 take part.
template <int groups, int threads>
__device__ __forceinline__ void make_words(const DenseTask& task, const DensePlace& place,
                                           std::int64_t group, std::uint32_t* to, int thread) {
  constexpr int kQuads = kDenseRows / 4;  // Philox blocks a group
  PNTK_UNROLL
  for (int first = 0; first < groups * kQuads; first += threads) {
    const int index = first + thread, quad = index % kQuads;
    const std::int64_t row = place.row + 4 * quad;
    if (index >= groups * kQuads || row >= task.padded_dim) continue;  // rows that are not stored
    const std::int64_t word = (group + index / kQuads) * task.padded_dim + row;
    const uint4 words = philox_block(task.dense.seed, task.dense.stream,
                                     static_cast<std::uint64_t>(word) / 4);
    *reinterpret_cast<uint4*>(to + 4 * index) = words;
  }
}

// The A registers of step `step` of a group: +1 and -1 of rows g (`low`) and g + 8 (`high`), whose
// words have been shifted right by dense_shift. A step is 32 bytes of G, 16 coordinates of
// bfloat16 or 8 of tf32; `step` must be known when compiling.
template <Precision precision>
__device__ __forceinline__ int dense_shift(int lane) {
  return lane % 4 * (precision == Precision::kTf32 ? 1 : 2);
}

// Bits s and s + 1, s = 0 or 8, as the signs of two bfloat16 ones. The factor copies bit s to
// bit 15 and bit s + 1 to bit 31; the other two copies, at bits 16 and 30, are cut off.
__device__ __forceinline__ std::uint32_t two_ones(std::uint32_t word, int s) {
  const std::uint32_t copies = (word & 3u << s) * ((1u << (15 - s)) + (1u << (30 - s)));
  return and_xor(copies, 0x80008000u, 0x3F803F80u);
}

__device__ __forceinline__ std::uint32_t one(std::uint32_t word, int s) {
  return and_xor(word << (31 - s), 0x80000000u, 0x3F800000u);
}

template <Precision precision>
__device__ __forceinline__ void make_signs(std::uint32_t (&a)[4], std::uint32_t low,
                                           std::uint32_t high, int step) {
  if constexpr (precision == Precision::kTf32) {
    a[0] = one(low, 8 * step), a[1] = one(high, 8 * step);
    a[2] = one(low, 8 * step + 4), a[3] = one(high, 8 * step + 4);
  } else {
    low >>= 16 * step, high >>= 16 * step;
    a[0] = two_ones(low, 0), a[1] = two_ones(high, 0);
    a[2] = two_ones(low, 8), a[3] = two_ones(high, 8);
  }
}

// ---- results -----------------------------------------------------------------------------------

// Stores rows g and g + 8 of columns 2t, 2t + 1, 2t + 8, ... of a tile [16, columns]: d(4 i) to
// d(4 i + 3) are what mma leaves of columns 8i to 8i + 7. row and column are those of d(0). Eight
// lanes write 32 neighbouring bytes of a sample.
template <int columns, typename Get>
__device__ __forceinline__ void store_tile(const DenseTask& task, const DensePlace& place, int row,
                                           int column, Get d) {
  const Dense& p = task.dense;
  const std::int64_t j = place.row + row, n = place.sample + column;
  const bool low = j < p.proj_dim, high = j + 8 < p.proj_dim;
  const int samples = static_cast<int>(min(p.batch - n, std::int64_t{columns}));
  float* to = p.to + (place.split * p.batch + n) * p.proj_dim + j;
  PNTK_UNROLL
  for (int i = 0; i < columns / 8; ++i, to += 8 * p.proj_dim) {
    PNTK_UNROLL
    for (int next = 0; next < 2; ++next) {
      if (8 * i + next >= samples) continue;
      float* const at = to + next * p.proj_dim;
      if (low) at[0] = p.scale * d(4 * i + next);
      if (high) at[8] = p.scale * d(4 * i + 2 + next);
    }
  }
}

void dense_mma(const Dense&, cudaStream_t);
void dense_wgmma(const Dense&, cudaStream_t);

}  // namespace pntk::cuda
