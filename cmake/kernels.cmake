# GPU kernels: instantiate the rows of kernel_list.py, compile each to PTX and machine code, embed both.
#
# In:  fa4_gpu_targets.  Out: fa4_generated_dir (kernel_list.inc), fa4_image_sources, FA4_NVCC, FA4_CUDA_INCLUDE.

set(fa4_generated_dir ${PROJECT_BINARY_DIR}/generated)
set(fa4_kernel_list ${PROJECT_SOURCE_DIR}/csrc/dispatch/kernel_list.py)
set(fa4_image_sources)
file(MAKE_DIRECTORY ${fa4_generated_dir})
set_property(DIRECTORY ${PROJECT_SOURCE_DIR} APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${fa4_kernel_list})

# Runs kernel_list.py and stores what it prints in `file`, which keeps its time when nothing changed.
function(fa4_generate file)
  execute_process(COMMAND ${Python_EXECUTABLE} ${fa4_kernel_list} ${ARGN}
                  OUTPUT_VARIABLE text COMMAND_ERROR_IS_FATAL ANY)
  file(CONFIGURE OUTPUT ${file} CONTENT "${text}" @ONLY)
endfunction()

fa4_generate(${fa4_generated_dir}/kernel_list.inc --table ${fa4_gpu_targets})

if(NOT fa4_gpu_targets)
  return()
endif()

set(fa4_arch_sm90a compute_90a,code=sm_90a)
set(fa4_arch_sm100f compute_100f,code=sm_100f)
foreach(target ${fa4_gpu_targets})
  if(NOT DEFINED fa4_arch_${target})
    message(FATAL_ERROR "FA4_ARCHS: must hold cpu, sm90a or sm100f, got ${target}")
  endif()
endforeach()

# The compiler: FA4_NVCC, CUDA_HOME, the PATH, or the packages nvidia-cuda-nvcc & co. of the Python in use.
execute_process(COMMAND ${Python_EXECUTABLE} -c
  "import sysconfig; print(sysconfig.get_path('purelib') + '/nvidia/cu13')"
  OUTPUT_VARIABLE fa4_python_cuda OUTPUT_STRIP_TRAILING_WHITESPACE)
find_program(FA4_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin PATHS ${FA4_CUDA_PACKAGES}/bin
             ${fa4_python_cuda}/bin /usr/local/cuda/bin)
if(NOT FA4_NVCC)
  message(FATAL_ERROR
    "FA4_ARCHS=${FA4_ARCHS} needs nvcc 13: set CUDA_HOME, or pip install 'nvidia-cuda-nvcc==13.0.*' "
    "'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-runtime==13.0.*' "
    "'nvidia-cuda-cccl==13.0.*', or build without GPU kernels: FA4_ARCHS=cpu")
endif()
execute_process(COMMAND ${FA4_NVCC} --version OUTPUT_VARIABLE fa4_nvcc_text ERROR_QUIET)
string(REGEX MATCH "V([0-9]+\\.[0-9]+\\.[0-9]+)" fa4_nvcc_match "${fa4_nvcc_text}")
set(fa4_nvcc_version "${CMAKE_MATCH_1}")
if(fa4_nvcc_version VERSION_LESS 13.0)
  message(FATAL_ERROR "FA4_ARCHS=${FA4_ARCHS} needs nvcc 13.0 or newer, found ${fa4_nvcc_version} at "
                      "${FA4_NVCC}: set CUDA_HOME, or build without GPU kernels: FA4_ARCHS=cpu")
endif()
# nvcc on the PATH may be a wrapper script; what it really runs names its toolkit.
execute_process(COMMAND ${FA4_NVCC} -dryrun -E -x cu /dev/null ERROR_VARIABLE fa4_dryrun OUTPUT_QUIET)
string(REGEX MATCH "TOP=([^\n]+)" fa4_top_match "${fa4_dryrun}")
find_path(FA4_CUDA_INCLUDE cuda.h HINTS ${CMAKE_MATCH_1}/include NO_DEFAULT_PATH REQUIRED)
message(STATUS "nvcc ${fa4_nvcc_version} at ${FA4_NVCC}, targets ${fa4_gpu_targets}")

enable_language(ASM)  # .incbin

set(fa4_kernel_definitions)
if(FA4_DEBUG_WAITS)
  list(APPEND fa4_kernel_definitions -DFA4_DEBUG_WAITS)
endif()

foreach(target ${fa4_gpu_targets})
  execute_process(COMMAND ${Python_EXECUTABLE} ${fa4_kernel_list} --names ${target}
                  OUTPUT_VARIABLE names COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" names "${names}")
  foreach(kernel ${names})
    set(base ${fa4_generated_dir}/${kernel})
    fa4_generate(${base}.cu --instantiate ${kernel})
    # The PTX is what the emulator runs, the machine code is assembled from that very text.
    add_custom_command(
      OUTPUT ${base}.ptx
      COMMAND ${FA4_NVCC} -std=c++20 -O3 -ftz=true ${fa4_kernel_definitions}
              -gencode=arch=${fa4_arch_${target}} -I${PROJECT_SOURCE_DIR}/include
              -I${PROJECT_SOURCE_DIR} -MD -MF ${base}.d -ptx -o ${base}.ptx ${base}.cu
      DEPENDS ${base}.cu DEPFILE ${base}.d
      COMMENT "PTX of ${kernel}" VERBATIM)
    add_custom_command(
      OUTPUT ${base}.cubin ${base}.log
      COMMAND ${CMAKE_COMMAND} -DNVCC=${FA4_NVCC} -DGENCODE=${fa4_arch_${target}} -DBASE=${base}
              -P ${PROJECT_SOURCE_DIR}/cmake/assemble.cmake
      DEPENDS ${base}.ptx ${PROJECT_SOURCE_DIR}/cmake/assemble.cmake
      COMMENT "Machine code of ${kernel}" VERBATIM)
    set(KERNEL ${kernel})
    configure_file(${PROJECT_SOURCE_DIR}/cmake/embed.S.in ${base}.S @ONLY)
    set_property(SOURCE ${base}.S APPEND PROPERTY OBJECT_DEPENDS "${base}.cubin;${base}.ptx")
    list(APPEND fa4_image_sources ${base}.S)
  endforeach()
endforeach()
