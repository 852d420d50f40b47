/* What the test programs share: checks that end the program with one line, and outputs that show whether they were touched. */
#ifndef SACCADE_TESTS_CHECK_H
#define SACCADE_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "saccade.h"

#define PATTERN 0xA5 /* in every byte of an output that nobody wrote to */

#define CHECK(met)                                                                                              \
    do {                                                                                                        \
        if (!(met)) {                                                                                           \
            fprintf(stderr, "%s:%d: not so: %s; last error: %s\n", __FILE__, __LINE__, #met, saccade_last_error()); \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* A call that has to succeed. */
#define OK(call) check_status((call), SACCADE_OK, NULL, #call, __FILE__, __LINE__)

/* A call that has to fail with a status and a line that has `part` in it. */
#define REFUSED(call, status, part) check_status((call), (status), (part), #call, __FILE__, __LINE__)

static inline void check_status(saccade_status got, saccade_status wanted, const char* part, const char* call, const char* file,
                                int line) {
    const char* said = saccade_last_error();
    if (got != wanted) {
        fprintf(stderr, "%s:%d: %s: %s, not %s; last error: %s\n", file, line, call, saccade_status_name(got),
                saccade_status_name(wanted), said);
        exit(1);
    }
    if (part != NULL && (strstr(said, part) == NULL || strchr(said, '\n') != NULL)) {
        fprintf(stderr, "%s:%d: %s: the last error is not one line with \"%s\": %s\n", file, line, call, part, said);
        exit(1);
    }
}

static inline int all_bytes_are(const void* data, size_t size, unsigned char value) {
    const unsigned char* bytes = (const unsigned char*)data;
    for (size_t i = 0; i < size; ++i) {
        if (bytes[i] != value) {
            return 0;
        }
    }
    return 1;
}

/* Buffers for all outputs of a plan in one block; `out` leads into it. */
typedef struct results {
    saccade_outputs out;
    unsigned char* bytes;
    size_t size;
} results;

static inline void spoil(results* of) { memset(of->bytes, PATTERN, of->size); }

static inline int is_untouched(const results* of) { return all_bytes_are(of->bytes, of->size, PATTERN); }

static inline float* take_floats(results* from, size_t* used, size_t count) {
    float* taken = count == 0 ? NULL : (float*)(void*)(from->bytes + *used);
    *used += count * sizeof(float);
    return taken;
}

/* To be freed with free(made.bytes). Dense output is left out where k is too small for it. */
static inline results results_for(const saccade_sizes* sizes) {
    const saccade_outputs none = SACCADE_OUTPUTS_INIT;
    const size_t dense = sizes->k >= 5 || sizes->indices == 0 ? sizes->dense : 0;
    results made;
    made.out = none;
    made.size = sizes->indices * sizeof(int32_t) + (sizes->score_map + sizes->raw_score_map + sizes->prefix + sizes->cls +
                                                    sizes->logits + sizes->tokens + dense + sizes->attention + sizes->cls_last4) * sizeof(float);
    made.bytes = (unsigned char*)malloc(made.size);
    CHECK(made.bytes != NULL);
    spoil(&made);
    size_t used = sizes->indices * sizeof(int32_t);
    made.out.indices = sizes->indices == 0 ? NULL : (int32_t*)(void*)made.bytes;
    made.out.score_map = take_floats(&made, &used, sizes->score_map);
    made.out.raw_score_map = take_floats(&made, &used, sizes->raw_score_map);
    made.out.prefix = take_floats(&made, &used, sizes->prefix);
    made.out.cls = take_floats(&made, &used, sizes->cls);
    made.out.logits = take_floats(&made, &used, sizes->logits);
    made.out.tokens = take_floats(&made, &used, sizes->tokens);
    made.out.dense = take_floats(&made, &used, dense);
    made.out.attention = take_floats(&made, &used, sizes->attention);
    made.out.cls_last4 = take_floats(&made, &used, sizes->cls_last4);
    made.out.indices_capacity = sizes->indices;
    made.out.score_map_capacity = sizes->score_map;
    made.out.raw_score_map_capacity = sizes->raw_score_map;
    made.out.prefix_capacity = sizes->prefix;
    made.out.cls_capacity = sizes->cls;
    made.out.logits_capacity = sizes->logits;
    made.out.tokens_capacity = sizes->tokens;
    made.out.dense_capacity = dense;
    made.out.attention_capacity = sizes->attention;
    made.out.cls_last4_capacity = sizes->cls_last4;
    return made;
}

static inline int is_same(const results* one, const results* other) {
    return one->size == other->size && memcmp(one->bytes, other->bytes, one->size) == 0;
}

/* What saccade_look can give of them. */
static inline saccade_outputs of_look(saccade_outputs all) {
    all.indices = NULL;
    all.cls = all.logits = all.tokens = all.dense = all.attention = all.cls_last4 = NULL;
    return all;
}

/* An image of no two equal rows, whose pixels are to be freed. */
static inline saccade_image made_image(int64_t height, int64_t width) {
    saccade_image image = SACCADE_IMAGE_INIT;
    const size_t size = (size_t)3 * (size_t)height * (size_t)width;
    uint8_t* pixels = (uint8_t*)malloc(size);
    CHECK(pixels != NULL);
    uint32_t state = (uint32_t)(height * 31 + width);
    for (size_t i = 0; i < size; ++i) {
        state = state * 1664525u + 1013904223u;
        pixels[i] = (uint8_t)(state >> 24);
    }
    image.pixels = pixels;
    image.height = height;
    image.width = width;
    return image;
}

static inline void free_image(saccade_image* image) { free((void*)(uintptr_t)image->pixels); }

static inline saccade_model_options options_with(const char* engine_library) {
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.engine_library = engine_library;
    return options;
}

/* Whether a bundle is a plain backbone's, which takes no k and has no saccade_look. */
static inline int is_backbone(const char* path) {
    saccade_bundle* bundle = NULL;
    saccade_info info = SACCADE_INFO_INIT;
    OK(saccade_bundle_open(path, &bundle));
    OK(saccade_bundle_info(bundle, &info));
    saccade_bundle_free(bundle);
    return info.kind == SACCADE_KIND_BACKBONE;
}

/* A model with its bundle opened, read and freed. */
static inline saccade_model* loaded_model(const char* path, const char* engine_library) {
    const saccade_model_options options = options_with(engine_library);
    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    OK(saccade_bundle_open(path, &bundle));
    OK(saccade_model_load(bundle, &options, &model));
    saccade_bundle_free(bundle);
    return model;
}

#endif
