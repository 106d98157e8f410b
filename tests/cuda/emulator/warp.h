// What the lanes of a warp do together: shuffles, votes, ldmatrix and mma.
// Layouts: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions".
#pragma once

#include "shared.h"

namespace pntk::cuda::emulator {

// ---- numbers -----------------------------------------------------------------------------------

inline float bf16_to_float(std::uint16_t bits) {
  return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
}

inline std::uint32_t round_bf16(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7FFF;
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

inline std::uint32_t pack_bf16(float low, float high) {
  return round_bf16(low) | round_bf16(high) << 16;
}

inline float half_to_float(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
            : exponent == 31 ? (fraction ? NAN : INFINITY)
                             : std::ldexp(static_cast<float>(fraction | 1024), exponent - 25);
  return bits >> 15 ? -x : x;
}

inline std::uint32_t round_tf32(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & 0xFFFFE000u;
}

template <typename T>
void forget(T*&) {}

inline std::uint32_t and_xor(std::uint32_t x, std::uint32_t mask, std::uint32_t flip) {
  return (x & mask) ^ flip;
}

// The tensor cores cut off what does not fit into a float; so does this.
inline float toward_zero(double exact) {
  const float nearest = static_cast<float>(exact);
  if (!(std::fabs(static_cast<double>(nearest)) > std::fabs(exact))) return nearest;
  return __uint_as_float(__float_as_uint(nearest) - 1);
}

// ---- shuffles and votes ------------------------------------------------------------------------

template <typename T>
struct Given {
  T value;
  int from;
  T result;
};

inline int lanes_of(unsigned mask) {
  if (!(mask >> lane() & 1)) fail("calls with a mask that it is not in");
  return __builtin_popcount(mask);
}

template <typename T>
T shuffle(const char* name, unsigned mask, T value, int from) {
  Given<T> mine{value, from, value};
  const int lanes = lanes_of(mask);
  together(warp(), name, lane(), lanes, mine, [mask](Given<T>* const* all) {
    for (int i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1)) continue;
      const int source = all[i]->from;
      if (!(mask >> source & 1)) fail("a shuffle from a lane that is not in the mask");
      all[i]->result = all[source]->value;
    }
  });
  return mine.result;
}

inline unsigned ballot(const char* name, unsigned mask, bool vote) {
  Given<unsigned> mine{vote, 0, 0};
  const int lanes = lanes_of(mask);
  together(warp(), name, lane(), lanes, mine, [mask](Given<unsigned>* const* all) {
    unsigned votes = 0;
    for (int i = 0; i < kWarp; ++i)
      if (mask >> i & 1) votes |= all[i]->value << i;
    for (int i = 0; i < kWarp; ++i)
      if (mask >> i & 1) all[i]->result = votes;
  });
  return mine.result;
}

// ---- ldmatrix ----------------------------------------------------------------------------------

struct Rows {
  const void* row;
  std::uint32_t* r;
};

template <bool transposed>
void load_matrices(Rows* const* all) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) {
      check16("ldmatrix", all[8 * matrix + row]->row);
      std::memcpy(m[row], all[8 * matrix + row]->row, 16);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const std::uint32_t low = transposed ? m[2 * t][g] : m[g][2 * t];
      const std::uint32_t high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
      all[lane]->r[matrix] = low | high << 16;
    }
  }
}

inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  Rows mine{row, r};
  together(warp(), "ldmatrix", lane(), kWarp, mine, load_matrices<false>);
}

inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  Rows mine{row, r};
  together(warp(), "ldmatrix.trans", lane(), kWarp, mine, load_matrices<true>);
}

// ---- mma ---------------------------------------------------------------------------------------

// Number `half` of a register of two bfloat16, or the register as tf32.
inline float element(std::uint32_t bits, int half) {
  return bf16_to_float(static_cast<std::uint16_t>(bits >> 16 * half));
}
inline float element(std::uint32_t bits) { return __uint_as_float(bits & 0xFFFFE000u); }

// Adds a [16, k] b [k, n] to d. One step is what a tensor core adds up before it rounds.
inline void add_product(float* d, const float* a, const float* b, int n, int k) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < n; ++column) {
      double sum = d[row * n + column];
      for (int i = 0; i < k; ++i)
        sum += static_cast<double>(a[row * k + i]) * static_cast<double>(b[column * k + i]);
      d[row * n + column] = toward_zero(sum);
    }
}

struct Multiply {
  float* d;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

// a [16, k] of a warp's registers. get(lane) is the lane's four.
template <bool tf32, typename Get>
void gather_a(float* a, Get get) {
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const std::uint32_t* r = get(lane);
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2);
      if (tf32) {
        a[row * 8 + t + 4 * (i / 2)] = element(r[i]);
      } else {
        for (int half = 0; half < 2; ++half)
          a[row * 16 + 2 * t + half + 8 * (i / 2)] = element(r[i], half);
      }
    }
  }
}

template <bool tf32>
void multiply(Multiply* const* all) {
  constexpr int k = tf32 ? 8 : 16;
  float a[16 * k], b[8 * k], d[16 * 8];
  gather_a<tf32>(a, [all](int lane) { return all[lane]->a; });
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      if (tf32) {
        b[g * k + t + 4 * i] = element(all[lane]->b[i]);
      } else {
        for (int half = 0; half < 2; ++half)
          b[g * k + 2 * t + half + 8 * i] = element(all[lane]->b[i], half);
      }
    }
    for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = all[lane]->d[i];
  }
  add_product(d, a, b, 8, k);
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) all[lane]->d[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  }
}

inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
  Multiply mine{d, a, {b0, b1}};
  together(warp(), "mma_bf16", lane(), kWarp, mine, multiply<false>);
}

inline void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                     std::uint32_t b1) {
  Multiply mine{d, a, {b0, b1}};
  together(warp(), "mma_tf32", lane(), kWarp, mine, multiply<true>);
}

}  // namespace pntk::cuda::emulator

// width is 32 in all of these.
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return ::pntk::cuda::emulator::shuffle("__shfl_sync", mask, value, from & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const int from = ::pntk::cuda::emulator::lane() ^ bits;
  return ::pntk::cuda::emulator::shuffle("__shfl_xor_sync", mask, value, from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const int lane = ::pntk::cuda::emulator::lane(), from = lane + static_cast<int>(by);
  return ::pntk::cuda::emulator::shuffle("__shfl_down_sync", mask, value, from < 32 ? from : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const int lane = ::pntk::cuda::emulator::lane(), from = lane - static_cast<int>(by);
  return ::pntk::cuda::emulator::shuffle("__shfl_up_sync", mask, value, from >= 0 ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  return ::pntk::cuda::emulator::ballot("__ballot_sync", mask, vote);
}
inline bool __any_sync(unsigned mask, bool vote) {
  return ::pntk::cuda::emulator::ballot("__any_sync", mask, vote) != 0;
}
inline bool __all_sync(unsigned mask, bool vote) {
  return ::pntk::cuda::emulator::ballot("__all_sync", mask, vote) == mask;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  ::pntk::cuda::emulator::ballot("__syncwarp", mask, false);
}
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
