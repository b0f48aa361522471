// Shared memory: made whole or not at all, opened only as itself, and gone with its owner.
#include "ipc/shm_region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <thread>

#include "tests/ipc/child_process.h"

namespace exact::ipc {
namespace {

using ::testing::HasSubstr;

std::string path_of(const std::string& name) {
  return "/dev/shm/" + name;
}
bool exists(const std::string& name) {
  return std::filesystem::exists(path_of(name));
}

std::unique_ptr<ShmRegion> create(uint64_t bytes) {
  auto region = ShmRegion::create(bytes);
  EXPECT_TRUE(region.is_ok()) << region.status().to_string();
  return std::move(region).value();
}

TEST(ShmRegion, BothSidesSeeTheSameZeroedBytes) {
  const auto owner = create(10'000);
  ASSERT_EQ(owner->bytes().size(), 10'000u);
  EXPECT_TRUE(std::ranges::all_of(owner->bytes(), [](std::byte b) { return b == std::byte{0}; }));
  const auto other = ShmRegion::open(owner->name(), 10'000);
  ASSERT_TRUE(other.is_ok()) << other.status().to_string();
  owner->bytes()[9'999] = std::byte{7};
  EXPECT_EQ((*other)->bytes()[9'999], std::byte{7});
  (*other)->bytes()[0] = std::byte{9};
  EXPECT_EQ(owner->bytes()[0], std::byte{9});
}

TEST(ShmRegion, NamesAreNewAndTheFileIsItsOwnersAlone) {
  std::set<std::string> names;
  for (int round = 0; round < 50; ++round) {
    const auto region = create(1);
    EXPECT_TRUE(is_region_name(region->name())) << region->name();
    EXPECT_TRUE(names.insert(region->name()).second);
    struct stat file {};
    ASSERT_EQ(::stat(path_of(region->name()).c_str(), &file), 0);
    EXPECT_EQ(file.st_mode & 0777u, 0600u);
  }
}

TEST(ShmRegion, GoesWithItsOwnerAndNotWithItsUsers) {
  auto owner = create(4'096);
  const std::string name = owner->name();
  { const auto user = ShmRegion::open(name, 4'096); }
  EXPECT_TRUE(exists(name));
  const auto user = ShmRegion::open(name, 4'096);
  ASSERT_TRUE(user.is_ok());
  owner.reset();
  EXPECT_FALSE(exists(name));
  (*user)->bytes()[0] = std::byte{1};  // its pages live as long as they are mapped
  EXPECT_EQ(ShmRegion::open(name, 4'096).status().code(), Code::not_found);
}

TEST(ShmRegion, OtherNamesAreRefused) {
  for (const std::string name :
       {"", "exact-rollout.", "exact-rollout.0123456789abcde", "exact-rollout.0123456789abcdef0",
        "exact-rollout.0123456789ABCDEF", "exact-rollout.0123456789abcdeg",
        "exact-rollout.../../etc/shad", "/exact-rollout.0123456789abcdef", "../../etc/passwd",
        "exact-rollout/0123456789abcdef", "exact-rollouu.0123456789abcdef",
        "sem.0123456789abcdef"}) {
    EXPECT_FALSE(is_region_name(name)) << name;
    EXPECT_EQ(ShmRegion::open(name, 64).status().code(), Code::invalid) << name;
  }
  EXPECT_FALSE(is_region_name(std::string("exact-rollout.0123456789abcde\0", 30)));
  EXPECT_TRUE(is_region_name("exact-rollout.0123456789abcdef"));
}

TEST(ShmRegion, SizeThatIsNotTheFilesIsCorrupt) {
  const auto owner = create(8'192);
  for (const uint64_t lie :
       {uint64_t{1}, uint64_t{8'191}, uint64_t{8'193}, uint64_t{1} << 46, UINT64_MAX}) {
    const Status status = ShmRegion::open(owner->name(), lie).status();
    EXPECT_EQ(status.code(), Code::corrupt) << lie;
    EXPECT_THAT(status.message(), HasSubstr("has 8192 bytes, not the expected"));
  }
  EXPECT_EQ(ShmRegion::open(owner->name(), 0).status().code(), Code::invalid);
}

TEST(ShmRegion, AnotherUsersRegionIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  const auto owner = create(64);
  ASSERT_EQ(::chown(path_of(owner->name()).c_str(), 12345, 12345), 0);
  const Status status = ShmRegion::open(owner->name(), 64).status();
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_THAT(status.message(), HasSubstr("belongs to user 12345"));
}

TEST(ShmRegion, LinkUnderARegionsNameIsNotFollowed) {
  const auto target = create(64);
  const std::string link = "exact-rollout.00000000deadbeef";
  std::filesystem::remove(path_of(link));
  std::filesystem::create_symlink(path_of(target->name()), path_of(link));
  EXPECT_FALSE(ShmRegion::open(link, 64).is_ok());
  std::filesystem::remove(path_of(link));
}

TEST(ShmRegion, MoreThanThereIsRoomForIsExhaustedAndLeavesNothing) {
  struct statvfs space {};
  ASSERT_EQ(::statvfs("/dev/shm", &space), 0);
  const auto count = [] {
    size_t regions = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      struct stat file {};
      const std::string name = entry.path().filename();
      if (is_region_name(name) && ::stat(entry.path().c_str(), &file) == 0 &&
          static_cast<uint64_t>(file.st_size) > uint64_t{1} << 34) {
        ++regions;
      }
    }
    return regions;
  };
  const size_t before = count();
  for (const uint64_t bytes : {space.f_blocks * space.f_frsize + (1 << 20), uint64_t{1} << 46,
                               uint64_t{1} << 63, UINT64_MAX}) {
    const Status status = ShmRegion::create(bytes).status();
    EXPECT_EQ(status.code(), Code::exhausted) << bytes << ": " << status.to_string();
    EXPECT_THAT(status.message(), HasSubstr("no room"));
  }
  EXPECT_EQ(count(), before);
  EXPECT_EQ(ShmRegion::create(0).status().code(), Code::invalid);
}

// A child that owns a region until it is killed; line() is the region's name.
ChildProcess owner_process() {
  return ChildProcess([] {
    auto region = ShmRegion::create(4'096);
    if (!region.is_ok()) return region.status().to_string();
    return std::move(region).value().release()->name();  // owned until the kill
  });
}

TEST(SweepDeadRegions, TakesWhatAKilledOwnerLeftAndNothingElse) {
  const auto mine = create(4'096);
  ChildProcess living = owner_process(), dying = owner_process();
  ASSERT_TRUE(is_region_name(living.line())) << living.line();
  ASSERT_TRUE(is_region_name(dying.line())) << dying.line();
  ASSERT_TRUE(sweep_dead_regions().is_ok());
  EXPECT_TRUE(exists(dying.line())) << "its owner lived";
  dying.kill();
  const auto removed = sweep_dead_regions();
  ASSERT_TRUE(removed.is_ok()) << removed.status().to_string();
  EXPECT_FALSE(exists(dying.line()));
  EXPECT_TRUE(exists(living.line()));
  EXPECT_TRUE(exists(mine->name()));
  living.kill();
  ASSERT_TRUE(sweep_dead_regions().is_ok());
  EXPECT_FALSE(exists(living.line()));
}

TEST(SweepDeadRegions, LeavesOtherFilesAlone) {
  const std::string other = "exact-rollout-test." + std::to_string(::getpid());
  const int fd = ::open(path_of(other).c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_GE(fd, 0);
  ::close(fd);
  ASSERT_TRUE(sweep_dead_regions().is_ok());
  EXPECT_TRUE(exists(other));
  std::filesystem::remove(path_of(other));
}

TEST(SweepDeadRegions, RegionsBeingMadeMeanwhileStay) {
  const std::jthread sweeper([](const std::stop_token& stop) {
    while (!stop.stop_requested()) EXPECT_TRUE(sweep_dead_regions().is_ok());
  });
  for (int round = 0; round < 2'000; ++round) {
    const auto region = ShmRegion::create(64);
    ASSERT_TRUE(region.is_ok()) << region.status().to_string();
    ASSERT_TRUE(exists((*region)->name())) << "round " << round;
  }
}

}  // namespace
}  // namespace exact::ipc
