// host_tensors.h owns a model's weights in the trainer's memory: what a trainer without a framework
// reads from a Hugging Face directory, changes, and publishes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/config.h"
#include "kernels/base/result.h"
#include "trainer_bridge/weight_publisher.h"

namespace exact::bridge {

struct HostTensor {
  std::string name;  // Hugging Face
  std::vector<int64_t> shape;
  std::vector<uint16_t> values;  // bf16
};

// Every tensor of the model's table, in its order, from the directory's *.safetensors files.
// not_found: names a tensor that no file has; corrupt: one that is there twice, not bf16 or of
// another shape.
Result<std::vector<HostTensor>> load_host_tensors(const ModelConfig& config,
                                                  const std::string& model_directory);

// Views for publish() and Scorer; valid while `tensors` is neither changed nor destroyed.
std::vector<NamedTensor> named_tensors(const std::vector<HostTensor>& tensors);

}  // namespace exact::bridge
