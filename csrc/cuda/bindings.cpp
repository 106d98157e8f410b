// The extension module pntk._cuda. Pointers come in as integers: pntk/projection/cuda.py has
// checked the tensors that they belong to. Device guard and stream are here, so that every call
// launches where its tensors are.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"

#ifndef PNTK_CUDA_ARCHITECTURES
#define PNTK_CUDA_ARCHITECTURES ""
#endif

namespace py = pybind11;
using namespace pntk::cuda;

namespace {

using Address = std::uintptr_t;
using Sizes = std::array<std::int64_t, 3>;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

// Makes a device current, and the one before it again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    moved_ = device != before_;
  }
  ~OnDevice() {
    if (moved_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool moved_ = false;
};

// The newest CUDA that the driver serves, and the one that this module was linked with: 1000 major
// + 10 minor.
std::pair<int, int> versions() {
  int driver = 0, runtime = 0;
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return {driver, runtime};
}

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename Struct>
void run(void (*kernel)(const Struct&, cudaStream_t), const Struct& arguments, int device,
         Address stream) {
  py::gil_scoped_release unlocked;
  const OnDevice guard(device);
  kernel(arguments, at<CUstream_st>(stream));
}

// given: rows, channels, positions, ko, ki, per_position, vector
Tiles tiles_of(const std::vector<std::int64_t>& given, Address shifts, Address signs) {
  if (given.size() != 7) throw py::value_error("tiles has not 7 numbers");
  Tiles t{};
  t.rows = given[0], t.channels = given[1], t.positions = given[2];
  t.ko = static_cast<int>(given[3]), t.ki = static_cast<int>(given[4]);
  t.per_position = given[5] != 0, t.vector = given[6] != 0;
  const auto power_of_two = [](int n) { return n > 0 && (n & (n - 1)) == 0; };
  if (!power_of_two(t.ko) || !power_of_two(t.ki) || t.ki < 8 || t.ko > kLargestOrder ||
      t.ki > kLargestOrder)
    throw py::value_error("ko is " + std::to_string(t.ko) + " and ki " + std::to_string(t.ki) +
                          "; expected powers of two up to " + std::to_string(kLargestOrder) +
                          ", ki at least 8");
  const auto blocks = [](std::int64_t n, std::int64_t of) { return (n + of - 1) / of; };
  t.row_blocks = blocks(t.rows, t.ko);
  t.channel_blocks = blocks(t.per_position ? t.channels : t.channels * t.positions, t.ki);
  t.column_blocks = t.channel_blocks * (t.per_position ? t.positions : 1);
  t.rho = at<const std::int32_t>(shifts);
  t.gamma_columns = t.rho + t.column_blocks;
  t.gamma_rows = t.gamma_columns + t.column_blocks;
  t.signs = at<const std::uint32_t>(signs);
  return t;
}

Tiles tiles_of(const std::vector<std::int64_t>& given, Address diagonals, Address shifts,
               Address signs) {
  Tiles t = tiles_of(given, shifts, signs);
  t.row_diagonal = at<const float>(diagonals);
  t.column_diagonal = t.row_diagonal + t.row_blocks * t.ko;
  return t;
}

void call_bits(Address words, std::int64_t count, std::uint64_t seed, std::uint64_t stream,
               int device, Address queue) {
  run(bits, Bits{seed, stream, count, at<std::uint32_t>(words)}, device, queue);
}

void call_mix(Address x, int type, const Sizes& shape, const Sizes& strides, Address diagonal,
              int order, std::int64_t padded_channels, std::int64_t padded_positions,
              bool positions_last, int planes, Address y, int device, Address queue) {
  Mix m{};
  m.x = at<const void>(x), m.type = static_cast<Type>(type);
  m.batch = shape[0], m.channels = shape[1], m.positions = shape[2];
  m.stride_batch = strides[0], m.stride_channel = strides[1], m.stride_position = strides[2];
  m.diagonal = at<const float>(diagonal), m.order = order;
  m.padded_channels = padded_channels, m.padded_positions = padded_positions;
  m.positions_last = positions_last, m.planes = planes, m.y = at<bf16>(y);
  run(mix, m, device, queue);
}

// shape: batch, padded rows, positions, padded positions; windows: padding, kernel, stride,
// dilation and grid, three numbers each
void call_products(const std::vector<std::int64_t>& tiles, Address shifts, Address signs,
                   Address left, const std::array<std::int64_t, 4>& shape, Address right,
                   std::int64_t padded_channels, int planes, const Sizes& size,
                   const std::array<std::int64_t, 15>& windows, std::int64_t splits_rows,
                   std::int64_t splits_columns, Address to, int device, Address queue) {
  Products p{};
  p.tiles = tiles_of(tiles, shifts, signs);
  p.batch = shape[0], p.planes = planes;
  p.left = at<const bf16>(left);
  p.padded_rows = shape[1], p.positions = shape[2], p.padded_positions = shape[3];
  p.right = at<const bf16>(right), p.padded_channels = padded_channels;
  for (int a = 0; a < 3; ++a) {
    p.size[a] = size[a], p.padding[a] = windows[a], p.kernel[a] = windows[3 + a];
    p.stride[a] = windows[6 + a], p.dilation[a] = windows[9 + a], p.grid[a] = windows[12 + a];
  }
  p.splits_rows = splits_rows, p.splits_columns = splits_columns, p.to = at<float>(to);
  run(products, p, device, queue);
}

void call_gradient(const std::vector<std::int64_t>& tiles, Address diagonals, Address shifts,
                   Address signs, Address given, int type, std::int64_t batch, std::int64_t size,
                   std::int64_t splits, Address to, int device, Address queue) {
  const Gradient g{tiles_of(tiles, diagonals, shifts, signs), at<const void>(given),
                   static_cast<Type>(type), batch, size, splits, at<float>(to)};
  run(gradient, g, device, queue);
}

void call_lookup(const std::vector<std::int64_t>& tiles, Address diagonals, Address shifts,
                 Address signs, Address ids, Address right, int planes, std::int64_t batch,
                 std::int64_t tokens, std::int64_t padded_channels, std::int64_t splits,
                 Address to, int device, Address queue) {
  const Lookup l{tiles_of(tiles, diagonals, shifts, signs), at<const std::int64_t>(ids),
                 at<const bf16>(right), batch, tokens, padded_channels, planes, splits,
                 at<float>(to)};
  run(lookup, l, device, queue);
}

void call_dense(Address gradient, std::int64_t batch, std::int64_t size, std::int64_t proj_dim,
                float scale, std::uint64_t seed, std::uint64_t stream, int precision,
                std::int64_t splits, bool wgmma, Address to, int device, Address queue) {
  const Dense d{at<const float>(gradient), batch, size, proj_dim, scale, seed, stream,
                static_cast<Precision>(precision), splits, wgmma, at<float>(to)};
  run(dense, d, device, queue);
}

void call_norm_sums(Address delta, int delta_type, const Sizes& delta_strides, Address x,
                    int x_type, const Sizes& x_strides, const Sizes& shape, Address mean,
                    Address scale, Address shift, int device, Address queue) {
  Sums s{};
  s.delta = at<const void>(delta), s.delta_type = static_cast<Type>(delta_type);
  s.x = at<const void>(x), s.x_type = static_cast<Type>(x_type);
  s.mean = at<const float>(mean);
  s.batch = shape[0], s.channels = shape[1], s.positions = shape[2];
  s.delta_batch = delta_strides[0], s.delta_channel = delta_strides[1];
  s.delta_position = delta_strides[2];
  s.x_batch = x_strides[0], s.x_channel = x_strides[1], s.x_position = x_strides[2];
  s.scale = at<float>(scale), s.shift = at<float>(shift);
  run(sums, s, device, queue);
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Compiled CUDA kernels of pntk.";
#ifdef PNTK_EMULATE
  module.attr("device_type") = "cpu";
#else
  module.attr("device_type") = "cuda";
#endif
  module.attr("architectures") = PNTK_CUDA_ARCHITECTURES;
  module.attr("interface") = 1;  // of this file; see pntk/projection/cuda.py
  module.def("versions", &versions);
  module.def("bits", &call_bits);
  module.def("mix", &call_mix);
  module.def("products", &call_products);
  module.def("gradient", &call_gradient);
  module.def("lookup", &call_lookup);
  module.def("dense", &call_dense);
  module.def("norm_sums", &call_norm_sums);
}
