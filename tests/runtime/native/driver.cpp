// libcuda.so.1 as the tests have it: one device, whose memory is the host's and whose kernels are the CUDA sources compiled
// for the CPU, done as soon as they are launched. SACCADE_TEST_DRIVER sets its version, _LOAD what loading a module gives.
#include <cuda.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" int launch(const char* kernel, const void* params, std::uint32_t order);
extern "C" int launch_shape(const char* kernel, const void* params, std::uint32_t shape[3]);

namespace {

int setting(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::atoi(text);
}

thread_local int depth = 0;  // of contexts made current

CUresult in_context(bool met = true) { return depth > 0 && met ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }

}  // namespace

extern "C" {

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = setting("SACCADE_TEST_DRIVER", 13000), CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult error, const char** text) {
    *text = error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "no kernel image is available" : "the tests' driver says so";
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char* name, int size, CUdevice) { return std::strncpy(name, "Host GPU", static_cast<std::size_t>(size)), CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 8 : 9;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = reinterpret_cast<CUcontext>(&depth), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext) { return ++depth, CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext*) { return --depth, CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    *module = static_cast<CUmodule>(const_cast<void*>(image));
    return static_cast<CUresult>(setting("SACCADE_TEST_LOAD", CUDA_SUCCESS));
}
CUresult cuModuleUnload(CUmodule) { return in_context(); }
// A function is its name, which is the caller's literal.
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    *function = reinterpret_cast<CUfunction>(const_cast<char*>(name));
    return in_context();
}
CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z, unsigned int threads, unsigned int,
                        unsigned int, unsigned int shared_bytes, CUstream, void** params, void**) {
    const char* name = reinterpret_cast<const char*>(function);
    std::uint32_t needed[3] = {};
    const bool fits = launch_shape(name, params[0], needed) != 0 && x == needed[0] && y == needed[1] && z == 1 &&
                      threads == needed[2] && shared_bytes == 0;
    return fits && depth > 0 && launch(name, params[0], 1) != 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemAlloc(CUdeviceptr* address, std::size_t bytes) {
    *address = bytes > std::size_t{1} << 40 ? 0 : reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
    return *address == 0 ? CUDA_ERROR_OUT_OF_MEMORY : in_context();
}
CUresult cuMemFree(CUdeviceptr address) { return std::free(reinterpret_cast<void*>(address)), in_context(); }
CUresult cuMemAllocHost(void** address, std::size_t bytes) { return *address = std::malloc(bytes), in_context(); }
CUresult cuMemFreeHost(void* address) { return std::free(address), in_context(); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, std::size_t bytes, CUstream stream) {
    return std::memcpy(reinterpret_cast<void*>(to), from, bytes), in_context(stream != nullptr);
}
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, std::size_t bytes, CUstream stream) {
    return std::memcpy(to, reinterpret_cast<const void*>(from), bytes), in_context(stream != nullptr);
}
CUresult cuStreamCreate(CUstream* stream, unsigned int flags) {
    *stream = static_cast<CUstream>(std::malloc(1));
    return in_context(flags == CU_STREAM_NON_BLOCKING);
}
CUresult cuStreamSynchronize(CUstream) { return in_context(); }
CUresult cuStreamDestroy(CUstream stream) { return std::free(stream), in_context(); }

}  // extern "C"
