#include "tests/support/model_fixture.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "engine/hash_model.h"

namespace exact {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << "cannot read " << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::unique_ptr<WeightSlot> hash_slot(const ModelConfig& config, Backend& backend, uint64_t seed) {
  auto slot = std::make_unique<WeightSlot>(config, backend);
  slot->begin();
  const std::vector<TensorSpec>& table = slot->table();
  for (size_t i = 0; i < table.size(); i++) {
    std::vector<uint16_t> values(static_cast<size_t>(table[i].rows * table[i].columns));
    hash_tensor(table[i], config, seed, values);
    const Status appended = slot->append(i, std::as_bytes(std::span(values)));
    EXPECT_TRUE(appended.is_ok()) << appended.to_string();
  }
  const Status complete = slot->complete();
  EXPECT_TRUE(complete.is_ok()) << complete.to_string();
  return slot;
}

}  // namespace exact
