#include "scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace pntk {

float* scratch(std::int64_t count) {
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local std::int64_t capacity = 0;
  if (count > capacity) {
    memory.reset();
    capacity = 0;
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
    memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    capacity = count;
  }
  return memory.get();
}

}  // namespace pntk
