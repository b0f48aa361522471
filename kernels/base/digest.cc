#include "kernels/base/digest.h"

#include <xxhash.h>

#include <algorithm>
#include <new>

#include "kernels/base/hex.h"

namespace exact {
namespace {

Digest128 from_xxh(XXH128_hash_t hash) {
  return {hash.high64, hash.low64};
}

// The canonical form: big-endian, the high half first.
void append(const Digest128& digest, DigestStream& stream) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, {digest.low, digest.high});
  stream.update(std::as_bytes(std::span(bytes.digest)));
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string Digest128::to_hex() const {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, {low, high});
  return hex_text(std::as_bytes(std::span(bytes.digest)));
}

Result<Digest128> Digest128::from_hex(std::string_view text) {
  if (text.size() != 32) return Status(Code::invalid, "a digest is 32 hexadecimal digits");
  Digest128 digest;
  for (size_t i = 0; i < 32; i++) {
    const int value = hex_value(text[i]);
    if (value < 0) return Status(Code::invalid, "a digest is 32 lower-case hexadecimal digits");
    uint64_t& half = i < 16 ? digest.high : digest.low;
    half = half << 4 | static_cast<uint64_t>(value);
  }
  return digest;
}

Digest128 digest128(std::span<const std::byte> bytes) {
  return from_xxh(XXH3_128bits(bytes.data(), bytes.size()));
}

Digest128 digest128(std::string_view text) {
  return from_xxh(XXH3_128bits(text.data(), text.size()));
}

uint64_t digest64(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

Digest128 tensor_digest(std::span<const std::byte> bytes) {
  DigestStream chunks;
  while (!bytes.empty()) {
    const auto chunk = bytes.first(std::min(bytes.size(), kDigestChunkBytes));
    append(digest128(chunk), chunks);
    bytes = bytes.subspan(chunk.size());
  }
  return chunks.finish();
}

Digest128 tensor_digest_of_chunks(std::span<const Digest128> chunks) {
  DigestStream stream;
  for (const Digest128& chunk : chunks) append(chunk, stream);
  return stream.finish();
}

struct DigestStream::State {
  XXH3_state_t* xxh = XXH3_createState();
  State() {
    if (xxh == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(xxh);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { XXH3_freeState(xxh); }
};

DigestStream::DigestStream() : state_(std::make_unique<State>()) {}
DigestStream::~DigestStream() = default;
DigestStream::DigestStream(DigestStream&&) noexcept = default;
DigestStream& DigestStream::operator=(DigestStream&&) noexcept = default;

void DigestStream::reset() {
  XXH3_128bits_reset(state_->xxh);
}

void DigestStream::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_->xxh, bytes.data(), bytes.size());
}

void DigestStream::update(std::string_view text) {
  XXH3_128bits_update(state_->xxh, text.data(), text.size());
}

DigestStream DigestStream::copy() const {
  DigestStream other;
  XXH3_copyState(other.state_->xxh, state_->xxh);
  return other;
}

Digest128 DigestStream::finish() const {
  return from_xxh(XXH3_128bits_digest(state_->xxh));
}

void TensorDigestStream::reset() {
  chunk_.reset();
  chunk_bytes_ = 0;
  chunks_.reset();
}

void TensorDigestStream::update(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kDigestChunkBytes - chunk_bytes_));
    chunk_.update(piece);
    chunk_bytes_ += piece.size();
    bytes = bytes.subspan(piece.size());
    if (chunk_bytes_ < kDigestChunkBytes) continue;
    append(chunk_.finish(), chunks_);
    chunk_.reset();
    chunk_bytes_ = 0;
  }
}

Digest128 TensorDigestStream::finish() const {
  if (chunk_bytes_ == 0) return chunks_.finish();
  DigestStream chunks = chunks_.copy();
  append(chunk_.finish(), chunks);
  return chunks.finish();
}

}  // namespace exact
