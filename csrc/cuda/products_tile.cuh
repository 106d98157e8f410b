// Tiles of products on the tensor cores, and their signed sums.
#pragma once

#include <type_traits>

#include "numbers.cuh"
#include "products_load.cuh"

namespace pntk::cuda {

// A thread's share of a warp's 32 x 32 numbers: [16 rows][8 columns][mma accumulator].
using Accumulators = float[2][4][4];

// Lane l of a warp holds rows 8n + l / 4 (n = 0 to 3), columns 8q + l % 4 * 2 and the next.
struct ProductLane {
  int lane, row0, column0;  // of the warp, in the macro tile

  __device__ ProductLane()
      : lane(threadIdx.x % 32),
        row0(threadIdx.x / 64 * 32),
        column0(threadIdx.x / 32 % 2 * 32) {}

  __device__ int row(int n) const { return row0 + 8 * n + lane / 4; }
  __device__ int column(int q) const { return column0 + 8 * q + lane % 4 * 2; }
};

struct ProductShifts {
  int rho, gamma;
};

template <typename T>
__device__ __forceinline__ void load_shifts(const ProductPlan& plan, const ProductWalk& at,
                                            const ProductLane& me,
                                            ProductShifts (&shifts)[T::kGroups]) {
  const int first = me.column0 / T::kGroup;
  PNTK_UNROLL
  for (int g = 0; g < T::kGroups; ++g) {
    const int block = column_block<T>(plan, at, first + g);
    shifts[g] = {__ldg(plan.rho + block) & (kTile - 1), __ldg(plan.gamma_columns + block) & 7};
  }
}

// What signs are loaded as: those of a group, or of a warp's 32 columns.
template <int Group>
using SignWord = std::conditional_t<Group == 8, unsigned char,
                                    std::conditional_t<Group == 16, std::uint16_t, std::uint32_t>>;

// Where the signs of this thread's rows start, in words, without the part of the column block.
template <typename T>
__device__ __forceinline__ void sign_rows(const ProductPlan& plan, const ProductShare& s, int unit,
                                          const ProductLane& me, unsigned (&words)[4]) {
  using Word = SignWord<T::kGroup>;
  const int row0 = plan.row_halves > 1 ? unit * plan.ko + kTile * s.high_row : unit * kTile;
  int column = T::kGroup == kTile ? me.column0 : 0;
  if (plan.column_halves > 1)
    column += kTile * (s.high_column ^ (__ldg(plan.gamma_rows + unit) / 8));
  PNTK_UNROLL
  for (int n = 0; n < 4; ++n) {
    const int row = row0 + me.row(n), last = plan.rows - 1;  // padding is zeros: any signs do
    words[n] = ((row < last ? row : last) * plan.row_bytes + column / 8) / sizeof(Word);
  }
}

// Load the signs of 32 columns a row, column 0 in the lowest bit.
template <typename T>
__device__ __forceinline__ void load_signs(const ProductPlan& plan, const ProductWalk& at,
                                           const ProductLane& me, const unsigned (&words)[4],
                                           std::uint32_t (&signs)[4]) {
  using Word = SignWord<T::kGroup>;
  const int first = me.column0 / T::kGroup;
  PNTK_UNROLL
  for (int g = 0; g < T::kGroups; ++g) {
    const auto block = static_cast<unsigned>(column_block<T>(plan, at, first + g));
    const auto from =
        reinterpret_cast<const Word*>(plan.signs + std::uint64_t{block} * plan.block_bytes);
    PNTK_UNROLL
    for (int n = 0; n < 4; ++n) {
      const std::uint32_t word = __ldg(from + words[n]);
      signs[n] = g == 0 ? word : signs[n] | word << g * T::kGroup % 32;
    }
  }
}

// tile += left rows, r ^ rho, times right columns, c ^ gamma, over `steps` times 16 positions, at
// least one. What is zero before costs nothing then. left, right: where the factors start in shared
// memory, multiples of 1024, so that offsets keep the bits of the swizzle.
template <typename T>
__device__ __forceinline__ void multiply(const unsigned char* shared, int left, int right,
                                         const ProductLane& me,
                                         const ProductShifts (&shifts)[T::kGroups], int steps,
                                         Accumulators& tile) {
  constexpr int kPlanes = T::kPlanes;
  constexpr int kSpan = 4 / T::kGroups;  // mma's eight columns a group
  const int lane = me.lane;
  int from_left[T::kGroups][2], from_right[2];
  PNTK_UNROLL
  for (int g = 0; g < T::kGroups; ++g) {
    PNTK_UNROLL
    for (int m = 0; m < 2; ++m)
      from_left[g][m] =
          left + swizzled((me.row0 + 16 * m + lane % 16) ^ shifts[g].rho, lane / 16);
  }
  PNTK_UNROLL
  for (int h = 0; h < 2; ++h)
    from_right[h] = right + swizzled(lane % 16, (me.column0 / 8 + 2 * h + lane / 16) ^
                                                    shifts[h * (T::kGroups / 2)].gamma);
  PNTK_UNROLL
  for (int step = 0; step < T::kChunk / 16; ++step) {
    if (step > 0 && step == steps) break;
    std::uint32_t b[kPlanes][2][4];
    PNTK_UNROLL
    for (int n = 0; n < kPlanes; ++n) {
      PNTK_UNROLL
      for (int h = 0; h < 2; ++h)
        ldmatrix_x4_trans(b[n][h],
                          shared + from_right[h] + n * T::kRightPlane + step * 16 * T::kRowBytes);
    }
    PNTK_UNROLL
    for (int g = 0; g < T::kGroups; ++g) {
      PNTK_UNROLL
      for (int m = 0; m < 2; ++m) {
        std::uint32_t a[kPlanes][4];
        PNTK_UNROLL
        for (int n = 0; n < kPlanes; ++n)
          ldmatrix_x4(a[n], shared + (from_left[g][m] ^ step * 32) + n * T::kLeftPlane);
        PNTK_UNROLL
        for (int q = g * kSpan; q < (g + 1) * kSpan; ++q) {
          const int h = q / 2, i = q % 2 * 2;
          if constexpr (kPlanes == 2) {  // small products first
            mma_bf16(tile[m][q], a[0], b[1][h][i], b[1][h][i + 1]);
            mma_bf16(tile[m][q], a[1], b[0][h][i], b[0][h][i + 1]);
          }
          mma_bf16(tile[m][q], a[0], b[0][h][i], b[0][h][i + 1]);
        }
      }
    }
  }
}

// sum += signs times tile, three instructions a number: a shift that brings the number's bit to
// the place of a float's sign, a logical operation of three operands, an addition.
__device__ __forceinline__ void add_signed(const Accumulators& tile,
                                           const std::uint32_t (&signs)[4], const ProductLane& me,
                                           Accumulators& sum) {
  PNTK_UNROLL
  for (int n = 0; n < 4; ++n) {
    const std::uint32_t mine = signs[n] << (6 - me.lane % 4 * 2);  // column(q) in bit 8q + 6
    PNTK_UNROLL
    for (int q = 0; q < 4; ++q) {
      PNTK_UNROLL
      for (int e = 0; e < 2; ++e)
        sum[n / 2][q][n % 2 * 2 + e] +=
            flip(tile[n / 2][q][n % 2 * 2 + e], sign_bit(mine, 8 * q + 6 + e));
    }
  }
}

}  // namespace pntk::cuda
