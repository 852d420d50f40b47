#include "calls.hpp"

#include "failure.hpp"

namespace saccade {

Calls::Turn::Turn(Calls& calls) : calls_(calls) {
    const std::lock_guard<std::mutex> lock(calls_.mutex_);
    if (calls_.busy_) {
        fail(SACCADE_BUSY, "another thread is running this session; make one session per thread");
    }
    calls_.busy_ = true;
    calls_.cancelled_ = false;
}

Calls::Turn::~Turn() {
    const std::lock_guard<std::mutex> lock(calls_.mutex_);
    calls_.busy_ = false;
}

void Calls::cancel() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = busy_;
    if (running_ != nullptr) {
        running_->cancel();
    }
}

void Calls::stop_if_cancelled() const {
    if (cancelled_) {
        fail(SACCADE_CANCELLED, "cancelled by saccade_cancel");
    }
}

void Calls::begin() {
    start_ = Clock::now();
    under_way_ = SACCADE_TIMINGS_INIT;
}

void Calls::succeed() {
    under_way_.total_ms = elapsed_ms(start_);
    timings_ = under_way_;
}

void Calls::run(Network& network, Arrays inputs, Arrays outputs) {
    const auto set_running = [this](Network* now) {
        const std::lock_guard<std::mutex> lock(mutex_);
        running_ = now;
    };
    set_running(&network);
    try {
        network.run(inputs, outputs);
    } catch (...) {
        set_running(nullptr);
        stop_if_cancelled();
        throw;
    }
    set_running(nullptr);
    stop_if_cancelled();
}

}  // namespace saccade
