// A tile of the gradients on its way from memory, through registers as float32, to shared memory as
// what the tensor cores take.
#pragma once

#include "dense.cuh"

namespace pntk::cuda {

// [samples][coordinates] by `threads` threads: each has four neighbouring coordinates of some
// samples, and a warp reads whole rows.
template <Precision precision, int samples, int coordinates, int threads>
struct DenseTile {
  static constexpr int kAcross = coordinates / 4;     // threads along coordinates
  static constexpr int kDown = threads / kAcross;     // and along samples
  static constexpr int kCount = samples / kDown;
  static_assert(threads % kAcross == 0 && samples % kDown == 0);

  float4 x[kCount];

  // Coordinates from `first` on; zeros outside of the batch and of the gradient.
  __device__ __forceinline__ void load(const DenseTask& task, std::int64_t sample,
                                       std::int64_t first, int thread) {
    const Dense& p = task.dense;
    const std::int64_t i = first + thread % kAcross * 4, n = sample + thread / kAcross;
    const float* from = p.gradient + n * p.size + i;
    const int left = static_cast<int>(min(p.batch - n, std::int64_t{samples}));
    // The branch is outside of the loops, so that loads follow one another closely.
    if (task.aligned) {
      PNTK_UNROLL
      for (int k = 0; k < kCount; ++k, from += kDown * p.size) {
        x[k] = make_float4(0, 0, 0, 0);
        if (i < p.size && k * kDown < left) x[k] = __ldg(reinterpret_cast<const float4*>(from));
      }
    } else {
      PNTK_UNROLL
      for (int k = 0; k < kCount; ++k, from += kDown * p.size) {
        x[k] = make_float4(0, 0, 0, 0);
        forget(from);  // else the compiler keeps an address of every k in registers
        if (k * kDown >= left) continue;
        if (i < p.size) x[k].x = __ldg(from);
        if (i + 1 < p.size) x[k].y = __ldg(from + 1);
        if (i + 2 < p.size) x[k].z = __ldg(from + 2);
        if (i + 3 < p.size) x[k].w = __ldg(from + 3);
      }
    }
  }

  // place(sample, byte) is where a byte of a sample's row stands; planes are `plane` bytes apart.
  template <typename Place>
  __device__ __forceinline__ void store(unsigned char* to, int plane, int thread,
                                        Place place) const {
    const int i = thread % kAcross * 4, n = thread / kAcross;
    PNTK_UNROLL
    for (int k = 0; k < kCount; ++k) {
      unsigned char* const at = to + place(n + k * kDown, i * kBytes<precision>);
      if constexpr (precision == Precision::kTf32) {
        *reinterpret_cast<uint4*>(at) = make_uint4(round_tf32(x[k].x), round_tf32(x[k].y),
                                                   round_tf32(x[k].z), round_tf32(x[k].w));
      } else {
        const uint2 high = make_uint2(pack_bf16(x[k].x, x[k].y), pack_bf16(x[k].z, x[k].w));
        *reinterpret_cast<uint2*>(at) = high;
        if constexpr (precision == Precision::kSplit)
          *reinterpret_cast<uint2*>(at + plane) =
              make_uint2(pack_bf16(x[k].x - low_half(high.x), x[k].y - high_half(high.x)),
                         pack_bf16(x[k].z - low_half(high.y), x[k].w - high_half(high.y)));
      }
    }
  }

 private:
  static __device__ __forceinline__ float low_half(std::uint32_t pair) {
    return __uint_as_float(pair << 16);
  }
  static __device__ __forceinline__ float high_half(std::uint32_t pair) {
    return __uint_as_float(pair & 0xFFFF0000u);
  }
};

}  // namespace pntk::cuda
