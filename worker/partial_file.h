// partial_file.h owns how a long run outlives a kill: beside the output it keeps what is done, in
// the order it was done, and makes of it the output in the order of the prompts at the end.
//
//   out.partial   line 1: what the run is made of, as JSON. Then one line a sample:
//                 prompt, sample, xxh3-64 of the other three in hex, the text
//
// A line is written with one call when its sample is done. A run that is killed leaves whole lines
// and at most one torn one; the next run keeps the whole ones. It refuses a file that another
// model, contract, prompts or options made, because its samples would be others.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ipc/file_descriptor.h"
#include "kernels/base/result.h"

namespace exact::worker {

// What decides the bytes of the output, by name: two runs with equal facts write equal files.
using RunFacts = std::vector<std::pair<std::string, std::string>>;

class PartialFile {
 public:
  // Begins anew, or goes on with what a run of the same facts left at `out`.partial. samples[i] is
  // how many samples prompt i has. invalid: the file is of another run (names what differs), is no
  // such file, or is being written by another process; device: it can't be written.
  static Result<PartialFile> open(const std::string& out, const RunFacts& facts,
                                  const std::vector<int32_t>& samples, bool restart);

  // How many prompts had all of their samples when the file was opened.
  size_t resumed() const { return resumed_; }
  bool is_complete(size_t prompt) const { return left_[prompt] == 0; }

  // Keeps one sample's line, without its newline. A second one for the same sample is the same
  // bytes, and is not written.
  Status append(size_t prompt, int32_t sample, std::string_view text);
  // Every sample is there (checked): writes `out`, makes it durable, removes the partial file.
  Status finish();

 private:
  struct Line {
    int64_t offset = -1;  // of the text; -1: not there
    int64_t bytes = 0;
  };

  PartialFile(std::string out, ipc::FileDescriptor file, const std::vector<int32_t>& samples);
  std::string path() const { return out_ + ".partial"; }
  Status load(const std::string& header, const RunFacts& facts);
  Status begin(const std::string& header);
  // Takes in a line of samples; false: it is torn or was never written by this program.
  bool take_line(std::string_view line, int64_t offset);
  Line& line_of(size_t prompt, int32_t sample) {
    return lines_[first_line_[prompt] + size_t(sample)];
  }
  void keep(size_t prompt, int32_t sample, const Line& line);
  Status write(std::string_view text);

  std::string out_;
  ipc::FileDescriptor file_;
  std::vector<int32_t> samples_;    // of each prompt
  std::vector<int32_t> left_;       // of each prompt, not there yet
  std::vector<size_t> first_line_;  // of each prompt in lines_
  std::vector<Line> lines_;
  int64_t end_ = 0;  // bytes of the file
  size_t resumed_ = 0;
};

}  // namespace exact::worker
