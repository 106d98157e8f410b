// Sums over positions for the scale and shift of normalisation layers, in one pass.
//
// Each (sample, channel) is summed by the same threads in the same order whatever the batch is, so
// rows do not depend on it. Which of two ways threads take is told by the strides: lanes go along
// the axis that is contiguous in memory.
#include "launch.cuh"
#include "numbers.cuh"

namespace pntk::cuda {
namespace {

struct SumsTraits {
  static constexpr int kWarp = 32;
  static constexpr int kWarps = 8;  // of a block; without shared memory worth speaking of, eight
                                    // blocks fill a multiprocessor
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kAhead = 4;  // loads of each factor under way in a thread
};

struct Pair {
  float scale, shift;
};

// Sums over positions first, first + step, ... of one channel of one sample.
template <Type delta_type, Type x_type>
__device__ __forceinline__ Pair sum_channel(const Sums& p, std::int64_t sample,
                                            std::int64_t channel, int first, int step) {
  constexpr int kAhead = SumsTraits::kAhead;
  const std::int64_t delta_at = sample * p.delta_batch + channel * p.delta_channel;
  const std::int64_t x_at = sample * p.x_batch + channel * p.x_channel;
  const float mean = __ldg(p.mean + channel);
  Pair parts[kAhead] = {};
  std::int64_t t = first;
  for (; t + (kAhead - 1) * step < p.positions; t += kAhead * step) {
    float delta[kAhead], x[kAhead];
    PNTK_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      delta[i] = number<delta_type>(p.delta, delta_at + (t + i * step) * p.delta_position);
      x[i] = number<x_type>(p.x, x_at + (t + i * step) * p.x_position);
    }
    PNTK_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      parts[i].scale += delta[i] * (x[i] - mean);
      parts[i].shift += delta[i];
    }
  }
  for (; t < p.positions; t += step) {
    const float delta = number<delta_type>(p.delta, delta_at + t * p.delta_position);
    parts[0].scale += delta * (number<x_type>(p.x, x_at + t * p.x_position) - mean);
    parts[0].shift += delta;
  }
  return {(parts[0].scale + parts[1].scale) + (parts[2].scale + parts[3].scale),
          (parts[0].shift + parts[1].shift) + (parts[2].shift + parts[3].shift)};
}

// A warp a channel, lanes along positions.
template <Type delta_type, Type x_type>
__global__ void __launch_bounds__(SumsTraits::kThreads)
    sums_along_positions(const __grid_constant__ Sums p) {
  const int lane = static_cast<int>(threadIdx.x) % SumsTraits::kWarp;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * SumsTraits::kWarps + threadIdx.x / SumsTraits::kWarp;
  if (row >= p.batch * p.channels) return;
  Pair sum = sum_channel<delta_type, x_type>(p, row / p.channels, row % p.channels, lane,
                                             SumsTraits::kWarp);
  PNTK_UNROLL
  for (int bits = SumsTraits::kWarp / 2; bits > 0; bits /= 2) {
    sum.scale += __shfl_xor_sync(0xFFFFFFFFu, sum.scale, bits);
    sum.shift += __shfl_xor_sync(0xFFFFFFFFu, sum.shift, bits);
  }
  if (lane == 0) p.scale[row] = sum.scale, p.shift[row] = sum.shift;
}

// A block for 32 channels, lanes along channels, warps along positions.
template <Type delta_type, Type x_type>
__global__ void __launch_bounds__(SumsTraits::kThreads)
    sums_along_channels(const __grid_constant__ Sums p) {
  __shared__ Pair parts[SumsTraits::kWarps][SumsTraits::kWarp];
  const int lane = static_cast<int>(threadIdx.x) % SumsTraits::kWarp;
  const int warp = static_cast<int>(threadIdx.x) / SumsTraits::kWarp;
  const std::int64_t groups = (p.channels + SumsTraits::kWarp - 1) / SumsTraits::kWarp;
  const std::int64_t sample = blockIdx.x / groups;
  const std::int64_t channel = blockIdx.x % groups * SumsTraits::kWarp + lane;
  if (channel < p.channels)
    parts[warp][lane] =
        sum_channel<delta_type, x_type>(p, sample, channel, warp, SumsTraits::kWarps);
  __syncthreads();
  if (warp != 0 || channel >= p.channels) return;
  Pair sum = parts[0][lane];
  PNTK_UNROLL
  for (int i = 1; i < SumsTraits::kWarps; ++i)
    sum.scale += parts[i][lane].scale, sum.shift += parts[i][lane].shift;
  p.scale[sample * p.channels + channel] = sum.scale;
  p.shift[sample * p.channels + channel] = sum.shift;
}

template <Type delta_type, Type x_type>
void launch_sums(const Sums& p, cudaStream_t stream) {
  const bool channels_last = p.positions == 1 ||
                             p.delta_channel + p.x_channel < p.delta_position + p.x_position;
  const auto kernel = channels_last ? sums_along_channels<delta_type, x_type>
                                    : sums_along_positions<delta_type, x_type>;
  const std::int64_t blocks = channels_last ? p.batch * ceil_div(p.channels, SumsTraits::kWarp)
                                            : ceil_div(p.batch * p.channels, SumsTraits::kWarps);
  launch("sums", kernel, flat_grid("sums", blocks), dim3(SumsTraits::kThreads), 0, stream, p);
}

template <Type delta_type>
void launch_sums(const Sums& p, cudaStream_t stream) {
  switch (p.x_type) {
    case Type::kFloat: return launch_sums<delta_type, Type::kFloat>(p, stream);
    case Type::kHalf: return launch_sums<delta_type, Type::kHalf>(p, stream);
    case Type::kBfloat16: return launch_sums<delta_type, Type::kBfloat16>(p, stream);
  }
}

}  // namespace

void sums(const Sums& p, cudaStream_t stream) {
  switch (p.delta_type) {
    case Type::kFloat: return launch_sums<Type::kFloat>(p, stream);
    case Type::kHalf: return launch_sums<Type::kHalf>(p, stream);
    case Type::kBfloat16: return launch_sums<Type::kBfloat16>(p, stream);
  }
}

}  // namespace pntk::cuda
