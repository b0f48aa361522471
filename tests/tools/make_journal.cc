// make_journal.cc owns the program that makes tests/golden/journal, by default of its config.json:
//
//   make_journal OUT_DIR [auto|cpu|cuda]
#include <fmt/format.h>

#include <string>

#include "kernels/make_backend.h"
#include "tests/replay/journal_maker.h"

namespace exact {
namespace {

Status run(const std::string& directory, const std::string& kind) {
  EXACT_ASSIGN(const ModelConfig config, load_config(EXACT_GOLDEN_DIR "/journal"));
  BackendOptions options;
  options.kind = kind;
  EXACT_ASSIGN(const std::unique_ptr<Backend> backend, make_backend(options));
  MakerOptions maker;
  maker.directory = directory;
  maker.requests = 220;
  maker.versions = 5;
  EXACT_RETURN_IF_ERROR(make_test_journal(maker, config, *backend));
  EXACT_ASSIGN(const replay::RecordedRun run, replay::read_run(directory, 1, UINT64_MAX));
  uint64_t tokens = 0, crossing = 0;
  for (const replay::RecordedSample& sample : run.samples) {
    tokens += sample.record.completion.tokens.size();
    crossing += sample.record.completion.versions.size() > 1;
  }
  fmt::print("{}: {} completions, {} tokens, {} updates, {} completions cross one, on {}\n",
             directory, run.samples.size(), tokens, run.updates, crossing, backend->name());
  return {};
}

}  // namespace
}  // namespace exact

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: make_journal OUT_DIR [auto|cpu|cuda]\n");
    return 2;
  }
  const exact::Status status = exact::run(argv[1], argc > 2 ? argv[2] : "auto");
  if (status.is_ok()) return 0;
  fmt::print(stderr, "make_journal: {}\n", status.to_string());
  return 1;
}
