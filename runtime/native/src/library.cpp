#include "library.hpp"

#include <dlfcn.h>

#include "failure.hpp"

namespace saccade {
namespace {

std::string reason() {
    const char* line = dlerror();
    return line == nullptr ? "no reason given" : line;
}

}  // namespace

Library::Library(const char* what, const std::string& path, const std::vector<std::string>& names, const char* remedy)
    : what_(what), path_(path), handle_(nullptr) {
    const std::vector<std::string> candidates = path.empty() ? names : std::vector<std::string>{path};
    std::string first_reason, tried;
    for (const std::string& each : candidates) {
        handle_ = dlopen(each.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (handle_ != nullptr) {
            path_ = each;
            return;
        }
        const std::string why = reason();
        first_reason = first_reason.empty() ? why : first_reason;
        tried += (tried.empty() ? "" : ", ") + each;
    }
    fail(SACCADE_ENGINE_UNAVAILABLE, std::string(what) + " cannot be opened (tried " + tried + "; " + first_reason + "); " + remedy);
}

void* Library::symbol(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) {
        fail(SACCADE_ENGINE_UNAVAILABLE, std::string(what_) + ": " + path_ + " has no " + name + "; install a version this library supports");
    }
    return found;
}

}  // namespace saccade
