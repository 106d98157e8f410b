// A bias beside its weight: the sums of the row factors, added while phi is in cache.
#pragma once

#include "hadamard_gradient.h"
#include "hadamard_pack.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

constexpr i64 kSummed = 256;  // positions summed at a time, so that rounding errors stay small

// to[f] = sum over t of x[f, t]
inline void sum_positions(const Source& x, float* to) {
  fill_zeros(to, x.features);
  for (i64 start = 0; start < x.positions; start += kSummed) {
    const i64 end = smaller(x.positions, start + kSummed);
    i64 f = 0;
    if (x.feature == 1)
      for (; f + kLanes <= x.features; f += kLanes) {
        Vec sum = broadcast(0.0f);
        for (i64 t = start; t < end; ++t) sum = sum + load(x.data + t * x.position + f);
        store(to + f, load(to + f) + sum);
      }
    for (; f < x.features; ++f) {
      const float* row = x.data + f * x.feature;
      float lanes[kLanes] = {};
      i64 t = start;
      if (x.position == 1) {
        Vec sum = broadcast(0.0f);
        for (; t + kLanes <= end; t += kLanes) sum = sum + load(row + t);
        store(lanes, sum);
      }
      float total = 0.0f;
      for (; t < end; ++t) total += row[t * x.position];
      for (const float lane : lanes) total += lane;
      to[f] += total;
    }
  }
}

inline void add_bias(const Call& bias, const Source& rows, float* phi) {
  const TileMap& m = *bias.map;
  float* sums = scratch(rows.features + m.ko * m.ki);
  sum_positions(rows, sums);
  add_gradient(bias, sums, rows.features, sums + rows.features, phi);
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
