// Instructions that CUDA C++ has no name for, one inline function each.
//
// With PNTK_EMULATE the same functions come from tests/cuda/emulator, so that the kernels compile
// as plain C++ and run, fragment layouts included, where there is no GPU. The instructions of
// warpgroups are in wgmma.cuh.
#pragma once

#include "kernels.h"

#ifdef PNTK_EMULATE

#include "emulator.h"

#define PNTK_UNROLL
#define PNTK_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::pntk::cuda::emulator::dynamic_shared()

namespace pntk::cuda {
using emulator::and_xor;
using emulator::bf16_to_float;
using emulator::cp_async16;
using emulator::cp_async_commit;
using emulator::cp_async_wait;
using emulator::forget;
using emulator::half_to_float;
using emulator::ldmatrix_x4;
using emulator::ldmatrix_x4_trans;
using emulator::mma_bf16;
using emulator::mma_tf32;
using emulator::named_barrier_arrive;
using emulator::named_barrier_sync;
using emulator::pack_bf16;
using emulator::round_tf32;
using emulator::shared_address;
}  // namespace pntk::cuda

#else

#ifdef __CUDA_ARCH__
#define PNTK_UNROLL _Pragma("unroll")
#else
#define PNTK_UNROLL  // host functions too pass here, and their compiler has another pragma
#endif
// 1024 bytes is what the 128-byte swizzle of wgmma counts from.
#define PNTK_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace pntk::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// Hides from the compiler how an address was made.
template <typename T>
__device__ __forceinline__ void forget(T*& address) {
  asm volatile("" : "+l"(address));
}

// ---- numbers -----------------------------------------------------------------------------------

// Two floats rounded to the nearest bfloat16 (ties to even), low in bits 0 to 15.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float bf16_to_float(bf16 bits) {
  return __uint_as_float(std::uint32_t{bits} << 16);
}

__device__ __forceinline__ float half_to_float(std::uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// The nearest number with tf32's ten bits of fraction (ties away from zero), as float32 bits. The
// tensor cores would cut the other bits off, an error twice as large and not of mean zero.
__device__ __forceinline__ std::uint32_t round_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// (x & mask) ^ flip, which the compiler makes two instructions of where both are constants.
__device__ __forceinline__ std::uint32_t and_xor(std::uint32_t x, std::uint32_t mask,
                                                 std::uint32_t flip) {
  std::uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(y) : "r"(x), "r"(mask), "r"(flip));
  return y;
}

// ---- copies to shared memory -------------------------------------------------------------------

// Copies 16 bytes, both addresses multiples of 16. Where not valid, writes zeros and reads nothing.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N of this thread's groups are under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrices of a warp ------------------------------------------------------------------------
// Lane l, g = l / 4, t = l % 4.

// Four 8 x 8 matrices of 16-bit numbers: lanes 8i to 8i + 7 give the addresses of the rows of
// matrix i, 16 bytes each. r[i] holds (g, 2t) and (g, 2t + 1) of matrix i.
__device__ __forceinline__ void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same of the transposed matrices: r[i] holds (2t, g) and (2t + 1, g) of matrix i.
__device__ __forceinline__ void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] += a [16, 16] b [16, 8]. Two bfloat16 a register, the lower column (row, for b) low:
//   a0 (g, 2t)  a1 (g + 8, 2t)  a2 (g, 2t + 8)  a3 (g + 8, 2t + 8);  b0 (2t, g)  b1 (2t + 8, g);
//   d0 (g, 2t)  d1 (g, 2t + 1)  d2 (g + 8, 2t)  d3 (g + 8, 2t + 1)
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d [16, 8] += a [16, 8] b [8, 8] in tf32, one number a register:
//   a0 (g, t)  a1 (g + 8, t)  a2 (g, t + 4)  a3 (g + 8, t + 4);  b0 (t, g)  b1 (t + 4, g)
__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                         std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- barriers among some of a block's warps ----------------------------------------------------
// id is 1 to 15 (__syncthreads is 0); threads, a multiple of 32, counts those that sync or arrive.

__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace pntk::cuda

#endif
