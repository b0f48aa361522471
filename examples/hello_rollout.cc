// hello_rollout connects to a running worker, asks for a group of completions of one prompt and
// prints their token ids, log-probabilities and the version of the weights that made them.
//
//   rollout serve --model DIR          in one terminal
//   hello_rollout                      in another
//   hello_rollout --prompt 1 2 3 --n 2 --max-new-tokens 8 --seed 7 --stream
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "ipc/endpoint.h"
#include "trainer_bridge/client.h"

namespace {

template <class T>
std::string list(const std::vector<T>& values) {
  std::string text;
  for (const T value : values) text += fmt::format("{:.9g} ", static_cast<double>(value));
  return text;
}

void print(const exact::ipc::Completion& completion) {
  const auto reason = static_cast<exact::FinishReason>(completion.finish_reason);
  fmt::print("\nsample {} ({})\n  ids       {}\n  log-probs {}\n", completion.sample_index,
             exact::finish_reason_name(reason), list(completion.tokens), list(completion.logprobs));
  for (const exact::ipc::VersionSpan& span : completion.versions) {
    fmt::print("  from token {}: version {}, digest {}\n", span.begin, span.weight_version,
               span.weights_digest);
  }
}

// The same bits, told as they are made.
exact::Status stream(exact::bridge::Client& client, exact::ipc::Generate request) {
  request.reply_mode = static_cast<uint8_t>(exact::ipc::ReplyMode::tokens);
  EXACT_RETURN_IF_ERROR(client.submit(request).status());
  while (client.in_flight() > 0) {
    EXACT_ASSIGN(const auto event, client.next_event(std::chrono::seconds(60)));
    if (const auto* chunk = std::get_if<exact::ipc::TokenChunk>(&event.what)) {
      fmt::print("sample {} from token {}: {}\n", chunk->sample_index, chunk->begin,
                 list(chunk->tokens));
    } else if (const auto* done = std::get_if<exact::ipc::SampleDone>(&event.what)) {
      print(done->completion);
    } else if (const auto* reply = std::get_if<exact::bridge::Reply>(&event.what)) {
      EXACT_RETURN_IF_ERROR(reply->error);
    }
  }
  return {};
}

// The whole of it: connect, ask, read. Every call returns a value or a sentence that says what to
// do.
exact::Status say_hello(const std::string& endpoint, const exact::ipc::Generate& request,
                        bool streamed) {
  exact::bridge::ClientOptions options;
  options.endpoint = endpoint;
  options.name = "hello_rollout";
  EXACT_ASSIGN(const auto client, exact::bridge::Client::connect(options));
  const exact::ipc::HelloReply& worker = client->worker();
  fmt::print("{} on {}: weights version {}, digest {}, contract {}\n", worker.server,
             worker.backend, worker.weight_version, worker.weights_digest, worker.contract_id);
  if (streamed) return stream(*client, request);

  // One request is a group: sample i draws with (seed, i), so the same call gives the same bits
  // again, on any machine and beside any load.
  EXACT_ASSIGN(const auto reply, client->generate(request));
  for (const exact::ipc::Completion& completion : reply.completions) print(completion);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Asks a running worker for a group of completions and prints them.");
  std::string endpoint = exact::ipc::default_endpoint();
  exact::ipc::Generate request;
  request.prompt = {1, 2, 3, 4};
  request.n = 2;
  request.max_new_tokens = 8;
  app.add_option("--endpoint", endpoint, "Where the worker listens")->capture_default_str();
  app.add_option("--prompt", request.prompt, "Token ids of the prompt")->capture_default_str();
  app.add_option("--n", request.n, "Completions of the prompt")->capture_default_str();
  app.add_option("--max-new-tokens", request.max_new_tokens, "Longest completion")
      ->capture_default_str();
  app.add_option("--seed", request.seed, "The group's seed")->capture_default_str();
  bool streamed = false;
  app.add_flag("--stream", streamed, "Print tokens as they are made");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const exact::Status status = say_hello(endpoint, request, streamed);
  if (!status) fmt::print(stderr, "hello_rollout: {}\n", status.to_string());
  return status ? 0 : 3;
}
