// The extension module pntk._C. Buffers come in as NumPy arrays, so that type, size, contiguity
// and write access are checked here, before any kernel sees a raw pointer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/hadamard.h"
#include "cpu/levels.h"
#include "cpu/philox.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
using Fill = void (*)(const pntk::Level&, std::uint64_t, std::uint64_t, std::uint64_t,
                      std::size_t, std::size_t, T*);

template <typename T, std::size_t per_block, Fill<T> fill>
void fill_array(Array<T> out, std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                std::size_t skip) {
  const auto count = static_cast<std::size_t>(out.size());
  if (skip >= per_block)
    throw py::value_error("skip is " + std::to_string(skip) + "; it must be below " +
                          std::to_string(per_block) + ": add whole blocks to block");
  const std::uint64_t n_blocks = (skip + count) / per_block + ((skip + count) % per_block != 0);
  if (n_blocks > 0 && n_blocks - 1 > UINT64_MAX - block)
    throw py::value_error("block is " + std::to_string(block) + " and out has " +
                          std::to_string(count) + " elements; the stream ends at block 2^64 - 1");
  T* data = out.mutable_data();  // throws on a read-only array
  py::gil_scoped_release unlocked;
  fill(pntk::current_level(), seed, stream, block, skip, count, data);
}

template <typename T>
void define_words(py::module_& module) {
  module.def("philox_words", &fill_array<T, pntk::kBlockWords, pntk::philox_words<T>>,
             py::arg("out").noconvert(), py::arg("seed"), py::arg("stream"), py::arg("block"),
             py::arg("skip"),
             "Fill a contiguous uint32 or int64 array with words from word skip of block on.");
}

template <typename T>
void define_signs(py::module_& module) {
  module.def("philox_signs", &fill_array<T, pntk::kBlockBits, pntk::philox_signs<T>>,
             py::arg("out").noconvert(), py::arg("seed"), py::arg("stream"), py::arg("block"),
             py::arg("skip"),
             "Fill a contiguous float32, float64 or int8 array with signs from bit skip of block "
             "on.");
}

// ---- hadamard ----------------------------------------------------------------------------------

using Floats = py::array_t<float>;
using Rows = Array<float>;

void require(bool holds, const std::string& what) {
  if (!holds) throw py::value_error(what);
}

std::string shape_of(const py::array& x) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < x.ndim(); ++i) text += (i ? ", " : "") + std::to_string(x.shape(i));
  return text + "]";
}

// A parameter's map, and the arrays that it points into.
struct HeldMap {
  pntk::TileMap map{};
  Array<float> diagonals;       // [padded rows + padded channels]
  Array<std::int32_t> shifts;   // rho, gamma of the columns, gamma of the rows

  // tiles: rows, channels, positions, ko, ki, per_position, vector
  HeldMap(Array<float> diagonals_, Array<std::int32_t> shifts_,
          const std::vector<std::int64_t>& tiles, std::uint64_t seed, std::uint64_t stream)
      : diagonals(std::move(diagonals_)), shifts(std::move(shifts_)) {
    require(tiles.size() == 7, "tiles has " + std::to_string(tiles.size()) + " numbers, not 7");
    pntk::TileMap& m = map;
    m.rows = tiles[0], m.channels = tiles[1], m.positions = tiles[2];
    m.ko = tiles[3], m.ki = tiles[4];
    m.per_position = tiles[5] != 0, m.vector = tiles[6] != 0;
    for (int i = 0; i < 5; ++i) require(tiles[i] > 0, "a size in tiles is not positive");
    const auto power_of_two = [](std::int64_t n) { return (n & (n - 1)) == 0; };
    require(power_of_two(m.ko) && power_of_two(m.ki) && m.ki >= 8,
            "ko and ki must be powers of two, ki at least 8");
    const auto blocks = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
    m.row_blocks = blocks(m.rows, m.ko);
    m.channel_blocks = blocks(m.per_position ? m.channels : m.channels * m.positions, m.ki);
    m.column_blocks = m.channel_blocks * (m.per_position ? m.positions : 1);
    require(diagonals.size() == m.row_blocks * m.ko + m.channel_blocks * m.ki,
            "diagonals has " + std::to_string(diagonals.size()) + " numbers");
    require(shifts.size() == 2 * m.column_blocks + m.row_blocks,
            "shifts has " + std::to_string(shifts.size()) + " numbers");
    m.row_diagonal = diagonals.data();
    m.column_diagonal = m.row_diagonal + m.row_blocks * m.ko;
    m.rho = shifts.data();
    m.gamma_columns = m.rho + m.column_blocks;
    m.gamma_rows = m.gamma_columns + m.column_blocks;
    for (std::int64_t j = 0; j < m.column_blocks; ++j)
      require(0 <= m.rho[j] && m.rho[j] < m.ko, "a row shift is out of range");
    for (std::int64_t j = 0; j < m.column_blocks + m.row_blocks; ++j)
      require(0 <= m.gamma_columns[j] && m.gamma_columns[j] < m.ki / 8,
              "a column shift is out of range");
    m.seed = seed, m.stream = stream;
  }

  float* rows(Rows& out, std::int64_t batch) const {
    require(out.ndim() == 2 && out.shape(0) == batch && out.shape(1) == map.ko * map.ki,
            "out is " + shape_of(out) + "; expected [" + std::to_string(batch) + ", " +
                std::to_string(map.ko * map.ki) + "]");
    return out.mutable_data();
  }
};

void hadamard_gradient(Array<float> gradient, Array<float> diagonals, Array<std::int32_t> shifts,
                       const std::vector<std::int64_t>& tiles, std::uint64_t seed,
                       std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const pntk::TileMap& m = held.map;
  require(gradient.ndim() == 2, "gradient is " + shape_of(gradient) + "; expected [b, size]");
  const std::int64_t batch = gradient.shape(0), size = gradient.shape(1);
  const bool fits = m.vector ? (m.rows - 1) * m.ki < size && size <= m.rows * m.ki
                             : size == m.rows * m.channels * m.positions;
  require(fits, "gradient is " + shape_of(gradient) + ", which is not the parameter's size");
  const float* data = gradient.data();
  float* rows = held.rows(out, batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_gradient(pntk::current_level(), m, batch, size, data, rows, threads);
}

// windows: padding, kernel, stride, dilation, grid; three numbers each.
void hadamard_factors(Floats rows, Floats columns, Array<float> diagonals,
                      Array<std::int32_t> shifts, const std::vector<std::int64_t>& tiles,
                      const std::vector<std::int64_t>& windows, std::int64_t groups,
                      std::uint64_t seed, std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const pntk::TileMap& m = held.map;
  require(!m.vector, "a vector has no factors");
  require(windows.size() == 5 * pntk::kAxes, "windows must have 15 numbers");
  require(rows.ndim() == 3 && columns.ndim() == 2 + pntk::kAxes,
          "rows is " + shape_of(rows) + " and columns " + shape_of(columns) +
              "; expected [b, O, T] and [b, C, n0, n1, n2]");
  pntk::Factors f{};
  f.batch = rows.shape(0), f.groups = groups;
  std::int64_t positions = 1, kernel = 1;
  for (int a = 0; a < pntk::kAxes; ++a) {
    f.size[a] = columns.shape(2 + a);
    f.columns_axis[a] = columns.strides(2 + a) / py::ssize_t{sizeof(float)};
    f.padding[a] = windows[a], f.kernel[a] = windows[3 + a], f.stride[a] = windows[6 + a];
    f.dilation[a] = windows[9 + a], f.grid[a] = windows[12 + a];
    require(f.padding[a] >= 0 && f.kernel[a] > 0 && f.stride[a] > 0 && f.dilation[a] > 0 &&
                f.grid[a] > 0,
            "a number in windows is out of range");
    const std::int64_t last = (f.grid[a] - 1) * f.stride[a] + (f.kernel[a] - 1) * f.dilation[a];
    require(last < f.size[a] + 2 * f.padding[a], "a window leaves the padded input");
    positions *= f.grid[a], kernel *= f.kernel[a];
  }
  require(groups > 0 && m.rows % groups == 0, "groups must divide the rows");
  require(rows.shape(1) == m.rows && rows.shape(2) == positions && columns.shape(0) == f.batch &&
              columns.shape(1) == m.channels * groups && kernel == m.positions,
          "rows is " + shape_of(rows) + " and columns " + shape_of(columns) +
              ", which do not fit the parameter");
  f.rows = rows.data();
  f.rows_batch = rows.strides(0) / py::ssize_t{sizeof(float)};
  f.rows_feature = rows.strides(1) / py::ssize_t{sizeof(float)};
  f.rows_position = rows.strides(2) / py::ssize_t{sizeof(float)};
  f.columns = columns.data();
  f.columns_batch = columns.strides(0) / py::ssize_t{sizeof(float)};
  f.columns_channel = columns.strides(1) / py::ssize_t{sizeof(float)};
  float* to = held.rows(out, f.batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_factors(pntk::current_level(), m, f, to, threads);
}

void hadamard_lookup(Array<std::int64_t> ids, Array<float> delta, Array<float> diagonals,
                     Array<std::int32_t> shifts, const std::vector<std::int64_t>& tiles,
                     std::uint64_t seed, std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const pntk::TileMap& m = held.map;
  require(!m.vector && m.positions == 1, "look-ups are of the rows of a matrix");
  require(ids.ndim() == 2 && delta.ndim() == 3 && delta.shape(0) == ids.shape(0) &&
              delta.shape(1) == ids.shape(1) && delta.shape(2) == m.channels,
          "ids is " + shape_of(ids) + " and delta " + shape_of(delta) +
              "; expected [b, T] and [b, T, C]");
  const std::int64_t batch = ids.shape(0), tokens = ids.shape(1);
  const std::int64_t* at = ids.data();
  for (std::int64_t i = 0; i < batch * tokens; ++i)
    require(0 <= at[i] && at[i] < m.rows,
            "id " + std::to_string(at[i]) + " is outside of [0, " + std::to_string(m.rows) + ")");
  const float* data = delta.data();
  float* rows = held.rows(out, batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_lookup(pntk::current_level(), m, batch, tokens, at, data, rows, threads);
}

// ---- levels ------------------------------------------------------------------------------------

// Names of the levels that were compiled, and whether this processor has them.
std::vector<std::pair<std::string, bool>> levels() {
  std::size_t count;
  const pntk::Level* const* all = pntk::compiled_levels(&count);
  std::vector<std::pair<std::string, bool>> found;
  for (std::size_t i = 0; i < count; ++i) found.emplace_back(all[i]->name, supported(*all[i]));
  return found;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled CPU kernels of pntk.";
  define_words<std::uint32_t>(module);
  define_words<std::int64_t>(module);
  define_signs<float>(module);
  define_signs<double>(module);
  define_signs<std::int8_t>(module);
  module.def("level", [] { return std::string(pntk::current_level().name); },
             "The instruction set that runs.");
  module.def("levels", &levels, "(name, supported by this processor) of all compiled levels.");
  // Arrays are checked and never converted; out [b, k] is added to.
  const auto exact = [](const char* name) { return py::arg(name).noconvert(); };
  module.def("hadamard_gradient", &hadamard_gradient, exact("gradient"), exact("diagonals"),
             exact("shifts"), py::arg("tiles"), py::arg("seed"), py::arg("stream"), exact("out"),
             py::arg("threads"));
  module.def("hadamard_factors", &hadamard_factors, exact("rows"), exact("columns"),
             exact("diagonals"), exact("shifts"), py::arg("tiles"), py::arg("windows"),
             py::arg("groups"), py::arg("seed"), py::arg("stream"), exact("out"),
             py::arg("threads"));
  module.def("hadamard_lookup", &hadamard_lookup, exact("ids"), exact("delta"), exact("diagonals"),
             exact("shifts"), py::arg("tiles"), py::arg("seed"), py::arg("stream"), exact("out"),
             py::arg("threads"));
}
