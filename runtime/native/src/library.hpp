// A shared library opened at run time, so that its absence is a status and not a loader error.
#pragma once

#include <string>
#include <vector>

namespace saccade {

class Library {
public:
    // Opens `path`, or where that is empty the first of `names` that the loader finds; `what` and `remedy` frame the line.
    // It is never unloaded: engines keep threads and state that do not survive it.
    Library(const char* what, const std::string& path, const std::vector<std::string>& names, const char* remedy);

    // The address of a function; fails with SACCADE_ENGINE_UNAVAILABLE where the library has none of that name.
    void* symbol(const char* name) const;

    template <typename Function>
    void bind(Function& function, const char* name) const {
        function = reinterpret_cast<Function>(symbol(name));
    }

    const std::string& path() const { return path_; }

private:
    const char* what_;
    std::string path_;
    void* handle_;
};

}  // namespace saccade
