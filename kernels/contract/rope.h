// rope.h owns the tables of rule N4: rotary frequencies as transformers computes them on the GPU,
// and the row of cosines and sines of one position. The rotation itself is an operation of a
// backend.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace exact {

enum class RopeKind : uint8_t { standard = 0, llama3 = 1, yarn = 2, linear = 3 };

struct RopeConfig {
  int32_t head_width = 0;  // E
  double theta = 10000.0;  // rope_theta
  RopeKind kind = RopeKind::standard;
  // llama3, yarn and linear:
  double factor = 1.0;
  // llama3 and yarn:
  int32_t original_max_positions = 8192;
  // llama3 alone:
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  // yarn alone:
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;                    // the ramp's ends to whole indices
  std::optional<double> attention_factor;  // none: it follows from factor and the next two
  double mscale = 0;                       // 0: none; counts only where the other one stands too
  double mscale_all_dim = 0;
  // The ramp is made on PyTorch's default device: the GPU, for a model built as docs/numerics.md
  // says. The goldens called transformers' function outside of that, so theirs is the host's.
  bool ramp_on_host = false;
};

// E / 2 frequencies. head_width is positive and even.
std::vector<float> inverse_frequencies(const RopeConfig& config);

// What cosines and sines are multiplied with before they are rounded to bf16: 1, but for yarn.
float rope_attention_scale(const RopeConfig& config);

// cos_sin: E cosines, then E sines, bf16; entries i and i + E/2 of each are equal.
void rope_row(std::span<const float> inverse_frequency, int32_t position,
              std::span<uint16_t> cos_sin, float attention_scale = 1.0f);

}  // namespace exact
