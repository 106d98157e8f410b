#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace pntk {
namespace {

struct Job {
  Task task;
  void* data;
  std::int64_t count;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error{};
  std::mutex guard{};
};

// An exception must not leave a thread: the first is kept, and ends the job.
void work(void* pointer) {
  Job& job = *static_cast<Job*>(pointer);
  try {
    for (std::int64_t i; (i = job.next.fetch_add(1)) < job.count;) job.task(job.data, i);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(job.guard);
    if (!job.error) job.error = std::current_exception();
    job.next = job.count;
  }
}

// Threads of the OpenMP runtime that torch runs on. A second pool would fight with torch's, whose
// idle threads spin for a while after each operator.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel find_openmp() {
#if defined(__unix__) || defined(__APPLE__)
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

}  // namespace

void run_tasks(std::int64_t count, int threads, Task task, void* data) {
  Job job{task, data, count};
  const auto wanted = static_cast<unsigned>(std::clamp<std::int64_t>(threads, 1, count ? count : 1));
  static const GompParallel openmp = find_openmp();
  if (wanted == 1) {
    work(&job);
  } else if (openmp != nullptr) {
    openmp(work, &job, wanted, 0);
  } else {
    std::vector<std::thread> helpers;
    helpers.reserve(wanted);
    try {
      while (helpers.size() + 1 < wanted) helpers.emplace_back(work, &job);
    } catch (const std::system_error&) {  // no more threads to be had: those there are will do
    }
    work(&job);
    for (auto& helper : helpers) helper.join();
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace pntk
