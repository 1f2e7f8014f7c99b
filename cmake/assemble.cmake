# PTX to machine code; ptxas's report (registers, spills, stack) goes to BASE.log, where a test reads it.
execute_process(
  COMMAND ${NVCC} -gencode=arch=${GENCODE} -Xptxas -v -cubin -o ${BASE}.cubin ${BASE}.ptx
  OUTPUT_VARIABLE report ERROR_VARIABLE report RESULT_VARIABLE failed)
file(WRITE ${BASE}.log "${report}")
if(failed)
  message(FATAL_ERROR "${report}")
endif()
