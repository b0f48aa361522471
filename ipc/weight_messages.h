// weight_messages.h owns the messages of a weight update, and of a worker that gives its memory
// away for a while. messages.h says what holds for every message.
//
//   begin -> ready -> (bucket -> done)* -> commit -> committed, or abort -> aborted
#pragma once

#include <cereal/cereal.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/vector.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "ipc/message_type.h"

namespace exact::ipc {

// How the bytes of an update come to the worker. Values travel on the wire.
enum class WeightTransport : uint8_t {
  shm = 0,       // a segment of the worker's, two halves in turn
  cuda_ipc = 1,  // the trainer's own tensors, on the worker's GPU
  nccl = 2,      // broadcasts, the trainer is the root
  disk = 3,      // a Hugging Face directory that the worker can read
};

struct ManifestTensor {
  std::string name;   // Hugging Face
  std::string dtype;  // "BF16"
  std::vector<int64_t> shape;
  std::string digest;  // xxh3-128 of the tensor's bytes, 32 hex digits
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(name), CEREAL_NVP(dtype), CEREAL_NVP(shape), CEREAL_NVP(digest));
  }
};

// Memory of the trainer's on the worker's GPU, for the transport cuda_ipc. The worker believes
// nothing of it that the driver does not confirm.
struct CudaAllocation {
  std::string handle;  // cudaIpcMemHandle_t, 64 bytes, of a whole cudaMalloc
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(handle));
  }
};

struct TensorPlace {  // where a tensor of the manifest begins
  int32_t allocation = 0;
  uint64_t offset = 0;  // bytes, a multiple of 16
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(allocation), CEREAL_NVP(offset));
  }
};

struct CudaMemory {
  std::string device_uuid;
  std::string event;  // cudaIpcEventHandle_t, 64 bytes: recorded when the tensors are written
  std::vector<CudaAllocation> allocations;
  std::vector<TensorPlace> places;  // one a tensor of the manifest
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(device_uuid), CEREAL_NVP(event), CEREAL_NVP(allocations), CEREAL_NVP(places));
  }
};

// The communicator of an update, for the transport nccl. The trainer is rank 0.
struct NcclGroup {
  std::string unique_id;  // ncclUniqueId, 128 bytes
  int32_t rank = 0;       // this worker's, from 1
  int32_t ranks = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(unique_id), CEREAL_NVP(rank), CEREAL_NVP(ranks));
  }
};

struct UpdateBegin {  // ->
  static constexpr MessageType kType = MessageType::update_begin;
  uint64_t weight_version = 0;  // above the live one
  uint64_t base_version = 0;    // 0: every tensor comes; else those that differ from this live one
  std::string contract_id;
  std::string weights_digest;           // what the whole model's shall be; empty: not compared
  uint8_t policy = 0;                   // exact::UpdatePolicy
  uint8_t transport = 0;                // WeightTransport
  bool in_place = false;                // over the live weights; no request runs meanwhile
  uint64_t bucket_bytes = 0;            // wanted; the worker may give less
  std::vector<ManifestTensor> tensors;  // none where the transport is disk
  CudaMemory cuda;                      // empty unless the transport is cuda_ipc
  NcclGroup nccl;                       // empty unless the transport is nccl
  std::string path;                     // empty unless the transport is disk
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(weight_version), CEREAL_NVP(base_version), CEREAL_NVP(contract_id),
      CEREAL_NVP(weights_digest), CEREAL_NVP(policy), CEREAL_NVP(transport), CEREAL_NVP(in_place),
      CEREAL_NVP(bucket_bytes), CEREAL_NVP(tensors), CEREAL_NVP(cuda), CEREAL_NVP(nccl),
      CEREAL_NVP(path));
  }
};

struct UpdateReady {  // <-
  static constexpr MessageType kType = MessageType::update_ready;
  uint64_t session = 0;      // random; every later message of the update carries it
  std::string segment_name;  // shared memory, made and owned by the worker; only for shm
  uint64_t segment_bytes = 0;
  uint64_t bucket_bytes = 0;
  int32_t timeout_ms = 0;  // between two messages of the update
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session), CEREAL_NVP(segment_name), CEREAL_NVP(segment_bytes),
      CEREAL_NVP(bucket_bytes), CEREAL_NVP(timeout_ms));
  }
};

struct UpdateBucket {  // -> bucket `index` is there, or on its way: at most two are unanswered
  static constexpr MessageType kType = MessageType::update_bucket;
  uint64_t session = 0;
  uint64_t index = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session), CEREAL_NVP(index));
  }
};

struct UpdateBucketDone {  // <- its memory may be written again
  static constexpr MessageType kType = MessageType::update_bucket_done;
  uint64_t session = 0;
  uint64_t index = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session), CEREAL_NVP(index));
  }
};

struct UpdateCommit {  // ->
  static constexpr MessageType kType = MessageType::update_commit;
  uint64_t session = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session));
  }
};

struct UpdateCommitted {  // <- once the new version is live
  static constexpr MessageType kType = MessageType::update_committed;
  uint64_t weight_version = 0;
  std::string weights_digest;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest));
  }
};

struct UpdateAbort {  // ->
  static constexpr MessageType kType = MessageType::update_abort;
  uint64_t session = 0;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(session));
  }
};

struct UpdateAborted {  // <-
  static constexpr MessageType kType = MessageType::update_aborted;
  uint64_t weight_version = 0;  // still live
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(weight_version));
  }
};

// ---- sleep: the weights' and the cache's memory are given back until wake
struct Sleep {  // ->
  static constexpr MessageType kType = MessageType::sleep;
  bool keep_weights = true;  // in host memory; false: wake waits for a whole update
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(keep_weights));
  }
};

struct SleepReply {  // <-
  static constexpr MessageType kType = MessageType::sleep_reply;
  uint64_t freed_bytes = 0;  // of the backend's memory
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(freed_bytes));
  }
};

struct Wake {  // ->
  static constexpr MessageType kType = MessageType::wake;
  template <class A>
  void serialize(A&) {}
};

struct WakeReply {  // <-
  static constexpr MessageType kType = MessageType::wake_reply;
  uint64_t weight_version = 0;
  std::string weights_digest;
  template <class A>
  void serialize(A& a) {
    a(CEREAL_NVP(weight_version), CEREAL_NVP(weights_digest));
  }
};

}  // namespace exact::ipc
