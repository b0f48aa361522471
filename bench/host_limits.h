// host_limits.h measures what the hardware can do, to stand beside what the kernels do: fp32 fused
// multiply-adds from registers, and bytes read from memory that no cache holds. One thread.
#pragma once

#include <ctime>
#include <string>

#include "kernels/cpu/cpu_backend.h"

namespace exact::bench {

// CPU time of the calling thread: what a core needs, whoever else wants it meanwhile.
inline double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double peak_fma_per_second(CpuIsa isa);  // lanes counted one by one
double read_bytes_per_second();
std::string cpu_model_name();  // of /proc/cpuinfo, or "unknown"

}  // namespace exact::bench
