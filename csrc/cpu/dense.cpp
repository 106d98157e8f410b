#include "dense.h"

#include <algorithm>
#include <vector>

#include "dense_call.h"
#include "levels.h"
#include "parallel.h"

namespace pntk {
namespace {

using i64 = std::int64_t;

constexpr i64 kPiece = 1 << 14;          // coordinates summed before they are added to a row
constexpr i64 kEntries = 1 << 12;        // of a task: their sums stay in a common L2
constexpr i64 kFewestEntries = 1 << 9;   // below this, making tables costs more than using them
constexpr i64 kTasksPerThread = 4;       // held at a time, 1 MiB each at most

i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

}  // namespace

void dense_project(const Level& level, const DenseMap& map, i64 batch, const float* gradient,
                   float* out, int threads) {
  const i64 k = map.proj_dim, pieces = ceil_div(map.size, kPiece);
  const i64 sample_blocks = ceil_div(batch, kDenseSamples);
  const i64 wanted = threads > 1 ? kTasksPerThread * threads : 1;
  i64 width = kEntries;
  while (width > kFewestEntries && pieces * sample_blocks * ceil_div(k, width) < wanted) width /= 2;
  const i64 entry_blocks = ceil_div(k, width), tasks = sample_blocks * entry_blocks * pieces;
  const i64 at_once = std::min(wanted, tasks), floats = std::min(kDenseSamples, batch) * std::min(width, k);
  std::vector<float> sums(static_cast<std::size_t>(at_once * floats));
  const auto task = [&](i64 index) {
    const i64 piece = index % pieces, panel = index / pieces;
    const i64 sample = panel / entry_blocks * kDenseSamples, entry = panel % entry_blocks * width;
    return DenseTask{&map,
                     gradient + sample * map.size,
                     std::min(kDenseSamples, batch - sample),
                     piece * kPiece,
                     std::min(map.size, (piece + 1) * kPiece),
                     entry,
                     std::min(width, k - entry),
                     sums.data() + index % at_once * floats};
  };
  const auto kernel = map.normal ? level.dense.normal : level.dense.rademacher;
  for (i64 start = 0; start < tasks; start += at_once) {
    const i64 count = std::min(at_once, tasks - start);
    parallel_for(count, threads, [&](i64 i) { kernel(task(start + i)); });
    // Pieces are added in their order, so that rows do not depend on the number of threads.
    parallel_for(std::min(batch, kDenseSamples), threads, [&](i64 row) {
      for (i64 i = start; i < start + count; ++i) {
        const DenseTask done = task(i);
        if (row >= done.samples) continue;
        const i64 sample = i / pieces / entry_blocks * kDenseSamples + row;
        const float* from = done.sums + row * done.entries;
        float* to = out + sample * k + done.entry;
        for (i64 j = 0; j < done.entries; ++j) to[j] += map.scale * from[j];
      }
    });
  }
}

}  // namespace pntk
