// Dense projections: which of two kernels.
#include "dense.cuh"

namespace pntk::cuda {
namespace {

constexpr int kHopper = 90;  // the one capability that has wgmma

int capability() {
  int device = 0, major = 0, minor = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess)
    code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (code == cudaSuccess)
    code = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (code != cudaSuccess)
    throw std::runtime_error(std::string("dense: ") + cudaGetErrorString(code));
  return 10 * major + minor;
}

}  // namespace

void dense(const Dense& d, cudaStream_t stream) {
  if (!d.wgmma) return dense_mma(d, stream);
  const int found = capability();
  if (found != kHopper)
    throw std::runtime_error("dense: wgmma was asked for on a device of compute capability " +
                             std::to_string(found / 10) + "." + std::to_string(found % 10) +
                             "; only 9.0 has it: use mma.sync (wgmma = false)");
  dense_wgmma(d, stream);
}

}  // namespace pntk::cuda
