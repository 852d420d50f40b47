// Memory that only grows: a session's arrays, allocated by its first frame and reused by the next.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace saccade {

template <typename T>
class Buffer {
public:
    // At least `count` elements; what they held is lost where the buffer grows, and its address changes.
    T* sized(std::size_t count) {
        if (count > capacity_) {
            data_.reset();  // before the larger one is there, so that the peak is not both
            capacity_ = 0;
            if (count > SIZE_MAX / sizeof(T)) {
                throw std::bad_alloc();
            }
            data_.reset(static_cast<T*>(::operator new(count * sizeof(T), ALIGNMENT)));
            capacity_ = count;
        }
        return data_.get();
    }
    T* data() const { return data_.get(); }

private:
    static constexpr std::align_val_t ALIGNMENT{64};  // a cache line, and the widest vector register
    struct Free {
        void operator()(T* data) const { ::operator delete(data, ALIGNMENT); }
    };
    std::unique_ptr<T, Free> data_;
    std::size_t capacity_ = 0;
};

}  // namespace saccade
