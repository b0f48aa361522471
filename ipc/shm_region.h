// shm_region.h owns a named piece of shared memory: who made it removes it, and a name that came in
// a message is never trusted. Regions are called "exact-rollout.<16 random hex digits>".
//
// A region lives as long as its owner: the owner holds a flock on it, which the kernel drops even
// after SIGKILL, so a later start can tell what a dead owner left (sweep_dead_regions).
// Refused: other names, other users' regions, a size that is not the real file's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/result.h"

namespace exact::ipc {

bool is_region_name(std::string_view name);

class ShmRegion {
 public:
  // Owner's side: new, zeroed, mode 0600, every page there (a full /dev/shm is `exhausted` here
  // rather than SIGBUS later). Removed when this object is destroyed.
  static Result<std::unique_ptr<ShmRegion>> create(uint64_t bytes);

  // The other side. invalid: not a region's name, or zero bytes; not_found: no such region;
  // corrupt: another size or kind of file, or another user's.
  static Result<std::unique_ptr<ShmRegion>> open(const std::string& name, uint64_t expected_bytes);

  ~ShmRegion();
  ShmRegion(const ShmRegion&) = delete;
  ShmRegion& operator=(const ShmRegion&) = delete;

  const std::string& name() const;
  std::span<std::byte> bytes() const;  // page-aligned, readable and writable

 private:
  class Impl;
  explicit ShmRegion(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Removes this user's regions whose owner is dead; returns how many. Safe beside live owners.
Result<uint64_t> sweep_dead_regions();

}  // namespace exact::ipc
