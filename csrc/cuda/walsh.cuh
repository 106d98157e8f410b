// Walsh signs and butterflies of the Hadamard kernels.
#pragma once

#include <cstdint>

#include "ptx.cuh"

namespace pntk::cuda {

// The sign of entry (i, j) of a Hadamard matrix, as the sign bit of a float.
__device__ __forceinline__ std::uint32_t walsh_sign(int i, int j) {
  return static_cast<std::uint32_t>(__popc(static_cast<unsigned>(i & j))) << 31;
}

template <int Distance>
__device__ __forceinline__ void butterfly(float (&x)[8]) {
  PNTK_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i & Distance) continue;
    const float sum = x[i] + x[i + Distance];
    x[i + Distance] = x[i] - x[i + Distance];
    x[i] = sum;
  }
}

// The part of an unnormalised transform of `order` numbers that is among eight of them: x[i] is
// number i of a block of eight blocks, so only blocks up to `order` are mixed.
__device__ __forceinline__ void butterflies(float (&x)[8], int order) {
  if (order > 1) butterfly<1>(x);
  if (order > 2) butterfly<2>(x);
  if (order > 4) butterfly<4>(x);
}

}  // namespace pntk::cuda
