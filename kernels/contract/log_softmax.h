// log_softmax.h owns rule N7: the order in which PyTorch's log_softmax over one fp32 row of V
// logits adds its exponentials. out = (x - max) - log(sum).
//
//   V <= 2048                      one warp: lane l adds l, l + 32, ...
//   V <= 9216                      1024 threads: t, t + 1024, ...
//   V < 12256 and V % 4 == 0       groups of four: t, t + 1024, ...
//   larger                         such groups over the first V - V % 4096, then the rest one by
//   one
//
// Then halves in each warp of 32, then over the 32 warps. Where V % 4 != 0 the last kernel's order
// also depends on the row's address: such a V is refused (shape.h), and `row` is there to say why.
#pragma once

#include <cstdint>

#include "kernels/base/bf16.h"
#include "kernels/contract/exp_log.h"
#include "kernels/contract/reduce.h"

namespace exact::contract {

inline constexpr int kLogSumThreads = 1024;

enum class LogSumForm : uint8_t { warp, strided, grouped, grouped_then_tail };

EXACT_HD constexpr LogSumForm log_sum_form(int64_t vocabulary) {
  if (vocabulary <= 2048) return LogSumForm::warp;
  if (vocabulary <= 9 * kLogSumThreads) return LogSumForm::strided;
  if (vocabulary < 12256 && vocabulary % 4 == 0) return LogSumForm::grouped;
  return LogSumForm::grouped_then_tail;
}

EXACT_HD constexpr int log_sum_threads(LogSumForm form) {
  return form == LogSumForm::warp ? 32 : kLogSumThreads;
}

template <class Term>
EXACT_HD float add_strided(float sum, int64_t begin, int64_t end, int64_t step, const Term& term) {
  for (int64_t i = begin; i < end; i += step) sum = sum + term(i);
  return sum;
}

template <class Term>
EXACT_HD float add_grouped(float sum, int64_t base, int64_t count, int thread, const Term& term) {
  for (int64_t group = thread; group * 4 < count; group += kLogSumThreads)
    for (int64_t i = base + group * 4; i < base + group * 4 + 4; i++) sum = sum + term(i);
  return sum;
}

// One thread of the last form. `shift` elements lie between the last 16-byte boundary and the row's
// start: threads from `shift` on then first take one element each up to the next round of groups.
template <class Term>
EXACT_HD float add_grouped_then_tail(int64_t vocabulary, int shift, int thread, const Term& term) {
  float sum = 0.0f;
  int64_t base = 0;
  int64_t size = vocabulary;
  if (shift > 0) {
    if (thread >= shift) sum = sum + term(thread - shift);
    base = kLogSumThreads - shift;
    size -= base;
  }
  const int64_t tail = size % (4 * kLogSumThreads);
  sum = add_grouped(sum, base, size - tail, thread, term);
  return add_strided(sum, base + size - tail + thread, base + size, kLogSumThreads, term);
}

// term(i) = exp(x_i - max). `row` is the row's index in a contiguous, 16-byte-aligned tensor.
template <class Term>
EXACT_HD float log_sum_of_thread(LogSumForm form, int64_t vocabulary, int64_t row, int thread,
                                 const Term& term) {
  switch (form) {
    case LogSumForm::warp:
      return add_strided(0.0f, thread, vocabulary, 32, term);
    case LogSumForm::strided:
      return add_strided(0.0f, thread, vocabulary, kLogSumThreads, term);
    case LogSumForm::grouped:
      return add_grouped(0.0f, 0, vocabulary, thread, term);
    default:
      return add_grouped_then_tail(vocabulary, static_cast<int>(row * vocabulary % 4), thread,
                                   term);
  }
}

// sum of term(i) in the order of the rule.
template <class Term>
EXACT_HD float log_softmax_sum(int64_t vocabulary, int64_t row, const Term& term) {
  const LogSumForm form = log_sum_form(vocabulary);
  const int threads = log_sum_threads(form);
  float sums[kLogSumThreads];
  for (int t = 0; t < threads; t++) sums[t] = log_sum_of_thread(form, vocabulary, row, t, term);
  for (int warp = 0; warp < threads; warp += 32) halve(sums + warp, 32, 1);
  return halve(sums, threads / 32, 32);
}

// What a row needs beside the logit itself.
struct LogSoftmaxRow {
  float max;
  float log_sum;
};

EXACT_HD float log_softmax_value(float x, const LogSoftmaxRow& row) {
  return (x - row.max) - row.log_sum;
}

// The same where `max` may be the other zero than the largest of the row: of both zeros one may
// have been dropped. Where x is the largest, x - max is +0.
EXACT_HD float log_softmax_value_of_kept(float x, const LogSoftmaxRow& row) {
  return (x == row.max ? 0.0f : x - row.max) - row.log_sum;
}

}  // namespace exact::contract
