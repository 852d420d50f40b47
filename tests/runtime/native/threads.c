/* threads BUNDLE ENGINE_LIBRARY: what saccade.h promises to threads. Results are always compared bit for bit with those of
 * a session that was left alone. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"

#define SIDES 2
#define RUNS 15
#define PATCH 14
#define PATIENCE_S 60 /* for what has to happen sooner or later */

static saccade_model* model;
static int is_plain; /* a plain backbone's bundle, which takes no k and has no look */
static saccade_image image;
static saccade_run_options options = SACCADE_RUN_OPTIONS_INIT;
static saccade_sizes sizes = SACCADE_SIZES_INIT;
static results expected;

static saccade_session* new_session(void) {
    saccade_session* session = NULL;
    OK(saccade_session_create(model, &session));
    return session;
}

/* One run into spoilt buffers: right where it succeeded, and else the buffers are as they were. */
static saccade_status checked_run(saccade_session* session, results* into) {
    spoil(into);
    const saccade_status status = saccade_run(session, &image, 1, &options, &into->out);
    CHECK(status == SACCADE_OK ? is_same(into, &expected) : is_untouched(into));
    return status;
}

static void in_threads(void* (*body)(void*), void* argument) {
    pthread_t threads[SIDES];
    for (int i = 0; i < SIDES; ++i) {
        CHECK(pthread_create(&threads[i], NULL, body, argument) == 0);
    }
    for (int i = 0; i < SIDES; ++i) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

static int has_patience(time_t start) { return time(NULL) - start < PATIENCE_S; }

/* ---- a session for each thread ---- */

static void* run_own_session(void* unused) {
    (void)unused;
    results mine = results_for(&sizes);
    saccade_session* session = new_session();
    for (int64_t cells = 3; cells < 9; ++cells) { /* grids that the model has no positions for yet */
        saccade_run_options small = SACCADE_RUN_OPTIONS_INIT;
        small.height = small.width = cells * PATCH;
        small.k = is_plain ? 0 : 1;
        OK(saccade_warm_up(session, &image, 1, &small));
    }
    for (int i = 0; i < RUNS; ++i) {
        OK(checked_run(session, &mine));
    }
    saccade_session_free(session);
    free(mine.bytes);
    return NULL;
}

/* ---- everything at once, each thread with handles of its own, one path ---- */

static const char* bundle_path;
static const char* engine_library;

static void* run_own_everything(void* unused) {
    (void)unused;
    saccade_model* own = loaded_model(bundle_path, engine_library);
    saccade_session* session = NULL;
    OK(saccade_session_create(own, &session));
    saccade_model_free(own);
    results mine = results_for(&sizes);
    OK(checked_run(session, &mine));
    saccade_session_free(session);
    free(mine.bytes);
    return NULL;
}

/* ---- one error for each thread ---- */

static void* fail_here(void* unused) {
    (void)unused;
    CHECK(strcmp(saccade_last_error(), "no call has failed in this thread") == 0);
    REFUSED(saccade_session_create(NULL, NULL), SACCADE_INVALID_ARGUMENT, "model is NULL");
    return NULL;
}

static void check_errors(void) {
    REFUSED(saccade_bundle_open(NULL, NULL), SACCADE_INVALID_ARGUMENT, "path is NULL");
    in_threads(fail_here, NULL);
    CHECK(strstr(saccade_last_error(), "path is NULL") != NULL);
}

/* ---- one session for two threads ---- */

static atomic_int refused, finished;

/* Runs, looks (a backbone: warms up) and asks until a call of each kind was refused. */
static void* share_session(void* argument) {
    saccade_session* session = argument;
    results mine = results_for(&sizes);
    const saccade_outputs look = of_look(mine.out);
    const time_t start = time(NULL);
    for (int kind = 0; (atomic_load(&refused) != 7 || atomic_load(&finished) < RUNS) && has_patience(start); kind = (kind + 1) % 3) {
        saccade_timings timings = SACCADE_TIMINGS_INIT;
        saccade_status status = SACCADE_OK;
        if (kind == 0) {
            status = checked_run(session, &mine);
            atomic_fetch_add(&finished, status == SACCADE_OK);
        } else if (kind == 1) {
            spoil(&mine);
            status = is_plain ? saccade_warm_up(session, &image, 1, &options)
                              : saccade_look(session, &image, 1, &options, &look);
            CHECK(status == SACCADE_OK || is_untouched(&mine));
        } else {
            status = saccade_session_timings(session, &timings);
            CHECK(status == SACCADE_OK || timings.total_ms == 0);
        }
        CHECK(status == SACCADE_OK || (status == SACCADE_BUSY && strstr(saccade_last_error(), "another thread") != NULL));
        if (status == SACCADE_BUSY) {
            atomic_fetch_or(&refused, 1 << kind);
        }
    }
    free(mine.bytes);
    return NULL;
}

static void check_busy(void) {
    saccade_session* session = new_session();
    in_threads(share_session, session);
    CHECK(atomic_load(&refused) == 7 && atomic_load(&finished) >= RUNS);
    results after = results_for(&sizes);
    OK(checked_run(session, &after));
    free(after.bytes);
    saccade_session_free(session);
}

/* ---- cancel ---- */

static atomic_int stop;
static double run_ms; /* what a run takes in this build, on this machine */

static void* cancel_again_and_again(void* session) {
    for (long i = 0; !atomic_load(&stop); ++i) { /* pauses of up to three runs, so that some meet each stage and some none */
        const long pause_us = (long)((double)(i * 7919 % 1000) * 3.0 * run_ms);
        const struct timespec pause = {pause_us / 1000000, pause_us % 1000000 * 1000};
        nanosleep(&pause, NULL);
        OK(saccade_cancel(session));
    }
    return NULL;
}

static void check_cancel(void) {
    saccade_session* session = new_session();
    results mine = results_for(&sizes);
    saccade_timings timings = SACCADE_TIMINGS_INIT;
    OK(checked_run(session, &mine));
    OK(checked_run(session, &mine));
    OK(saccade_session_timings(session, &timings));
    run_ms = timings.total_ms;
    pthread_t canceller;
    CHECK(pthread_create(&canceller, NULL, cancel_again_and_again, session) == 0);
    int cancelled = 0, done = 0;
    for (const time_t start = time(NULL); (cancelled < RUNS || done < RUNS) && has_patience(start);) {
        const saccade_status status = checked_run(session, &mine);
        CHECK(status == SACCADE_OK || (status == SACCADE_CANCELLED && strstr(saccade_last_error(), "cancelled") != NULL));
        cancelled += status == SACCADE_CANCELLED;
        done += status == SACCADE_OK;
    }
    atomic_store(&stop, 1);
    CHECK(pthread_join(canceller, NULL) == 0);
    CHECK(cancelled >= RUNS && done >= RUNS);
    for (int i = 0; i < 3; ++i) { /* nothing is left of a cancel, nor does one do anything where nothing is under way */
        OK(saccade_cancel(session));
        OK(checked_run(session, &mine));
    }
    free(mine.bytes);
    saccade_session_free(session);
}

/* Loads `model` and finds out what a session of it gives. */
static void load(int32_t streams) {
    saccade_model_options with_streams = options_with(engine_library);
    with_streams.streams = streams;
    saccade_bundle* bundle = NULL;
    OK(saccade_bundle_open(bundle_path, &bundle));
    OK(saccade_model_load(bundle, &with_streams, &model));
    saccade_bundle_free(bundle);
    OK(saccade_plan(model, &image, 1, &options, &sizes));
    expected = results_for(&sizes);
    saccade_session* session = new_session();
    OK(saccade_run(session, &image, 1, &options, &expected.out));
    saccade_session_free(session);
}

static void unload(void) {
    saccade_model_free(model);
    free(expected.bytes);
}

int main(int argc, char** argv) {
    CHECK(argc == 3);
    bundle_path = argv[1];
    engine_library = argv[2];
    image = made_image(300, 400);
    is_plain = is_backbone(bundle_path);
    options.k = is_plain ? 0 : 20;

    check_errors();
    load(SIDES);
    in_threads(run_own_session, NULL);
    unload();
    load(1);
    in_threads(run_own_session, NULL);
    in_threads(run_own_everything, NULL);
    check_busy();
    check_cancel();
    unload();
    free_image(&image);
    return 0;
}
