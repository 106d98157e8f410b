// The extension module pntk._C. Buffers come in as NumPy arrays, so that type, size, contiguity
// and write access are checked here, before any kernel sees a raw pointer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "cpu/dense.h"
#include "cpu/hadamard.h"
#include "cpu/levels.h"
#include "cpu/philox.h"
#include "cpu/sums.h"

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

std::string text(const std::string& x) { return x; }
std::string text(std::int64_t x) { return std::to_string(x); }
std::string text(const py::array& x) {
  std::string joined = "[";
  for (py::ssize_t i = 0; i < x.ndim(); ++i) joined += (i ? ", " : "") + std::to_string(x.shape(i));
  return joined + "]";
}

// The message is put together only where it is needed.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) throw py::value_error((text(parts) + ...));
}

// Sizes, one by one and multiplied, stay where int64 holds what kernels make of them.
constexpr std::int64_t kMostOfOne = std::int64_t{1} << 31, kMostOfAll = std::int64_t{1} << 48;

void require_size(const char* what, std::int64_t value, std::int64_t least) {
  require(least <= value && value < kMostOfOne, what, " is ", value, "; expected ", least,
          " to 2^31 - 1");
}

std::int64_t product(const char* what, std::initializer_list<std::int64_t> sizes) {
  std::int64_t all = 1;
  for (const std::int64_t size : sizes) {
    require(size == 0 || all <= kMostOfAll / size, what, " are more than 2^48");
    all *= size;
  }
  return all;
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
    require(tiles.size() == 7, "tiles has ", std::int64_t(tiles.size()), " numbers, not 7");
    pntk::TileMap& m = map;
    m.rows = tiles[0], m.channels = tiles[1], m.positions = tiles[2];
    m.ko = tiles[3], m.ki = tiles[4];
    m.per_position = tiles[5] != 0, m.vector = tiles[6] != 0;
    constexpr const char* names[] = {"rows", "channels", "positions", "ko", "ki"};
    for (int i = 0; i < 5; ++i) require_size(names[i], tiles[i], 1);
    const auto power_of_two = [](std::int64_t n) { return (n & (n - 1)) == 0; };
    require(power_of_two(m.ko) && power_of_two(m.ki) && m.ki >= 8,
            "ko is ", m.ko, " and ki ", m.ki, "; expected powers of two, ki at least 8");
    require(!m.vector || (m.channels <= m.ki && m.positions == 1), "a vector's rows hold ",
            m.channels, " numbers; expected at most ki = ", m.ki);
    product("numbers in the parameter", {m.rows, m.channels, m.positions});
    const auto blocks = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
    m.row_blocks = blocks(m.rows, m.ko);
    m.channel_blocks = blocks(m.per_position ? m.channels : m.channels * m.positions, m.ki);
    m.column_blocks = m.channel_blocks * (m.per_position ? m.positions : 1);
    product("numbers in the parameter's tiles", {m.row_blocks, m.ko, m.column_blocks, m.ki});
    const std::int64_t signs = m.row_blocks * m.ko + m.channel_blocks * m.ki;
    require(diagonals.size() == signs, "diagonals has ", diagonals.size(), " numbers, not ", signs);
    const std::int64_t moves = 2 * m.column_blocks + m.row_blocks;
    require(shifts.size() == moves, "shifts has ", shifts.size(), " numbers, not ", moves);
    m.row_diagonal = diagonals.data();
    m.column_diagonal = m.row_diagonal + m.row_blocks * m.ko;
    m.rho = shifts.data();
    m.gamma_columns = m.rho + m.column_blocks;
    m.gamma_rows = m.gamma_columns + m.column_blocks;
    for (std::int64_t j = 0; j < m.column_blocks; ++j)
      require(0 <= m.rho[j] && m.rho[j] < m.ko, "row shift ", std::int64_t(m.rho[j]),
              " is outside of [0, ", m.ko, ")");
    for (std::int64_t j = 0; j < m.column_blocks + m.row_blocks; ++j)
      require(0 <= m.gamma_columns[j] && m.gamma_columns[j] < m.ki / 8,
              "column shift ", std::int64_t(m.gamma_columns[j]), " is outside of [0, ", m.ki / 8, ")");
    m.seed = seed, m.stream = stream;
  }

  float* rows(Rows& out, std::int64_t batch) const {
    require(out.ndim() == 2 && out.shape(0) == batch && out.shape(1) == map.ko * map.ki,
            "out is ", out, "; expected [", batch, ", ", map.ko * map.ki, "]");
    return out.mutable_data();
  }
};

void hadamard_gradient(Array<float> gradient, Array<float> diagonals, Array<std::int32_t> shifts,
                       const std::vector<std::int64_t>& tiles, std::uint64_t seed,
                       std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const pntk::TileMap& m = held.map;
  require(gradient.ndim() == 2, "gradient is ", gradient, "; expected [b, size]");
  const std::int64_t batch = gradient.shape(0), size = gradient.shape(1);
  const bool fits = m.vector ? (m.rows - 1) * m.ki < size && size <= m.rows * m.ki
                             : size == m.rows * m.channels * m.positions;
  require(fits, "gradient is ", gradient, ", which is not the size of a parameter of ", m.rows,
          " rows of ", m.channels * m.positions);
  const float* data = gradient.data();
  float* rows = held.rows(out, batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_gradient(pntk::current_level(), m, batch, size, data, rows, threads);
}

// windows: padding, kernel, stride, dilation, grid; three numbers each.
void add_factors(const Floats& rows, const Floats& columns, const HeldMap& held,
                 const HeldMap* bias, const std::vector<std::int64_t>& windows,
                 std::int64_t groups, Rows& out, int threads) {
  const pntk::TileMap& m = held.map;
  require(!m.vector, "a vector has no factors");
  require(windows.size() == 5 * pntk::kAxes, "windows has ", std::int64_t(windows.size()),
          " numbers, not 15");
  require(rows.ndim() == 3 && columns.ndim() == 2 + pntk::kAxes,
          "rows is ", rows, " and columns ", columns,
          "; expected [b, O, T] and [b, C, n0, n1, n2]");
  pntk::Factors f{};
  f.batch = rows.shape(0), f.groups = groups;
  std::int64_t pixels = 1;
  for (int a = 0; a < pntk::kAxes; ++a) {
    f.size[a] = columns.shape(2 + a);
    f.columns_axis[a] = columns.strides(2 + a) / py::ssize_t{sizeof(float)};
    f.padding[a] = windows[a], f.kernel[a] = windows[3 + a], f.stride[a] = windows[6 + a];
    f.dilation[a] = windows[9 + a], f.grid[a] = windows[12 + a];
    require_size("an axis of the input", f.size[a], 1);
    require_size("padding", f.padding[a], 0);
    require_size("kernel", f.kernel[a], 1);
    require_size("stride", f.stride[a], 1);
    require_size("dilation", f.dilation[a], 1);
    require_size("grid", f.grid[a], 1);
    const std::int64_t last = (f.grid[a] - 1) * f.stride[a] + (f.kernel[a] - 1) * f.dilation[a];
    const std::int64_t padded = f.size[a] + 2 * f.padding[a];
    require(last < padded, "a window ends at pixel ", last, " of an axis that has ", padded);
    pixels = product("pixels of the padded input", {pixels, padded});
  }
  product("numbers of the padded input", {m.channel_blocks, m.ki, pixels});
  const std::int64_t positions = product("positions", {f.grid[0], f.grid[1], f.grid[2]});
  const std::int64_t kernel = product("kernel positions", {f.kernel[0], f.kernel[1], f.kernel[2]});
  product("numbers of the padded rows", {m.row_blocks, m.ko, positions});
  require(groups > 0 && m.rows % groups == 0,
          "groups is ", groups, ", which does not divide the ", m.rows, " rows");
  require(rows.shape(1) == m.rows && rows.shape(2) == positions && columns.shape(0) == f.batch &&
              columns.shape(1) == m.channels * groups && kernel == m.positions,
          "rows is ", rows, " and columns ", columns, ", which do not fit a parameter of ", m.rows,
          " rows, ", m.channels, " channels and ", m.positions, " kernel positions with ", positions,
          " windows in ", groups, " groups");
  f.rows = rows.data();
  f.rows_batch = rows.strides(0) / py::ssize_t{sizeof(float)};
  f.rows_feature = rows.strides(1) / py::ssize_t{sizeof(float)};
  f.rows_position = rows.strides(2) / py::ssize_t{sizeof(float)};
  f.columns = columns.data();
  f.columns_batch = columns.strides(0) / py::ssize_t{sizeof(float)};
  f.columns_channel = columns.strides(1) / py::ssize_t{sizeof(float)};
  float* to = held.rows(out, f.batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_factors(pntk::current_level(), m, f, bias ? &bias->map : nullptr, to, threads);
}

void hadamard_factors(const Floats& rows, const Floats& columns, Array<float> diagonals,
                      Array<std::int32_t> shifts, const std::vector<std::int64_t>& tiles,
                      const std::vector<std::int64_t>& windows, std::int64_t groups,
                      std::uint64_t seed, std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  add_factors(rows, columns, held, nullptr, windows, groups, out, threads);
}

// The same, and a bias whose gradients are the sums of the rows.
void hadamard_affine(const Floats& rows, const Floats& columns, Array<float> diagonals,
                     Array<std::int32_t> shifts, const std::vector<std::int64_t>& tiles,
                     const std::vector<std::int64_t>& windows, std::int64_t groups,
                     Array<float> bias_diagonals, Array<std::int32_t> bias_shifts,
                     const std::vector<std::int64_t>& bias_tiles, std::uint64_t bias_stream,
                     std::uint64_t seed, std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const HeldMap bias(std::move(bias_diagonals), std::move(bias_shifts), bias_tiles, seed,
                     bias_stream);
  const std::int64_t size = held.map.rows;
  require(bias.map.vector && (bias.map.rows - 1) * bias.map.ki < size &&
              size <= bias.map.rows * bias.map.ki && bias.map.ko == held.map.ko &&
              bias.map.ki == held.map.ki,
          "the bias is not a vector of ", size, " numbers with rows of the same width");
  add_factors(rows, columns, held, &bias, windows, groups, out, threads);
}

void hadamard_lookup(Array<std::int64_t> ids, Array<float> delta, Array<float> diagonals,
                     Array<std::int32_t> shifts, const std::vector<std::int64_t>& tiles,
                     std::uint64_t seed, std::uint64_t stream, Rows out, int threads) {
  const HeldMap held(std::move(diagonals), std::move(shifts), tiles, seed, stream);
  const pntk::TileMap& m = held.map;
  require(!m.vector && m.positions == 1, "look-ups are of the rows of a matrix");
  require(ids.ndim() == 2 && delta.ndim() == 3 && delta.shape(0) == ids.shape(0) &&
              delta.shape(1) == ids.shape(1) && delta.shape(2) == m.channels,
          "ids is ", ids, " and delta ", delta, "; expected [b, T] and [b, T, ", m.channels, "]");
  const std::int64_t batch = ids.shape(0), tokens = ids.shape(1);
  product("numbers of a sample's tokens", {tokens, m.channel_blocks * m.ki + m.ko});
  const std::int64_t* at = ids.data();
  for (std::int64_t i = 0; i < batch * tokens; ++i)
    require(0 <= at[i] && at[i] < m.rows, "id ", at[i], " is outside of [0, ", m.rows, ")");
  const float* data = delta.data();
  float* rows = held.rows(out, batch);
  py::gil_scoped_release unlocked;
  pntk::hadamard_lookup(pntk::current_level(), m, batch, tokens, at, data, rows, threads);
}

// ---- dense -------------------------------------------------------------------------------------

void dense_project(Array<float> gradient, bool normal, float scale, bool bf16, std::uint64_t seed,
                   std::uint64_t stream, Rows out, int threads, const std::string& level) {
  require(gradient.ndim() == 2 && out.ndim() == 2 && gradient.shape(0) == out.shape(0),
          "gradient is ", gradient, " and out ", out, "; expected [b, p] and [b, k]");
  const pntk::DenseMap map{normal, bf16, gradient.shape(1), out.shape(1), scale, seed, stream};
  const pntk::Level* chosen = level.empty() ? &pntk::current_level() : pntk::find_level(level);
  require(chosen != nullptr, "level is '", level, "', which this build or processor does not have");
  const std::int64_t batch = gradient.shape(0);
  const float* data = gradient.data();
  float* rows = out.mutable_data();
  py::gil_scoped_release unlocked;
  pntk::dense_project(*chosen, map, batch, data, rows, threads);
}

// ---- norms -------------------------------------------------------------------------------------

void norm_sums(const Floats& delta, const Floats& x, const Array<float>& mean, Rows scale,
               Rows shift, int threads) {
  require(delta.ndim() == 3 && x.ndim() == 3 && mean.ndim() == 1,
          "delta is ", delta, ", x ", x, " and mean ", mean, "; expected [n, C, L] twice and [C]");
  for (int a = 0; a < 3; ++a)
    require(delta.shape(a) == x.shape(a), "delta is ", delta, " and x ", x);
  pntk::NormSums s{};
  s.samples = delta.shape(0), s.channels = delta.shape(1), s.positions = delta.shape(2);
  require(mean.shape(0) == s.channels, "mean is ", mean, "; expected [", s.channels, "]");
  for (const Rows* out : {&scale, &shift})
    require(out->ndim() == 2 && out->shape(0) == s.samples && out->shape(1) == s.channels,
            "a result is ", *out, "; expected [", s.samples, ", ", s.channels, "]");
  const auto stride = [](const Floats& of, int axis) {
    return static_cast<std::int64_t>(of.strides(axis) / py::ssize_t{sizeof(float)});
  };
  s.delta = delta.data(), s.x = x.data(), s.mean = mean.data();
  s.delta_sample = stride(delta, 0), s.delta_channel = stride(delta, 1);
  s.delta_position = stride(delta, 2);
  s.x_sample = stride(x, 0), s.x_channel = stride(x, 1), s.x_position = stride(x, 2);
  s.scale = scale.mutable_data(), s.shift = shift.mutable_data();
  py::gil_scoped_release unlocked;
  pntk::norm_sums(pntk::current_level(), s, threads);
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
  module.def("has_level", [](const std::string& name) { return pntk::find_level(name) != nullptr; },
             py::arg("name"), "Whether dense_project may be asked for this level.");
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
  module.def("hadamard_affine", &hadamard_affine, exact("rows"), exact("columns"),
             exact("diagonals"), exact("shifts"), py::arg("tiles"), py::arg("windows"),
             py::arg("groups"), exact("bias_diagonals"), exact("bias_shifts"),
             py::arg("bias_tiles"), py::arg("bias_stream"), py::arg("seed"), py::arg("stream"),
             exact("out"), py::arg("threads"));
  module.def("norm_sums", &norm_sums, exact("delta"), exact("x"), exact("mean"), exact("scale"),
             exact("shift"), py::arg("threads"));
  module.def("hadamard_lookup", &hadamard_lookup, exact("ids"), exact("delta"), exact("diagonals"),
             exact("shifts"), py::arg("tiles"), py::arg("seed"), py::arg("stream"), exact("out"),
             py::arg("threads"));
  module.def("dense_project", &dense_project, exact("gradient"), py::arg("normal"),
             py::arg("scale"), py::arg("bf16"), py::arg("seed"), py::arg("stream"), exact("out"),
             py::arg("threads"), py::arg("level") = "");
}
