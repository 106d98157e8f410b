// Small kernels for the tests of the emulator itself, called through ctypes. Each returns null, or
// what was thrown.
#include <string>

#include "launch.cuh"
#include "wgmma.cuh"

using namespace pntk::cuda;

namespace {

// What a probe is given; the meaning of a and b differs.
struct Probe {
  const void* a;
  const void* b;
  float* to;
  int n;
};

const char* guarded(void (*kernel)(Probe), const Probe& probe, dim3 grid, dim3 block,
                    std::size_t shared) {
  static std::string message;
  try {
    launch("probe", kernel, grid, block, shared, nullptr, probe);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

const std::uint32_t* words(const void* from) { return static_cast<const std::uint32_t*>(from); }

// a [lane][4], b [lane][2], to [lane][4]: registers as they are.
template <bool tf32>
void mma_probe(const Probe p) {
  const int lane = static_cast<int>(threadIdx.x);
  std::uint32_t a[4];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = words(p.a)[4 * lane + i], d[i] = p.to[4 * lane + i];
  const std::uint32_t b0 = words(p.b)[2 * lane], b1 = words(p.b)[2 * lane + 1];
  if (tf32)
    mma_tf32(d, a, b0, b1);
  else
    mma_bf16(d, a, b0, b1);
  for (int i = 0; i < 4; ++i) p.to[4 * lane + i] = d[i];
}

// b: 32 rows of 16 bytes; to: registers [lane][4] as bits.
template <bool transposed>
void ldmatrix_probe(const Probe p) {
  PNTK_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i)
    reinterpret_cast<std::uint32_t*>(shared)[4 * lane + i] = words(p.b)[4 * lane + i];
  __syncthreads();
  std::uint32_t r[4];
  if (transposed)
    ldmatrix_x4_trans(r, shared + 16 * lane + p.n);
  else
    ldmatrix_x4(r, shared + 16 * lane + p.n);
  for (int i = 0; i < 4; ++i) p.to[4 * lane + i] = __uint_as_float(r[i]);
}

// a [thread][4]; b [N][128 bytes], product over the 32 bytes from 32 n on; to [thread][N / 2].
template <int N, bool tf32>
void wgmma_probe(const Probe p) {
  PNTK_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < N * 32; i += 128)
    *reinterpret_cast<std::uint32_t*>(shared + swizzled_offset(i / 32, i % 32 * 4)) = words(p.b)[i];
  std::uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = words(p.a)[4 * thread + i];
  float d[N / 2];
  for (int i = 0; i < N / 2; ++i) d[i] = p.to[thread * (N / 2) + i];
  fence_proxy_async();
  __syncthreads();
  const std::uint64_t b = swizzled_descriptor(shared + 32 * (p.n & 3));
  if (!(p.n & 4)) wgmma_fence();
  if (tf32)
    wgmma_tf32<N>(d, a, b);
  else
    wgmma_bf16<N>(d, a, b);
  wgmma_commit();
  if (!(p.n & 8)) wgmma_wait<0>();
  for (int i = 0; i < N / 2; ++i) p.to[thread * (N / 2) + i] = d[i];
}

// Copies [32][16 bytes] in two groups: with n = 1 the second is read without a wait.
void copy_probe(const Probe p) {
  PNTK_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x);
  auto mine = reinterpret_cast<float*>(shared + 16 * lane);
  const auto from = static_cast<const float*>(p.b) + 4 * lane;
  cp_async16(mine, from + (p.n == 2), lane != 3);
  cp_async_commit();
  cp_async16(mine + 128, from, true);
  cp_async_commit();
  if (p.n == 1)
    cp_async_wait<1>();
  else
    cp_async_wait<0>();
  for (int i = 0; i < 4; ++i)
    p.to[4 * lane + i] = mine[i], p.to[128 + 4 * lane + i] = mine[128 + i];
}

// Sums over the block by shuffles and shared memory; n = 1 leaves the barrier out.
void sum_probe(const Probe p) {
  PNTK_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  float x = static_cast<const float*>(p.b)[blockIdx.x * blockDim.x + threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, bits);
  auto parts = reinterpret_cast<float*>(shared);
  if (thread % 32 == 0) parts[thread / 32] = x;
  if (p.n != 1) __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += parts[i];
  if (thread == 0) p.to[blockIdx.x] = sum;
}

// Two warps hand numbers to two others through named barriers, n times. With n = -1 the first
// do not arrive, with -2 they count wrongly, with -3 half a block is at another __syncthreads.
void pipeline_probe(const Probe p) {
  PNTK_DYNAMIC_SHARED(shared);
  const int thread = static_cast<int>(threadIdx.x);
  auto slot = reinterpret_cast<volatile float*>(shared);
  if (p.n == -3) {
    if (thread < 64)
      __syncthreads();
    else
      __syncthreads();
    return;
  }
  if (thread < 64) {
    for (int i = 0; i < p.n; ++i) {
      if (i > 0) named_barrier_sync(2, 128);
      slot[thread] = static_cast<const float*>(p.b)[64 * i + thread];
      named_barrier_arrive(1, 128);
    }
    if (p.n == -2) named_barrier_arrive(1, 64);
  } else {
    float sum = 0;
    for (int i = 0; i < (p.n < 0 ? 1 : p.n); ++i) {
      named_barrier_sync(1, 128);
      sum += slot[127 - thread];
      if (i + 1 < p.n) named_barrier_arrive(2, 128);
    }
    p.to[thread - 64] = sum;
  }
}

void overrun_probe(const Probe) {
  PNTK_DYNAMIC_SHARED(shared);
  shared[64 + threadIdx.x] = 1;
}

}  // namespace

#define PNTK_PROBE(name, kernel, threads, shared)                                              \
  extern "C" __attribute__((visibility("default"))) const char* name(                          \
      const void* a, const void* b, float* to, int n, unsigned blocks) {                       \
    return guarded(kernel, {a, b, to, n}, dim3(blocks), dim3(threads), shared);                \
  }

PNTK_PROBE(probe_mma_bf16, mma_probe<false>, 32, 0)
PNTK_PROBE(probe_mma_tf32, mma_probe<true>, 32, 0)
PNTK_PROBE(probe_ldmatrix, ldmatrix_probe<false>, 32, 1024)
PNTK_PROBE(probe_ldmatrix_trans, ldmatrix_probe<true>, 32, 1024)
PNTK_PROBE(probe_wgmma_bf16_64, (wgmma_probe<64, false>), 128, 64 * 128)
PNTK_PROBE(probe_wgmma_bf16_128, (wgmma_probe<128, false>), 128, 128 * 128)
PNTK_PROBE(probe_wgmma_tf32_64, (wgmma_probe<64, true>), 128, 64 * 128)
PNTK_PROBE(probe_wgmma_tf32_128, (wgmma_probe<128, true>), 128, 128 * 128)
PNTK_PROBE(probe_copy, copy_probe, 32, 1024)
PNTK_PROBE(probe_sum, sum_probe, 256, 32)
PNTK_PROBE(probe_pipeline, pipeline_probe, 128, 1024)
PNTK_PROBE(probe_overrun, overrun_probe, 32, 64)
PNTK_PROBE(probe_threads, overrun_probe, 33, 128)
PNTK_PROBE(probe_shared, overrun_probe, 32, 300000)
