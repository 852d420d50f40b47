#include "cuda_driver.hpp"

#include <utility>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr char NO_GPU[] = "go to a machine with an NVIDIA GPU, or use engine openvino";

}  // namespace

CudaDriver::CudaDriver() try : library_("the CUDA driver", "", {"libcuda.so.1"}, NO_GPU) {
#define SACCADE_CUDA_BIND(name, symbol) library_.bind(name##_, symbol);
    SACCADE_CUDA_FUNCTIONS(SACCADE_CUDA_BIND)
#undef SACCADE_CUDA_BIND
    int count = 0;
    if (cuInit_(0) != CUDA_SUCCESS || cuDeviceGetCount_(&count) != CUDA_SUCCESS || count < 1) {
        fail(SACCADE_UNSUPPORTED, std::string("the CUDA driver finds no device; ") + NO_GPU);
    }
} catch (const Failure& failure) {
    fail(SACCADE_UNSUPPORTED, std::string("no NVIDIA GPU here: ") + failure.what());
}

void CudaDriver::check(CUresult result, const char* what) const {
    if (result == CUDA_SUCCESS) {
        return;
    }
    const char* reason = nullptr;
    cuGetErrorString_(result, &reason);
    const bool is_memory = result == CUDA_ERROR_OUT_OF_MEMORY;
    fail(is_memory ? SACCADE_OUT_OF_MEMORY : SACCADE_ENGINE_FAILED,
         std::string("CUDA cannot ") + what + ": " + (reason == nullptr ? "no reason given" : reason) +
             (is_memory ? "; free GPU memory" : "; check the GPU with nvidia-smi"));
}

CudaDevice::CudaDevice(int index) {
    int count = 0;
    driver.check(driver.cuDeviceGetCount_(&count), "count devices");
    if (index >= count) {
        fail(SACCADE_UNSUPPORTED, "no GPU " + std::to_string(index) + " here; give a device of 0 to " + std::to_string(count - 1));
    }
    driver.check(driver.cuDeviceGet_(&device_, index), "find the device");
    char name[256] = "";
    driver.check(driver.cuDeviceGetName_(name, sizeof name, device_), "name the device");
    int version = 0, major = 0, minor = 0;
    driver.check(driver.cuDriverGetVersion_(&version), "say its version");
    driver.check(driver.cuDeviceGetAttribute_(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_), "describe the device");
    driver.check(driver.cuDeviceGetAttribute_(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_), "describe the device");
    name_ = name;
    compute_capability_ = "SM" + std::to_string(major) + std::to_string(minor);
    driver_version_ = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    driver.check(driver.cuDevicePrimaryCtxRetain_(&context_, device_), "open the device");
}

CudaDevice::~CudaDevice() { driver.cuDevicePrimaryCtxRelease_(device_); }

CudaDevice::Current::Current(const CudaDevice& device) : driver_(device.driver) {
    driver_.check(driver_.cuCtxPushCurrent_(device.context_), "enter the device's context");
}

CudaDevice::Current::~Current() {
    CUcontext left = nullptr;
    driver_.cuCtxPopCurrent_(&left);
}

CudaBuffer::CudaBuffer(CudaBuffer&& other) noexcept
    : device_(std::move(other.device_)),
      address_(std::exchange(other.address_, 0)),
      capacity_(std::exchange(other.capacity_, 0)) {}

CudaBuffer::~CudaBuffer() {
    if (address_ != 0) {
        device_->driver.cuMemFree_(address_);
    }
}

CUdeviceptr CudaBuffer::sized(std::size_t bytes) {
    if (bytes > capacity_) {
        if (address_ != 0) {
            device_->driver.check(device_->driver.cuMemFree_(std::exchange(address_, 0)), "free memory");
        }
        capacity_ = 0;
        device_->driver.check(device_->driver.cuMemAlloc_(&address_, bytes), "allocate memory");
        capacity_ = bytes;
    }
    return address_;
}

}  // namespace saccade
