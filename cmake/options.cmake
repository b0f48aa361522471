# The switches of the build, and the compile rules of every target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

option(EXACT_BUILD_TESTS "Build the tests" ON)
option(EXACT_BUILD_BENCH "Build the benchmarks" ON)
option(EXACT_BUILD_PYTHON "Build the Python package's module; trainer_bridge/python asks for it" OFF)
set(EXACT_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize takes them: address,undefined or thread")
set(EXACT_CUDA AUTO CACHE STRING "CUDA backend: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE EXACT_CUDA PROPERTY STRINGS AUTO ON OFF)

find_program(CCACHE_PROGRAM ccache)  # used where found, never needed
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# Bits first (rule N10): no contraction, no fast-math, for every file of the project.
add_library(exact_rules INTERFACE)
target_compile_options(exact_rules INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wconversion -Werror -ffp-contract=off>)
# GCC 12 at -O3 sees overlapping copies in `"text" + std::string` that are not there (GCC bug 105651).
target_compile_options(exact_rules INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
# Debug builds look at the page pool after every step.
target_compile_definitions(exact_rules INTERFACE $<$<CONFIG:Debug>:EXACT_CHECK_INTEGRITY>)
target_include_directories(exact_rules INTERFACE ${CMAKE_SOURCE_DIR})
if(EXACT_SANITIZE)
  # GCC's uninitialised-value warning is unreliable under sanitizers (std::regex trips it); the
  # release build keeps it.
  target_compile_options(exact_rules INTERFACE
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-maybe-uninitialized>)
  target_compile_options(exact_rules INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EXACT_SANITIZE} -fno-sanitize-recover=all
    -fno-omit-frame-pointer>)
  target_link_options(exact_rules INTERFACE -fsanitize=${EXACT_SANITIZE})
endif()

# exact_library(name source...): one folder of the house.
function(exact_library name)
  add_library(${name} STATIC ${ARGN})
  target_link_libraries(${name} PUBLIC exact_rules)
endfunction()

include(cuda)
