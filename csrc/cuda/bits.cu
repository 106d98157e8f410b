// Philox words of a stream, a block of four a thread.
#include "launch.cuh"
#include "philox.cuh"

namespace pntk::cuda {
namespace {

struct BitsTraits {
  static constexpr int kThreads = 256;  // registers are few, so that any size fills the device
  static constexpr int kWords = 4;      // of a Philox block
};

__global__ void __launch_bounds__(BitsTraits::kThreads)
    bits_kernel(const __grid_constant__ Bits p) {
  const std::int64_t block = std::int64_t{blockIdx.x} * BitsTraits::kThreads + threadIdx.x;
  const std::int64_t at = block * BitsTraits::kWords;
  if (at >= p.count) return;
  const uint4 words = philox_block(p.seed, p.stream, static_cast<std::uint64_t>(block));
  const bool aligned = (reinterpret_cast<std::uintptr_t>(p.words) & 15) == 0;
  if (aligned && at + BitsTraits::kWords <= p.count) {
    *reinterpret_cast<uint4*>(p.words + at) = words;
    return;
  }
  p.words[at] = words.x;
  if (at + 1 < p.count) p.words[at + 1] = words.y;
  if (at + 2 < p.count) p.words[at + 2] = words.z;
  if (at + 3 < p.count) p.words[at + 3] = words.w;
}

}  // namespace

void bits(const Bits& p, cudaStream_t stream) {
  const std::int64_t blocks = ceil_div(p.count, BitsTraits::kThreads * BitsTraits::kWords);
  launch("bits", bits_kernel, flat_grid("bits", blocks), dim3(BitsTraits::kThreads), 0, stream, p);
}

}  // namespace pntk::cuda
