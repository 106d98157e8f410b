// A single position: every tile is an outer product, and phi stays in registers.
#pragma once

#include "hadamard_pack.h"
#include "hadamard_tile.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

// For each sample: phi[r, c] += sum over J of +-rows[r ^ rho] * columns[c], r in [first, first + Rows).
// Samples share the signs of an entry, which cost more than its multiply-add.
template <int Samples, int Rows, int Vectors>
inline void add_outer(const Call& call, i64 i, const float* rows, const float* columns, i64 first,
                      float* phi) {
  const TileMap& m = *call.map;
  const i64 k = m.ko * m.ki, width = m.column_blocks * m.ki;
  for (i64 column = 0; column < m.ki; column += Vectors * kLanes) {
    Vec sum[Samples][Rows][Vectors];
    for (int b = 0; b < Samples; ++b)
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          sum[b][r][v] = load(phi + b * k + (first + r) * m.ki + column + v * kLanes);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const std::uint8_t* bits = place(call, i, i, j, phi).signs + (first * m.ki + column) / 8;
      Vec x[Samples][Vectors];
      for (int b = 0; b < Samples; ++b)
        for (int v = 0; v < Vectors; ++v)
          x[b][v] = load(columns + b * width + j * m.ki + column + v * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const i64 from = (first + r) ^ m.rho[j];
        for (int v = 0; v < Vectors; ++v) {
          const Signs sign = signs(bits + r * (m.ki / 8), v);
          for (int b = 0; b < Samples; ++b)
            sum[b][r][v] =
                fma(broadcast(rows[b * m.ko + from]), flip(x[b][v], sign), sum[b][r][v]);
        }
      }
    }
    for (int b = 0; b < Samples; ++b)
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          store(phi + b * k + (first + r) * m.ki + column + v * kLanes, sum[b][r][v]);
  }
}

// One position: phi stays in registers over all column blocks.
template <int Samples>
inline void add_rank_one(const Call& call, i64 first, float* phi) {
  const TileMap& m = *call.map;
  const Factors& f = *call.factors;
  const i64 width = m.column_blocks * m.ki, padded = round_up(call.channels, m.ki);
  float* moved = scratch(Samples * (2 * width + m.ko));
  float* columns = moved + Samples * width;
  float* rows = columns + Samples * width;
  for (int b = 0; b < Samples; ++b) {  // the one window of each kernel position
    const float* data = f.columns + (first + b) * f.columns_batch;
    float* to = columns + b * width;
    for (i64 p = 0; p < m.positions; ++p) {
      i64 at = 0;
      bool inside = true;
      for (i64 a = kAxes, rest = p; a-- > 0; rest /= f.kernel[a]) {
        const i64 x = rest % f.kernel[a] * f.dilation[a] - f.padding[a];
        inside = inside && 0 <= x && x < f.size[a];
        at += x * f.columns_axis[a];
      }
      if (call.together) {
        for (i64 c = 0; c < m.channels; ++c) {
          const i64 column = p * m.channels + c;
          to[column] = inside ? data[at + c * f.columns_channel] * m.column_diagonal[column] : 0.0f;
        }
      } else if (inside) {
        for (i64 block = 0; block < m.channel_blocks; ++block)
          pack({data + at, m.channels, 1, f.columns_channel, 0}, block * m.ki, m.ki,
               m.column_diagonal, true, nullptr, to + p * padded + block * m.ki);
      } else {
        fill_zeros(to + p * padded, padded);
      }
    }
    if (call.together) {
      fill_zeros(to + call.channels, width - call.channels);
      walsh_columns(to, m.column_blocks, m.ki);
    }
  }
  for (i64 i = 0; i < m.row_blocks; ++i) {
    for (int b = 0; b < Samples; ++b) {
      pack(row_source(call, first + b), i * m.ko, m.ko, call.diagonal, true, nullptr,
           rows + b * m.ko);
      for (i64 j = 0; j < m.column_blocks; ++j) {
        const i64 shift = m.gamma_columns[j] ^ m.gamma_rows[i], at = b * width + j * m.ki;
        for (i64 group = 0; group < m.ki / kGroup; ++group)
          std::memcpy(moved + at + group * kGroup, columns + at + (group ^ shift) * kGroup,
                      kGroup * sizeof(float));
      }
    }
    constexpr int kLeast = kLanes < kGroup ? 2 : 1;  // vectors that begin at whole bytes of signs
    constexpr int kWide = kLanes == 16 ? 4 : kLeast;
    i64 r = 0;
    if (m.ki % (kWide * kLanes) == 0)
      for (; r + 2 <= m.ko; r += 2) add_outer<Samples, 2, kWide>(call, i, rows, moved, r, phi);
    for (; r < m.ko; ++r) add_outer<Samples, 1, kLeast>(call, i, rows, moved, r, phi);
  }
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
