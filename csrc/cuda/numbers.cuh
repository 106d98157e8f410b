// Numbers of any type as floats, and signs as bits.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace pntk::cuda {

// Sign n of a word, where a float has its sign: +1 for bit 0, -1 for bit 1.
__device__ __forceinline__ std::uint32_t sign_bit(std::uint32_t word, int n) {
  return word << (31 - n) & 0x80000000u;
}

// x, or -x where the sign bit is set.
__device__ __forceinline__ float flip(float x, std::uint32_t sign) {
  return __uint_as_float(__float_as_uint(x) ^ sign);
}

template <Type type>
__device__ __forceinline__ float number(const void* from, std::int64_t i) {
  if constexpr (type == Type::kFloat) return __ldg(static_cast<const float*>(from) + i);
  const std::uint16_t bits = __ldg(static_cast<const std::uint16_t*>(from) + i);
  return type == Type::kHalf ? half_to_float(bits) : bf16_to_float(bits);
}

// Numbers i to i + 7, in one or two loads of 16 bytes: i a multiple of eight, `from` of 16 bytes.
template <Type type>
__device__ __forceinline__ void eight_numbers(const void* from, std::int64_t i, float (&x)[8]) {
  if constexpr (type == Type::kFloat) {
    const auto at = reinterpret_cast<const float4*>(static_cast<const float*>(from) + i);
    const float4 low = __ldg(at), high = __ldg(at + 1);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  } else {
    const uint4 all =
        __ldg(reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(from) + i));
    const std::uint32_t words[4] = {all.x, all.y, all.z, all.w};
    PNTK_UNROLL
    for (int k = 0; k < 8; ++k) {
      const auto bits = static_cast<std::uint16_t>(words[k / 2] >> 16 * (k % 2));
      x[k] = type == Type::kHalf ? half_to_float(bits) : bf16_to_float(bits);
    }
  }
}

}  // namespace pntk::cuda
