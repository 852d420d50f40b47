/* endings BUNDLE ENGINE_LIBRARY: threads are cancelled and the program ends while bundles are being opened. */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"

enum { ROUNDS = 30, OPENERS = 3 };

static const char* bundle_path;

static void open_one(void) {
    saccade_bundle* bundle = NULL;
    OK(saccade_bundle_open(bundle_path, &bundle));
    saccade_bundle_free(bundle);
}

static void* open_for_ever(void* unused) {
    (void)unused;
    for (;;) {
        open_one();
        pthread_testcancel();
    }
    return NULL;
}

/* A thread that is cancelled inside a call leaves it first. */
static void cancel_threads(void) {
    for (int round = 0; round < ROUNDS; ++round) {
        pthread_t thread;
        void* result = NULL;
        CHECK(pthread_create(&thread, NULL, open_for_ever, NULL) == 0);
        usleep((useconds_t)(200 * round));
        CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED);
    }
}

int main(int argc, char** argv) {
    CHECK(argc >= 2);
    bundle_path = argv[1];
    CHECK(atexit(open_one) == 0); /* before the library's own first use: it runs after whatever that registers */
    cancel_threads();
    for (int i = 0; i < OPENERS; ++i) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, open_for_ever, NULL) == 0);
    }
    usleep(20000);
    return 0; /* with threads in the library */
}
