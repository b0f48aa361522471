#include "tests/support/random_data.h"

#include <cmath>
#include <cstdlib>
#include <utility>

#include "kernels/base/bf16.h"

namespace exact {

std::string_view data_kind_name(DataKind kind) {
  switch (kind) {
    case DataKind::normal:
      return "normal";
    case DataKind::wide_exponents:
      return "wide_exponents";
    case DataKind::any_bits:
      return "any_bits";
    case DataKind::tiny:
      return "tiny";
    case DataKind::cancellation:
      return "cancellation";
    case DataKind::largest:
      return "largest";
    case DataKind::all_ones:
      return "all_ones";
    case DataKind::sparse:
      return "sparse";
  }
  return "unknown";
}

uint64_t test_seed() {
  const char* text = std::getenv("EXACT_TEST_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 0);
}

uint64_t RandomData::bits() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

int64_t RandomData::between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
}

float RandomData::normal() {
  float sum = -6.0f;
  for (int i = 0; i < 12; i++) sum += static_cast<float>(bits() >> 40) * 0x1p-24f;
  return sum;
}

uint16_t RandomData::bf16(DataKind kind) {
  const auto random = static_cast<uint16_t>(bits() >> 48);
  switch (kind) {
    case DataKind::normal:
      return float_to_bf16(normal());
    case DataKind::wide_exponents:
      return float_to_bf16(std::ldexp(normal(), static_cast<int>(between(-30, 29))));
    case DataKind::any_bits:
      return random;
    case DataKind::tiny:
      return random & 0x80ff;
    case DataKind::cancellation:
      // Each second value undoes the one before it, but for its last bit at times.
      previous_ = previous_ == 0 ? static_cast<uint16_t>(0x3f80 | (random & 0x807f))
                                 : static_cast<uint16_t>(previous_ ^ 0x8000 ^ (random & 1));
      if (random & 2) return std::exchange(previous_, uint16_t{0});
      return previous_;
    case DataKind::largest:
      return static_cast<uint16_t>((random & 0x8000) | 0x3fff);
    case DataKind::all_ones:
      return 0x3f80;
    case DataKind::sparse:
      return random & 1 ? uint16_t{0} : float_to_bf16(normal());
  }
  return 0;
}

std::vector<uint16_t> RandomData::bf16s(DataKind kind, size_t count) {
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = bf16(kind);
  return values;
}

}  // namespace exact
