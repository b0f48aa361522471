#include "kernels/contract/rope.h"

#include <cstddef>
#include <numbers>

#include "kernels/base/bf16.h"
#include "kernels/base/check.h"
#include "kernels/contract/special.h"

namespace exact {
namespace {

// transformers' llama3 scaling, every tensor operation rounded to fp32. PyTorch divides a tensor by
// a scalar as a product with the scalar's reciprocal, and a scalar by a tensor as reciprocal,
// product.
float scale_llama3(float frequency, const RopeConfig& config) {
  const double original = config.original_max_positions;
  const float longest = static_cast<float>(original / config.low_frequency_factor);
  const float shortest = static_cast<float>(original / config.high_frequency_factor);
  const float per_factor = 1.0f / static_cast<float>(config.factor);
  const float wavelength = (1.0f / frequency) * static_cast<float>(2 * std::numbers::pi);
  const float scaled = wavelength > longest ? frequency * per_factor : frequency;
  if (wavelength < shortest || wavelength > longest) return scaled;
  const double band = config.high_frequency_factor - config.low_frequency_factor;
  float smooth = (1.0f / wavelength) * static_cast<float>(original);
  smooth = smooth - static_cast<float>(config.low_frequency_factor);
  smooth = smooth * (1.0f / static_cast<float>(band));
  const float low_part = ((1.0f - smooth) * scaled) * per_factor;
  return low_part + smooth * scaled;
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& config) {
  EXACT_CHECK(config.head_width > 0 && config.head_width % 2 == 0, "an odd or empty head width");
  std::vector<float> frequencies(static_cast<size_t>(config.head_width) / 2);
  const float per_width = 1.0f / static_cast<float>(config.head_width);
  for (size_t i = 0; i < frequencies.size(); i++) {
    const float exponent = static_cast<float>(2 * i) * per_width;
    const float frequency = 1.0f / contract::pow(static_cast<float>(config.theta), exponent);
    frequencies[i] = config.kind == RopeKind::llama3 ? scale_llama3(frequency, config) : frequency;
  }
  return frequencies;
}

void rope_row(std::span<const float> inverse_frequency, int32_t position,
              std::span<uint16_t> cos_sin) {
  const size_t half = inverse_frequency.size();
  EXACT_CHECK(cos_sin.size() == 4 * half, "a rope row holds E cosines and E sines");
  for (size_t i = 0; i < half; i++) {
    const float angle = inverse_frequency[i] * static_cast<float>(position);
    cos_sin[i] = cos_sin[half + i] = float_to_bf16(contract::cos(angle));
    cos_sin[2 * half + i] = cos_sin[3 * half + i] = float_to_bf16(contract::sin(angle));
  }
}

}  // namespace exact
