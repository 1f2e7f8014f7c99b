# The emulator, libfa4_emulator.so. Its objects are a target of their own, because its tests look inside.

set(fa4_emulator_sources
  csrc/emulator/check/accesses.cpp
  csrc/emulator/check/barriers.cpp
  csrc/emulator/check/checker.cpp
  csrc/emulator/check/lanes.cpp
  csrc/emulator/check/plan.cpp
  csrc/emulator/check/report.cpp
  csrc/emulator/check/shadow.cpp
  csrc/emulator/check/tensor.cpp
  csrc/emulator/driver.cpp
  csrc/emulator/driver_failure.cpp
  csrc/emulator/driver_launch.cpp
  csrc/emulator/isa/atomics.cpp
  csrc/emulator/isa/barrier.cpp
  csrc/emulator/isa/control.cpp
  csrc/emulator/isa/convert.cpp
  csrc/emulator/isa/copy.cpp
  csrc/emulator/isa/copy_async.cpp
  csrc/emulator/isa/floating.cpp
  csrc/emulator/isa/integer.cpp
  csrc/emulator/isa/lanes_avx2.cpp
  csrc/emulator/isa/lanes_avx512.cpp
  csrc/emulator/isa/lanes_baseline.cpp
  csrc/emulator/isa/matrix.cpp
  csrc/emulator/isa/mbarrier_ops.cpp
  csrc/emulator/isa/memory.cpp
  csrc/emulator/isa/predicate.cpp
  csrc/emulator/isa/scalar.cpp
  csrc/emulator/isa/table.cpp
  csrc/emulator/isa/tcgen05.cpp
  csrc/emulator/isa/tcgen05_mma.cpp
  csrc/emulator/isa/warp_ops.cpp
  csrc/emulator/isa/wgmma.cpp
  csrc/emulator/isa_choice.cpp
  csrc/emulator/launch.cpp
  csrc/emulator/lower/lowering.cpp
  csrc/emulator/lower/registers.cpp
  csrc/emulator/lower/wgmma_registers.cpp
  csrc/emulator/machine/agents.cpp
  csrc/emulator/machine/cluster.cpp
  csrc/emulator/machine/fault.cpp
  csrc/emulator/machine/grid.cpp
  csrc/emulator/machine/mbarrier.cpp
  csrc/emulator/machine/memory.cpp
  csrc/emulator/machine/special.cpp
  csrc/emulator/machine/warp.cpp
  csrc/emulator/ptx/lexer.cpp
  csrc/emulator/ptx/names.cpp
  csrc/emulator/ptx/parser.cpp
  csrc/emulator/ptx/parser_declarations.cpp
  csrc/emulator/ptx/parser_module.cpp
  csrc/emulator/ptx/parser_operands.cpp
  csrc/emulator/ptx/reader.cpp
  csrc/emulator/ptx/scopes.cpp
  csrc/emulator/tensor/box.cpp
  csrc/emulator/tensor/multiply_avx2.cpp
  csrc/emulator/tensor/multiply_avx512.cpp
  csrc/emulator/tensor/multiply_baseline.cpp
  csrc/emulator/tensor/reduce.cpp
  csrc/emulator/tensor/tensor_core.cpp
  csrc/emulator/tensor/tensor_map.cpp
)

# Inner loops are compiled per instruction set, chosen at run time. An emulated mul and add must never
# become one fused operation, so contraction is off everywhere.
set(fa4_emulator_loop_flags -O3 -fno-math-errno -fno-trapping-math -Wno-psabi)
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(FILTER fa4_emulator_sources EXCLUDE REGEX "_avx(2|512)\\.cpp$")
endif()
foreach(source ${fa4_emulator_sources})
  if(source MATCHES "_(baseline|avx2|avx512)\\.cpp$")
    set(flags ${fa4_emulator_loop_flags} ${fa4_${CMAKE_MATCH_1}_flags})
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
  endif()
endforeach()

add_library(fa4_emulator_objects OBJECT ${fa4_emulator_sources})
target_compile_features(fa4_emulator_objects PUBLIC cxx_std_20)
target_compile_options(fa4_emulator_objects PRIVATE -ffp-contract=off)
target_include_directories(fa4_emulator_objects PUBLIC ${PROJECT_SOURCE_DIR}/include
                           PRIVATE ${PROJECT_SOURCE_DIR})
target_include_directories(fa4_emulator_objects SYSTEM PRIVATE ${FA4_CUDA_INCLUDE})

add_library(fa4_emulator SHARED $<TARGET_OBJECTS:fa4_emulator_objects>)
add_library(fa4::emulator ALIAS fa4_emulator)
set_target_properties(fa4_emulator PROPERTIES EXPORT_NAME emulator)
target_compile_features(fa4_emulator PUBLIC cxx_std_20)
target_include_directories(fa4_emulator
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
target_link_libraries(fa4_emulator PRIVATE Threads::Threads)
install(TARGETS fa4_emulator LIBRARY DESTINATION . COMPONENT python)
