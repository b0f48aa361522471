#include "worker/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace exact::worker {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr std::chrono::milliseconds kRedraw{100};     // on a terminal
constexpr std::chrono::milliseconds kLogLine{5'000};  // in a log
constexpr int kBarColumns = 30;

}  // namespace

Progress::Progress(std::string label, int64_t total, std::string unit)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      total_(total),
      is_terminal_(isatty(STDERR_FILENO) == 1),
      started_(std::chrono::steady_clock::now()),
      next_draw_(started_ + (is_terminal_ ? kRedraw : kLogLine)) {}

void Progress::update(int64_t done) {
  done_ = done;
  if (std::chrono::steady_clock::now() >= next_draw_) draw();
}

void Progress::finish() {
  draw();
  if (is_terminal_) fmt::print(stderr, "\n");
}

void Progress::draw() {
  const auto now = std::chrono::steady_clock::now();
  const double seconds = Seconds(now - started_).count();
  const double share =
      total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0)
                 : 1.0;
  const double rate = seconds > 0 ? static_cast<double>(done_) / seconds : 0.0;
  const std::string state = fmt::format("{:3.0f}%  {} of {} {}  {:.0f}/s  {:.1f} s", share * 100,
                                        done_, total_, unit_, rate, seconds);
  if (is_terminal_) {
    const auto filled = static_cast<size_t>(share * kBarColumns);
    fmt::print(stderr, "\r{} [{}{}] {} ", label_, std::string(filled, '#'),
               std::string(kBarColumns - filled, '.'), state);
  } else {
    fmt::print(stderr, "{}: {}\n", label_, state);
  }
  next_draw_ = now + (is_terminal_ ? kRedraw : kLogLine);
}

}  // namespace exact::worker
