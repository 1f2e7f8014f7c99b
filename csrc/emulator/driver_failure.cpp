#include "csrc/emulator/driver_failure.h"

#include <utility>

namespace fa4::emulator {

namespace {

struct Failure {
  CUresult code = CUDA_SUCCESS;
  std::string text;
};
thread_local Failure last_failure;

struct ErrorName {
  CUresult code;
  const char* name;
  const char* text;  // where the calling thread has seen no such failure
};
#define FA4_ERROR(code, text) {code, #code, text}
constexpr ErrorName kErrors[] = {
    FA4_ERROR(CUDA_SUCCESS, "no error"),
    FA4_ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    FA4_ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    FA4_ERROR(CUDA_ERROR_INVALID_IMAGE, "the image is no PTX text"),
    FA4_ERROR(CUDA_ERROR_INVALID_CONTEXT, "no context is current"),
    FA4_ERROR(CUDA_ERROR_NO_BINARY_FOR_GPU, "the PTX is for another architecture"),
    FA4_ERROR(CUDA_ERROR_INVALID_PTX, "the PTX cannot be read"),
    FA4_ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    FA4_ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    FA4_ERROR(CUDA_ERROR_LAUNCH_FAILED, "the kernel failed"),
    FA4_ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    FA4_ERROR(CUDA_ERROR_INVALID_CLUSTER_SIZE, "invalid cluster size"),
};
#undef FA4_ERROR

const ErrorName* find_error(CUresult code) {
  for (const ErrorName& error : kErrors) {
    if (error.code == code) return &error;
  }
  return nullptr;
}

}  // namespace

CUresult fail(CUresult code, std::string text) {
  last_failure = {code, std::move(text)};
  return code;
}

CUresult invalid(std::string text) {
  return fail(CUDA_ERROR_INVALID_VALUE, std::move(text));
}

CUresult wrong_device(const char* function, int device) {
  return fail(CUDA_ERROR_INVALID_DEVICE, std::string(function) +
                                             ": device: must be 0, the only emulated one, got " +
                                             std::to_string(device));
}

CUresult get_error_name(CUresult code, const char** text) {
  const ErrorName* error = find_error(code);
  *text = error ? error->name : nullptr;
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult get_error_string(CUresult code, const char** text) {
  const ErrorName* error = find_error(code);
  *text = error ? error->text : nullptr;
  if (code != CUDA_SUCCESS && code == last_failure.code) *text = last_failure.text.c_str();
  return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace fa4::emulator
