// Signed sums of tile products. A block of threads walks over the macro tiles of its share, keeps
// signed sums of a macro row in registers, and adds them to phi's places in shared memory where
// the row ends. Macro tiles hold several tiles where ko or ki is below 64: all pairs are wanted, so
// that the tensor cores are full for every k.
#include "fold.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "products_tile.cuh"
#include "ptx.cuh"

namespace pntk::cuda {
namespace {

// Add the sums of a macro row to shared memory, column c of row block I at c ^ gamma_I, and clear
// them. Every number has its own place and the barrier of a stage lies between two calls, in which
// threads exchange columns.
template <typename T>
__device__ __forceinline__ void add_rows(const ProductPlan& plan, int unit, const ProductLane& me,
                                         Accumulators& sum, const MacroTile& sums) {
  const int last = plan.row_blocks - 1;
  PNTK_UNROLL
  for (int n = 0; n < 4; ++n) {
    const int row = me.row(n);
    const int block = plan.row_halves > 1 ? unit : (unit * kTile + row) >> plan.log_ko;
    const int gamma = 8 * (__ldg(plan.gamma_rows + (block < last ? block : last)) & 7);
    PNTK_UNROLL
    for (int q = 0; q < 4; ++q) {
      float* x = sum[n / 2][q] + n % 2 * 2;
      const auto to = reinterpret_cast<float2*>(sums.at(row, me.column(q) ^ gamma));
      const float2 before = *to;
      *to = float2{before.x + x[0], before.y + x[1]};
      x[0] = x[1] = 0.0f;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks) products_kernel(const ProductPlan plan) {
  PNTK_DYNAMIC_SHARED(shared);
  const MacroTile sums{reinterpret_cast<float*>(shared), T::kRows, kTile, true};
  const ProductShare share = share_of(plan);
  const ProductLane me;
  for (int i = threadIdx.x; i < T::kRows * kTile; i += T::kThreads) sums.sums[i] = 0.0f;

  ProductLoader<T> loader(plan, share, shared + T::kLeft, shared + T::kRight);
  for (int ahead = 1; ahead < T::kStages; ++ahead) {
    loader.next();
    cp_async_commit();
  }
  Accumulators sum = {};
  unsigned words[4];
  int slot = -1, stage = 0;
  for (ProductWalk at(plan, share); !at.done(share);) {
    if (at.starts_chunk(share) || plan.row_halves > 1) {
      if (++slot == plan.left_slots) slot = 0;
      if (at.chunk == 0) sign_rows<T>(plan, share, at.unit, me, words);
    }
    ProductShifts shifts[T::kGroups];
    load_shifts<T>(plan, at, me, shifts);
    std::uint32_t signs[4];
    load_signs<T>(plan, at, me, words, signs);
    cp_async_wait<T::kStages - 2>();
    __syncthreads();
    loader.next();
    cp_async_commit();
    const int count = plan.positions - at.chunk * T::kChunk, unit = at.unit;
    Accumulators tile = {};
    multiply<T>(shared, T::kLeft + slot * T::kLeftBytes, T::kRight + stage * T::kRightBytes, me,
                shifts, count >= T::kChunk ? T::kChunk / 16 : (count + 15) / 16, tile);
    add_signed(tile, signs, me, sum);
    if (at.advance(plan, share, T::kRows / kTile)) add_rows<T>(plan, unit, me, sum, sums);
    if (++stage == T::kStages) stage = 0;
  }
  __syncthreads();
  fold_tiles(sums, plan.ko, plan.ki, share.high_row, share.high_column, 1.0f,
             plan.to + (share.split * plan.batch + share.sample) * plan.ko * plan.ki, T::kThreads);
}

// A size of one sample or of the map.
int narrow(std::int64_t n) {
  if (n > INT32_MAX)
    throw std::runtime_error("products: a size is " + std::to_string(n) +
                             "; a sample's may be at most 2^31 - 1");
  return static_cast<int>(n);
}

template <int Planes, int Rows, int Group>
void launch_products(ProductPlan plan, cudaStream_t stream) {
  using T = ProductTraits<Planes, Rows, Group>;
  // two where every chunk has steps enough that no third is being loaded
  const bool two = plan.row_halves == 1 && plan.items / plan.splits_columns >= T::kStages - 1;
  plan.left_slots = two ? 2 : T::kStages;
  plan.chunks = static_cast<int>(ceil_div(plan.positions, T::kChunk));
  dim3 grid = flat_grid("products", plan.batch * plan.splits_rows * plan.splits_columns);
  grid.y = static_cast<unsigned>(plan.row_halves * plan.column_halves);
  launch("products", products_kernel<T>, grid, T::kThreads, T::shared_bytes(plan.left_slots),
         stream, plan);
}

template <int Planes, int Rows>
void launch_group(const ProductPlan& plan, cudaStream_t stream) {
  const int ki = plan.ki;
  if (ki >= 64) launch_products<Planes, Rows, 64>(plan, stream);
  else if (ki == 32) launch_products<Planes, Rows, 32>(plan, stream);
  else if constexpr (Rows == kTile) {
    if (ki == 16) launch_products<Planes, Rows, 16>(plan, stream);
    else launch_products<Planes, Rows, 8>(plan, stream);
  }
}

}  // namespace

void products(const Products& p, cudaStream_t stream) {
  const Tiles& t = p.tiles;
  if (t.ki > kTile && t.ko < kTile)
    throw std::runtime_error("products: tiles of " + std::to_string(t.ko) + " x " +
                             std::to_string(t.ki) + "; ko must be 64 or more where ki is");
  ProductPlan plan{};
  plan.left = p.left, plan.right = p.right, plan.to = p.to;
  plan.rho = t.rho, plan.gamma_columns = t.gamma_columns, plan.gamma_rows = t.gamma_rows;
  plan.signs = reinterpret_cast<const unsigned char*>(t.signs);
  plan.batch = p.batch, plan.splits_rows = p.splits_rows, plan.splits_columns = p.splits_columns;
  const std::int64_t pixels = p.size[0] * p.size[1] * p.size[2];
  plan.left_sample = p.padded_rows * p.padded_positions;
  plan.right_sample = pixels * p.padded_channels;
  plan.left_plane = p.batch * plan.left_sample, plan.right_plane = p.batch * plan.right_sample;
  plan.ko = t.ko, plan.ki = t.ki;
  while (1 << plan.log_ko < t.ko) ++plan.log_ko;
  plan.rows = narrow(t.row_blocks * t.ko), plan.row_blocks = narrow(t.row_blocks);
  plan.channel_blocks = narrow(t.channel_blocks);
  plan.row_bytes = static_cast<unsigned>(t.ki / 8);
  plan.block_bytes = static_cast<unsigned>(narrow(t.row_blocks * t.ko * t.ki / 8));
  plan.positions = narrow(p.positions), plan.padded_positions = narrow(p.padded_positions);
  plan.padded_channels = narrow(p.padded_channels);
  for (int a = 0; a < 3; ++a) {
    plan.size[a] = narrow(p.size[a]), plan.padding[a] = narrow(p.padding[a]);
    plan.kernel[a] = narrow(p.kernel[a]), plan.stride[a] = narrow(p.stride[a]);
    plan.dilation[a] = narrow(p.dilation[a]), plan.grid[a] = narrow(p.grid[a]);
  }
  narrow(pixels);
  plan.units = narrow(t.ko > kTile ? t.row_blocks : ceil_div(p.padded_rows, kTile));
  plan.macros = narrow(t.ki > kTile ? t.channel_blocks : p.padded_channels / kTile);
  plan.items = narrow(p.kernel[0] * p.kernel[1] * p.kernel[2] * plan.macros);
  plan.row_halves = t.ko > kTile ? t.ko / kTile : 1;
  plan.column_halves = t.ki > kTile ? t.ki / kTile : 1;
  // Two macro rows at a time share right factors, which a single plane reads faster than the
  // second-level cache of the newest devices gives them. As everything that decides the order of
  // sums, this is a matter of shapes alone. Row blocks may not differ in which channels they take.
  // Fewer than two columns would need a third left factor, for which 8.6 and 8.9 lack the memory.
  const bool pairs = p.planes == 1 && (t.ki == 32 || t.ki == 64) && t.ko <= kTile &&
                     plan.units / p.splits_rows >= 2 && plan.items / p.splits_columns >= 2;
  if (p.planes == 2) launch_group<2, 64>(plan, stream);
  else if (pairs) launch_group<1, 128>(plan, stream);
  else launch_group<1, 64>(plan, stream);
}

}  // namespace pntk::cuda
