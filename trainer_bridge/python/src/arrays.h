// arrays.h owns how numbers go between C++ and Python without a copy: vectors are seen as NumPy
// arrays that keep their owner alive, arrays of any library come in through DLPack.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace exact::python {

// A contiguous vector of ids.
using IdArray =
    nanobind::ndarray<const int32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

inline std::span<const int32_t> ids_of(const IdArray& array) {
  return {array.data(), array.shape(0)};
}
inline std::vector<int32_t> copy_of(const IdArray& array) {
  const auto ids = ids_of(array);
  return {ids.begin(), ids.end()};
}

template <class T>
using NumpyArray = nanobind::ndarray<nanobind::numpy, T>;

// `values`, which lives as long as `owner`, as an array of `shape` (one number: its length).
template <class T>
NumpyArray<T> view_of(std::vector<T>& values, nanobind::handle owner,
                      std::initializer_list<size_t> shape) {
  static T nothing{};  // an empty vector has no address, and an array wants one
  T* const data = values.empty() ? &nothing : values.data();
  return NumpyArray<T>(data, shape, owner);
}

// An array that owns `values`.
template <class T>
NumpyArray<T> array_of(std::vector<T> values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  std::vector<T>& kept = *owned;
  const nanobind::capsule owner(
      owned.get(), [](void* vector) noexcept { delete static_cast<std::vector<T>*>(vector); });
  (void)owned.release();
  return view_of(kept, owner, {kept.size()});
}

}  // namespace exact::python
