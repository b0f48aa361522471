// golden_key.h owns the names of the goldens: "rope.cos.128.10000" is the operation "rope.cos" and
// the numbers 128 and 10000.
#pragma once

#include <cctype>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

namespace exact {

struct GoldenKey {
  std::string text;
  std::string operation;
  std::string tail;              // what follows the operation: "128.10000"
  std::vector<int64_t> numbers;  // of the tail

  explicit GoldenKey(const std::string& key) : text(key), operation(key) {
    for (size_t i = 0; i + 1 < key.size(); i++) {
      if (key[i] != '.' || std::isdigit(static_cast<unsigned char>(key[i + 1])) == 0) continue;
      operation = key.substr(0, i);
      tail = key.substr(i + 1);
      break;
    }
    std::istringstream parts(tail);
    for (std::string part; std::getline(parts, part, '.');) numbers.push_back(std::stoll(part));
  }

  // "lin.x" -> "lin.x.64.256"
  std::string input(const std::string& prefix) const {
    return tail.empty() ? prefix : prefix + "." + tail;
  }
};

}  // namespace exact
