// The tile-Hadamard sketch of one sample at one level; hadamard.h says what it computes.
//
// Two roads lead from factors to a tile. Early: the transforms go onto the factors, once each, and
// every tile is a plain product. Late: the product comes first and each tile is transformed, which
// wins where early tiles would be mostly padding. A single position is a rank-one early road.
//
// Nothing here may instantiate a template of the standard library: its code would carry this
// level's instructions, and the linker could give it to another level.
#pragma once

#include <cstring>

#include "hadamard_call.h"
#include "scratch.h"
#include "walsh.h"

namespace pntk {
namespace PNTK_LEVEL {
namespace {

using i64 = std::int64_t;

constexpr i64 kGroup = 8;              // gamma moves whole groups of columns
constexpr i64 kPanelFloats = 1 << 17;  // of row factors at a time, half of a common L2

PNTK_INLINE i64 round_up(i64 a, i64 b) { return (a + b - 1) / b * b; }
PNTK_INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
PNTK_INLINE i64 larger(i64 a, i64 b) { return a < b ? b : a; }

inline void fill_zeros(float* to, i64 count) {
  std::memset(to, 0, static_cast<std::size_t>(count) * sizeof(float));
}

// ---- adding tiles to phi -----------------------------------------------------------------------

// Where one tile goes: phi[r, c] += bit of signs * tile[r ^ rho, c ^ 8 shift].
struct Place {
  float* phi;  // [ko, ki]
  const std::uint8_t* signs;
  i64 ki, rho, shift;
};

// Add one vector of a tile's row, which starts at `column`.
PNTK_INLINE void add_vector(const Place& at, i64 row, i64 column, Vec x) {
  const i64 to_row = row ^ at.rho;
  i64 shift = at.shift;
  if constexpr (kLanes > kGroup) {
    if (shift & 1) x = exchange<kGroup>(x);
    shift &= ~i64{1};
  }
  const i64 to = column ^ (shift * kGroup);
  float* phi = at.phi + to_row * at.ki + to;
  store(phi, load(phi) + flip_at(x, at.signs + to_row * (at.ki / 8), to));
}

// ---- products ----------------------------------------------------------------------------------

// A product over positions: rows [t, lda], columns [pixel, ldb].
struct Panels {
  const float* rows;
  i64 lda;
  const float* columns;
  i64 ldb, step;
  const Segment *begin, *end;
};

template <int Rows, int Vectors>
PNTK_INLINE void product(const Panels& p, i64 row, i64 column, Vec (&sum)[Rows][Vectors]) {
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) sum[r][v] = broadcast(0.0f);
  const float* a = p.rows + row;
  for (const Segment* s = p.begin; s != p.end; ++s) {
    const float* b = p.columns + s->pixel * p.ldb + column;
    for (i64 t = 0; t < s->count; ++t, a += p.lda, b += p.step * p.ldb) {
      Vec x[Vectors];
      for (int v = 0; v < Vectors; ++v) x[v] = load(b + v * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const Vec y = broadcast(a[r]);
        for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(y, x[v], sum[r][v]);
      }
    }
  }
}

// Call finish(row, column, vector) for every vector of the product [rows, columns].
template <int Rows, int Vectors, typename Finish>
inline void product_rows(const Panels& p, i64 rows, i64 columns, Finish&& finish) {
  for (i64 row = 0; row < rows; row += Rows)
    for (i64 column = 0; column < columns; column += Vectors * kLanes) {
      Vec sum[Rows][Vectors];
      product(p, row, column, sum);
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v) finish(row + r, column + v * kLanes, sum[r][v]);
    }
}

// columns: a multiple of kLanes; rows: 1, 2, or a multiple of 4.
template <typename Finish>
inline void product_tile(const Panels& p, i64 rows, i64 columns, Finish&& finish) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;  // accumulators: 16 of 32 registers, or 8 of 16
  if (rows % 4 == 0) {
    if (columns % (kWide * kLanes) == 0) product_rows<4, kWide>(p, rows, columns, finish);
    else if (columns % (2 * kLanes) == 0) product_rows<4, 2>(p, rows, columns, finish);
    else product_rows<4, 1>(p, rows, columns, finish);
  } else if (rows == 2) {
    product_rows<2, 1>(p, rows, columns, finish);
  } else {
    product_rows<1, 1>(p, rows, columns, finish);
  }
}

// ---- packing -----------------------------------------------------------------------------------

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

// ---- one sample's gradient, tile by tile -------------------------------------------------------

// Transform a tile [rows of ko, ki], whose diagonals are already in, and add it to phi.
inline void add_transformed(float* tile, i64 rows, i64 ko, const Place& at) {
  walsh_columns(tile, rows, at.ki);
  i64 order = 1;  // zeros past it only repeat the transform of the rows before
  while (order < rows) order *= 2;
  fill_zeros(tile + rows * at.ki, (order - rows) * at.ki);
  walsh_rows(tile, order, at.ki);
  for (i64 r = 0; r < ko; ++r) {
    const float* row = tile + (r & (order - 1)) * at.ki;
    for (i64 c = 0; c < at.ki; c += kLanes) add_vector(at, r, c, load(row + c));
  }
}

// slot: of row block i among the call's entry signs.
inline Place place(const Call& call, i64 slot, i64 i, i64 j, float* phi) {
  const TileMap& m = *call.map;
  return {phi, call.signs + (j * call.slots + slot) * (m.ko * m.ki / 8), m.ki, m.rho[j],
          m.gamma_columns[j] ^ m.gamma_rows[i]};
}

// Add one gradient, seen as [rows, C, P], or as rows of ki numbers.
// tile: room for one.
inline void add_gradient(const Call& call, const float* gradient, i64 size, float* tile,
                         float* phi) {
  const TileMap& m = *call.map;
  const i64 spacing = m.vector ? 1 : m.positions;
  const i64 row_size = m.vector ? m.ki : m.channels * m.positions;
  const bool together = !m.per_position;
  const i64 width_of_all = together ? row_size : m.channels;
  const i64 ahead = m.vector ? m.ko * m.ki : m.ki;  // the next tile: runs too short for hardware
  for (i64 i = 0; i < m.row_blocks; ++i) {
    const i64 rows = smaller(m.ko, m.rows - i * m.ko);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const i64 p = together ? 0 : j / m.channel_blocks;
      const i64 first = (together ? j : j % m.channel_blocks) * m.ki;
      const float* sign = m.column_diagonal + first;
      for (i64 r = 0; r < rows; ++r) {
        const float* row = gradient + (i * m.ko + r) * row_size;
        const float d = call.diagonal[i * m.ko + r];
        float* to = tile + r * m.ki;
        const i64 left = m.vector ? size - (i * m.ko + r) * m.ki : width_of_all - first;
        const i64 width = smaller(m.ki, left);
        i64 c = 0;
        if (together && m.positions > 1) {  // column p * C + channel, of [C, P]
          for (; c < width; ++c) {
            const i64 at = first + c;
            to[c] = row[(at % m.channels) * spacing + at / m.channels] * d * sign[c];
          }
        } else if (spacing == 1) {
          const Vec scale = broadcast(d);
          for (; c + kLanes <= width; c += kLanes) {
            __builtin_prefetch(row + first + c + ahead);
            store(to + c, load(row + first + c) * (load(sign + c) * scale));
          }
          for (; c < width; ++c) to[c] = row[first + c] * d * sign[c];
        } else {
          for (; c < width; ++c) to[c] = row[(first + c) * spacing + p] * d * sign[c];
        }
        for (; c < m.ki; ++c) to[c] = 0.0f;
      }
      add_transformed(tile, rows, m.ko, place(call, i, i, j, phi));
    }
  }
}

// ---- the columns' factor -----------------------------------------------------------------------

inline Source row_source(const Call& call, i64 b) {
  const Factors& f = *call.factors;
  return {f.rows + b * f.rows_batch, call.map->rows, call.positions, f.rows_feature,
          f.rows_position};
}

// Floats of the panels [channel_blocks, pixels, ki].
inline i64 panel_size(const Call& call) {
  return call.map->channel_blocks * call.pixels * call.map->ki;
}

// Write the transformed panels of sample b; zeros where no pixel lies.
inline void pack_columns(const Call& call, i64 b, float* panels) {
  const Factors& f = *call.factors;
  const TileMap& m = *call.map;
  const float* data = f.columns + b * f.columns_batch;
  const i64 *n = f.size, *step = f.columns_axis;
  for (i64 block = 0; block < m.channel_blocks; ++block) {
    float* panel = panels + block * call.pixels * m.ki;
    if (call.padded) fill_zeros(panel, call.pixels * m.ki);
    const auto write = [&](const float* from, i64 count, const i64* where) {
      pack({from, m.channels, count, f.columns_channel, step[2]}, block * m.ki, m.ki,
           m.column_diagonal, true, where, panel);
    };
    if (call.flat) {
      write(data, n[0] * n[1] * n[2], call.where);
      continue;
    }
    const i64* where = call.where;
    for (i64 i = 0; i < n[0]; ++i)
      for (i64 j = 0; j < n[1]; ++j, where += n[2])
        write(data + i * step[0] + j * step[1], n[2], where);
  }
}

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

// ---- factors -----------------------------------------------------------------------------------

// Some row blocks at a time, so that their panels stay in L2.
inline void add_early(const Call& call, i64 b, float* phi) {
  const TileMap& m = *call.map;
  const i64 block_size = call.positions * m.ko;
  const i64 blocks = larger(1, smaller(m.row_blocks, kPanelFloats / block_size));
  float* columns = scratch(panel_size(call) + blocks * block_size);
  float* rows = columns + panel_size(call);
  pack_columns(call, b, columns);
  const Source source = row_source(call, b);
  for (i64 first = 0; first < m.row_blocks; first += blocks) {
    const i64 end = smaller(m.row_blocks, first + blocks);
    for (i64 i = first; i < end; ++i)
      pack(source, i * m.ko, m.ko, call.diagonal, true, nullptr, rows + (i - first) * block_size);
    for (i64 chunk = 0; chunk < call.chunk_count; ++chunk)
      for (i64 j = 0; j < m.column_blocks; ++j) {
        const i64 block = j % m.channel_blocks, offset = call.offsets[j / m.channel_blocks];
        const float* column = columns + (block * call.pixels + offset) * m.ki;
        for (i64 i = first; i < end; ++i) {
          const Place at = place(call, i, i, j, phi);
          const float* row = rows + (i - first) * block_size + call.chunks[chunk].position * m.ko;
          const Panels panels{row, m.ko, column, m.ki, call.step,
                              call.segments + call.chunks[chunk].segment,
                              call.segments + call.chunks[chunk + 1].segment};
          product_tile(panels, m.ko, m.ki,
                       [&](i64 r, i64 c, Vec x) { add_vector(at, r, c, x); });
        }
      }
  }
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

// For each sample: phi[r, c] += sum over J of +-rows[r ^ rho] * columns[c], r in [first, first + Rows).
// Samples share the signs of an entry, which cost more than its multiply-add.
template <int Samples, int Rows, int Vectors>
inline void add_outer(const Call& call, i64 i, const float* rows, const float* columns, i64 first,
                      float* phi) {
  const TileMap& m = *call.map;
  const i64 k = m.ko * m.ki, width = m.column_blocks * m.ki;
  for (i64 column = 0; column < m.ki; column += Vectors * kLanes) {
    Vec sum[Samples][Rows][Vectors];
    for (int b = 0; b < Samples; ++b)
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          sum[b][r][v] = load(phi + b * k + (first + r) * m.ki + column + v * kLanes);
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const std::uint8_t* bits = place(call, i, i, j, phi).signs + (first * m.ki + column) / 8;
      Vec x[Samples][Vectors];
      for (int b = 0; b < Samples; ++b)
        for (int v = 0; v < Vectors; ++v)
          x[b][v] = load(columns + b * width + j * m.ki + column + v * kLanes);
      for (int r = 0; r < Rows; ++r) {
        const i64 from = (first + r) ^ m.rho[j];
        for (int v = 0; v < Vectors; ++v) {
          const Signs sign = signs(bits + r * (m.ki / 8), v);
          for (int b = 0; b < Samples; ++b)
            sum[b][r][v] =
                fma(broadcast(rows[b * m.ko + from]), flip(x[b][v], sign), sum[b][r][v]);
        }
      }
    }
    for (int b = 0; b < Samples; ++b)
      for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < Vectors; ++v)
          store(phi + b * k + (first + r) * m.ki + column + v * kLanes, sum[b][r][v]);
  }
}

// One position: phi stays in registers over all column blocks.
template <int Samples>
inline void add_rank_one(const Call& call, i64 first, float* phi) {
  const TileMap& m = *call.map;
  const Factors& f = *call.factors;
  const i64 width = m.column_blocks * m.ki, padded = round_up(call.channels, m.ki);
  float* moved = scratch(Samples * (2 * width + m.ko));
  float* columns = moved + Samples * width;
  float* rows = columns + Samples * width;
  for (int b = 0; b < Samples; ++b) {  // the one window of each kernel position
    const float* data = f.columns + (first + b) * f.columns_batch;
    float* to = columns + b * width;
    for (i64 p = 0; p < m.positions; ++p) {
      i64 at = 0;
      bool inside = true;
      for (i64 a = kAxes, rest = p; a-- > 0; rest /= f.kernel[a]) {
        const i64 x = rest % f.kernel[a] * f.dilation[a] - f.padding[a];
        inside = inside && 0 <= x && x < f.size[a];
        at += x * f.columns_axis[a];
      }
      if (call.together) {
        for (i64 c = 0; c < m.channels; ++c) {
          const i64 column = p * m.channels + c;
          to[column] = inside ? data[at + c * f.columns_channel] * m.column_diagonal[column] : 0.0f;
        }
      } else if (inside) {
        for (i64 block = 0; block < m.channel_blocks; ++block)
          pack({data + at, m.channels, 1, f.columns_channel, 0}, block * m.ki, m.ki,
               m.column_diagonal, true, nullptr, to + p * padded + block * m.ki);
      } else {
        fill_zeros(to + p * padded, padded);
      }
    }
    if (call.together) {
      fill_zeros(to + call.channels, width - call.channels);
      walsh_columns(to, m.column_blocks, m.ki);
    }
  }
  for (i64 i = 0; i < m.row_blocks; ++i) {
    for (int b = 0; b < Samples; ++b) {
      pack(row_source(call, first + b), i * m.ko, m.ko, call.diagonal, true, nullptr,
           rows + b * m.ko);
      for (i64 j = 0; j < m.column_blocks; ++j) {
        const i64 shift = m.gamma_columns[j] ^ m.gamma_rows[i], at = b * width + j * m.ki;
        for (i64 group = 0; group < m.ki / kGroup; ++group)
          std::memcpy(moved + at + group * kGroup, columns + at + (group ^ shift) * kGroup,
                      kGroup * sizeof(float));
      }
    }
    constexpr int kLeast = kLanes < kGroup ? 2 : 1;  // vectors that begin at whole bytes of signs
    constexpr int kWide = kLanes == 16 ? 4 : kLeast;
    i64 r = 0;
    if (m.ki % (kWide * kLanes) == 0)
      for (; r + 2 <= m.ko; r += 2) add_outer<Samples, 2, kWide>(call, i, rows, moved, r, phi);
    for (; r < m.ko; ++r) add_outer<Samples, 1, kLeast>(call, i, rows, moved, r, phi);
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

// ---- a bias beside its weight ------------------------------------------------------------------

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

// ---- samples -----------------------------------------------------------------------------------

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

void lookup_sample(const Call& call, const Lookup& lookup, const float* delta, float* phi) {
  const TileMap& m = *call.map;
  const i64 tokens = lookup.tokens;
  float* columns = scratch(tokens * (m.channel_blocks * m.ki + m.ko));
  float* rows = columns + tokens * m.channel_blocks * m.ki;
  for (i64 j = 0; j < m.channel_blocks; ++j)
    pack({delta, m.channels, tokens, 1, m.channels}, j * m.ki, m.ki, m.column_diagonal, true,
         nullptr, columns + j * tokens * m.ki);
  for (i64 t = 0; t < tokens; ++t) {
    float* row = rows + t * m.ko;
    fill_zeros(row, m.ko);
    row[lookup.ids[t] % m.ko] = call.diagonal[lookup.ids[t]];
    walsh_columns(row, 1, m.ko);
  }
  for (i64 t = 0; t < tokens;) {  // tokens of one row block are one product
    const i64 start = t, slot = lookup.slots[t], block = lookup.ids[t] / m.ko;
    while (t < tokens && lookup.slots[t] == slot) ++t;
    for (i64 j = 0; j < m.column_blocks; ++j) {
      const Place at = place(call, slot, block, j, phi);
      const Panels panels{rows + start * m.ko,       m.ko, columns + j * tokens * m.ki, m.ki, 1,
                          lookup.segments + start, lookup.segments + t};
      product_tile(panels, m.ko, m.ki,
                   [&](i64 row, i64 column, Vec x) { add_vector(at, row, column, x); });
    }
  }
}

constexpr HadamardKernels kHadamardKernels{factors_samples, gradient_sample, lookup_sample};

}  // namespace
}  // namespace PNTK_LEVEL
}  // namespace pntk
