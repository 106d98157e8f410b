// Run tasks on the threads that torch already has.
#pragma once

#include <cstdint>

namespace pntk {

using Task = void (*)(void* data, std::int64_t index);

// Call task(data, i) for i in [0, count), each once, on up to `threads` threads.
void run_tasks(std::int64_t count, int threads, Task task, void* data);

template <typename Function>
void parallel_for(std::int64_t count, int threads, Function&& function) {
  run_tasks(
      count, threads,
      [](void* data, std::int64_t i) { (*static_cast<Function*>(data))(i); }, &function);
}

}  // namespace pntk
