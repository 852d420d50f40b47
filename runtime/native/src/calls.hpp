// A session's calls, one at a time: who is in it, what a cancel has to reach, and how long each stage took.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>

#include "engine.hpp"
#include "saccade.h"

namespace saccade {

class Calls {
public:
    // A call's time in its session: entered once, and left whatever happens. A cancel finds a call either under way or not.
    class Turn {
    public:
        explicit Turn(Calls& calls);
        ~Turn();
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

    private:
        Calls& calls_;
    };

    void cancel() noexcept;
    void stop_if_cancelled() const;

    // A call's stages lie between these two; the timings are the session's where it gets to the second.
    void begin();
    void succeed();
    const saccade_timings& timings() const { return timings_; }

    // The clock runs, and a cancelled session stops before its next stage.
    template <typename Body>
    void stage(double saccade_timings::*field, Body body) {
        stop_if_cancelled();
        const Clock::time_point start = Clock::now();
        body();
        under_way_.*field += elapsed_ms(start);
    }

    // Runs a network where a cancel can reach it. What it fails with after a cancel is the cancel.
    void run(Network& network, Arrays inputs, Arrays outputs);

private:
    using Clock = std::chrono::steady_clock;
    static double elapsed_ms(Clock::time_point start) {
        return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
    }

    std::mutex mutex_;  // of these three
    bool busy_ = false;
    Network* running_ = nullptr;  // the network that a cancel has to reach
    std::atomic<bool> cancelled_{false};  // written under the lock, looked at between stages without it

    Clock::time_point start_;
    saccade_timings timings_ = SACCADE_TIMINGS_INIT;  // of the last success
    saccade_timings under_way_ = SACCADE_TIMINGS_INIT;
};

}  // namespace saccade
