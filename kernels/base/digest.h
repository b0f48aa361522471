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

// digest128 over bytes that come in pieces.
class DigestStream {
 public:
  DigestStream();
  ~DigestStream();
  DigestStream(DigestStream&&) noexcept;
  DigestStream& operator=(DigestStream&&) noexcept;

  void reset();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  Digest128 finish() const;  // of everything so far; more may follow

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace exact
