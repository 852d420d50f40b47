// How one block of threads is written, so that a GPU and a plain loop on the CPU run the same source.
//
// A kernel that has barriers is a function `xxx_block(params, block, shared, each_thread)`: a sequence of phases, each
// given to `each_thread` as a function of the thread's number. On a GPU `each_thread` runs the phase for this thread
// and waits at a barrier; the tests' `each_thread` loops over the threads, in any order. Hence the rules: a phase reads
// nothing that another thread writes in the same phase, except through `atomic_add` and by storing one same value;
// whatever outlives a phase lies in `shared`; and which phases run depends on the parameters and the block alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "taps.hpp"

namespace saccade::cuda {

// Which block of the launch this is: blockIdx.x and blockIdx.y.
struct Block {
    int x;
    int image;
};

#ifdef __CUDACC__
struct EachThread {
    template <class Phase>
    __device__ void operator()(Phase phase) const {
        phase(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
};
__device__ inline Block this_block() { return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y)}; }
#endif

SACCADE_BOTH inline void atomic_add(int* sum, int term) {
#ifdef __CUDA_ARCH__
    atomicAdd(sum, term);
#else
    *sum += term;
#endif
}

SACCADE_BOTH inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

SACCADE_BOTH inline float float_of(std::uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

SACCADE_BOTH inline bool is_finite(float value) { return (bits_of(value) & 0x7F800000u) != 0x7F800000u; }

// The four values around one sample, blended along both rows and then between them, as `resize.cpp` does.
SACCADE_BOTH inline float bilinear(const BilinearTap& row, const BilinearTap& column, float top_left, float top_right,
                                   float bottom_left, float bottom_right) {
    const float top = column.first_weight * top_left + column.second_weight * top_right;
    const float bottom = column.first_weight * bottom_left + column.second_weight * bottom_right;
    return row.first_weight * top + row.second_weight * bottom;
}

}  // namespace saccade::cuda
