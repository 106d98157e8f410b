// The late road: the product comes first, straight from the image, and each tile is transformed.
// It wins where early tiles would be mostly padding. Convolutions in groups go a similar way.
#pragma once

#include "hadamard_gradient.h"
#include "hadamard_pack.h"
#include "scratch.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

// Channels of one sample as [channel, pixel], zeros where no input lies.
struct Image {
  const float* data;
  i64 channel, pixel;  // strides
};

inline i64 image_size(const Call& call, i64 channels) {
  return call.flat && !call.padded ? 0 : channels * call.pixels;
}

// room: for image_size(), used where the input itself will not do.
inline Image image_of(const Call& call, i64 b, i64 first, i64 channels, float* room) {
  const Factors& f = *call.factors;
  const i64 *n = f.size, *step = f.columns_axis;
  const float* data = f.columns + b * f.columns_batch + first * f.columns_channel;
  if (call.flat && !call.padded) return {data, f.columns_channel, step[2]};
  fill_zeros(room, channels * call.pixels);
  for (i64 c = 0; c < channels; ++c, data += f.columns_channel) {
    const i64* where = call.where;
    for (i64 i = 0; i < n[0]; ++i)
      for (i64 j = 0; j < n[1]; ++j) {
        const float* from = data + i * step[0] + j * step[1];
        float* to = room + c * call.pixels + *where;  // neighbours stay neighbours
        for (i64 k = 0; k < n[2]; ++k) to[k] = from[k * step[2]];
        where += n[2];
      }
  }
  return {room, call.pixels, 1};
}

// Products of taps (one channel at one kernel position, straight from the image) with the rows'
// panel [t, ld]: to[i, ld] for each of `count` taps. Chunk by chunk, so that all taps read the panel
// from L1, and rounding errors stay small.
template <int Taps, int Vectors>
inline void product_taps(const Call& call, const Image& image, const i64* taps, i64 count,
                         const float* rows, i64 ld, float* to) {
  const i64 step = call.step * image.pixel;
  for (i64 chunk = 0; chunk < call.chunk_count; ++chunk) {
    const Segment* begin = call.segments + call.chunks[chunk].segment;
    const Segment* end = call.segments + call.chunks[chunk + 1].segment;
    for (i64 tap = 0; tap < count; tap += Taps) {
      const int taken = static_cast<int>(smaller(Taps, count - tap));
      const float* from[Taps];
      for (int i = 0; i < Taps; ++i) from[i] = image.data + taps[tap + (i < taken ? i : 0)];
      for (i64 column = 0; column < ld; column += Vectors * kLanes) {
        float* sums = to + tap * ld + column;
        Vec sum[Taps][Vectors];
        for (int i = 0; i < Taps; ++i)
          for (int v = 0; v < Vectors; ++v)
            sum[i][v] = broadcast(0.0f);
        const float* b = rows + call.chunks[chunk].position * ld + column;
        for (const Segment* s = begin; s != end; ++s) {
          i64 at = s->pixel * image.pixel;
          for (i64 t = 0; t < s->count; ++t, at += step, b += ld) {
            Vec x[Vectors];
            for (int v = 0; v < Vectors; ++v) x[v] = load(b + v * kLanes);
            for (int i = 0; i < Taps; ++i) {
              const Vec y = broadcast(from[i][at]);
              for (int v = 0; v < Vectors; ++v) sum[i][v] = fma(y, x[v], sum[i][v]);
            }
          }
        }
        for (int i = 0; i < taken; ++i)
          for (int v = 0; v < Vectors; ++v) {
            float* at = sums + i * ld + v * kLanes;
            store(at, chunk > 0 ? load(at) + sum[i][v] : sum[i][v]);
          }
      }
    }
  }
}

inline void product_taps(const Call& call, const Image& image, const i64* taps, i64 count,
                         const float* rows, i64 ld, float* to) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;
  if (ld % (kWide * kLanes) == 0) product_taps<4, kWide>(call, image, taps, count, rows, ld, to);
  else product_taps<8, 1>(call, image, taps, count, rows, ld, to);
}

constexpr i64 kTaps = 256;  // at a time

// The late road: the product of each tile, then its transform.
inline void add_late(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 ld = round_up(smaller(m.ko, m.rows), kLanes), rows_size = call.positions * ld;
  const i64 tile_size = larger(m.ko, ld) * m.ki;
  float* rows = scratch(rows_size + 2 * tile_size + image_size(call, m.channels));
  float* tile = rows + rows_size;
  float* products = tile + tile_size;  // [ki, ld]
  const Image image = image_of(call, b, 0, m.channels, products + tile_size);
  const Source source = row_source(call, b);
  for (i64 i = 0; i < m.row_blocks; ++i) {
    const i64 known = smaller(m.ko, m.rows - i * m.ko);
    Source block = source;
    block.features = i * m.ko + known;
    pack(block, i * m.ko, ld, call.diagonal, false, nullptr, rows);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const i64 first = j % m.channel_blocks * m.ki, width = smaller(m.ki, call.channels - first);
      for (i64 done = 0; done < width; done += kTaps) {
        i64 taps[kTaps];
        const i64 count = smaller(kTaps, width - done);
        for (i64 c = 0; c < count; ++c) {
          const i64 column = first + done + c;
          const i64 p = call.together ? column / m.channels : j / m.channel_blocks;
          taps[c] = column % m.channels * image.channel + call.offsets[p] * image.pixel;
        }
        product_taps(call, image, taps, count, rows, ld, products + done * ld);
      }
      fill_zeros(products + width * ld, (round_up(width, kLanes) - width) * ld);
      for (i64 r = 0; r < known; r += kLanes)
        for (i64 c = 0; c < m.ki; c += kLanes) {
          Vec x[kLanes];
          if (c < width) {
            for (int l = 0; l < kLanes; ++l) x[l] = load(products + (c + l) * ld + r);
            transpose(x);
            const Vec d = load(m.column_diagonal + first + c);
            for (int l = 0; l < kLanes; ++l) x[l] = x[l] * d;
          } else {
            for (int l = 0; l < kLanes; ++l) x[l] = broadcast(0.0f);
          }
          for (i64 l = 0; l < smaller(kLanes, known - r); ++l) store(tile + (r + l) * m.ki + c, x[l]);
        }
      add_transformed(tile, known, m.ko, place(call, i, i, j, phi));
    }
  }
}

// A convolution in groups: one sample's gradient [O, C, P] at a time, then its transform.
inline void add_grouped(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 members = m.rows / call.factors->groups, ld = round_up(members, kLanes);
  const i64 size = m.rows * m.channels * m.positions, taps_of_all = m.channels * m.positions;
  const i64 rows_size = call.positions * ld;
  float* rows = scratch(rows_size + size + m.ko * m.ki + kTaps * ld + image_size(call, m.channels));
  float* gradient = rows + rows_size;
  float* tile = gradient + size;
  float* products = tile + m.ko * m.ki;
  for (i64 g = 0; g < call.factors->groups; ++g) {
    Source source = row_source(call, b);
    source.data += g * members * source.feature;
    source.features = members;
    pack(source, 0, ld, nullptr, false, nullptr, rows);
    const Image image =
        image_of(call, b, g * m.channels, m.channels, products + kTaps * ld);
    for (i64 done = 0; done < taps_of_all; done += kTaps) {
      i64 taps[kTaps];
      const i64 count = smaller(kTaps, taps_of_all - done);
      for (i64 c = 0; c < count; ++c)
        taps[c] = (done + c) / m.positions * image.channel +
                  call.offsets[(done + c) % m.positions] * image.pixel;
      product_taps(call, image, taps, count, rows, ld, products);
      for (i64 r = 0; r < members; ++r)
        for (i64 c = 0; c < count; ++c)
          gradient[(g * members + r) * taps_of_all + done + c] = products[c * ld + r];
    }
  }
  add_gradient(call, gradient, size, tile, phi);
}

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
