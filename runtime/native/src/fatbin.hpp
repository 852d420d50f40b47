// Where the compiled CUDA kernels are: the fatbin that Python loads too.
#pragma once

#include <string>

namespace saccade {

// The content of the file that SACCADE_FATBIN names, else of saccade.fatbin beside this library, or where `make cuda`
// leaves it for the library that `make lib` builds. Fails with SACCADE_NOT_FOUND where there is none, with
// SACCADE_UNSUPPORTED where it is no whole fatbin.
std::string read_fatbin();

}  // namespace saccade
