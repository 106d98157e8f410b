// Sketches of whole gradients: macro tiles of 64 x 64 numbers are transformed in shared memory, the
// first eight columns as they are loaded and the last eight rows as they are added. Signs before
// the transform stand for all shifts, so that a number of phi is always summed in one register.
#include <cmath>

#include "fold.cuh"
#include "gradient_load.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace pntk::cuda {
namespace {

struct GradientTraits {
  static constexpr int kThreads = 256;
  // eight floats more than 64, so that four rows of eight columns lie in different banks
  static constexpr int kStride = kTile + 8;
  static constexpr int kSharedBytes = kTile * kStride * static_cast<int>(sizeof(float));
  // times eight numbers a thread
  static constexpr int kMine = kTile * kTile / 8 / kThreads;
  // 16 warps a multiprocessor, each with up to 2 KiB of loads under way; registers for a third
  // block would be too few by a little
  static constexpr int kBlocks = 2;
};

using Sums = float[GradientTraits::kMine][8];

// Thread i's rows and column where rows a, a + 8, ... a + 56 of a column are transformed.
struct LateRows {
  int column, first_row;
  __device__ explicit LateRows(int i) : column(i % kTile), first_row(i / kTile) {}
  __device__ int row(int k) const { return first_row + 8 * k; }
};

// Transform numbers k * step from `at` on against each other.
__device__ __forceinline__ void transform_eight(float* at, int step, int order) {
  float x[8];
  PNTK_UNROLL
  for (int k = 0; k < 8; ++k) x[k] = at[k * step];
  butterflies(x, order);
  PNTK_UNROLL
  for (int k = 0; k < 8; ++k) at[k * step] = x[k];
}

// The sign bits of one column's numbers, each where a float has its sign.
__device__ __forceinline__ void load_entry_signs(const GradientPlan& plan, const GradientTile& at,
                                                 const LateRows& late,
                                                 std::uint32_t (&signs)[8]) {
  const Tiles& t = plan.g.tiles;
  const std::int64_t rows = t.row_blocks * t.ko;
  const std::int64_t row0 = first_row_of(plan, at) + kTile * at.high_row;
  const std::int64_t start = (column_of(plan, at, late.column).column_block * rows + row0) * t.ki;
  const std::uint32_t* words = t.signs + start / 32;
  const int bit0 = static_cast<int>(start % 32);
  const int column = (late.column & (t.ki - 1)) + kTile * at.high_column;
  const int last = rows - row0 < kTile ? static_cast<int>(rows - row0) - 1 : kTile - 1;
  PNTK_UNROLL
  for (int k = 0; k < 8; ++k) {
    const int row = late.row(k) < last ? late.row(k) : last;  // padding: zeros of any sign
    const int gamma = 8 * __ldg(t.gamma_rows + row_block_of(plan, at, late.row(k)));
    const int bit = bit0 + (row << plan.log_ki) + (column ^ gamma);
    signs[k] = sign_bit(__ldg(words + bit / 32), bit % 32);
  }
}

template <Type type>
__device__ __forceinline__ void add_tile(const GradientPlan& plan, const GradientTile& at,
                                         float* shared, Sums& sums) {
  using T = GradientTraits;
  const Tiles& t = plan.g.tiles;
  const int me = threadIdx.x;
  PNTK_UNROLL
  for (int n = 0; n < T::kMine; ++n) {
    const int i = me + n * T::kThreads, row = i / 8, column = i % 8 * 8;
    float x[8];
    load_eight<type>(plan, at, row, column, x);
    butterflies(x, 8);  // ki is no smaller
    const auto to = reinterpret_cast<float4*>(shared + row * T::kStride + column);
    const float4 low{x[0], x[1], x[2], x[3]}, high{x[4], x[5], x[6], x[7]};
    const int half = column / 32;  // or columns 32 apart would meet in the same banks
    to[half] = half ? high : low;
    to[1 - half] = half ? low : high;
  }
  __syncthreads();
  if (t.ki > 8) {
    PNTK_UNROLL
    for (int n = 0; n < T::kMine; ++n) {
      const int i = me + n * T::kThreads;
      transform_eight(shared + i / 8 * T::kStride + i % 8, 8, t.ki / 8);
    }
    __syncthreads();
  }
  if (t.ko > 1) {
    PNTK_UNROLL
    for (int n = 0; n < T::kMine; ++n) {
      const int i = me + n * T::kThreads;
      transform_eight(shared + i / kTile * 8 * T::kStride + i % kTile, T::kStride, t.ko);
    }
    __syncthreads();
  }
  PNTK_UNROLL
  for (int n = 0; n < T::kMine; ++n) {
    const LateRows late(me + n * T::kThreads);
    std::uint32_t signs[8];
    load_entry_signs(plan, at, late, signs);
    float x[8];
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) x[k] = shared[late.row(k) * T::kStride + late.column];
    butterflies(x, t.ko / 8);
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) sums[n][k] += flip(x[k], signs[k]);
  }
  __syncthreads();
}

template <Type type>
__global__ void __launch_bounds__(GradientTraits::kThreads, GradientTraits::kBlocks)
    gradient_kernel(const GradientPlan plan) {
  using T = GradientTraits;
  PNTK_DYNAMIC_SHARED(bytes);
  const auto shared = reinterpret_cast<float*>(bytes);
  const Gradient& g = plan.g;
  const std::int64_t block = blockIdx.x, split = block % g.splits;
  GradientTile at{};
  at.sample = block / g.splits;
  at.high_row = static_cast<int>(blockIdx.y) / plan.column_halves;
  at.high_column = static_cast<int>(blockIdx.y) % plan.column_halves;
  // positions of a kernel one after the other: they share memory's sectors
  const int row_tiles = plan.macros * plan.positions;
  const std::int64_t tiles = std::int64_t{row_tiles} * plan.units;
  const auto begin = static_cast<int>(split * tiles / g.splits),
             end = static_cast<int>((split + 1) * tiles / g.splits);
  Sums sums = {};
  for (int tile = begin; tile < end; ++tile) {
    at.unit = tile / row_tiles;
    const int rest = tile % row_tiles;
    at.macro = rest / plan.positions, at.position = rest % plan.positions;
    add_tile<type>(plan, at, shared, sums);
  }
  PNTK_UNROLL
  for (int n = 0; n < T::kMine; ++n) {
    const LateRows late(threadIdx.x + n * T::kThreads);
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) shared[late.row(k) * T::kStride + late.column] = sums[n][k];
  }
  __syncthreads();
  const MacroTile macro{shared, kTile, T::kStride, false};
  fold_tiles(macro, g.tiles.ko, g.tiles.ki, at.high_row, at.high_column, plan.scale,
             g.to + (split * g.batch + at.sample) * g.tiles.ko * g.tiles.ki, T::kThreads);
}

}  // namespace

void gradient(const Gradient& g, cudaStream_t stream) {
  const Tiles& t = g.tiles;
  GradientPlan plan{};
  plan.g = g;
  plan.units = static_cast<int>(ceil_div(t.row_blocks * t.ko, t.ko < kTile ? kTile : t.ko));
  plan.macros = static_cast<int>(ceil_div(t.channel_blocks * t.ki, t.ki < kTile ? kTile : t.ki));
  plan.positions = t.per_position ? static_cast<int>(t.positions) : 1;
  plan.row_halves = t.ko > kTile ? t.ko / kTile : 1;
  plan.column_halves = t.ki > kTile ? t.ki / kTile : 1;
  while (1 << plan.log_ko < t.ko) ++plan.log_ko;
  while (1 << plan.log_ki < t.ki) ++plan.log_ki;
  plan.vectors = reinterpret_cast<std::uintptr_t>(g.gradient) % 16 == 0 && g.size % 8 == 0 &&
                 (t.vector || (t.channels % 8 == 0 && t.positions == 1));
  plan.scale = 1.0f / std::sqrt(static_cast<float>(t.ko * t.ki));
  dim3 grid = flat_grid("gradient", g.batch * g.splits);
  grid.y = static_cast<unsigned>(plan.row_halves * plan.column_halves);
  const auto run = [&](auto kernel) {
    launch("gradient", kernel, grid, GradientTraits::kThreads, GradientTraits::kSharedBytes,
           stream, plan);
  };
  if (g.type == Type::kFloat) run(gradient_kernel<Type::kFloat>);
  else if (g.type == Type::kHalf) run(gradient_kernel<Type::kHalf>);
  else run(gradient_kernel<Type::kBfloat16>);
}

}  // namespace pntk::cuda
