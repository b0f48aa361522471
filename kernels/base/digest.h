// digest.h owns the fingerprint of bytes: XXH3, 128 bits for what is kept or compared across
// machines, 64 bits for a record on its way. Not cryptographic: it finds faults, not forgers.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/result.h"

namespace exact {

struct Digest128 {
  uint64_t high = 0;
  uint64_t low = 0;
  friend auto operator<=>(const Digest128&, const Digest128&) = default;
  std::string to_hex() const;  // 32 lower-case digits, the canonical XXH3 order
  static Result<Digest128> from_hex(std::string_view text);
};

Digest128 digest128(std::span<const std::byte> bytes);
Digest128 digest128(std::string_view text);
uint64_t digest64(std::span<const std::byte> bytes);

// ---- the digest of a tensor: the bytes are cut into chunks of 64 KiB, the last one shorter; it is
// digest128 of the chunks' digest128s, 16 bytes each in canonical (big-endian) order. Chunks need
// not wait for each other, so a GPU digests at the speed of its memory.
inline constexpr size_t kDigestChunkBytes = size_t{1} << 16;

constexpr uint64_t digest_chunk_count(uint64_t tensor_bytes) {
  return (tensor_bytes + kDigestChunkBytes - 1) / kDigestChunkBytes;
}
Digest128 tensor_digest(std::span<const std::byte> bytes);
// Of a tensor whose chunks have these digests, in order.
Digest128 tensor_digest_of_chunks(std::span<const Digest128> chunks);

// digest128 over bytes that come in pieces.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(DigestStream&&) noexcept;
  DigestStream& operator=(DigestStream&&) noexcept;

  DigestStream copy() const;
  void reset();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  Digest128 finish() const;  // of everything so far; more may follow

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// tensor_digest over bytes that come in pieces.
class TensorDigestStream {
 public:
  void reset();
  void update(std::span<const std::byte> bytes);
  Digest128 finish() const;  // of everything so far; more may follow

 private:
  DigestStream chunk_;      // of the bytes after the last whole chunk
  size_t chunk_bytes_ = 0;  // their count, below kDigestChunkBytes
  DigestStream chunks_;     // of the digests of whole chunks
};

}  // namespace exact
