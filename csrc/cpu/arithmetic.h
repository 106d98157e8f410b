// Small arithmetic of one level, where the standard library's templates may not go (see simd.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

using i64 = std::int64_t;

PNTK_INLINE i64 round_up(i64 a, i64 b) { return (a + b - 1) / b * b; }
PNTK_INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
PNTK_INLINE i64 larger(i64 a, i64 b) { return a < b ? b : a; }

inline void fill_zeros(float* to, i64 count) {
  std::memset(to, 0, static_cast<std::size_t>(count) * sizeof(float));
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
