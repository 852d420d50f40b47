#include "cuda_device.hpp"

#include <algorithm>
#include <cstring>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr int MIN_DRIVER = 13000;  // CUDA 13.0, driver r580, which a fatbin of nvcc 13.0 needs; as in runtime/launch.py

CUdeviceptr address_of(const void* memory) { return reinterpret_cast<CUdeviceptr>(memory); }
CUstream stream_of(void* stream) { return static_cast<CUstream>(stream); }

bool is_unloadable(CUresult result) {
    return result == CUDA_ERROR_INVALID_IMAGE || result == CUDA_ERROR_NO_BINARY_FOR_GPU || result == CUDA_ERROR_INVALID_PTX ||
           result == CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
}

}  // namespace

CudaDevice::CudaDevice(int index)
    : kernels_{{{cuda::PREPROCESS_FP32, nullptr},
                {cuda::RESIZE_SCORES, nullptr},
                {cuda::RANK, nullptr},
                {cuda::GATHER_32BIT, nullptr},
                {cuda::FILL, nullptr}}} {
    int count = 0;
    driver_.check(driver_.cuDeviceGetCount_(&count), "count devices");
    if (index >= count) {
        fail(SACCADE_UNSUPPORTED, "no GPU " + std::to_string(index) + " here; give a device of 0 to " + std::to_string(count - 1));
    }
    driver_.check(driver_.cuDeviceGet_(&device_, index), "find the device");
    char name[256] = "";
    driver_.check(driver_.cuDeviceGetName_(name, sizeof name, device_), "name the device");
    int major = 0, minor = 0;
    driver_.check(driver_.cuDriverGetVersion_(&version_), "say its version");
    driver_.check(driver_.cuDeviceGetAttribute_(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_), "describe the device");
    driver_.check(driver_.cuDeviceGetAttribute_(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_), "describe the device");
    name_ = name;
    compute_capability_ = "SM" + std::to_string(major) + std::to_string(minor);
    driver_version_ = std::to_string(version_ / 1000) + "." + std::to_string(version_ % 1000 / 10);
    driver_.check(driver_.cuDevicePrimaryCtxRetain_(&context_, device_), "open the device");
}

CudaDevice::~CudaDevice() {
    if (module_ != nullptr && driver_.cuCtxPushCurrent_(context_) == CUDA_SUCCESS) {  // others may keep the context
        driver_.cuModuleUnload_(module_);
        leave();
    }
    driver_.cuDevicePrimaryCtxRelease_(device_);
}

void CudaDevice::load_kernels(const std::string& fatbin) {
    const Current current(*this);
    const CUresult result = driver_.cuModuleLoadData_(&module_, fatbin.data());
    if (is_unloadable(result)) {
        refuse_fatbin(result);
    }
    driver_.check(result, "load the compiled kernels");
    for (Kernel& each : kernels_) {
        if (driver_.cuModuleGetFunction_(&each.function, module_, each.name) != CUDA_SUCCESS) {
            fail(SACCADE_UNSUPPORTED, std::string("the fatbin has no kernel ") + each.name + "; 'make cuda' again");
        }
    }
}

void CudaDevice::refuse_fatbin(CUresult result) const {
    const bool is_old = version_ < MIN_DRIVER;
    const bool is_other = result == CUDA_ERROR_NO_BINARY_FOR_GPU;
    fail(SACCADE_UNSUPPORTED,
         name_ + " cannot load the compiled kernels (" + driver_.reason(result) + "); " +
             (is_old     ? "its driver is for CUDA " + driver_version_ + ": they need driver r580 (CUDA 13.0)"
              : is_other ? "they hold no code for " + compute_capability_ + ": 'make cuda CUDA_ARCHITECTURES=" +
                               compute_capability_.substr(2) + "'"
                         : std::string("the file is no fatbin that this driver knows: 'make cuda' again")));
}

void CudaDevice::enter() const { driver_.check(driver_.cuCtxPushCurrent_(context_), "enter the device's context"); }

void CudaDevice::leave() const noexcept {
    CUcontext left = nullptr;
    driver_.cuCtxPopCurrent_(&left);
}

void* CudaDevice::allocate(std::size_t bytes) const {
    CUdeviceptr address = 0;
    driver_.check(driver_.cuMemAlloc_(&address, bytes), "allocate memory");
    return reinterpret_cast<void*>(address);
}

void* CudaDevice::allocate_pinned(std::size_t bytes) const {
    void* address = nullptr;
    driver_.check(driver_.cuMemAllocHost_(&address, bytes), "allocate pinned memory");
    return address;
}

void* CudaDevice::create_stream() const {
    CUstream stream = nullptr;
    driver_.check(driver_.cuStreamCreate_(&stream, CU_STREAM_NON_BLOCKING), "create a stream");
    return stream;
}

// What the driver says to these three is not looked at: it would be the error of a device that is gone, memory and all.

void CudaDevice::free(void* memory) const noexcept {
    if (driver_.cuCtxPushCurrent_(context_) == CUDA_SUCCESS) {
        driver_.cuMemFree_(address_of(memory));
        leave();
    }
}

void CudaDevice::free_pinned(void* memory) const noexcept {
    if (driver_.cuCtxPushCurrent_(context_) == CUDA_SUCCESS) {
        driver_.cuMemFreeHost_(memory);
        leave();
    }
}

void CudaDevice::destroy_stream(void* stream) const noexcept {
    if (driver_.cuCtxPushCurrent_(context_) == CUDA_SUCCESS) {
        driver_.cuStreamDestroy_(stream_of(stream));
        leave();
    }
}

void CudaDevice::copy_in(void* to, const void* host, std::size_t bytes, void* stream) const {
    driver_.check(driver_.cuMemcpyHtoDAsync_(address_of(to), host, bytes, stream_of(stream)), "copy to the device");
}

void CudaDevice::copy_out(void* host, const void* from, std::size_t bytes, void* stream) const {
    driver_.check(driver_.cuMemcpyDtoHAsync_(host, address_of(from), bytes, stream_of(stream)), "copy from the device");
}

void CudaDevice::launch(const char* kernel, const void* params, cuda::Launch shape, void* stream) const {
    const auto found = std::find_if(kernels_.begin(), kernels_.end(), [&](const Kernel& each) { return std::strcmp(each.name, kernel) == 0; });
    if (found == kernels_.end() || found->function == nullptr) {
        fail(SACCADE_INTERNAL, std::string("no kernel ") + kernel + " is loaded; please report it");
    }
    void* arguments[] = {const_cast<void*>(params)};  // the driver only reads it
    driver_.check(driver_.cuLaunchKernel_(found->function, shape.x, shape.y, 1, shape.threads, 1, 1, 0, stream_of(stream), arguments, nullptr),
                  "launch a kernel");
}

void CudaDevice::synchronize(void* stream) const { driver_.check(driver_.cuStreamSynchronize_(stream_of(stream)), "finish"); }

}  // namespace saccade
