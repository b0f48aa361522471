#include "kernels/contract/rope.h"

#include <algorithm>
#include <cmath>
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

// The index at which a frequency turns `rotations` times over the original length, in double.
double yarn_dimension(double rotations, const RopeConfig& config) {
  const double turns = config.original_max_positions / (rotations * 2 * std::numbers::pi);
  return (config.head_width * std::log(turns)) / (2 * std::log(config.theta));
}

// Where yarn's ramp begins and ends, in double as Python computes it.
struct RampEnds {
  double low;
  double high;
};

RampEnds yarn_ramp_ends(const RopeConfig& config) {
  double low = yarn_dimension(config.beta_fast, config);
  double high = yarn_dimension(config.beta_slow, config);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.head_width - 1));
  if (low == high) high += 0.001;  // transformers' own guard
  return {low, high};
}

float yarn_ramp(size_t index, const RopeConfig& config) {
  const RampEnds ends = yarn_ramp_ends(config);
  const float distance = static_cast<float>(index) - static_cast<float>(ends.low);
  const auto span = static_cast<float>(ends.high - ends.low);
  const float linear = config.ramp_on_host ? distance / span : distance * (1.0f / span);
  return std::clamp(linear, 0.0f, 1.0f);
}

// transformers' yarn: before the ramp as it was, behind it interpolated.
float scale_yarn(float power, size_t index, const RopeConfig& config) {
  const float kept = 1.0f - yarn_ramp(index, config);
  const float interpolated = 1.0f / (power * static_cast<float>(config.factor));
  const float extrapolated = 1.0f / power;
  const float first = interpolated * (1.0f - kept);
  return first + extrapolated * kept;
}

// transformers' get_mscale.
double yarn_scale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

float frequency_at(size_t index, const RopeConfig& config) {
  const float exponent =
      static_cast<float>(2 * index) * (1.0f / static_cast<float>(config.head_width));
  const float power = contract::pow(static_cast<float>(config.theta), exponent);
  if (config.kind == RopeKind::yarn) return scale_yarn(power, index, config);
  if (config.kind == RopeKind::llama3) return scale_llama3(1.0f / power, config);
  // "inv_freq /= factor": a tensor by a scalar.
  if (config.kind == RopeKind::linear)
    return (1.0f / power) * (1.0f / static_cast<float>(config.factor));
  return 1.0f / power;
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeConfig& config) {
  EXACT_CHECK(config.head_width > 0 && config.head_width % 2 == 0, "an odd or empty head width");
  std::vector<float> frequencies(static_cast<size_t>(config.head_width) / 2);
  for (size_t i = 0; i < frequencies.size(); i++) frequencies[i] = frequency_at(i, config);
  return frequencies;
}

float rope_attention_scale(const RopeConfig& config) {
  if (config.kind != RopeKind::yarn) return 1.0f;
  if (config.attention_factor) return static_cast<float>(*config.attention_factor);
  if (config.mscale == 0 || config.mscale_all_dim == 0)
    return static_cast<float>(yarn_scale(config.factor, 1));
  return static_cast<float>(yarn_scale(config.factor, config.mscale) /
                            yarn_scale(config.factor, config.mscale_all_dim));
}

void rope_row(std::span<const float> inverse_frequency, int32_t position,
              std::span<uint16_t> cos_sin, float attention_scale) {
  const size_t half = inverse_frequency.size();
  EXACT_CHECK(cos_sin.size() == 4 * half, "a rope row holds E cosines and E sines");
  for (size_t i = 0; i < half; i++) {
    const float angle = inverse_frequency[i] * static_cast<float>(position);
    cos_sin[i] = cos_sin[half + i] = float_to_bf16(contract::cos(angle) * attention_scale);
    cos_sin[2 * half + i] = cos_sin[3 * half + i] =
        float_to_bf16(contract::sin(angle) * attention_scale);
  }
}

}  // namespace exact
