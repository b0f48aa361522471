#include "ipc/nccl_library.h"

#if EXACT_WITH_CUDA

#include <dlfcn.h>

#include <climits>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace exact::ipc {
namespace {

// nccl.h as far as it is used, which NCCL has kept since 2.18.
constexpr int kSuccess = 0, kInProgress = 7, kUint8 = 1;
constexpr size_t kIdBytes = 128;
struct UniqueId {
  char bytes[kIdBytes];
};
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21800;
  int blocking = 0;
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;  // undefined
  const char* net_name = nullptr;
  int split_share = INT_MIN;
};
static_assert(sizeof(Config) == 48);

struct Library {
  Status status;
  int version = 0;
  int (*get_unique_id)(UniqueId*) = nullptr;
  int (*init_rank)(void**, int ranks, UniqueId, int rank, Config*) = nullptr;
  int (*async_error)(void*, int*) = nullptr;
  int (*abort)(void*) = nullptr;
  int (*broadcast)(const void*, void*, size_t, int type, int root, void*, cudaStream_t) = nullptr;
  const char* (*error_string)(int) = nullptr;
};

Library load() {
  Library library;
  const char* path = std::getenv("EXACT_NCCL_LIBRARY");
  void* handle = dlopen(path != nullptr ? path : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    library.status = Status(
        Code::unsupported,
        std::string("NCCL is not found: install it, or name its file in EXACT_NCCL_LIBRARY (") +
            dlerror() + ")");
    return library;
  }
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (function == nullptr && library.status.is_ok()) {
      library.status = Status(Code::unsupported,
                              std::string("NCCL has no ") + name + ": 2.18 or newer is needed");
    }
  };
  int (*get_version)(int*) = nullptr;
  find("ncclGetVersion", get_version);
  find("ncclGetUniqueId", library.get_unique_id);
  find("ncclCommInitRankConfig", library.init_rank);
  find("ncclCommGetAsyncError", library.async_error);
  find("ncclCommAbort", library.abort);
  find("ncclBroadcast", library.broadcast);
  find("ncclGetErrorString", library.error_string);
  if (library.status.is_ok()) get_version(&library.version);
  return library;
}

const Library& nccl() {
  static const Library library = load();
  return library;
}

Status nccl_error(int result, const char* what) {
  if (result == kSuccess || result == kInProgress) return {};
  return Status(Code::peer_lost, std::string(what) + " failed in NCCL (" +
                                     nccl().error_string(result) +
                                     "): are all ranks alive, and each on a GPU of its own? "
                                     "NCCL_DEBUG=WARN says more");
}

}  // namespace

Result<int> nccl_version() {
  EXACT_RETURN_IF_ERROR(nccl().status);
  return nccl().version;
}

Result<std::string> make_nccl_id() {
  EXACT_RETURN_IF_ERROR(nccl().status);
  UniqueId id;
  EXACT_RETURN_IF_ERROR(nccl_error(nccl().get_unique_id(&id), "making a unique id"));
  return std::string(id.bytes, kIdBytes);
}

Result<std::unique_ptr<NcclCommunicator>> NcclCommunicator::create(const std::string& unique_id,
                                                                   int32_t rank, int32_t ranks) {
  EXACT_RETURN_IF_ERROR(nccl().status);
  if (unique_id.size() != kIdBytes) {
    return Status(Code::invalid, "nccl.unique_id has " + std::to_string(unique_id.size()) +
                                     " bytes; an ncclUniqueId has 128");
  }
  if (ranks < 2 || rank < 0 || rank >= ranks) {
    return Status(Code::invalid, "nccl.rank is " + std::to_string(rank) + " of " +
                                     std::to_string(ranks) + " ranks: workers are 1 to ranks - 1");
  }
  UniqueId id;
  std::memcpy(id.bytes, unique_id.data(), kIdBytes);
  Config config;
  void* communicator = nullptr;
  EXACT_RETURN_IF_ERROR(
      nccl_error(nccl().init_rank(&communicator, ranks, id, rank, &config), "connecting"));
  return std::unique_ptr<NcclCommunicator>(new NcclCommunicator(communicator));
}

NcclCommunicator::~NcclCommunicator() {
  if (communicator_ != nullptr) nccl().abort(communicator_);
}

Result<bool> NcclCommunicator::is_idle() {
  int state = kSuccess;
  EXACT_RETURN_IF_ERROR(
      nccl_error(nccl().async_error(communicator_, &state), "asking for the state"));
  EXACT_RETURN_IF_ERROR(nccl_error(state, "a broadcast, or the connection to the other ranks,"));
  return state == kSuccess;
}

Status NcclCommunicator::broadcast(void* buffer, uint64_t bytes, cudaStream_t stream) {
  return nccl_error(nccl().broadcast(buffer, buffer, bytes, kUint8, 0, communicator_, stream),
                    "a broadcast");
}

}  // namespace exact::ipc

#endif
