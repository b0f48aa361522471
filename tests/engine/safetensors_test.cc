// The safetensors format: what is written is read back, and a file from anywhere is refused with a
// sentence or read inside its own bounds, whatever it says of itself.
#include "engine/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "engine/safetensors_header.h"
#include "tests/support/temporary_directory.h"

namespace exact {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::span<const std::byte> bytes_of(std::string&&) = delete;  // a span of what is gone

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// A file as its parts: the length that it claims, the header, the data.
std::string raw_file(uint64_t header_bytes, const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  std::memcpy(file.data(), &header_bytes, 8);
  return file + header + data;
}

// Every entry of a file that was accepted lies inside the file and has the size of its shape.
void expect_in_bounds(const SafetensorsFile& file, size_t file_bytes, const std::string& what) {
  size_t total = 0;
  for (const auto& [name, entry] : file.entries()) {
    const auto size = safetensors_tensor_bytes(entry.dtype, entry.shape);
    ASSERT_TRUE(size.has_value()) << what;
    ASSERT_EQ(*size, entry.bytes.size()) << what;
    total += entry.bytes.size();
    uint8_t touched = 0;  // a byte out of the mapping would fault here
    for (const std::byte byte : entry.bytes) touched = touched ^ static_cast<uint8_t>(byte);
    EXPECT_LE(touched, 255);
  }
  ASSERT_LE(total, file_bytes) << what;
}

class SafetensorsTest : public testing::Test {
 protected:
  // A small file with several dtypes, an empty tensor and a scalar.
  std::string small_file() {
    const std::string path = directory_.file("small.safetensors");
    const std::vector<SafetensorsOutput> tensors = {
        {"weight", "BF16", {2, 3}, bytes_of(weight_)},
        {"ids", "I32", {3}, bytes_of(ids_)},
        {"nothing", "F32", {4, 0}, {}},
        {"scalar", "F64", {}, bytes_of(scalar_)},
        {"name \"with\" \xc3\xa9", "U8", {1}, bytes_of(byte_)},
    };
    const Status written = write_safetensors(path, tensors);
    EXPECT_TRUE(written.is_ok()) << written.to_string();
    return path;
  }

  Status open_status(const std::string& contents) {
    return SafetensorsFile::open(directory_.write("raw.safetensors", contents)).status();
  }

  TemporaryDirectory directory_;
  std::string weight_ = "abcdefghijkl", ids_ = "0123456789AB", scalar_ = "ABCDEFGH", byte_ = "z";
};

TEST_F(SafetensorsTest, WhatIsWrittenIsReadBack) {
  auto file = SafetensorsFile::open(small_file());
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  ASSERT_EQ(file->entries().size(), 5u);
  EXPECT_EQ(text_of(file->find("weight")->bytes), weight_);
  EXPECT_EQ(file->find("weight")->dtype, "BF16");
  EXPECT_EQ(file->find("weight")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(text_of(file->find("ids")->bytes), ids_);
  EXPECT_EQ(file->find("nothing")->shape, (std::vector<int64_t>{4, 0}));
  EXPECT_TRUE(file->find("nothing")->bytes.empty());
  EXPECT_TRUE(file->find("scalar")->shape.empty());
  EXPECT_EQ(text_of(file->find("name \"with\" \xc3\xa9")->bytes), byte_);
  EXPECT_EQ(file->find("absent"), nullptr);
}

TEST_F(SafetensorsTest, TheGoldensOfPyTorchAreRead) {
  const std::string path = EXACT_GOLDEN_DIR "/qwen3-d64/golden.safetensors";
  auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.is_ok()) << file.status().to_string();
  EXPECT_EQ(file->path(), path);
  ASSERT_NE(file->find("logprobs"), nullptr);
  EXPECT_EQ(file->find("logprobs")->dtype, "F32");
  EXPECT_EQ(file->find("logprobs")->shape, (std::vector<int64_t>{16, 255}));
  EXPECT_EQ(file->find("input_ids")->bytes.size(), 16u * 256 * 4);
}

TEST_F(SafetensorsTest, AMappingOutlivesAMoveAndTheFileItself) {
  const std::string path = small_file();
  auto opened = SafetensorsFile::open(path);
  ASSERT_TRUE(opened.is_ok());
  SafetensorsFile file = std::move(opened).value();
  std::filesystem::remove(path);
  SafetensorsFile moved = std::move(file);
  EXPECT_EQ(text_of(moved.find("weight")->bytes), weight_);
}

TEST_F(SafetensorsTest, TheBytesOfAFileAreTheFormatsOwn) {
  const std::string two = "xy", four = "1234";
  const std::vector<SafetensorsOutput> tensors = {{"b", "BF16", {1}, bytes_of(two)},
                                                  {"a", "F32", {1, 1}, bytes_of(four)}};
  ASSERT_TRUE(write_safetensors(directory_.file("f"), tensors).is_ok());
  std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},)"
      R"("b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(directory_.read("f"), raw_file(header.size(), header, "1234xy"));
}

TEST_F(SafetensorsTest, TheOrderOfTensorsInACallDoesNotMatter) {
  const std::string one = "11", two = "22", four = "4444";
  std::vector<SafetensorsOutput> tensors = {{"x", "BF16", {1}, bytes_of(one)},
                                            {"y", "BF16", {1}, bytes_of(two)},
                                            {"z", "F32", {1}, bytes_of(four)}};
  ASSERT_TRUE(write_safetensors(directory_.file("a"), tensors).is_ok());
  std::reverse(tensors.begin(), tensors.end());
  ASSERT_TRUE(write_safetensors(directory_.file("b"), tensors).is_ok());
  EXPECT_EQ(directory_.read("a"), directory_.read("b"));
}

TEST_F(SafetensorsTest, EveryTensorIsAlignedToItsElements) {
  const std::string path = small_file();
  auto file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.is_ok());
  for (const auto& [name, entry] : file->entries()) {
    const auto address = reinterpret_cast<uintptr_t>(entry.bytes.data());
    EXPECT_EQ(address % *safetensors_dtype_bytes(entry.dtype), 0u) << name;
  }
}

TEST_F(SafetensorsTest, WhatCanNotBeWrittenIsRefusedAndLeavesNothing) {
  const std::string two = "22";
  const std::vector<std::vector<SafetensorsOutput>> bad = {
      {{"a", "BF16", {1}, bytes_of(two)}, {"a", "BF16", {1}, bytes_of(two)}},
      {{"a", "BF16", {2}, bytes_of(two)}},
      {{"a", "BF16", {-1}, bytes_of(two)}},
      {{"a", "BF16", {INT64_MAX, INT64_MAX}, bytes_of(two)}},
      {{"a", "X16", {1}, bytes_of(two)}},
      {{"__metadata__", "BF16", {1}, bytes_of(two)}},
      {{"\xff\xff", "BF16", {1}, bytes_of(two)}},
  };
  for (const auto& tensors : bad) {
    const Status status = write_safetensors(directory_.file("bad"), tensors);
    EXPECT_EQ(status.code(), Code::invalid) << status.to_string();
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
  const Status lost = write_safetensors(directory_.file("no/such/place"), {});
  EXPECT_EQ(lost.code(), Code::not_found) << lost.to_string();
}

// ---- files that lie

TEST_F(SafetensorsTest, AMissingFileIsNotFoundAndADirectoryIsNoFile) {
  EXPECT_EQ(SafetensorsFile::open("/no/such/file").status().code(), Code::not_found);
  EXPECT_EQ(SafetensorsFile::open(directory_.path()).status().code(), Code::corrupt);
}

TEST_F(SafetensorsTest, EveryTruncationIsCorrupt) {
  const std::string path = small_file();
  const std::string whole = directory_.read("small.safetensors");
  EXPECT_EQ(open_status(whole + "x").code(), Code::corrupt);  // a byte that is nobody's
  for (size_t length = whole.size(); length-- > 0;) {
    std::filesystem::resize_file(path, length);
    const Status status = SafetensorsFile::open(path).status();
    ASSERT_EQ(status.code(), Code::corrupt) << length << ": " << status.to_string();
    ASSERT_NE(status.message().find(path), std::string::npos);
  }
}

TEST_F(SafetensorsTest, AHeaderLengthIsNeverTrusted) {
  for (const uint64_t claimed :
       {uint64_t{0}, uint64_t{1}, uint64_t{3}, uint64_t{1000}, uint64_t{100'000'001},
        uint64_t{1} << 40, UINT64_MAX - 8, UINT64_MAX - 7, UINT64_MAX}) {
    EXPECT_EQ(open_status(raw_file(claimed, "{}", "")).code(), Code::corrupt) << claimed;
  }
  EXPECT_TRUE(open_status(raw_file(2, "{}", "")).is_ok());
}

struct LyingHeader {
  const char* header;
  const char* said;  // a part of the message
};

TEST_F(SafetensorsTest, EachLieOfAHeaderIsNamed) {
  const std::string data = "0123456789ABCDEF";  // 16 bytes
  const std::vector<LyingHeader> lies = {
      {R"([])", "not a JSON object"},
      {R"( {})", "not a JSON object"},
      {R"({"a")", "not JSON"},
      {R"({}{})", "not JSON"},
      {R"({"a":5})", "tensor 'a'"},
      {R"({"a":null})", "null"},
      {R"({"a":[]})", "a list where none belongs"},
      {R"({"a":{}})", "missing"},
      {R"({"a":{"dtype":"U8","shape":[16]}})", "missing"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16],"x":1}})", "unknown field"},
      {R"({"a":{"dtype":"U8","dtype":"U8","shape":[16],"data_offsets":[0,16]}})", "twice"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0]}})", "two numbers"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,8,16]}})", "two numbers"},
      {R"({"a":{"dtype":"U8","shape":[-16],"data_offsets":[0,16]}})", "negative"},
      {R"({"a":{"dtype":"U8","shape":[1.6e1],"data_offsets":[0,16]}})", "not an integer"},
      {R"({"a":{"dtype":"U8","shape":["16"],"data_offsets":[0,16]}})", "string"},
      {R"({"a":{"dtype":"U8","shape":[[16]],"data_offsets":[0,16]}})", "a list"},
      {R"({"a":{"dtype":"U8","shape":[{}],"data_offsets":[0,16]}})", "an object"},
      {R"({"a":{"dtype":["U8"],"shape":[16],"data_offsets":[0,16]}})", "a list"},
      {R"({"a":{"dtype":"U8","shape":"16","data_offsets":[0,16]}})", "a string"},
      {R"({"a":{"dtype":"U9","shape":[16],"data_offsets":[0,16]}})", "dtype 'U9'"},
      {R"({"a":{"dtype":"U8","shape":[15],"data_offsets":[0,16]}})", "15 bytes"},
      {R"({"a":{"dtype":"BF16","shape":[16],"data_offsets":[0,16]}})", "32 bytes"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[16,0]}})", "offsets"},
      {R"({"a":{"dtype":"U8","shape":[17],"data_offsets":[0,17]}})", "beyond the file"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", "belong to no tensor"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})", "belong to no tensor"},
      {R"({})", "belong to no tensor"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,16]}})", "counted"},
      {R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", "counted"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,16]}})", "too large"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,16]}})", "integer"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,16],"data_offsets":[0,16]}})",
       "dimensions"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},)"
       R"("a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}})",
       "twice"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},)"
       R"("\u0061":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}})",
       "twice"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},)"
       R"("b":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}})",
       "overlap"},
      {R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]},)"
       R"("b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})",
       "overlap"},
      {R"({"a":{"dtype":"U8","shape":[7],"data_offsets":[0,7]},)"
       R"("b":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})",
       "belong to no tensor"},
      {R"({"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]},)"
       R"("b":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}})",
       "overlap"},
      {R"({"__metadata__":{"format":5}})", "number"},
      {R"({"__metadata__":{"format":{}}})", "object"},
      {R"({"__metadata__":"pt"})", "string"},
      {R"({"__metadata__":{"a":"b","a":"b"}})", "twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", "twice"},
  };
  for (const LyingHeader& lie : lies) {
    const std::string header = lie.header;
    const Status status = open_status(raw_file(header.size(), header, data));
    EXPECT_EQ(status.code(), Code::corrupt) << header;
    EXPECT_NE(status.message().find(lie.said), std::string::npos) << header << "\n"
                                                                  << status.message();
  }
}

TEST_F(SafetensorsTest, DeepNestingCostsNothing) {
  for (const char* unit : {"[", "{\"a\":", "{\"a\":["}) {
    std::string header = "{\"a\":";
    while (header.size() < 4'000'000) header += unit;
    EXPECT_EQ(parse_safetensors_header(header, 0).status().code(), Code::corrupt);
  }
}

TEST_F(SafetensorsTest, AHundredThousandTensorsAreReadInOneGo) {
  std::string header = "{";
  for (int i = 0; i < 100'000; i++) {
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(":{"dtype":"U8","shape":[1],)" +
              "\"data_offsets\":[" + std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  const auto parsed = parse_safetensors_header(header + "}", 100'000);
  ASSERT_TRUE(parsed.is_ok()) << parsed.status().to_string();
  EXPECT_EQ(parsed->size(), 100'000u);
}

TEST_F(SafetensorsTest, EveryBitFlipOfTheHeaderIsRefusedOrStaysInBounds) {
  const std::string path = small_file();
  const std::string whole = directory_.read("small.safetensors");
  const size_t data_bytes = weight_.size() + ids_.size() + scalar_.size() + byte_.size();
  std::fstream raw(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&raw](size_t at, char byte) {
    raw.seekp(static_cast<std::streamoff>(at));
    raw.put(byte).flush();
  };
  for (size_t bit = 0; bit < (whole.size() - data_bytes) * 8; bit++) {
    put(bit / 8, static_cast<char>(whole[bit / 8] ^ 1 << bit % 8));
    const auto file = SafetensorsFile::open(path);
    if (file.is_ok()) {
      expect_in_bounds(*file, whole.size(), "bit " + std::to_string(bit));
    } else {
      ASSERT_EQ(file.status().code(), Code::corrupt) << bit << ": " << file.status().to_string();
    }
    put(bit / 8, whole[bit / 8]);
  }
  EXPECT_TRUE(SafetensorsFile::open(path).is_ok());  // every flip was taken back
}

// One random edit after another, made of what a header is made of.
std::string mutate(std::string header, std::mt19937_64& random) {
  static const std::vector<std::string> kPieces = {"{",
                                                   "}",
                                                   "[",
                                                   "]",
                                                   ",",
                                                   ":",
                                                   "\"",
                                                   "0",
                                                   "16",
                                                   "-1",
                                                   "18446744073709551615",
                                                   "\"dtype\"",
                                                   "\"shape\"",
                                                   "\"data_offsets\"",
                                                   "\"F32\"",
                                                   "\"__metadata__\"",
                                                   "null",
                                                   "1e9",
                                                   "\\u0000"};
  const size_t edits = 1 + random() % 4;
  for (size_t edit = 0; edit < edits; edit++) {
    const size_t at = random() % header.size();
    const std::string& piece = kPieces[random() % kPieces.size()];
    switch (random() % 4) {
      case 0:
        header.insert(at, piece);
        break;
      case 1:
        header.erase(at, 1 + random() % 8);
        break;
      case 2:
        header[at] = static_cast<char>(random());
        break;
      default:
        header.replace(at, std::min(piece.size(), header.size() - at), piece);
        break;
    }
    if (header.empty()) header = "{";
  }
  return header;
}

TEST_F(SafetensorsTest, RandomHeadersAreRefusedOrTileTheirData) {
  constexpr uint64_t kSeed = 20260117;
  RecordProperty("seed", std::to_string(kSeed));
  std::mt19937_64 random(kSeed);
  const std::string base =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("b":{"dtype":"BF16","shape":[],"data_offsets":[16,18]}})";
  int accepted = 0;
  for (int i = 0; i < 30'000; i++) {
    const std::string header = mutate(base, random);
    const auto parsed = parse_safetensors_header(header, 18);
    if (!parsed.is_ok()) {
      ASSERT_EQ(parsed.status().code(), Code::corrupt) << "seed " << kSeed << " case " << i;
      continue;
    }
    accepted++;
    uint64_t total = 0;
    for (const auto& [name, entry] : *parsed) {
      ASSERT_LE(entry.begin, entry.end) << "seed " << kSeed << " case " << i << "\n" << header;
      ASSERT_LE(entry.end, 18u) << "seed " << kSeed << " case " << i << "\n" << header;
      total += entry.end - entry.begin;
    }
    ASSERT_EQ(total, 18u) << "seed " << kSeed << " case " << i << "\n" << header;
  }
  EXPECT_GT(accepted, 30);  // the edits are not all fatal, so both sides are tested
}

}  // namespace
}  // namespace exact
