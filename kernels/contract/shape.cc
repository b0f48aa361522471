#include "kernels/contract/shape.h"

#include <string>

#include "kernels/contract/attention.h"

namespace exact::contract {
namespace {

Status refuse(const char* dimension, int64_t value, const char* reason) {
  return Status(Code::unsupported,
                std::string(dimension) + " is " + std::to_string(value) + "; " + reason);
}

constexpr int64_t kMaxDimension = int64_t{1} << 24;
constexpr int64_t kMinWarpRow = 32;  // narrower rows are summed by a narrower warp
constexpr int64_t kMaxVocabulary = int64_t{1} << 20;

}  // namespace

Status check_linear_shape(int64_t out_features, int64_t in_features) {
  if (out_features < 8 || out_features > kMaxDimension || out_features % 8 != 0)
    return refuse(
        "out_features", out_features,
        "the contract covers positive multiples of 8 (others run unaligned matmul kernels "
        "with other bits): pad the matrix in the model, and in the trainer");
  if (in_features < 16 || in_features > kMaxDimension || in_features % 16 != 0)
    return refuse("in_features", in_features,
                  "the contract covers positive multiples of 16: use a model with such a width");
  return {};
}

Status check_norm_width(int64_t width) {
  if (width < kMinWarpRow || width > kMaxDimension || width % 8 != 0)
    return refuse("norm width", width,
                  "the contract covers multiples of 8 from 32 on: use a model with such a width");
  return {};
}

Status check_head_width(int64_t head_width) {
  if (head_width < 1 || head_width > 1024 || key_block(static_cast<int>(head_width)) == 0)
    return refuse("head width", head_width,
                  "the contract covers 32, 64, 80, 96, 128 and 256: use a model with one of these");
  return {};
}

Status check_attention_shape(int64_t query_heads, int64_t kv_heads, int64_t head_width) {
  if (kv_heads < 1 || kv_heads > kMaxDimension)
    return refuse("kv heads", kv_heads, "at least one is needed: correct the model's config");
  if (query_heads < 1 || query_heads > kMaxDimension || query_heads % kv_heads != 0)
    return refuse("query heads", query_heads,
                  "a positive multiple of the kv heads is needed: correct the model's config");
  return check_head_width(head_width);
}

Status check_vocabulary(int64_t vocabulary) {
  if (vocabulary < kMinWarpRow || vocabulary > kMaxVocabulary || vocabulary % 8 != 0)
    return refuse(
        "vocabulary", vocabulary,
        "the contract covers multiples of 8 from 32 to 2^20 (others give log-probabilities "
        "that depend on the row): pad the vocabulary in the model, and in the trainer");
  return {};
}

}  // namespace exact::contract
