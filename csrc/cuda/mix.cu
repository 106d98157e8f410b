// Hadamard transforms of factors: a tile of channels and positions goes through shared memory in
// float32, and leaves as bfloat16 planes.
#include <cmath>

#include "kernels.h"
#include "launch.cuh"
#include "numbers.cuh"
#include "ptx.cuh"
#include "walsh.cuh"

namespace pntk::cuda {
namespace {

struct MixTraits {
  static constexpr int kThreads = 256;
  // 16 KiB of float32: several blocks a multiprocessor, so that one loads while others compute
  static constexpr int kNumbers = 4096;
  // 64 positions of four bytes fill two sectors a row of memory, and bfloat16 one
  static constexpr int kMostPositions = 64;
  // what a 16-byte store takes
  static constexpr int kVector = 8;
  // loads in flight a thread
  static constexpr int kLoads = 8;
};

struct MixPlan {
  Mix m;
  int log_positions, log_channels;  // of a tile
  std::int64_t position_tiles, channel_tiles;
  float scale;
};

// Shared memory keeps position p of channel c at c * (positions + 1) + p: rows are odd, so that
// reading down a column of channels meets different banks.
struct MixTile {
  float* at;
  int log_positions;
  __device__ int stride() const { return (1 << log_positions) + 1; }
  __device__ float& operator()(int channel, int position) const {
    return at[channel * stride() + position];
  }
};

template <Type type>
__device__ void load_tile(const MixPlan& plan, const MixTile& tile, std::int64_t sample,
                          std::int64_t channel0, std::int64_t position0) {
  const Mix& m = plan.m;
  const int positions = 1 << plan.log_positions, channels = 1 << plan.log_channels;
  const bool channels_first = m.stride_channel < m.stride_position;
  const std::int64_t start = sample * m.stride_batch;
  for (int first = threadIdx.x; first < MixTraits::kNumbers;
       first += MixTraits::kThreads * MixTraits::kLoads) {
    float x[MixTraits::kLoads];
    PNTK_UNROLL
    for (int k = 0; k < MixTraits::kLoads; ++k) {
      const int i = first + k * MixTraits::kThreads;
      const int c = channels_first ? i & (channels - 1) : i >> plan.log_positions;
      const int p = channels_first ? i >> plan.log_channels : i & (positions - 1);
      const std::int64_t channel = channel0 + c, position = position0 + p;
      x[k] = 0.0f;
      if (channel < m.channels && position < m.positions)
        x[k] = number<type>(m.x, start + channel * m.stride_channel +
                                     position * m.stride_position) *
               __ldg(m.diagonal + channel);
    }
    PNTK_UNROLL
    for (int k = 0; k < MixTraits::kLoads; ++k) {
      const int i = first + k * MixTraits::kThreads;
      const int c = channels_first ? i & (channels - 1) : i >> plan.log_positions;
      const int p = channels_first ? i >> plan.log_channels : i & (positions - 1);
      tile(c, p) = x[k];
    }
  }
}

__device__ inline void transform_tile(const MixPlan& plan, const MixTile& tile) {
  for (int log_done = 0; 1 << log_done < plan.m.order; log_done += 3) {
    __syncthreads();
    const int done = 1 << log_done;
    for (int i = threadIdx.x; i < MixTraits::kNumbers / 8; i += MixTraits::kThreads) {
      const int position = i & ((1 << plan.log_positions) - 1);
      const int j = i >> plan.log_positions;
      const int channel = ((j >> log_done) << (log_done + 3)) | (j & (done - 1));
      float x[8];
      PNTK_UNROLL
      for (int k = 0; k < 8; ++k) x[k] = tile(channel + k * done, position);
      butterflies(x, plan.m.order >> log_done);
      PNTK_UNROLL
      for (int k = 0; k < 8; ++k) tile(channel + k * done, position) = x[k];
    }
  }
  __syncthreads();
}

// Store eight numbers at `to`, and what bfloat16 leaves of them one plane further.
__device__ __forceinline__ void store_planes(float (&x)[8], bf16* to, std::int64_t plane,
                                             int planes) {
  for (int n = 0; n < planes; ++n) {
    std::uint32_t packed[4];
    PNTK_UNROLL
    for (int k = 0; k < 4; ++k) {
      packed[k] = pack_bf16(x[2 * k], x[2 * k + 1]);
      x[2 * k] -= bf16_to_float(static_cast<bf16>(packed[k]));
      x[2 * k + 1] -= bf16_to_float(static_cast<bf16>(packed[k] >> 16));
    }
    *reinterpret_cast<uint4*>(to + n * plane) =
        uint4{packed[0], packed[1], packed[2], packed[3]};
  }
}

__device__ inline void store_tile(const MixPlan& plan, const MixTile& tile, std::int64_t sample,
                                  std::int64_t channel0, std::int64_t position0) {
  const Mix& m = plan.m;
  const bool last = m.positions_last;
  const std::int64_t positions = last ? m.padded_positions : m.positions;
  const std::int64_t size = m.padded_channels * positions;
  const int log_groups = (last ? plan.log_positions : plan.log_channels) - 3;
  for (int i = threadIdx.x; i < MixTraits::kNumbers / 8; i += MixTraits::kThreads) {
    const int group = (i & ((1 << log_groups) - 1)) * MixTraits::kVector, other = i >> log_groups;
    const int c = last ? other : group, p = last ? group : other;
    const std::int64_t channel = channel0 + c, position = position0 + p;
    if (channel >= m.padded_channels || position >= positions) continue;
    float x[8];
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) x[k] = plan.scale * (last ? tile(c, p + k) : tile(c + k, p));
    const std::int64_t at =
        last ? channel * positions + position : position * m.padded_channels + channel;
    store_planes(x, m.y + sample * size + at, m.batch * size, m.planes);
  }
}

template <Type type>
__global__ void __launch_bounds__(MixTraits::kThreads) mix_kernel(const MixPlan plan) {
  PNTK_DYNAMIC_SHARED(shared);
  const MixTile tile{reinterpret_cast<float*>(shared), plan.log_positions};
  const std::int64_t block = blockIdx.x, row = block / plan.channel_tiles;
  const std::int64_t channel0 = (block % plan.channel_tiles) << plan.log_channels;
  const std::int64_t position0 = (row % plan.position_tiles) << plan.log_positions;
  const std::int64_t sample = row / plan.position_tiles;
  load_tile<type>(plan, tile, sample, channel0, position0);
  transform_tile(plan, tile);
  store_tile(plan, tile, sample, channel0, position0);
}

int log2_up(std::int64_t n) {
  int log = 0;
  while ((std::int64_t{1} << log) < n) ++log;
  return log;
}

}  // namespace

void mix(const Mix& m, cudaStream_t stream) {
  MixPlan plan{};
  plan.m = m;
  const std::int64_t positions = m.positions_last ? m.padded_positions : m.positions;
  // as many positions as there are, up to kMostPositions. A pass mixes eight blocks, so channels
  // are 8, 64 or 512, whichever holds `order`.
  const int most = log2_up(MixTraits::kNumbers / (m.order <= kTile ? kTile : 8 * kTile));
  const int wanted = log2_up(positions < MixTraits::kMostPositions ? positions
                                                                   : MixTraits::kMostPositions);
  plan.log_positions = wanted < 3 ? 3 : wanted > most ? most : wanted;
  plan.log_channels = log2_up(MixTraits::kNumbers) - plan.log_positions;
  plan.position_tiles = ceil_div(positions, std::int64_t{1} << plan.log_positions);
  plan.channel_tiles = ceil_div(m.padded_channels, std::int64_t{1} << plan.log_channels);
  plan.scale = 1.0f / std::sqrt(static_cast<float>(m.order));
  const std::int64_t blocks = m.batch * plan.position_tiles * plan.channel_tiles;
  if (blocks == 0) return;
  const int channels = 1 << plan.log_channels, width = (1 << plan.log_positions) + 1;
  const std::size_t shared = sizeof(float) * channels * width;
  const auto run = [&](auto kernel) {
    launch("mix", kernel, flat_grid("mix", blocks), MixTraits::kThreads, shared, stream, plan);
  };
  if (m.type == Type::kFloat) run(mix_kernel<Type::kFloat>);
  else if (m.type == Type::kHalf) run(mix_kernel<Type::kHalf>);
  else run(mix_kernel<Type::kBfloat16>);
}

}  // namespace pntk::cuda
