// What a keeper stores is what is live, bit for bit, however its two threads meet; a version that
// can't be stored is told of.
#include "worker/weights_keeper.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "kernels/cpu/cpu_backend.h"
#include "tests/engine/small_models.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_directory.h"

namespace exact::worker {
namespace {

class WeightsKeeperTest : public testing::Test {
 protected:
  void SetUp() override {
    config_ = small_config("qwen2", false);
    directory_.write("config.json", small_config_text("qwen2", false));
    auto backend = make_cpu_backend({best_cpu_isa(), 1});
    ASSERT_TRUE(backend.is_ok());
    backend_ = std::move(*backend);
    auto store = WeightsStore::create(directory_.file("store"));
    ASSERT_TRUE(store.is_ok());
    store_ = std::make_unique<WeightsStore>(std::move(*store));
    keeper_ = std::make_unique<WeightsKeeper>(*store_, config_, directory_.path());
  }

  WeightsKeeper::Outcome store(WeightSlot& slot, uint64_t version) {
    const Status begun = keeper_->begin(slot, version);
    EXPECT_TRUE(begun.is_ok()) << begun.to_string();
    while (keeper_->is_busy()) {
      keeper_->turn();
      std::this_thread::yield();
    }
    const auto outcome = keeper_->take_outcome();
    EXPECT_TRUE(outcome.has_value());
    EXPECT_FALSE(keeper_->take_outcome().has_value());
    return outcome.value_or(WeightsKeeper::Outcome{});
  }

  TemporaryDirectory directory_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<WeightsStore> store_;
  std::unique_ptr<WeightsKeeper> keeper_;
};

TEST_F(WeightsKeeperTest, StoresEveryVersionOnce) {
  for (uint64_t version = 1; version <= 4; version++) {
    const auto slot = hash_slot(config_, *backend_, version % 3);  // the fourth is the first again
    const WeightsKeeper::Outcome outcome = store(*slot, version);
    EXPECT_TRUE(outcome.status.is_ok()) << outcome.status.to_string();
    EXPECT_EQ(outcome.version, version);
    EXPECT_EQ(outcome.weights_digest, slot->digest());
    EXPECT_EQ(outcome.bytes_written == 0, version == 4);
    WeightSlot loaded(config_, *backend_);
    const Status status = store_->load(slot->digest(), loaded);
    EXPECT_TRUE(status.is_ok()) << status.to_string();
  }
}

TEST_F(WeightsKeeperTest, OneVersionAtATime) {
  const auto slot = hash_slot(config_, *backend_, 1);
  ASSERT_TRUE(keeper_->begin(*slot, 1).is_ok());
  EXPECT_EQ(keeper_->begin(*slot, 2).code(), Code::exhausted);  // nobody has read: still busy
}

TEST_F(WeightsKeeperTest, EndsWithAVersionHalfRead) {
  const auto slot = hash_slot(config_, *backend_, 1);
  ASSERT_TRUE(keeper_->begin(*slot, 1).is_ok());
  keeper_.reset();
  WeightSlot loaded(config_, *backend_);
  EXPECT_EQ(store_->load(slot->digest(), loaded).code(), Code::not_found);
}

TEST_F(WeightsKeeperTest, TellsWhatItCouldNotStoreAndStoresTheNext) {
  const auto slot = hash_slot(config_, *backend_, 1);
  std::filesystem::remove(directory_.file("config.json"));
  EXPECT_EQ(store(*slot, 1).status.code(), Code::not_found);
  directory_.write("config.json", small_config_text("qwen2", false));
  EXPECT_TRUE(store(*slot, 2).status.is_ok());
}

TEST_F(WeightsKeeperTest, StoresAtOnceForTheStart) {
  const auto slot = hash_slot(config_, *backend_, 3);
  ASSERT_TRUE(keeper_->store_now(*slot, 1).is_ok());
  WeightSlot loaded(config_, *backend_);
  EXPECT_TRUE(store_->load(slot->digest(), loaded).is_ok());
}

}  // namespace
}  // namespace exact::worker
