# C++ tests and the C++ example; run by ctest.
include(FetchContent)
include(GoogleTest)
# The system's GoogleTest where there is one (Debian: libgtest-dev), else its release from GitHub.
FetchContent_Declare(googletest
  URL https://github.com/google/googletest/archive/refs/tags/v1.15.2.tar.gz
  FIND_PACKAGE_ARGS NAMES GTest)
FetchContent_MakeAvailable(googletest)

# fa4_test(name SOURCES...): one executable whose tests ctest sees one by one.
function(fa4_test name)
  add_executable(${name} ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE fa4 GTest::gtest_main)
  gtest_discover_tests(${name} PROPERTIES TIMEOUT 300 DISCOVERY_TIMEOUT 60)
endfunction()

fa4_test(fa4_core_tests
  tests/core/test_descriptors.cpp
  tests/core/test_dq_layout.cpp
  tests/core/test_exp2.cpp
  tests/core/test_key_tile.cpp
  tests/core/test_kv_range.cpp
  tests/core/test_mask.cpp
  tests/core/test_plan_bwd_sm90.cpp
  tests/core/test_plan_bwd_sm100.cpp
  tests/core/test_plan_sm100.cpp
  tests/core/test_plan_sm90.cpp
  tests/core/test_query_tile.cpp
  tests/core/test_seqlen.cpp
  tests/core/test_softmax.cpp
  tests/core/test_tile_scheduler.cpp
)
fa4_test(fa4_cpu_tests
  tests/cpu/test_cpu_fwd.cpp
  tests/cpu/test_cpu_bwd.cpp
  tests/cpu/test_cpu_combine.cpp
  tests/cpu/test_cpu_rows.cpp
)
# Speed of the inner loops, for work on them; not built by default.
add_executable(fa4_bench_cpu EXCLUDE_FROM_ALL tests/cpu/bench_cpu.cpp)
target_include_directories(fa4_bench_cpu PRIVATE ${PROJECT_SOURCE_DIR})
target_link_libraries(fa4_bench_cpu PRIVATE fa4)
# The same tests once more per instruction set below the machine's best.
foreach(isa avx2 baseline)
  add_test(NAME fa4_cpu_tests_${isa} COMMAND fa4_cpu_tests)
  set_tests_properties(fa4_cpu_tests_${isa} PROPERTIES ENVIRONMENT FA4_CPU_ISA=${isa} TIMEOUT 300)
endforeach()
# Sanitizers add symbols of their own to every object.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT FA4_SANITIZE)
  add_test(NAME fa4_cpu_isa_symbols
    COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cpu/check_isa_symbols.py
            $<FILTER:$<TARGET_OBJECTS:fa4>,INCLUDE,kernels_avx> COMMAND_EXPAND_LISTS)
endif()
fa4_test(fa4_dispatch_tests
  tests/dispatch/test_check.cpp
  tests/dispatch/test_select.cpp
)
if(fa4_gpu_targets)
  target_include_directories(fa4_dispatch_tests SYSTEM PRIVATE ${FA4_CUDA_INCLUDE})
  fa4_test(fa4_driver_tests
    tests/driver/test_bwd_forms.cpp
    tests/driver/test_bwd_launch.cpp
    tests/driver/test_bwd_rows.cpp
    tests/driver/test_combine_launch.cpp
    tests/driver/test_context.cpp
    tests/driver/test_emulation.cpp
    tests/driver/test_fwd_forms.cpp
    tests/driver/test_fwd_launch.cpp
    tests/driver/test_fwd_plans.cpp
    tests/driver/test_launch.cpp
    tests/driver/test_tensor_map.cpp
  )
  target_include_directories(fa4_driver_tests SYSTEM PRIVATE ${FA4_CUDA_INCLUDE})
  add_dependencies(fa4_driver_tests fa4_emulator)  # opened at run time
  # Host time of a launch, for work on it; not built by default.
  add_executable(fa4_bench_fwd_launch EXCLUDE_FROM_ALL tests/driver/bench_fwd_launch.cpp)
  target_include_directories(fa4_bench_fwd_launch PRIVATE ${PROJECT_SOURCE_DIR})
  target_include_directories(fa4_bench_fwd_launch SYSTEM PRIVATE ${FA4_CUDA_INCLUDE})
  target_link_libraries(fa4_bench_fwd_launch PRIVATE fa4 GTest::gtest)

  # These hold the emulator's objects, because the library exports little of what they test.
  fa4_test(fa4_emulator_tests
    tests/emulator/test_driver.cpp
    tests/emulator/test_launch_api.cpp
    tests/emulator/test_ptx_parser.cpp
    tests/emulator/test_tensor_core.cpp
    tests/emulator/test_tensor_map.cpp
  )
  target_link_libraries(fa4_emulator_tests PRIVATE fa4_emulator_objects)
  target_include_directories(fa4_emulator_tests SYSTEM PRIVATE ${FA4_CUDA_INCLUDE})
  foreach(isa avx2 baseline)
    add_test(NAME fa4_emulator_tests_${isa} COMMAND fa4_emulator_tests)
    set_tests_properties(fa4_emulator_tests_${isa} PROPERTIES
                         ENVIRONMENT FA4_EMULATOR_ISA=${isa} TIMEOUT 300)
  endforeach()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT FA4_SANITIZE)
    add_test(NAME fa4_emulator_isa_symbols
      COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/cpu/check_isa_symbols.py
              $<FILTER:$<TARGET_OBJECTS:fa4_emulator_objects>,INCLUDE,_avx> COMMAND_EXPAND_LISTS)
  endif()
  add_executable(fa4_bench_tensor_core EXCLUDE_FROM_ALL tests/emulator/bench_tensor_core.cpp)
  target_include_directories(fa4_bench_tensor_core PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(fa4_bench_tensor_core PRIVATE fa4_emulator_objects Threads::Threads)

  # Our descriptors against the bit fields of CUTLASS, where the package nvidia-cutlass is installed.
  execute_process(COMMAND ${Python_EXECUTABLE} -c
    "import importlib.util as u; print(u.find_spec('cutlass_library').submodule_search_locations[0])"
    OUTPUT_VARIABLE fa4_cutlass OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(fa4_cutlass)
    fa4_test(fa4_descriptor_oracle_tests tests/core/test_descriptors_cutlass.cpp)
    target_include_directories(fa4_descriptor_oracle_tests SYSTEM PRIVATE
                               ${fa4_cutlass}/source/include ${FA4_CUDA_INCLUDE} ${FA4_CUDA_INCLUDE}/cccl)
  endif()
endif()

add_executable(fa4_example examples/cpp/attention.cpp)
target_link_libraries(fa4_example PRIVATE fa4::fa4)
add_test(NAME cpp_example COMMAND fa4_example)

if(FA4_SANITIZE)  # a user's build of the example lacks the sanitizer's flags
  return()
endif()
# The example once more, as a user builds it: against the installed package, found by find_package.
add_test(NAME cpp_package_install
  COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --component cpp
          --prefix ${PROJECT_BINARY_DIR}/package)
add_test(NAME cpp_package_use
  COMMAND ${CMAKE_CTEST_COMMAND} --build-and-test
          ${PROJECT_SOURCE_DIR}/examples/cpp ${PROJECT_BINARY_DIR}/package_example
          --build-generator ${CMAKE_GENERATOR} --build-makeprogram ${CMAKE_MAKE_PROGRAM}
          --build-options -DCMAKE_PREFIX_PATH=${PROJECT_BINARY_DIR}/package
          --test-command attention)
set_tests_properties(cpp_package_install PROPERTIES FIXTURES_SETUP cpp_package)
set_tests_properties(cpp_package_use PROPERTIES FIXTURES_REQUIRED cpp_package)
