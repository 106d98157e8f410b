// Products of a warpgroup (Hopper, target sm_90a): d [64, N] += a [64, k] b [k, N], k = 16 numbers
// of bfloat16 or 8 of tf32. They run while the warpgroup does other things.
//
// a: warp w holds rows 16 w to 16 w + 15, in the registers that mma_bf16 and mma_tf32 take. b: in
// shared memory, see swizzled_descriptor. d: d[4 j + i] is what mma's d[i] is in columns 8 j to
// 8 j + 7.
#pragma once

#include <type_traits>

#include "ptx.cuh"

// Kernels with these instructions keep their bodies to targets that have them.
#if defined(PNTK_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PNTK_HAS_WGMMA 1
#else
#define PNTK_HAS_WGMMA 0
#endif

namespace pntk::cuda {

constexpr int kSwizzleRow = 128;                 // bytes of k that a row of b holds
constexpr int kSwizzleBlock = 8 * kSwizzleRow;   // bytes after which the pattern is the same again

// Where byte `byte` of the 128 of row n of b stands, from a start that is a multiple of 1024.
__device__ __forceinline__ int swizzled_offset(int n, int byte) {
  return n * kSwizzleRow + (byte ^ ((n & 7) << 4));
}

// b as wgmma wants it: rows n of 128 bytes, k along them, 16-byte units XORed with n mod 8. For the
// columns from byte 32 i on, start is 32 i bytes later.
__device__ __forceinline__ std::uint64_t swizzled_descriptor(const void* start) {
  constexpr std::uint64_t kStride = kSwizzleBlock >> 4;  // of eight rows, in units of 16 bytes
  constexpr std::uint64_t kSwizzle128 = 1;
  // Bits 16 to 29, the stride along k, are not used where 128 bytes are all of k.
  return (shared_address(start) & 0x3FFFF) >> 4 | std::uint64_t{1} << 16 | kStride << 32 |
         kSwizzle128 << 62;
}

// Ties registers that products read or change to the instructions around it: what the compiler does
// with them before it stays before, and so on. Needed after a wait and before wgmma_fence.
template <typename Register, int count>
__device__ __forceinline__ void pin(Register (&registers)[count]) {
#ifndef PNTK_EMULATE
  PNTK_UNROLL
  for (int i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<Register, float>)
      asm volatile("" : "+f"(registers[i])::"memory");
    else
      asm volatile("" : "+r"(registers[i])::"memory");
  }
#else
  static_cast<void>(registers);
#endif
}

#ifdef PNTK_EMULATE

using emulator::fence_proxy_async;
using emulator::lower_registers;
using emulator::raise_registers;
using emulator::wgmma_bf16;
using emulator::wgmma_commit;
using emulator::wgmma_fence;
using emulator::wgmma_tf32;
using emulator::wgmma_wait;

#elif PNTK_HAS_WGMMA

// Before the first product, and whenever registers of one (a, d) have been written otherwise.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most N committed groups are under way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Makes this thread's writes to shared memory seen by wgmma, after the next barrier.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// A warpgroup gives registers back, or takes them: N a thread, a multiple of 8.
template <int N>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#define PNTK_D8(i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define PNTK_D32(i) PNTK_D8(i), PNTK_D8(i + 8), PNTK_D8(i + 16), PNTK_D8(i + 24)
#define PNTK_A_B "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
// clang-format off
#define PNTK_TEXT64(k, type, tail) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n64k" k ".f32." type "." type " {" \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  "}, {%32, %33, %34, %35}, %36, p, 1, 1" tail ";\n}\n"
#define PNTK_TEXT128(k, type, tail) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n" \
  "wgmma.mma_async.sync.aligned.m64n128k" k ".f32." type "." type " {" \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" \
  "}, {%64, %65, %66, %67}, %68, p, 1, 1" tail ";\n}\n"
// clang-format on

template <int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], const std::uint32_t (&a)[4],
                                           std::uint64_t b) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 64)
    asm volatile(PNTK_TEXT64("16", "bf16", ", 0") : PNTK_D32(0) : PNTK_A_B);
  else
    asm volatile(PNTK_TEXT128("16", "bf16", ", 0") : PNTK_D32(0), PNTK_D32(32) : PNTK_A_B);
}

template <int N>
__device__ __forceinline__ void wgmma_tf32(float (&d)[N / 2], const std::uint32_t (&a)[4],
                                           std::uint64_t b) {
  static_assert(N == 64 || N == 128);
  if constexpr (N == 64)
    asm volatile(PNTK_TEXT64("8", "tf32", "") : PNTK_D32(0) : PNTK_A_B);
  else
    asm volatile(PNTK_TEXT128("8", "tf32", "") : PNTK_D32(0), PNTK_D32(32) : PNTK_A_B);
}

#undef PNTK_D8
#undef PNTK_D32
#undef PNTK_A_B
#undef PNTK_TEXT64
#undef PNTK_TEXT128

#endif

}  // namespace pntk::cuda
