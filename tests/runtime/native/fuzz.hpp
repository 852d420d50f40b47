// One fuzz target: fuzz_bundle.cpp or fuzz_image.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

// Runs one input to its end; false where the library refused it with a Failure. Anything else that happens is a finding.
bool accepts(const std::uint8_t* data, std::size_t size);
