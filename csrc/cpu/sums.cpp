#include "sums.h"

#include "levels.h"
#include "parallel.h"

namespace pntk {

void norm_sums(const Level& level, const NormSums& sums, int threads) {
  parallel_for(sums.samples, threads, [&](std::int64_t n) { level.norm_sums(sums, n); });
}

}  // namespace pntk
