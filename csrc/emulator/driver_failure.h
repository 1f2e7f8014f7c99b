// Failures of the emulator's driver functions: a number for the caller, a text for cuGetErrorString.
#pragma once

#include <cuda.h>

#include <string>

namespace fa4::emulator {

/// Keeps the text for the calling thread and returns the code.
CUresult fail(CUresult code, std::string text);
/// fail(CUDA_ERROR_INVALID_VALUE, text)
CUresult invalid(std::string text);
/// For functions that are asked for another device than the only one.
CUresult wrong_device(const char* function, int device);

CUresult get_error_name(CUresult code, const char** text);
/// The text of the calling thread's last failure if that had this code, else what the code means.
CUresult get_error_string(CUresult code, const char** text);

}  // namespace fa4::emulator
