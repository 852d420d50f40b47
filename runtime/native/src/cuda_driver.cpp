#include "cuda_driver.hpp"

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
    const bool is_memory = result == CUDA_ERROR_OUT_OF_MEMORY;
    fail(is_memory ? SACCADE_OUT_OF_MEMORY : SACCADE_ENGINE_FAILED,
         std::string("CUDA cannot ") + what + ": " + reason(result) +
             (is_memory ? "; free GPU memory, or use a smaller batch, size or k" : "; check the GPU with nvidia-smi"));
}

const char* CudaDriver::reason(CUresult result) const {
    const char* text = nullptr;
    cuGetErrorString_(result, &text);
    return text == nullptr ? "no reason given" : text;
}

}  // namespace saccade
