#include "fatbin.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>

#include "failure.hpp"
#include "files.hpp"

namespace saccade {
namespace {

constexpr char VARIABLE[] = "SACCADE_FATBIN";
constexpr char NAME[] = "saccade.fatbin";
constexpr char COMPILE[] = "compile the kernels with 'make cuda'";
constexpr std::size_t MAX_BYTES = std::size_t{64} << 20;  // a hundred times what nvcc 13.0 makes of them

// The folder of the library, or program, that this code is part of, with its slash; "" where only its name is known.
std::string own_folder() {
    Dl_info own{};
    const bool known = dladdr(reinterpret_cast<const void*>(&read_fatbin), &own) != 0 && own.dli_fname != nullptr;
    const std::string path = known ? own.dli_fname : "";
    return path.substr(0, path.rfind('/') + 1);
}

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

std::string fatbin_path() {
    const char* named = std::getenv(VARIABLE);
    if (named != nullptr && *named != '\0') {
        return named;
    }
    const std::string folder = own_folder();
    const std::string built = folder + "../cuda/" + NAME;
    return exists(folder + NAME) || !exists(built) ? folder + NAME : built;
}

}  // namespace

std::string read_fatbin() {
    const std::string path = fatbin_path();
    if (!exists(path)) {
        fail(SACCADE_NOT_FOUND, path + ": the CUDA kernels are not there; " + COMPILE + ", and put saccade.fatbin beside " +
                                    "libsaccade.so or name it by " + VARIABLE);
    }
    return read_file(path, MAX_BYTES, COMPILE);
}

}  // namespace saccade
