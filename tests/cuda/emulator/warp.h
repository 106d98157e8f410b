// What the lanes of a warp do together: shuffles, ldmatrix and mma.
// Layouts: PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions".
#pragma once

#include <cmath>

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

// ---- shuffles ----------------------------------------------------------------------------------

template <typename T>
struct Given {
  T value;
  int from;
  T result;
};

template <typename T>
T shuffle_xor(unsigned mask, T value, int bits) {
  if (!(mask >> lane() & 1)) fail("calls with a mask that it is not in");
  Given<T> mine{value, lane() ^ bits, value};
  together(warp(), "__shfl_xor_sync", lane(), __builtin_popcount(mask), mine,
           [mask](Given<T>* const* all) {
             for (int i = 0; i < kWarp; ++i) {
               if (!(mask >> i & 1)) continue;
               const int source = all[i]->from;
               if (!(mask >> source & 1)) fail("a shuffle from a lane that is not in the mask");
               all[i]->result = all[source]->value;
             }
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

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {  // of 32 lanes
  return ::pntk::cuda::emulator::shuffle_xor(mask, value, bits);
}
