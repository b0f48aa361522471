#include "kernels/make_backend.h"

namespace exact {
namespace {

Result<std::unique_ptr<Backend>> make_cuda(const CudaOptions& options) {
#if EXACT_WITH_CUDA
  return make_cuda_backend(options);
#else
  (void)options;
  return Status(Code::unsupported,
                "this build has no CUDA parts: build where nvcc is found, or use --backend cpu, "
                "which gives the same bits");
#endif
}

}  // namespace

Result<std::unique_ptr<Backend>> make_backend(const BackendOptions& options) {
  if (options.kind == "cpu") return make_cpu_backend(options.cpu);
  if (options.kind == "cuda") return make_cuda(options.cuda);
  if (options.kind != "auto") {
    return Status(Code::invalid,
                  "the backend '" + options.kind + "' is not known: say auto, cpu or cuda");
  }
  auto backend = make_cuda(options.cuda);
  if (backend.is_ok() || backend.status().code() != Code::unsupported) return backend;
  return make_cpu_backend(options.cpu);
}

}  // namespace exact
