# Whether the CUDA parts are built: EXACT_WITH_CUDA. Configuring never fails for want of CUDA unless
# EXACT_CUDA=ON asks for it.
set(EXACT_WITH_CUDA OFF)
if(NOT EXACT_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a)
    endif()
    enable_language(CUDA)
    set(EXACT_WITH_CUDA ON)
    # Debian 12's CMake does not know nvcc's name for C++20.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    # -lineinfo: profilers and sanitizers name the line; it changes no code.
    target_compile_options(exact_rules INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false -lineinfo>)
  elseif(EXACT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "EXACT_CUDA=ON, but nvcc is not found: install CUDA 13 or put nvcc on PATH")
  endif()
endif()
message(STATUS "CUDA: ${EXACT_WITH_CUDA} (EXACT_CUDA=${EXACT_CUDA})")
