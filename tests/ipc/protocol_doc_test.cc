// docs/protocol.md keeps up with ipc/messages.h: every message with its number, every field.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <type_traits>
#include <vector>

#include "ipc/codec.h"
#include "tests/ipc/random_messages.h"

namespace exact::ipc {
namespace {

// Collects the names that a serialize() gives, of structs in lists too.
class FieldNames {
 public:
  template <class... Fields>
  void operator()(Fields&&... fields) {
    (add(fields.name, fields.value), ...);
  }
  std::vector<std::string> names;

 private:
  template <class T>
  void add(const char* name, T& value) {
    names.emplace_back(name);
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) value.serialize(*this);
  }
  template <class T>
  void add(const char* name, std::vector<T>&) {
    names.emplace_back(name);
    if constexpr (std::is_class_v<T>) T().serialize(*this);
  }
};

TEST(ProtocolDocument, HasEveryMessageAndField) {
  std::ifstream file(EXACT_SOURCE_DIR "/docs/protocol.md");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  ASSERT_FALSE(text.empty());
  for_each_message([&]<class Message>() {
    const std::string name(message_type_name(Message::kType));
    const std::string number = std::to_string(static_cast<uint16_t>(Message::kType));
    EXPECT_NE(text.find("**" + name + "** (" + number + ")"), std::string::npos) << name;
    EXPECT_NE(text.find(" " + number + " " + name + " |"), std::string::npos) << name;
    Message message;
    FieldNames fields;
    message.serialize(fields);
    // In backquotes, or in the first column of a table.
    for (const std::string& field : fields.names) {
      EXPECT_TRUE(std::regex_search(
          text, std::regex("`" + field + "`|\n\\| ([a-z_]+, )?" + field + "(, [a-z_]+)? \\|")))
          << name << "." << field;
    }
  });
}

}  // namespace
}  // namespace exact::ipc
