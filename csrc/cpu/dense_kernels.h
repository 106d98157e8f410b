// The dense projections at one level; dense.h says what they compute.
#pragma once

#include "dense_normal.h"
#include "dense_table.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {
namespace dense {

constexpr DenseKernels kKernels{rademacher, normal};

}  // namespace dense
}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
