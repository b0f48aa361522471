// A worker hears that the program that started it is gone, and waits for it no longer than it
// lives.
#include "worker/input_watcher.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <future>

namespace exact::worker {
namespace {

class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe(ends_.data()), 0); }
  ~Pipe() {
    close(ends_[0]);
    close_input();
  }
  int output() const { return ends_[0]; }
  int input() const { return ends_[1]; }
  void close_input() {
    if (ends_[1] >= 0) close(ends_[1]);
    ends_[1] = -1;
  }

 private:
  std::array<int, 2> ends_{-1, -1};
};

TEST(InputWatcher, TellsOfTheEndOnceAndNotOfBytes) {
  Pipe pipe;
  std::promise<void> ended;
  auto end = ended.get_future();
  const auto watcher = InputWatcher::start(pipe.output(), [&] { ended.set_value(); });
  ASSERT_TRUE(watcher.is_ok()) << watcher.status().to_string();
  ASSERT_EQ(write(pipe.input(), "bytes", 5), 5);
  EXPECT_EQ(end.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  pipe.close_input();
  EXPECT_EQ(end.wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(InputWatcher, EndsWithAnInputThatIsStillOpen) {
  const Pipe pipe;
  bool told = false;
  {
    const auto watcher = InputWatcher::start(pipe.output(), [&] { told = true; });
    ASSERT_TRUE(watcher.is_ok()) << watcher.status().to_string();
  }
  EXPECT_FALSE(told);
}

}  // namespace
}  // namespace exact::worker
