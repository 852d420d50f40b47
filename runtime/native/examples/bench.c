/* bench BUNDLE [--engine-library FILE] [--precision fp32] [--size 518] [--k 136] [--frames 30] [--warm-up 3] [--json]:
 * time what a fresh process waits for its first result, and each stage of the frames that follow.  A plain backbone keeps
 * every patch, whatever --k says. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "saccade.h"

#define MAX_FRAMES 100000

typedef struct settings {
    const char* bundle;
    const char* engine_library;
    const char* precision;
    int size, k, frames, warm_up, json;
} settings;

/* Milliseconds from one point of a start to the next. */
typedef struct start {
    double open, load, session, first;
} start;

typedef struct statistic {
    double median, p90;
} statistic;

/* The library's stages and their sum, the whole call as its caller sees it, and what of that no network took. */
enum { RESIZE = 1, EXTRACTOR = 5, NORMALIZE = 6, BACKBONE = 7, CALL = 10, BESIDE = 11, ROWS = 12 };
static const char* const NAMES[ROWS] = {"fit",       "resize",   "selector", "select", "gather", "extractor",
                                        "normalize", "backbone", "fill",     "total",  "call",   "beside networks"};

/* Whether a kind of bundle has a row: some stages are LookWhere's, and some a plain backbone's. */
static int has_row(int32_t kind, int row) {
    return kind == SACCADE_KIND_BACKBONE ? row < RESIZE || row > EXTRACTOR : row != NORMALIZE && row != BACKBONE;
}

static void fail(const char* line) {
    fprintf(stderr, "bench: %s\n", line);
    exit(1);
}

static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        fail(saccade_last_error());
    }
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

/* A whole number from 1 on; 0 is none, which the checks of the library name. */
static int number(const char* text) {
    char* end = NULL;
    const long value = strtol(text, &end, 10);
    return *end == '\0' && value > 0 && value <= MAX_FRAMES ? (int)value : 0;
}

static settings settings_from(int argc, char** argv) {
    settings chosen = {NULL, NULL, "fp32", 518, 136, 30, 3, 0};
    for (int i = 1; i < argc; ++i) {
        const char* name = argv[i];
        const char* value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(name, "--json") == 0) {
            chosen.json = 1;
        } else if (name[0] != '-') {
            chosen.bundle = name;
        } else {
            int* place = strcmp(name, "--size") == 0      ? &chosen.size
                         : strcmp(name, "--k") == 0       ? &chosen.k
                         : strcmp(name, "--frames") == 0  ? &chosen.frames
                         : strcmp(name, "--warm-up") == 0 ? &chosen.warm_up
                                                          : NULL;
            if (place != NULL && (*place = number(value)) == 0) {
                fail("--size, --k, --frames and --warm-up take whole numbers from 1 on");
            } else if (strcmp(name, "--precision") == 0) {
                chosen.precision = value;
                if (saccade_precision_from_name(value) < 0) {
                    fail("--precision takes fp32, fp16, bf16, int8 or fp8");
                }
            } else if (strcmp(name, "--engine-library") == 0) {
                chosen.engine_library = value;
            } else if (place == NULL) {
                fail("unknown option; see the first lines of bench.c");
            }
            ++i;
        }
    }
    if (chosen.bundle == NULL) {
        fail("usage: bench BUNDLE [--engine-library FILE] [--precision fp32] [--size 518] [--k 136] [--frames 30] [--json]");
    }
    return chosen;
}

/* Seeded noise: no stage takes longer or shorter for what an image shows. */
static uint8_t* noise(size_t size) {
    uint8_t* pixels = malloc(size);
    uint32_t state = 1;
    for (size_t i = 0; pixels != NULL && i < size; ++i) {
        state = state * 1664525u + 1013904223u;
        pixels[i] = (uint8_t)(state >> 24);
    }
    return pixels;
}

static int ascending(const void* one, const void* other) {
    const double a = *(const double*)one, b = *(const double*)other;
    return (a > b) - (a < b);
}

static statistic statistic_of(double* values, int count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    const statistic found = {0.5 * (values[(count - 1) / 2] + values[count / 2]), values[(9 * (count - 1) + 5) / 10]};
    return found;
}

/* One frame; its milliseconds go into column `frame` of `ms`, which has `frames` columns. */
static void run_frame(saccade_session* session, const saccade_image* image, const saccade_run_options* options,
                      const saccade_outputs* outputs, double* ms, int frames, int frame) {
    saccade_timings found = SACCADE_TIMINGS_INIT;
    const double begin = now_ms();
    check(saccade_run(session, image, 1, options, outputs));
    const double call = now_ms() - begin;
    check(saccade_session_timings(session, &found));
    const double networks = found.selector_ms + found.extractor_ms + found.backbone_ms; /* 0 on a GPU, which has no times of stages */
    const double rows[ROWS] = {found.fit_ms,       found.resize_ms,    found.selector_ms,  found.select_ms,
                               found.gather_ms,    found.extractor_ms, found.normalize_ms, found.backbone_ms,
                               found.fill_ms,      found.total_ms,     call,
                               networks > 0 ? call - networks : 0};
    for (int i = 0; i < ROWS; ++i) {
        ms[i * frames + frame] = rows[i];
    }
}

static void print_quoted(const char* text) {
    putchar('"');
    for (; *text != '\0'; ++text) {
        if (*text == '"' || *text == '\\') {
            putchar('\\');
        }
        putchar(*text);
    }
    putchar('"');
}

static void print_json(const settings* chosen, int32_t kind, const char* what, const start* waited, const statistic* rows) {
    printf("{\"engine\": ");
    print_quoted(what);
    printf(", \"size\": %d, \"k\": %d, \"frames\": %d, ", chosen->size, chosen->k, chosen->frames);
    printf("\"start_ms\": {\"open\": %.3f, \"load\": %.3f, \"session\": %.3f, \"first\": %.3f}, ", waited->open, waited->load,
           waited->session, waited->first);
    printf("\"stages_ms\": {");
    for (int i = 0; i < ROWS; ++i) {
        if (has_row(kind, i)) {
            printf("%s\"%s\": {\"median\": %.4f, \"p90\": %.4f}", i == 0 ? "" : ", ", NAMES[i], rows[i].median, rows[i].p90);
        }
    }
    printf("}}\n");
}

static void print_table(const settings* chosen, int32_t kind, const char* what, const start* waited, const statistic* rows) {
    printf("%s\n", what);
    printf("%d x %d px, k %d, batch 1, %d frames after %d\n", chosen->size, chosen->size, chosen->k, chosen->frames,
           chosen->warm_up);
    printf("start: open %.1f ms, load %.1f ms, session %.1f ms, first result %.1f ms\n\n", waited->open, waited->load,
           waited->session, waited->first);
    printf("%-16s %10s %10s\n", "stage", "median ms", "p90 ms");
    for (int i = 0; i < ROWS; ++i) {
        if (has_row(kind, i)) {
            printf("%-16s %10.3f %10.3f\n", NAMES[i], rows[i].median, rows[i].p90);
        }
    }
    printf("\nbeside the networks: %.2f %% of a call\n", 100.0 * rows[BESIDE].median / rows[CALL].median);
}

int main(int argc, char** argv) {
    settings chosen = settings_from(argc, argv);
    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_session* session = NULL;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.precision = saccade_precision_from_name(chosen.precision);
    options.engine_library = chosen.engine_library;
    saccade_image image = SACCADE_IMAGE_INIT;
    image.height = image.width = chosen.size;
    uint8_t* pixels = noise((size_t)3 * (size_t)chosen.size * (size_t)chosen.size);
    image.pixels = pixels;
    saccade_run_options run = SACCADE_RUN_OPTIONS_INIT;
    run.height = run.width = chosen.size;

    const double begin = now_ms();
    check(saccade_bundle_open(chosen.bundle, &bundle));
    const double opened = now_ms();
    saccade_info info = SACCADE_INFO_INIT;
    check(saccade_bundle_info(bundle, &info));
    run.k = info.kind == SACCADE_KIND_BACKBONE ? 0 : chosen.k;
    check(saccade_model_load(bundle, &options, &model));
    const double loaded = now_ms();
    check(saccade_session_create(model, &session));
    const double created = now_ms();
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    check(saccade_plan(model, &image, 1, &run, &sizes));
    chosen.k = sizes.k;
    const int frames = chosen.frames;
    float* features = malloc((sizes.cls + sizes.logits + sizes.tokens) * sizeof *features);
    double* ms = malloc((size_t)(ROWS) * (size_t)frames * sizeof *ms);
    if (pixels == NULL || features == NULL || ms == NULL) {
        fail("out of memory");
    }
    saccade_outputs out = SACCADE_OUTPUTS_INIT; /* what the task has: cls, logits, or tokens where it is segment */
    out.cls = sizes.cls > 0 ? features : NULL;
    out.cls_capacity = sizes.cls;
    out.logits = sizes.logits > 0 ? features : NULL;
    out.logits_capacity = sizes.logits;
    out.tokens = sizes.cls + sizes.logits == 0 ? features : NULL;
    out.tokens_capacity = sizes.tokens;
    run_frame(session, &image, &run, &out, ms, frames, 0);
    const start waited = {opened - begin, loaded - opened, created - loaded, now_ms() - created};

    for (int i = 0; i < chosen.warm_up; ++i) {
        run_frame(session, &image, &run, &out, ms, frames, 0);
    }
    for (int i = 0; i < frames; ++i) {
        run_frame(session, &image, &run, &out, ms, frames, i);
    }
    statistic rows[ROWS];
    for (int i = 0; i < ROWS; ++i) {
        rows[i] = statistic_of(ms + i * frames, frames);
    }
    (chosen.json ? print_json : print_table)(&chosen, info.kind, saccade_model_description(model), &waited, rows);

    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    free(ms);
    free(features);
    free(pixels);
    return 0;
}
