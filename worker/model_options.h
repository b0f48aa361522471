// model_options.h owns what every command that runs a model asks for, and how it gets one.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "kernels/backend.h"
#include "kernels/base/result.h"

namespace exact::worker {

struct ModelOptions {
  std::string model;  // a Hugging Face directory
  std::string backend = "auto";
  int device = 0;
  std::string isa = "auto";
  int threads = 0;
  int64_t swap_mib = 0;
  bool no_prefix_reuse = false;
  EngineLimits limits;  // but for the two above
};

void add_model_options(CLI::App& command, ModelOptions& options);

struct LoadedModel {
  ModelConfig config;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Engine> engine;  // refers to the backend, so it goes first
};

Result<LoadedModel> load_model(const ModelOptions& options);

// "model ... backend ... contract ... weights", one fact a line: what a run must say of itself.
std::string describe(const ModelOptions& options, const LoadedModel& model);

}  // namespace exact::worker
