// Factors of one sample, copied into panels of whole tiles.
#pragma once

#include "arithmetic.h"
#include "hadamard_call.h"
#include "walsh.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

// A factor of one sample: element (feature f, position t) at data[f * feature + t * position].
struct Source {
  const float* data;
  i64 features, positions, feature, position;
};

// Write features [first, first + width) of all positions to rows of `to` [., width], position t
// to row where[t] (or t), each feature times diagonal[feature] (or 1), transformed if wanted.
// Features past the last are zeros.
inline void pack(const Source& x, i64 first, i64 width, const float* diagonal, bool transform,
                 const i64* where, float* to) {
  const i64 known = larger(0, smaller(width, x.features - first));
  const float* from = x.data + first * x.feature;
  for (i64 t = 0; t < x.positions; t += kLanes) {
    const i64 count = smaller(kLanes, x.positions - t);
    float* row[kLanes];
    for (i64 i = 0; i < count; ++i) row[i] = to + (where ? where[t + i] : t + i) * width;
    i64 f = 0;
    if (x.feature == 1) {
      for (; f + kLanes <= known; f += kLanes) {
        const Vec d = diagonal ? load(diagonal + first + f) : broadcast(1.0f);
        for (i64 i = 0; i < count; ++i)
          store(row[i] + f, load(from + (t + i) * x.position + f) * d);
      }
    } else if (x.position == 1 && count == kLanes) {
      for (; f < known && f + kLanes <= width; f += kLanes) {
        Vec block[kLanes];
        for (i64 i = 0; i < kLanes; ++i)
          block[i] = f + i < known ? load(from + (f + i) * x.feature + t) : broadcast(0.0f);
        transpose(block);
        const Vec d = diagonal ? load(diagonal + first + f) : broadcast(1.0f);
        for (int i = 0; i < kLanes; ++i) store(row[i] + f, block[i] * d);
      }
    }
    for (i64 i = 0; i < count; ++i) {
      for (i64 g = f; g < known; ++g)
        row[i][g] = from[g * x.feature + (t + i) * x.position] * (diagonal ? diagonal[first + g] : 1.0f);
      for (i64 g = larger(f, known); g < width; ++g) row[i][g] = 0.0f;
      if (transform) walsh_columns(row[i], 1, width);
    }
  }
}

inline Source row_source(const Call& call, i64 b) {
  const Factors& f = *call.factors;
  return {f.rows + b * f.rows_batch, call.map->rows, call.positions, f.rows_feature,
          f.rows_position};
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
