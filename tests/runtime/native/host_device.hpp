// A GPU played by the host: its memory is the heap's, its kernels are the CUDA sources compiled for the CPU
// (../cuda_host.cpp). `../host_device.py` is its twin in Python.
//
// It is as lazy as a GPU may be: what a stream is given is done when somebody waits for it, so memory that is overwritten
// or freed too early shows in the numbers and to AddressSanitizer. Blocks of another threads' order run each kernel.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "device.hpp"
#include "failure.hpp"

extern "C" int launch(const char* kernel, const void* params, std::uint32_t order);
extern "C" int launch_shape(const char* kernel, const void* params, std::uint32_t shape[3]);

namespace saccade {

[[noreturn]] inline void device_fault(const std::string& line) {
    std::fprintf(stderr, "a GPU would fault here: %s\n", line.c_str());
    std::abort();
}

class HostDevice : public Device {
public:
    ~HostDevice() override {
        if (!memory_.empty() || !pinned_.empty() || !streams_.empty()) {
            device_fault("something of the device was not given back");
        }
    }

    // Let the call number `countdown` of those that can fail do so; 0: none.
    mutable int countdown = 0;
    mutable std::vector<std::string> calls;  // what was done, in the order it was asked for

    void enter() const override { ++depth_; }
    void leave() const noexcept override { --depth_; }

    void* allocate(std::size_t bytes) const override { return allocated(memory_, "allocate", bytes); }
    void* allocate_pinned(std::size_t bytes) const override { return allocated(pinned_, "allocate_pinned", bytes); }
    void free(void* memory) const noexcept override { freed(memory_, memory); }
    void free_pinned(void* memory) const noexcept override { freed(pinned_, memory); }

    void* create_stream() const override {
        call("create_stream");
        auto* stream = new char;
        streams_[stream];
        return stream;
    }
    void destroy_stream(void* stream) const noexcept override {
        if (!streams_.at(stream).empty()) {
            device_fault("a stream was destroyed before it was done");
        }
        streams_.erase(stream);
        delete static_cast<char*>(stream);
    }

    void copy_in(void* to, const void* host, std::size_t bytes, void* stream) const override {
        check_range(memory_, to, bytes);
        give("copy_in", stream, [=] { std::memcpy(to, host, bytes); });
    }
    void copy_out(void* host, const void* from, std::size_t bytes, void* stream) const override {
        check_range(memory_, from, bytes);
        check_range(pinned_, host, bytes);
        give("copy_out", stream, [=] { std::memcpy(host, from, bytes); });
    }

    void launch(const char* kernel, const void* params, cuda::Launch shape, void* stream) const override {
        std::uint32_t needed[3] = {};
        if (launch_shape(kernel, params, needed) == 0) {
            device_fault(std::string("no kernel ") + kernel);
        }
        if (shape.x != needed[0] || shape.y != needed[1] || shape.threads != needed[2]) {
            device_fault(std::string(kernel) + " is launched in another shape than it needs");
        }
        const auto* bytes = static_cast<const unsigned char*>(params);
        const std::vector<unsigned char> frozen(bytes, bytes + params_size(kernel));
        give(kernel, stream, [=] { ::launch(kernel, frozen.data(), SHUFFLED); });
    }

    void synchronize(void* stream) const override {
        call("synchronize");
        const std::vector<std::function<void()>> queue = std::exchange(streams_.at(stream), {});
        for (const auto& work : queue) {
            work();
        }
    }

    // Anything else: a network.
    void give(const char* what, void* stream, std::function<void()> work) const {
        call(what);
        streams_.at(stream).push_back(std::move(work));
    }

    void check_address(const void* address) const { check_range(memory_, address, 1); }

private:
    using Blocks = std::map<const void*, std::size_t>;
    static constexpr std::uint32_t SHUFFLED = 7;
    static constexpr unsigned char GARBAGE = 0xFF;  // NaN as float32, and an index far outside

    static std::size_t params_size(const std::string& kernel) {
        return kernel == cuda::PREPROCESS_FP32                          ? sizeof(cuda::PreprocessParams)
               : kernel == cuda::GATHER_32BIT                           ? sizeof(cuda::GatherParams)
               : kernel == cuda::FILL                                   ? sizeof(cuda::FillParams)
                                                                        : sizeof(cuda::SelectParams);
    }

    void call(const char* what) const {
        if (depth_ < 1) {
            device_fault(std::string(what) + " outside of the device's context");
        }
        calls.emplace_back(what);
        if (countdown > 0 && --countdown == 0) {
            fail(SACCADE_ENGINE_FAILED, std::string("the host's GPU cannot ") + what);
        }
    }

    void* allocated(Blocks& blocks, const char* what, std::size_t bytes) const {
        call(what);
        void* block = std::malloc(bytes);
        std::memset(block, GARBAGE, bytes);
        blocks[block] = bytes;
        return block;
    }

    void freed(Blocks& blocks, void* block) const {
        for (const auto& [stream, queue] : streams_) {
            if (!queue.empty()) {
                device_fault("memory was freed under a stream");
            }
        }
        if (blocks.erase(block) == 0) {
            device_fault("what was freed is no memory of this kind");
        }
        std::free(block);
    }

    static void check_range(const Blocks& blocks, const void* address, std::size_t bytes) {
        const auto after = blocks.upper_bound(address);
        const auto* first = static_cast<const char*>(address);
        if (after == blocks.begin() || first + bytes > static_cast<const char*>(std::prev(after)->first) + std::prev(after)->second) {
            device_fault("an address in no live allocation");
        }
    }

    mutable int depth_ = 0;
    mutable Blocks memory_, pinned_;
    mutable std::map<void*, std::vector<std::function<void()>>> streams_;
};

}  // namespace saccade
