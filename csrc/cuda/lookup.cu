// Sketches of embeddings' gradients: every token is a tile of rank one in each column block, a
// column of H D times a row of right factors. A thread sums eight columns of a few rows of phi.
#include <cmath>

#include "kernels.h"
#include "launch.cuh"
#include "numbers.cuh"
#include "ptx.cuh"
#include "walsh.cuh"

namespace pntk::cuda {
namespace {

struct LookupTraits {
  static constexpr int kThreads = 128;
  // rows a thread, of 64 x 64 numbers: 32 sums in registers for one load of right factors
  static constexpr int kMine = kTile * kTile / 8 / kThreads;
  static constexpr int kSharedBytes = kThreads * 8 * static_cast<int>(sizeof(float));
};

struct LookupPlan {
  Lookup l;
  int column_halves;  // blocks of 64 in ki
  float scale;
};

struct LookupToken {
  std::int64_t sample, t;
  int row_block, row;  // I and o
  int gamma;           // of the row block
  std::uint32_t sign;  // of D, 0 or 1
};

// What a thread sums: rows first_row + n row_step, columns 8 group to 8 group + 7 of phi.
struct LookupPlace {
  int group, first_row, row_step, end_row;
};

template <int Planes>
__device__ __forceinline__ void load_right(const Lookup& l, const LookupToken& token,
                                           std::int64_t channel, float (&x)[8]) {
  const std::int64_t plane = l.batch * l.tokens * l.padded_channels;
  const std::int64_t at = (token.sample * l.tokens + token.t) * l.padded_channels + channel;
  eight_numbers<Type::kBfloat16>(l.right, at, x);
  if constexpr (Planes == 2) {
    float low[8];
    eight_numbers<Type::kBfloat16>(l.right, plane + at, low);
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) x[k] += low[k];
  }
}

template <int Planes>
__device__ __forceinline__ void add_token(const Lookup& l, const LookupToken& token,
                                          const LookupPlace& place,
                                          float (&sums)[LookupTraits::kMine][8]) {
  const Tiles& t = l.tiles;
  const auto table = reinterpret_cast<const unsigned char*>(t.signs);
  const int row_bytes = t.ki / 8;
  const int blocks = static_cast<int>(t.column_blocks);
  // signs stand at c, before gamma_I
  const unsigned char* signs = table + std::int64_t{token.row_block} * t.ko * row_bytes +
                               (place.group ^ token.gamma);
  const std::int64_t block_bytes = t.row_blocks * t.ko * row_bytes;
  for (int j = 0; j < blocks; ++j, signs += block_bytes) {
    const int rho = __ldg(t.rho + j), gamma = __ldg(t.gamma_columns + j);
    float x[8];
    load_right<Planes>(l, token,
                       std::int64_t{j} * t.ki + 8 * (place.group ^ token.gamma ^ gamma), x);
    PNTK_UNROLL
    for (int n = 0; n < LookupTraits::kMine; ++n) {
      const int row = place.first_row + n * place.row_step;
      if (row >= place.end_row) break;
      const std::uint32_t negative =
          static_cast<std::uint32_t>(__popc(static_cast<unsigned>((row ^ rho) & token.row))) +
          token.sign;
      // all eight are turned where H D is negative
      const std::uint32_t bits = __ldg(signs + row * row_bytes) ^ (0u - (negative & 1u));
      PNTK_UNROLL
      for (int k = 0; k < 8; ++k) sums[n][k] += flip(x[k], sign_bit(bits, k));
    }
  }
}

template <int Planes>
__global__ void __launch_bounds__(LookupTraits::kThreads) lookup_kernel(const LookupPlan plan) {
  using T = LookupTraits;
  PNTK_DYNAMIC_SHARED(shared);
  const Lookup& l = plan.l;
  const Tiles& t = l.tiles;
  const std::int64_t block = blockIdx.x, split = block % l.splits, sample = block / l.splits;
  const int high_row = static_cast<int>(blockIdx.y) / plan.column_halves;
  const int high_column = static_cast<int>(blockIdx.y) % plan.column_halves;
  const int rows = t.ko < kTile ? t.ko : kTile, groups = (t.ki < kTile ? t.ki : kTile) / 8;
  // Where phi has fewer places than a block threads, they share out the tokens.
  const int places = rows * groups;
  const int lanes = places < T::kThreads ? T::kThreads / places : 1;
  const int lane = threadIdx.x / places;  // below `lanes`, as both are powers of two
  const int mine = threadIdx.x % places;
  const LookupPlace place{8 * high_column + mine % groups, kTile * high_row + mine / groups,
                          T::kThreads / groups, kTile * high_row + rows};
  float sums[T::kMine][8] = {};
  const std::int64_t end = (split + 1) * l.tokens / l.splits;
  for (std::int64_t i = split * l.tokens / l.splits + lane; i < end; i += lanes) {
    const std::int64_t id = __ldg(l.ids + sample * l.tokens + i);
    if (id < 0 || id >= t.rows) continue;
    const auto row_block = static_cast<int>(id / t.ko);
    const LookupToken token{sample,
                            i,
                            row_block,
                            static_cast<int>(id) & (t.ko - 1),
                            __ldg(t.gamma_rows + row_block),
                            __float_as_uint(__ldg(t.row_diagonal + id)) >> 31};
    add_token<Planes>(l, token, place, sums);
  }

  float* to = l.to + (split * l.batch + sample) * t.ko * t.ki;
  if (lanes == 1) {
    PNTK_UNROLL
    for (int n = 0; n < T::kMine; ++n) {
      const int row = place.first_row + n * place.row_step;
      if (row >= place.end_row) break;
      PNTK_UNROLL
      for (int k = 0; k < 8; ++k)
        to[std::int64_t{row} * t.ki + 8 * place.group + k] = plan.scale * sums[n][k];
    }
    return;
  }
  const auto all = reinterpret_cast<float*>(shared);  // [lanes, k]
  PNTK_UNROLL
  for (int k = 0; k < 8; ++k) all[8 * threadIdx.x + k] = sums[0][k];
  __syncthreads();
  for (int i = threadIdx.x; i < 8 * places; i += T::kThreads) {
    float total = 0.0f;
    for (int other = 0; other < lanes; ++other) total += all[other * 8 * places + i];
    to[i] = plan.scale * total;
  }
}

}  // namespace

void lookup(const Lookup& l, cudaStream_t stream) {
  const Tiles& t = l.tiles;
  if (t.vector || t.column_blocks != t.channel_blocks)
    throw std::runtime_error("lookup: the parameter is a vector or a convolution kernel; a matrix "
                             "was expected");
  LookupPlan plan{};
  plan.l = l;
  plan.column_halves = t.ki > kTile ? t.ki / kTile : 1;
  plan.scale = 1.0f / std::sqrt(static_cast<float>(t.ko));
  dim3 grid = flat_grid("lookup", l.batch * l.splits);
  grid.y = static_cast<unsigned>((t.ko > kTile ? t.ko / kTile : 1) * plan.column_halves);
  const auto run = [&](auto kernel) {
    launch("lookup", kernel, grid, LookupTraits::kThreads, LookupTraits::kSharedBytes, stream,
           plan);
  };
  if (l.planes == 2) run(lookup_kernel<2>);
  else run(lookup_kernel<1>);
}

}  // namespace pntk::cuda
