// The tile-Hadamard sketch of samples at one level; hadamard.h says what it computes.
//
// Roads lead from factors to a tile. Early: the transforms go onto the factors, once each, and every
// tile is a plain product. Late: the product comes first and each tile is transformed, which wins
// where early tiles would be mostly padding. A single position makes outer products.
#pragma once

#include "hadamard_bias.h"
#include "hadamard_early.h"
#include "hadamard_gradient.h"
#include "hadamard_late.h"
#include "hadamard_lookup.h"
#include "hadamard_outer.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

void factors_samples(const Call& call, const Call* bias, i64 first, i64 count, float* phi) {
  const i64 k = call.map->ko * call.map->ki;
  const bool grouped = call.factors->groups > 1, rank_one = !grouped && call.positions == 1;
  const bool together = rank_one && count == kSamplesTogether;
  if (together) add_rank_one<kSamplesTogether>(call, first, phi);
  for (i64 b = first; b < first + count; ++b, phi += k) {
    if (grouped) add_grouped(call, b, phi);
    else if (rank_one && !together) add_rank_one<1>(call, b, phi);
    else if (!rank_one && call.late) add_late(call, b, phi);
    else if (!rank_one) add_early(call, b, phi);
    if (bias) add_bias(*bias, row_source(call, b), phi);  // while phi is in cache
  }
}

void gradient_sample(const Call& call, const float* gradient, i64 size, float* phi) {
  add_gradient(call, gradient, size, scratch(call.map->ko * call.map->ki), phi);
}

constexpr HadamardKernels kHadamardKernels{factors_samples, gradient_sample, lookup_sample};

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
