// include_arrows_test.cc: the folders' dependencies point down, in every file and not only on
// paper.
#include <gtest/gtest.h>

#include "tests/house/include_rules.h"

namespace exact::house {
namespace {

size_t count(const std::string& path, const std::string& text) {
  return check_includes({path, text}).size();
}

TEST(IncludeArrows, EveryIncludePointsDown) {
  std::vector<Finding> findings;
  size_t file_count = 0;
  for (const SourceFile& file : read_source_tree()) {
    if (!is_cpp(file.path)) continue;
    ++file_count;
    for (Finding& finding : check_includes(file)) findings.push_back(std::move(finding));
  }
  EXPECT_GT(file_count, 50u) << "the walk over the tree found too little to prove anything";
  EXPECT_TRUE(findings.empty()) << describe(findings);
}

TEST(IncludeArrows, UpwardArrowsAreCaught) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"kernels/base/a.h", "kernels/backend.h"},
      {"kernels/backend.h", "kernels/contract/rope.h"},
      {"kernels/contract/a.h", "kernels/reference/ops.h"},
      {"kernels/contract/a.h", "engine/config.h"},
      {"kernels/cpu/a.cc", "engine/engine.h"},
      {"ipc/codec.cc", "engine/types.h"},
      {"ipc/codec.cc", "kernels/backend.h"},
      {"ipc/codec.cc", "journal/frame.h"},
      {"journal/frame.cc", "engine/types.h"},
      {"engine/engine.cc", "ipc/messages.h"},
      {"engine/engine.cc", "worker/server.h"},
      {"trainer_bridge/client.cc", "worker/server.h"},
  };
  for (const auto& [file, header] : cases) {
    EXPECT_EQ(count(file, "#include \"" + header + "\"\n"), 1u) << file << " includes " << header;
  }
}

TEST(IncludeArrows, SidewaysArrowsAreCaught) {
  EXPECT_EQ(count("kernels/reference/ops.cc", "#include \"kernels/cpu/chain.h\"\n"), 1u);
  EXPECT_EQ(count("kernels/cpu/chain.cc", "#include \"kernels/reference/ops.h\"\n"), 1u);
  EXPECT_EQ(count("kernels/cpu/chain.cc", "#include \"kernels/cuda/stream.h\"\n"), 1u);
  EXPECT_EQ(count("worker/server.cc", "#include \"trainer_bridge/client.h\"\n"), 1u);
  EXPECT_EQ(count("engine/engine.cc", "#include \"kernels/cpu/chain.h\"\n"), 1u);
}

TEST(IncludeArrows, LibrariesStopInTheirEdgeFiles) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"engine/engine.cc", "zmq.hpp"},
      {"engine/engine.cc", "boost/interprocess/mapped_region.hpp"},
      {"engine/engine.cc", "nccl.h"},
      {"engine/engine.cc", "cereal/cereal.hpp"},
      {"ipc/codec.cc", "zmq.hpp"},
      {"ipc/bucket_plan.cc", "boost/interprocess/mapped_region.hpp"},
      {"ipc/socket.cc", "boost/interprocess/mapped_region.hpp"},
      {"kernels/contract/special.h", "cuda_runtime.h"},
      {"kernels/contract/special.h", "thread"},
      {"kernels/cpu/pool.cc", "nlohmann/json.hpp"},
      {"engine/engine.cc", "spdlog/spdlog.h"},
  };
  for (const auto& [file, header] : cases) {
    EXPECT_EQ(count(file, "#include <" + header + ">\n"), 1u) << file << " includes " << header;
  }
}

TEST(IncludeArrows, SpacingHidesNothing) {
  EXPECT_EQ(count("ipc/a.cc", "  #  include   \"engine/engine.h\"  // why\n"), 1u);
  EXPECT_EQ(count("ipc/a.cc", "#include\"engine/engine.h\""), 1u);
  EXPECT_EQ(count("ipc/a.cc", "int x;\n\n#include \"engine/engine.h\"\n"), 1u);
}

TEST(IncludeArrows, AFindingNamesFileAndLine) {
  const std::vector<Finding> findings =
      check_includes({"ipc/a.cc", "// a\n\n#include \"engine/engine.h\"\n"});
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].path, "ipc/a.cc");
  EXPECT_EQ(findings[0].line, 3);
  EXPECT_NE(describe(findings).find("ipc/a.cc:3: "), std::string::npos);
}

TEST(IncludeArrows, PathsRelativeToAFileAreCaught) {
  EXPECT_EQ(count("engine/engine.cc", "#include \"model.h\"\n"), 1u);
  EXPECT_EQ(count("engine/engine.cc", "#include \"../ipc/codec.h\"\n"), 1u);
}

TEST(IncludeArrows, DownwardArrowsPass) {
  EXPECT_EQ(count("worker/server.cc", "#include <vector>\n#include \"engine/engine.h\"\n"), 0u);
  EXPECT_EQ(count("engine/model.cc", "#include \"kernels/backend.h\"\n"), 0u);
  EXPECT_EQ(count("ipc/socket.cc", "#include <zmq.hpp>\n#include \"kernels/base/result.h\"\n"), 0u);
}

}  // namespace
}  // namespace exact::house
