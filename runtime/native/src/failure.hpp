// Failure: what library code throws. Every exported function turns it into a status and this thread's last error.
#pragma once

#include <stdexcept>
#include <string>

#include "saccade.h"

namespace saccade {

// One line that says what, where and what to do, and the status it becomes.
class Failure : public std::runtime_error {
public:
    Failure(saccade_status status, const std::string& line) : std::runtime_error(line), status_(status) {}
    saccade_status status() const { return status_; }

private:
    saccade_status status_;
};

[[noreturn]] inline void fail(saccade_status status, const std::string& line) { throw Failure(status, line); }

inline void require(bool met, const char* line) {
    if (!met) {
        fail(SACCADE_INVALID_ARGUMENT, line);
    }
}

}  // namespace saccade
