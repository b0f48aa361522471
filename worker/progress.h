// progress.h owns how a long command shows that it goes on: a bar that redraws itself on a
// terminal, a plain line now and then in a log. On standard error; it decides nothing.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace exact::worker {

class Progress {
 public:
  // `total` in units of `unit`, for example 1200 "tokens".
  Progress(std::string label, int64_t total, std::string unit);
  void update(int64_t done);  // cheap: draws a few times a second at most
  void finish();              // draws the last state and ends the line

 private:
  void draw();

  std::string label_;
  std::string unit_;
  int64_t total_;
  int64_t done_ = 0;
  bool is_terminal_;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point next_draw_;
};

}  // namespace exact::worker
