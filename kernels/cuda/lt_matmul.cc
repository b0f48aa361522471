// lt_matmul.cc: which of cuBLASLt's algorithms multiplies, and the test each has to pass. The
// choice reads shapes alone, never a clock: the first that keeps the chain, of the project's own
// wishes (lt_tiles.h) and then of the heuristic's list.
//
// Counts of tokens share an algorithm by ranges (a bucket: up to its largest count), so that only
// so many are ever run as were tested, at counts across the range: an algorithm may divide its work
// otherwise from count to count. Beyond the largest bucket the rows are multiplied in slices.
#include <algorithm>
#include <map>

#include "kernels/cuda/lt_equality.h"
#include "kernels/cuda/lt_gemm.h"
#include "kernels/cuda/lt_tiles.h"

namespace exact::cuda {
namespace {

// cublasLtGetVersion() is major * 10000 + minor * 100 + patch.
constexpr size_t kVersionUnit = 10000;
constexpr size_t kTestedMajor = 13;
// Room for the counters of a tile scheduler, and for no partial sum: what splits K is not offered.
constexpr size_t kWorkspaceBytes = 4096;
constexpr int kMostCandidates = 64;
constexpr int kTestStride = 37;  // of thousands of configurations, how far apart the tested are
constexpr int64_t kMostTokens = 4096;  // of one launch

// The largest count of tokens that shares its algorithm with this one.
int64_t bucket_of(int64_t tokens) {
  const int64_t step = tokens <= 512 ? 64 : tokens <= 2048 ? 256 : 1024;
  return std::min((tokens + step - 1) / step * step, kMostTokens);
}

int64_t bucket_below(int64_t bucket) {
  return bucket - (bucket <= 512 ? 64 : bucket <= 2048 ? 256 : 1024);
}

class CublasLt final : public LtMatmul {
 public:
  static Result<std::unique_ptr<LtMatmul>> create(int multiprocessors) {
    const size_t version = cublasLtGetVersion();
    if (version / kVersionUnit != kTestedMajor) {
      return Status(Code::unsupported, "cuBLASLt is version " + std::to_string(version) +
                                           "; the contract was measured with major version 13: "
                                           "install CUDA 13's cuBLAS");
    }
    std::unique_ptr<CublasLt> library(new CublasLt(multiprocessors));
    EXACT_RETURN_IF_ERROR(lt_status(cublasLtCreate(&library->library_.handle), "cublasLtCreate"));
    EXACT_RETURN_IF_ERROR(cuda_status(cudaMalloc(&library->library_.workspace, kWorkspaceBytes),
                                      "cuBLASLt's workspace"));
    return std::unique_ptr<LtMatmul>(std::move(library));
  }

  ~CublasLt() override {
    cudaFree(library_.workspace);
    if (library_.handle != nullptr) cublasLtDestroy(library_.handle);
  }

  Status prepare(const MatmulInputs& inputs, cudaStream_t stream) override {
    EXACT_RETURN_IF_ERROR(check_matmul(inputs));
    const int64_t largest = bucket_of(inputs.tokens);
    std::unique_ptr<EqualityTest> test;
    for (int64_t bucket = largest; bucket > 0; bucket = bucket_below(bucket)) {
      if (choices_.contains(key_of(inputs, bucket))) continue;
      if (test == nullptr) {
        MatmulInputs shape = inputs;
        shape.tokens = largest;
        EXACT_ASSIGN(test, EqualityTest::create(shape, stream));
      }
      EXACT_RETURN_IF_ERROR(choose(*test, bucket));
    }
    return {};
  }

  Status launch(const MatmulInputs& inputs, cudaStream_t stream) override {
    EXACT_RETURN_IF_ERROR(check_matmul(inputs));
    for (int64_t first = 0; first < inputs.tokens; first += kMostTokens) {
      MatmulInputs slice = inputs;
      slice.x += first * inputs.x_stride;
      slice.out += first * inputs.out_stride;
      slice.tokens = std::min(inputs.tokens - first, kMostTokens);
      EXACT_RETURN_IF_ERROR(launch_slice(slice, stream));
    }
    return {};
  }

  Result<Tally> for_each_algorithm(const MatmulInputs& inputs, int most, cudaStream_t stream,
                                   void (*check)(void* context, const std::string& name),
                                   void* context) override {
    EXACT_RETURN_IF_ERROR(check_matmul(inputs));
    EXACT_ASSIGN(const LtGemm gemm, LtGemm::describe(inputs));
    EXACT_ASSIGN(auto algorithms, candidates(inputs, most));
    const int left = most - static_cast<int>(algorithms.size());
    EXACT_ASSIGN(const auto more,
                 gemm.enumerated(library_.handle, kWorkspaceBytes, kTestStride, left));
    algorithms.insert(algorithms.end(), more.begin(), more.end());
    MatmulInputs shape = inputs;
    shape.tokens = bucket_of(inputs.tokens);
    EXACT_ASSIGN(const auto test, EqualityTest::create(shape, stream));
    Tally tally;
    for (const LtAlgorithm& algorithm : algorithms) {
      if (!algorithm.config.claims_one_chain()) continue;
      EXACT_ASSIGN(const bool admitted, passes(*test, algorithm, shape.tokens));
      if (!admitted) {
        tally.refused++;
        continue;
      }
      EXACT_RETURN_IF_ERROR(gemm.run(library_.handle, algorithm, inputs, library_.workspace,
                                     kWorkspaceBytes, stream));
      check(context, algorithm.config.to_string());
      tally.ran++;
    }
    return tally;
  }

  std::vector<Admission> admissions() const override { return admissions_; }

  std::string library_version() const override {
    return "cuBLASLt " + std::to_string(cublasLtGetVersion());
  }

 private:
  struct Key {
    int64_t out_features, in_features;
    bool bias;
    int64_t bucket;
    auto operator<=>(const Key&) const = default;
  };
  struct Choice {
    bool plain = false;  // nothing of the library passed
    LtAlgorithm algorithm;
  };

  explicit CublasLt(int multiprocessors) : multiprocessors_(multiprocessors) {}

  static Key key_of(const MatmulInputs& inputs, int64_t bucket) {
    return {inputs.out_features, inputs.in_features, inputs.bias != nullptr, bucket};
  }

  // In the order of trial: the project's own wishes, then the heuristic's list.
  Result<std::vector<LtAlgorithm>> candidates(const MatmulInputs& inputs, int most) const {
    EXACT_ASSIGN(const LtGemm gemm, LtGemm::describe(inputs));
    std::vector<LtAlgorithm> algorithms;
    for (const LtConfig& config :
         one_wave_configs(inputs.tokens, inputs.out_features, multiprocessors_)) {
      if (const auto algorithm = gemm.configured(library_.handle, kWorkspaceBytes, config))
        algorithms.push_back(*algorithm);
    }
    EXACT_ASSIGN(const auto named, gemm.candidates(library_.handle, kWorkspaceBytes, most));
    algorithms.insert(algorithms.end(), named.begin(), named.end());
    if (static_cast<int>(algorithms.size()) > most) algorithms.resize(static_cast<size_t>(most));
    return algorithms;
  }

  // The first of them that is the chain at counts across the bucket.
  Status choose(const EqualityTest& test, int64_t bucket) {
    MatmulInputs shape = test.inputs();
    shape.tokens = bucket;
    EXACT_ASSIGN(const auto algorithms, candidates(shape, kMostCandidates));
    for (const LtAlgorithm& algorithm : algorithms) {
      if (!algorithm.config.claims_one_chain()) continue;
      EXACT_ASSIGN(const bool admitted, passes(test, algorithm, bucket));
      record(shape, algorithm.config.to_string(), admitted);
      if (!admitted) continue;
      choices_[key_of(shape, bucket)] = Choice{false, algorithm};
      return {};
    }
    record(shape, "plain_matmul", true);
    choices_[key_of(shape, bucket)] = Choice{true, {}};
    return {};
  }

  Result<bool> passes(const EqualityTest& test, const LtAlgorithm& algorithm,
                      int64_t bucket) const {
    const int64_t below = bucket_below(bucket), middle = (below + bucket) / 2;
    for (const int64_t tokens : {bucket, below + 1, middle, bucket - 7}) {
      EXACT_ASSIGN(const bool equal, test.equal(library_, algorithm, tokens));
      if (!equal) return false;
    }
    return true;
  }

  void record(const MatmulInputs& shape, std::string algorithm, bool admitted) {
    admissions_.push_back({shape.tokens, shape.out_features, shape.in_features,
                           shape.bias != nullptr, std::move(algorithm), admitted});
  }

  Status launch_slice(const MatmulInputs& inputs, cudaStream_t stream) {
    const Key key = key_of(inputs, bucket_of(inputs.tokens));
    auto choice = choices_.find(key);
    if (choice == choices_.end()) {
      cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
      EXACT_RETURN_IF_ERROR(
          cuda_status(cudaStreamIsCapturing(stream, &capturing), "cudaStreamIsCapturing"));
      if (capturing != cudaStreamCaptureStatusNone) {
        return Status(Code::invalid, "a product of " + std::to_string(inputs.tokens) + " x " +
                                         std::to_string(inputs.in_features) + " with " +
                                         std::to_string(inputs.out_features) +
                                         " features is recorded before prepare() chose for it");
      }
      const Status prepared = prepare(inputs, stream);
      // No room for the test: slowly now, and the test another time.
      if (prepared.code() == Code::exhausted) return launch_plain_matmul(inputs, stream);
      EXACT_RETURN_IF_ERROR(prepared);
      choice = choices_.find(key);
    }
    if (choice->second.plain) return launch_plain_matmul(inputs, stream);
    EXACT_ASSIGN(const LtGemm gemm, LtGemm::describe(inputs));
    return gemm.run(library_.handle, choice->second.algorithm, inputs, library_.workspace,
                    kWorkspaceBytes, stream);
  }

  int multiprocessors_;
  LtContext library_{.workspace_bytes = kWorkspaceBytes};
  std::map<Key, Choice> choices_;
  std::vector<Admission> admissions_;
};

}  // namespace

Result<std::unique_ptr<LtMatmul>> LtMatmul::create(int multiprocessors) {
  EXACT_CHECK(multiprocessors > 0, "a GPU without multiprocessors");
  return CublasLt::create(multiprocessors);
}

}  // namespace exact::cuda
