// What dense.cpp hands to a level. Plain data, so that no code of one level's making can end up in
// another's.
#pragma once

#include "dense.h"

namespace pntk {

constexpr std::int64_t kDenseSamples = 64;  // in a task, at most
constexpr std::int64_t kDenseGroup = 64;    // entries of 16 Philox blocks; tasks start at multiples

// sums[b, j] = sum over the task's coordinates of P[entry + j, i] gradient[b, i], unscaled.
struct DenseTask {
  const DenseMap* map;
  const float* gradient;              // first sample, coordinate 0; rows are map->size apart
  std::int64_t samples;
  std::int64_t first, last;           // coordinates; first is a multiple of 32
  std::int64_t entry, entries;
  float* sums;                        // [samples, entries]
};

struct DenseKernels {
  void (*rademacher)(const DenseTask&);
  void (*normal)(const DenseTask&);
};

// Level t of the normal table, t = 0..255; see pntk/projection/quantiles.py.
struct NormalLevels {
  float at[256];
};
extern const NormalLevels kNormalLevels;

}  // namespace pntk
