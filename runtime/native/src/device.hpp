// What the chain asks of a GPU: memory, streams, copies, and launches of the kernels that `runtime/cuda` describes.
// `cuda_device.cpp` asks the driver; in the tests the host plays the GPU. `runtime/device.py` is its twin in Python.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "launch.hpp"

namespace saccade {

// Shared by threads. What can fail throws Failure, and is called inside a Current of the device.
class Device {
public:
    virtual ~Device() = default;

    virtual void enter() const = 0;  // makes the device's context this thread's, until `leave`
    virtual void leave() const noexcept = 0;

    virtual void* allocate(std::size_t bytes) const = 0;
    virtual void* allocate_pinned(std::size_t bytes) const = 0;  // of the host; a copy from it does not hold up the caller
    virtual void* create_stream() const = 0;

    // Nothing may use them any more. No Current is needed.
    virtual void free(void* memory) const noexcept = 0;
    virtual void free_pinned(void* memory) const noexcept = 0;
    virtual void destroy_stream(void* stream) const noexcept = 0;

    // Given to a stream: the host's memory has to stay as it is until the stream is done.
    virtual void copy_in(void* to, const void* host, std::size_t bytes, void* stream) const = 0;
    virtual void copy_out(void* host, const void* from, std::size_t bytes, void* stream) const = 0;
    // `params` is the struct that launch.hpp has for this kernel; it is read before the call returns.
    virtual void launch(const char* kernel, const void* params, cuda::Launch shape, void* stream) const = 0;

    virtual void synchronize(void* stream) const = 0;  // waits for all that the stream was given

    class Current {
    public:
        explicit Current(const Device& device) : device_(device) { device_.enter(); }
        ~Current() { device_.leave(); }
        Current(const Current&) = delete;
        Current& operator=(const Current&) = delete;

    private:
        const Device& device_;
    };
};

// A stream that goes with its owner.
class DeviceStream {
public:
    explicit DeviceStream(std::shared_ptr<const Device> device) : device_(std::move(device)) {
        const Device::Current current(*device_);
        stream_ = device_->create_stream();
    }
    ~DeviceStream() { device_->destroy_stream(stream_); }
    DeviceStream(const DeviceStream&) = delete;
    DeviceStream& operator=(const DeviceStream&) = delete;

    void* handle() const { return stream_; }

private:
    std::shared_ptr<const Device> device_;
    void* stream_;
};

// Memory that only grows: of the device, or pinned and the host's.
class DeviceMemory {
public:
    enum class Kind { device, pinned };

    DeviceMemory(std::shared_ptr<const Device> device, Kind kind) : device_(std::move(device)), kind_(kind) {}
    ~DeviceMemory() { release(); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    // At least so many bytes; what they held is lost where the memory grows. No stream may be using it.
    std::byte* sized(std::size_t bytes) {
        if (bytes > capacity_) {
            release();
            address_ = kind_ == Kind::device ? device_->allocate(bytes) : device_->allocate_pinned(bytes);
            capacity_ = bytes;
        }
        return data();
    }
    std::byte* data() const { return static_cast<std::byte*>(address_); }

private:
    void release() {
        if (address_ != nullptr) {
            kind_ == Kind::device ? device_->free(address_) : device_->free_pinned(address_);
        }
        address_ = nullptr;
        capacity_ = 0;
    }

    std::shared_ptr<const Device> device_;
    Kind kind_;
    void* address_ = nullptr;
    std::size_t capacity_ = 0;
};

}  // namespace saccade
