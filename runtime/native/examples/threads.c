/* threads BUNDLE ENGINE_LIBRARY IMAGE.ppm...: two threads run the same images, each in a session of its own on one model,
 * and must come to the bits that one thread comes to alone.  An empty ENGINE_LIBRARY: as the loader finds it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ppm.h"
#include "saccade.h"

#define THREADS 2

/* What one thread works on.  Images and model are shared, the session and the results are its own. */
typedef struct Job {
    saccade_model* model;
    const saccade_image* images;
    size_t count;
    float* results; /* tokens of each image, `values` numbers apart */
    size_t values;
    saccade_status status;
    char error[1024]; /* the last error is each thread's own, so it is copied where it happened */
} Job;

static saccade_status run_images(Job* job, saccade_session* session) {
    saccade_status status = SACCADE_OK;
    for (size_t i = 0; i < job->count && status == SACCADE_OK; ++i) {
        saccade_outputs out = SACCADE_OUTPUTS_INIT;
        out.tokens = job->results + i * job->values;
        out.tokens_capacity = job->values;
        status = saccade_run(session, &job->images[i], 1, NULL, &out);
    }
    return status;
}

static void* run_job(void* argument) {
    Job* job = argument;
    saccade_session* session = NULL;
    job->status = saccade_session_create(job->model, &session);
    if (job->status == SACCADE_OK) {
        job->status = run_images(job, session);
    }
    if (job->status != SACCADE_OK) {
        snprintf(job->error, sizeof job->error, "%s", saccade_last_error());
    }
    saccade_session_free(session);
    return NULL;
}

/* End the program with the library's own line, which says what to do. */
static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        fprintf(stderr, "threads: %s\n", saccade_last_error());
        exit(1);
    }
}

static void* allocated(void* memory) {
    if (memory == NULL) {
        fprintf(stderr, "threads: out of memory\n");
        exit(1);
    }
    return memory;
}

/* Run the jobs side by side, and end the program where one failed. */
static void run_jobs(Job* jobs, int count) {
    pthread_t threads[THREADS];
    for (int i = 0; i < count; ++i) {
        if (pthread_create(&threads[i], NULL, run_job, &jobs[i]) != 0) {
            fprintf(stderr, "threads: cannot start a thread\n");
            exit(1);
        }
    }
    for (int i = 0; i < count; ++i) {
        pthread_join(threads[i], NULL);
    }
    for (int i = 0; i < count; ++i) {
        if (jobs[i].status != SACCADE_OK) {
            fprintf(stderr, "threads: thread %d: %s\n", i, jobs[i].error);
            exit(1);
        }
    }
}

static saccade_image* read_images(char** paths, size_t count) {
    saccade_image* images = allocated(calloc(count, sizeof *images));
    for (size_t i = 0; i < count; ++i) {
        const char* wrong = read_ppm(paths[i], &images[i]);
        if (wrong != NULL) {
            fprintf(stderr, "threads: %s: %s\n", paths[i], wrong);
            exit(1);
        }
    }
    return images;
}

int main(int argc, char** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: threads BUNDLE ENGINE_LIBRARY IMAGE.ppm...\n");
        return 2;
    }
    const size_t count = (size_t)argc - 3;
    saccade_image* images = read_images(argv + 3, count);
    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.engine_library = *argv[2] != '\0' ? argv[2] : NULL;
    options.streams = THREADS; /* with one stream the threads would take turns */
    check(saccade_bundle_open(argv[1], &bundle));
    check(saccade_model_load(bundle, &options, &model));
    saccade_bundle_free(bundle);

    saccade_sizes sizes = SACCADE_SIZES_INIT;
    check(saccade_plan(model, images, 1, NULL, &sizes));
    Job alone = {model, images, count, NULL, sizes.tokens, SACCADE_OK, ""};
    alone.results = allocated(malloc(count * sizes.tokens * sizeof(float)));
    run_jobs(&alone, 1);
    Job together[THREADS] = {alone, alone};
    for (int i = 0; i < THREADS; ++i) {
        together[i].results = allocated(calloc(count * sizes.tokens, sizeof(float)));
    }
    run_jobs(together, THREADS);
    saccade_model_free(model);

    int is_equal = 1;
    for (int i = 0; i < THREADS; ++i) {
        is_equal = is_equal && memcmp(together[i].results, alone.results, count * sizes.tokens * sizeof(float)) == 0;
        free(together[i].results);
    }
    printf("%d threads, %d images each: %s one thread's results\n", THREADS, (int)count, is_equal ? "equal to" : "NOT");
    for (size_t i = 0; i < count; ++i) {
        free((void*)images[i].pixels);
    }
    free(alone.results);
    free(images);
    return is_equal ? 0 : 1;
}
