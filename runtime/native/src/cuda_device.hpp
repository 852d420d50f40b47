// One GPU through the driver: its primary context, which other libraries of the process share, and our kernels in it.
#pragma once

#include <array>
#include <string>

#include "cuda_driver.hpp"
#include "device.hpp"

namespace saccade {

class CudaDevice : public Device {
public:
    explicit CudaDevice(int index);
    ~CudaDevice() override;
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    // Once, before any launch. Fails with SACCADE_UNSUPPORTED where this driver or GPU cannot run the fatbin.
    void load_kernels(const std::string& fatbin);

    const std::string& name() const { return name_; }
    const std::string& compute_capability() const { return compute_capability_; }  // "SM89", as in receipts
    const std::string& driver_version() const { return driver_version_; }  // the newest CUDA it supports, "13.0"

    void enter() const override;
    void leave() const noexcept override;
    void* allocate(std::size_t bytes) const override;
    void* allocate_pinned(std::size_t bytes) const override;
    void* create_stream() const override;
    void free(void* memory) const noexcept override;
    void free_pinned(void* memory) const noexcept override;
    void destroy_stream(void* stream) const noexcept override;
    void copy_in(void* to, const void* host, std::size_t bytes, void* stream) const override;
    void copy_out(void* host, const void* from, std::size_t bytes, void* stream) const override;
    void launch(const char* kernel, const void* params, cuda::Launch shape, void* stream) const override;
    void synchronize(void* stream) const override;

private:
    struct Kernel {
        const char* name;
        CUfunction function;
    };

    [[noreturn]] void refuse_fatbin(CUresult result) const;

    const CudaDriver driver_;
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
    CUmodule module_ = nullptr;
    std::array<Kernel, 5> kernels_;  // those for float32, which is what this library's networks take and give
    int version_ = 0;  // of the driver: the newest CUDA it supports, 13000 for 13.0
    std::string name_, compute_capability_, driver_version_;
};

}  // namespace saccade
