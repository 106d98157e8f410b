// wgmma: products of a warpgroup, A from registers and B from shared memory as a descriptor says.
// Layouts: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
#pragma once

#include <array>

#include "warp.h"

namespace pntk::cuda::emulator {

inline void fence_proxy_async() {}
template <int N>
void lower_registers() {}
template <int N>
void raise_registers() {}

// Row n, byte k of B in shared memory: rows of 128 bytes, eight rows (one swizzle) after another.
inline const unsigned char* swizzled(std::uint64_t descriptor, int n, int k) {
  const auto field = [descriptor](int from) {
    return static_cast<std::uint32_t>(descriptor >> from & 0x3FFF) << 4;
  };
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    fail("wgmma: the descriptor does not say 128-byte swizzle and base offset 0");
  std::uint32_t address = field(0) + static_cast<std::uint32_t>(n / 8) * field(32) +
                          static_cast<std::uint32_t>(n % 8 * 128 + k);
  address ^= (address >> 7 & 7) << 4;
  if (address + 2 > shared_bytes) fail("wgmma: outside of the dynamic shared memory");
  return arena.bytes + address;
}

struct WarpgroupMultiply {
  float* d;
  const std::uint32_t* a;
  std::uint64_t b;
};

template <int N, bool tf32>
void multiply_group(float* const* d, const std::array<std::uint32_t, 4>* a, std::uint64_t where) {
  constexpr int k = tf32 ? 8 : 16;
  std::vector<float> b(N * k), part(16 * N);
  for (int n = 0; n < N; ++n)
    for (int i = 0; i < k; ++i) {
      const unsigned char* at = swizzled(where, n, i * (tf32 ? 4 : 2));
      std::uint32_t bits = 0;
      std::memcpy(&bits, at, tf32 ? 4 : 2);
      b[n * k + i] = tf32 ? element(bits) : element(bits, 0);
    }
  for (int warp = 0; warp < 4; ++warp) {
    float rows[16 * k];
    gather_a<tf32>(rows, [a, warp](int lane) { return a[kWarp * warp + lane].data(); });
    const auto move = [&](auto with) {
      for (int lane = 0; lane < kWarp; ++lane)
        for (int i = 0; i < N / 2; ++i) {
          const int row = lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
          with(d[kWarp * warp + lane][i], part[row * N + column]);
        }
    };
    move([](float& from, float& to) { to = from; });
    add_product(part.data(), rows, b.data(), N, k);
    move([](float& to, float& from) { to = from; });
  }
}

// B is read and d changed with the wait, so that what comes too early shows.
template <int N, bool tf32>
void wgmma(float* d, const std::uint32_t* a, std::uint64_t b) {
  Warpgroup& mine = warpgroup();
  WarpgroupMultiply operands{d, a, b};
  together(mine.group, tf32 ? "wgmma_tf32" : "wgmma_bf16", current->index % kWarpgroup, kWarpgroup,
           operands, [&mine](WarpgroupMultiply* const* all) {
             if (!mine.fenced) fail("wgmma: no wgmma_fence since the last wgmma_commit");
             std::vector<float*> to(kWarpgroup);
             std::vector<std::array<std::uint32_t, 4>> from(kWarpgroup);
             for (int i = 0; i < kWarpgroup; ++i) {
               if (all[i]->b != all[0]->b) fail("wgmma: threads give different descriptors");
               to[i] = all[i]->d;
               for (int j = 0; j < 4; ++j) from[i][j] = all[i]->a[j];
             }
             const std::uint64_t where = all[0]->b;
             mine.issued.push_back({[to = std::move(to), from = std::move(from), where] {
               multiply_group<N, tf32>(to.data(), from.data(), where);
             }});
           });
}

template <int N>
void wgmma_bf16(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b) {
  wgmma<N, false>(d, a, b);
}

template <int N>
void wgmma_tf32(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b) {
  wgmma<N, true>(d, a, b);
}

template <typename Act>
void of_warpgroup(const char* name, Act act) {
  Warpgroup& mine = warpgroup();
  int nothing = 0;
  together(mine.group, name, current->index % kWarpgroup, kWarpgroup, nothing,
           [&mine, act](int* const*) { act(mine); });
}

inline void wgmma_fence() {
  of_warpgroup("wgmma_fence", [](Warpgroup& mine) { mine.fenced = true; });
}

inline void wgmma_commit() {
  of_warpgroup("wgmma_commit", [](Warpgroup& mine) {
    mine.committed.push_back(std::move(mine.issued));
    mine.issued.clear();
    mine.fenced = false;
  });
}

template <int N>
void wgmma_wait() {
  of_warpgroup("wgmma_wait", [](Warpgroup& mine) {
    for (; mine.committed.size() > N; mine.committed.pop_front())
      for (const Product& product : mine.committed.front()) product.compute();
  });
}

}  // namespace pntk::cuda::emulator
