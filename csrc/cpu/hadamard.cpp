#include "hadamard.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "hadamard_call.h"
#include "levels.h"
#include "parallel.h"
#include "philox.h"

namespace pntk {
namespace {

using i64 = std::int64_t;

constexpr i64 kChunk = 128;        // positions that one product sums before it is added
constexpr i64 kTransformCost = 5;  // of a late tile, in multiply-adds an entry
constexpr i64 kLanes = 16;         // what panels are padded to: the widest level's vector

i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }

// Levels work on whole vectors of a tile's row.
const Level& level_for(const Level& level, const TileMap& map) {
  return map.ki < level.lanes ? *level.narrower : level;
}

// ---- entry signs -------------------------------------------------------------------------------

class EntrySigns {
 public:
  // blocks: the row blocks wanted, ascending; empty for all.
  EntrySigns(const Level& level, const TileMap& map, int threads,
             const std::vector<i64>& blocks = {})
      : slots(blocks.empty() ? map.row_blocks : static_cast<i64>(blocks.size())) {
    const i64 row_bytes = map.ki / 8, tile_bytes = map.ko * row_bytes;
    bits.resize(static_cast<std::size_t>(map.column_blocks * slots * tile_bytes + kSlack));
    const auto block = [&](i64 slot) { return blocks.empty() ? slot : blocks[slot]; };
    const i64 at_once = std::max<i64>(1, kTaskBytes / tile_bytes);
    const i64 tasks = ceil_div(slots, at_once);
    parallel_for(map.column_blocks * tasks, threads, [&](i64 task) {
      const i64 j = task / tasks, end = std::min(slots, (task % tasks + 1) * at_once);
      for (i64 first = task % tasks * at_once, slot = first; first < end; first = slot) {
        do ++slot;
        while (slot < end && block(slot) == block(slot - 1) + 1);
        std::uint8_t* run = bits.data() + (j * slots + first) * tile_bytes;
        const i64 start = (j * map.row_blocks + block(first)) * tile_bytes;
        generate(level, map, start, (slot - first) * tile_bytes, run);
        for (i64 i = first; i < slot; ++i, run += tile_bytes)
          move(run, map.ko, row_bytes, map.gamma_rows[block(i)]);
      }
    });
  }

  std::vector<std::uint8_t> bits;
  i64 slots;

 private:
  static constexpr i64 kTaskBytes = 1 << 15;
  static constexpr i64 kSlack = 4;  // kernels read whole words

  // Bytes [start, start + count) of the stream.
  static void generate(const Level& level, const TileMap& map, i64 start, i64 count,
                       std::uint8_t* to) {
    constexpr i64 kBytes = sizeof(std::uint32_t), kWords = 1024;
    std::uint32_t words[kWords];
    while (count > 0) {
      const i64 first = start / kBytes, skip = start % kBytes;
      const i64 taken = std::min(count, kWords * kBytes - skip);
      philox_words(level, map.seed, map.stream, static_cast<std::uint64_t>(first) / kBlockWords,
                   static_cast<std::size_t>(first) % kBlockWords,
                   static_cast<std::size_t>(ceil_div(skip + taken, kBytes)), words);
      std::memcpy(to, reinterpret_cast<const std::uint8_t*>(words) + skip,
                  static_cast<std::size_t>(taken));
      start += taken, to += taken, count -= taken;
    }
  }

  // Byte i of each row goes to byte i ^ shift.
  static void move(std::uint8_t* row, i64 rows, i64 row_bytes, i64 shift) {
    if (shift == 0) return;
    for (i64 r = 0; r < rows; ++r, row += row_bytes)
      for (i64 i = 0; i < row_bytes; ++i)
        if ((i ^ shift) > i) std::swap(row[i], row[i ^ shift]);
  }
};

std::vector<float> scaled_diagonal(const TileMap& map) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(map.ko * map.ki)));
  std::vector<float> scaled(map.row_diagonal, map.row_diagonal + map.row_blocks * map.ko);
  for (float& x : scaled) x *= scale;
  scaled.resize(scaled.size() + kLanes);  // kernels read whole vectors
  return scaled;
}

// A call and what it points at.
struct Held {
  EntrySigns signs;
  std::vector<float> diagonal;
  Call call{};

  Held(const Level& level, const TileMap& map, int threads, const std::vector<i64>& blocks = {})
      : signs(level, map, threads, blocks), diagonal(scaled_diagonal(map)) {
    call.map = &map;
    call.diagonal = diagonal.data();
    call.signs = signs.bits.data();
    call.slots = signs.slots;
  }
  Held(const Held&) = delete;
};

// ---- geometry ----------------------------------------------------------------------------------

struct Windows {
  i64 pixels = 1, positions = 1, step = 1;
  std::vector<i64> where, offsets;
  std::vector<Segment> segments;
  std::vector<Chunk> chunks;

  explicit Windows(const Factors& f) : step(f.stride[2]) {
    i64 apart[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      apart[a] = pixels;
      pixels *= f.size[a] + 2 * f.padding[a];
      positions *= f.grid[a];
    }
    const auto pixel = [&](i64 x, i64 y, i64 z) { return x * apart[0] + y * apart[1] + z; };
    for (i64 x = 0; x < f.size[0]; ++x)
      for (i64 y = 0; y < f.size[1]; ++y)
        for (i64 z = 0; z < f.size[2]; ++z)
          where.push_back(pixel(x + f.padding[0], y + f.padding[1], z + f.padding[2]));
    for (i64 x = 0; x < f.kernel[0]; ++x)
      for (i64 y = 0; y < f.kernel[1]; ++y)
        for (i64 z = 0; z < f.kernel[2]; ++z)
          offsets.push_back(pixel(x * f.dilation[0], y * f.dilation[1], z * f.dilation[2]));
    for (i64 x = 0; x < f.grid[0]; ++x)
      for (i64 y = 0; y < f.grid[1]; ++y)
        add_row(pixel(x * f.stride[0], y * f.stride[1], 0), f.grid[2]);
    cut();
  }

 private:
  void add_row(i64 pixel, i64 count) {
    for (i64 t = 0; t < count; t += kChunk)
      segments.push_back({pixel + t * step, std::min(kChunk, count - t)});
  }

  void cut() {
    i64 position = 0, start = -kChunk;
    for (std::size_t s = 0; s < segments.size(); position += segments[s++].count)
      if (position + segments[s].count - start > kChunk)
        chunks.push_back({static_cast<i64>(s), start = position});
    chunks.push_back({static_cast<i64>(segments.size()), position});
  }
};

bool is_late(const TileMap& m, bool together, i64 positions) {
  if (positions == 1) return false;
  if (together) return true;  // columns of several kernel positions are no panel of the input
  const i64 last = m.rows - (m.row_blocks - 1) * m.ko;
  const i64 rows = (m.row_blocks - 1) * round_up(m.ko, kLanes) + round_up(last, kLanes);
  const i64 tiles = m.row_blocks * m.ko * m.channel_blocks * m.ki;
  return rows * m.channels * positions + tiles * kTransformCost < tiles * positions;
}

}  // namespace

void hadamard_factors(const Level& given, const TileMap& map, const Factors& factors,
                      const TileMap* bias, float* out, int threads) {
  const Level& level = level_for(given, map);
  const Windows windows(factors);
  Held weight(level, map, threads);
  Call& call = weight.call;
  call.factors = &factors;
  call.together = !map.per_position && map.positions > 1;
  call.late = is_late(map, call.together, windows.positions);
  call.padded = windows.pixels > static_cast<i64>(windows.where.size());
  call.flat = factors.columns_axis[1] == factors.size[2] * factors.columns_axis[2] &&
              factors.columns_axis[0] == factors.size[1] * factors.columns_axis[1];
  call.channels = call.together ? map.channels * map.positions : map.channels;
  call.positions = windows.positions;
  call.pixels = windows.pixels;
  call.step = windows.step;
  call.where = windows.where.data();
  call.offsets = windows.offsets.data();
  call.segments = windows.segments.data();
  call.chunks = windows.chunks.data();
  call.chunk_count = static_cast<i64>(windows.chunks.size()) - 1;
  std::optional<Held> sums;
  if (bias != nullptr) sums.emplace(level, *bias, threads);
  const Call* beside = sums ? &sums->call : nullptr;
  // only outer products gain from company, and not where it leaves threads without work
  const bool outer = windows.positions == 1 && factors.groups == 1;
  const bool enough = ceil_div(factors.batch, kSamplesTogether) >= threads;
  const i64 each = outer && enough ? kSamplesTogether : 1;
  parallel_for(ceil_div(factors.batch, each), threads, [&](i64 task) {
    const i64 first = task * each, count = std::min(each, factors.batch - first);
    level.hadamard.factors(call, beside, first, count, out + first * map.ko * map.ki);
  });
}

void hadamard_gradient(const Level& given, const TileMap& map, i64 batch, i64 size,
                       const float* gradient, float* out, int threads) {
  const Level& level = level_for(given, map);
  const Held held(level, map, threads);
  parallel_for(batch, threads, [&](i64 b) {
    level.hadamard.gradient(held.call, gradient + b * size, size, out + b * map.ko * map.ki);
  });
}

void hadamard_lookup(const Level& given, const TileMap& map, i64 batch, i64 tokens, const i64* ids,
                     const float* delta, float* out, int threads) {
  if (batch == 0 || tokens == 0) return;
  const Level& level = level_for(given, map);
  std::vector<i64> blocks(ids, ids + batch * tokens);
  for (i64& id : blocks) id /= map.ko;
  std::sort(blocks.begin(), blocks.end());
  blocks.erase(std::unique(blocks.begin(), blocks.end()), blocks.end());
  const Held held(level, map, threads, blocks);
  parallel_for(batch, threads, [&](i64 b) {
    const i64* found = ids + b * tokens;
    std::vector<Segment> segments(static_cast<std::size_t>(tokens));
    for (i64 t = 0; t < tokens; ++t) segments[t] = {t, 1};
    std::stable_sort(segments.begin(), segments.end(), [&](const Segment& s, const Segment& t) {
      return found[s.pixel] / map.ko < found[t.pixel] / map.ko;
    });
    std::vector<i64> sorted, slots;
    for (const Segment& s : segments) {
      sorted.push_back(found[s.pixel]);
      const auto block = std::lower_bound(blocks.begin(), blocks.end(), sorted.back() / map.ko);
      slots.push_back(block - blocks.begin());
    }
    const Lookup lookup{tokens, sorted.data(), slots.data(), segments.data()};
    level.hadamard.lookup(held.call, lookup, delta + b * tokens * map.channels,
                          out + b * map.ko * map.ki);
  });
}

}  // namespace pntk
