// The CUDA driver, opened at run time: one device's primary context, memory, copies and a stream.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

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
    apply(cuMemAlloc, "cuMemAlloc_v2")                      \
    apply(cuMemFree, "cuMemFree_v2")                        \
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

#define SACCADE_CUDA_MEMBER(name, symbol) decltype(&::name) name##_ = nullptr;
    SACCADE_CUDA_FUNCTIONS(SACCADE_CUDA_MEMBER)
#undef SACCADE_CUDA_MEMBER

private:
    Library library_;
};

// One GPU and its primary context, which other libraries of the process share.
class CudaDevice {
public:
    explicit CudaDevice(int index);
    ~CudaDevice();
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    const std::string& name() const { return name_; }
    const std::string& compute_capability() const { return compute_capability_; }  // "SM89", as in receipts
    const std::string& driver_version() const { return driver_version_; }  // the newest CUDA it supports, "13.0"

    const CudaDriver driver;

    // Makes the context current in this thread for as long as it lives.
    class Current {
    public:
        explicit Current(const CudaDevice& device);
        ~Current();
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

    private:
        const CudaDriver& driver_;
    };

private:
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
    std::string name_, compute_capability_, driver_version_;
};

// Device memory that only grows.
class CudaBuffer {
public:
    explicit CudaBuffer(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
    ~CudaBuffer();
    CudaBuffer(CudaBuffer&& other) noexcept;
    CudaBuffer(const CudaBuffer&) = delete;
    CudaBuffer& operator=(const CudaBuffer&) = delete;

    CUdeviceptr sized(std::size_t bytes);  // the context must be current

private:
    std::shared_ptr<const CudaDevice> device_;
    CUdeviceptr address_ = 0;
    std::size_t capacity_ = 0;
};

}  // namespace saccade
