// hill_climb.h owns the trainer's weights in trainer_loop: an evolution strategy with one parent
// and one child, which needs rewards and no gradients.
//
//   child = bf16(parent + sigma * rms(parent) * noise), tensor by tensor
//
// The noise of value i of a tensor in trial t is a hash of (seed, t, name, i): a run can be
// repeated, and no state but the parent is kept. A child whose reward is not below the best becomes
// the parent.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/bf16.h"
#include "kernels/contract/hash_init.h"
#include "trainer_bridge/host_tensors.h"

namespace exact::examples {

class HillClimb {
 public:
  HillClimb(std::vector<bridge::HostTensor> theta, double sigma, uint64_t seed)
      : parent_(theta), child_(std::move(theta)), sigma_(sigma), seed_(seed) {}

  // What is to be published and judged next; the first child is the parent itself.
  const std::vector<bridge::HostTensor>& child() const { return child_; }

  void propose() {
    trial_++;
    for (size_t t = 0; t < parent_.size(); t++) mutate(parent_[t], child_[t]);
  }

  // True when the child was kept.
  bool judge(double reward) {
    if (has_reward_ && reward < best_reward_) return false;
    has_reward_ = true;
    best_reward_ = reward;
    parent_ = child_;
    return true;
  }

  double best_reward() const { return best_reward_; }

 private:
  static float root_mean_square(const std::vector<uint16_t>& values) {
    double sum = 0;
    for (const uint16_t value : values) {
      const double x = static_cast<double>(bf16_to_float(value));
      sum += x * x;
    }
    return static_cast<float>(std::sqrt(sum / static_cast<double>(values.size())));
  }

  void mutate(const bridge::HostTensor& parent, bridge::HostTensor& child) const {
    const contract::HashStream noise("hill_climb/" + std::to_string(trial_) + "/" + parent.name,
                                     seed_);
    const double unit_variance = std::sqrt(3.0);  // of a uniform value in (-r, r)
    const float scale = static_cast<float>(sigma_) * root_mean_square(parent.values);
    for (size_t i = 0; i < parent.values.size(); i++) {
      const float step = scale * noise.uniform(i, -unit_variance, unit_variance);
      child.values[i] = float_to_bf16(bf16_to_float(parent.values[i]) + step);
    }
  }

  std::vector<bridge::HostTensor> parent_;
  std::vector<bridge::HostTensor> child_;
  double sigma_;
  uint64_t seed_;
  uint64_t trial_ = 0;
  bool has_reward_ = false;
  double best_reward_ = 0;
};

}  // namespace exact::examples
