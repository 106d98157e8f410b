// The extension module pntk._C. Buffers come in as NumPy arrays, so that type, size, contiguity
// and write access are checked here, before any kernel sees a raw pointer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "cpu/philox.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
using Fill = void (*)(std::uint64_t, std::uint64_t, std::uint64_t, std::size_t, std::size_t, T*);

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
  fill(seed, stream, block, skip, count, data);
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

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled CPU kernels of pntk.";
  define_words<std::uint32_t>(module);
  define_words<std::int64_t>(module);
  define_signs<float>(module);
  define_signs<double>(module);
  define_signs<std::int8_t>(module);
}
