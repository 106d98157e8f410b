// Kernel launches: sizes checked, errors told by the kernel's name, no synchronisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef PNTK_EMULATE
#include "emulator.h"
#endif

namespace pntk::cuda {

constexpr std::int64_t kMostBlocks = (std::int64_t{1} << 31) - 1;  // of the x axis of a grid
constexpr std::size_t kSharedByDefault = 48 * 1024;  // what a kernel may use without asking

inline std::int64_t ceil_div(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

// A grid of one axis: y and z end at 65535. Kernels take blockIdx.x apart themselves.
inline dim3 flat_grid(const char* what, std::int64_t blocks) {
  if (blocks > kMostBlocks)
    throw std::runtime_error(std::string(what) + ": " + std::to_string(blocks) +
                             " blocks are needed; a grid has up to 2^31 - 1: use smaller batches");
  return dim3(static_cast<unsigned>(blocks));
}

#ifndef PNTK_EMULATE
// How much shared memory a kernel may use is kept with the kernel, not with the launch: another
// thread that launches it with less would take it away in between.
inline std::mutex shared_memory_lock;

inline void check(const char* what, cudaError_t code, dim3 grid, dim3 block,
                  std::size_t shared_bytes) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // else the next check of anyone finds it again
  throw std::runtime_error(
      std::string(what) + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) +
      "), launching a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
      std::to_string(grid.z) + " blocks of " + std::to_string(block.x * block.y * block.z) +
      " threads and " + std::to_string(shared_bytes) + " bytes of shared memory");
}
#endif

// Launches kernel(params). An empty grid launches nothing. Can be captured in a CUDA graph.
template <typename Params>
void launch(const char* what, void (*kernel)(Params), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t stream, const Params& params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef PNTK_EMULATE
  static_cast<void>(stream);
  emulator::run(what, grid, block, shared_bytes, [&] { kernel(params); });
#else
  const auto function = reinterpret_cast<const void*>(kernel);
  void* arguments[] = {const_cast<Params*>(&params)};
  std::unique_lock<std::mutex> locked(shared_memory_lock, std::defer_lock);
  if (shared_bytes > kSharedByDefault) {
    locked.lock();
    check(what,
          cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          grid, block, shared_bytes);
  }
  check(what, cudaLaunchKernel(function, grid, block, arguments, shared_bytes, stream), grid, block,
        shared_bytes);
#endif
}

}  // namespace pntk::cuda
