// The CUDA driver's functions, found at run time.
#pragma once

#include <cuda.h>

#include "library.hpp"

namespace saccade {

// One member per function, named as in cuda.h; where that maps a name to a later version of it, so does the symbol.
#define SACCADE_CUDA_FUNCTIONS(apply)                       \
    apply(cuInit, "cuInit")                                 \
    apply(cuDriverGetVersion, "cuDriverGetVersion")         \
    apply(cuGetErrorString, "cuGetErrorString")             \
    apply(cuDeviceGetCount, "cuDeviceGetCount")             \
    apply(cuDeviceGet, "cuDeviceGet")                       \
    apply(cuDeviceGetName, "cuDeviceGetName")               \
    apply(cuDeviceGetAttribute, "cuDeviceGetAttribute")     \
    apply(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain") \
    apply(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2") \
    apply(cuCtxPushCurrent, "cuCtxPushCurrent_v2")          \
    apply(cuCtxPopCurrent, "cuCtxPopCurrent_v2")            \
    apply(cuModuleLoadData, "cuModuleLoadData")             \
    apply(cuModuleUnload, "cuModuleUnload")                 \
    apply(cuModuleGetFunction, "cuModuleGetFunction")       \
    apply(cuLaunchKernel, "cuLaunchKernel")                 \
    apply(cuMemAlloc, "cuMemAlloc_v2")                      \
    apply(cuMemFree, "cuMemFree_v2")                        \
    apply(cuMemAllocHost, "cuMemAllocHost_v2")              \
    apply(cuMemFreeHost, "cuMemFreeHost")                   \
    apply(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2")        \
    apply(cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2")        \
    apply(cuStreamCreate, "cuStreamCreate")                 \
    apply(cuStreamSynchronize, "cuStreamSynchronize")       \
    apply(cuStreamDestroy, "cuStreamDestroy_v2")

class CudaDriver {
public:
    // Opens the driver and starts it; fails with SACCADE_UNSUPPORTED where there is no driver or no device. To be asked
    // before anything of TensorRT: some of its libraries end the process where there is no device.
    CudaDriver();

    // Fails with SACCADE_ENGINE_FAILED (or _OUT_OF_MEMORY) and the driver's own reason.
    void check(CUresult result, const char* what) const;
    const char* reason(CUresult result) const;

#define SACCADE_CUDA_MEMBER(name, symbol) decltype(&::name) name##_ = nullptr;
    SACCADE_CUDA_FUNCTIONS(SACCADE_CUDA_MEMBER)
#undef SACCADE_CUDA_MEMBER

private:
    Library library_;
};

}  // namespace saccade
