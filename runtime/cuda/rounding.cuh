// float32 rounded to 16 bits, to nearest and ties to even, in integers: the same bits on every processor.
#pragma once

#include <cstdint>

#include "block.cuh"

namespace saccade::cuda {

struct Half {
    std::uint16_t bits;
};
struct Bfloat16 {
    std::uint16_t bits;
};

// Drops the lowest `count` bits (1 to 31) of a magnitude. A carry out of the mantissa raises the exponent, as it should.
SACCADE_BOTH inline std::uint32_t rounded_shift(std::uint32_t magnitude, int count) {
    const std::uint32_t odd = magnitude >> count & 1u;
    return (magnitude + ((1u << (count - 1)) - 1u) + odd) >> count;
}

SACCADE_BOTH inline void store(float value, float* out) { *out = value; }

SACCADE_BOTH inline void store(float value, Bfloat16* out) {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
    const std::uint32_t rounded = magnitude > 0x7F800000u ? 0x7FC0u : rounded_shift(magnitude, 16);
    out->bits = static_cast<std::uint16_t>(bits >> 31 << 15 | rounded);
}

SACCADE_BOTH inline std::uint32_t half_magnitude(std::uint32_t magnitude) {
    if (magnitude > 0x7F800000u) {
        return 0x7E00u;  // NaN
    }
    if (magnitude >= 0x47800000u) {
        return 0x7C00u;  // 2^16 and above, infinity included
    }
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    if (exponent >= -14) {  // the exponent's bias changes from 127 to 15; what rounds up to 2^16 becomes infinity
        return rounded_shift(magnitude - (112u << 23), 13);
    }
    if (exponent < -25) {
        return 0;  // nearer to 0 than to 2^-24, the smallest subnormal half
    }
    const std::uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;  // in units of 2^(exponent - 23)
    return rounded_shift(mantissa, -1 - exponent);                       // in units of 2^-24
}

SACCADE_BOTH inline void store(float value, Half* out) {
    const std::uint32_t bits = bits_of(value);
    out->bits = static_cast<std::uint16_t>(bits >> 31 << 15 | half_magnitude(bits & 0x7FFFFFFFu));
}

}  // namespace saccade::cuda
