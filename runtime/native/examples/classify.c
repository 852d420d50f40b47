/* classify BUNDLE IMAGE.ppm [PRECISION [ENGINE_LIBRARY]]: print the five best classes of an image. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "saccade.h"

#define TOP 5

/* End the program with the library's own line, which says what to do. */
static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        fprintf(stderr, "classify: %s\n", saccade_last_error());
        exit(1);
    }
}

/* One number of a PPM header; comments run from # to the end of the line. */
static int header_number(FILE* file) {
    int number = 0, c = fgetc(file);
    while (isspace(c) || c == '#') {
        if (c == '#') {
            while (c != '\n' && c != EOF) {
                c = fgetc(file);
            }
        }
        c = fgetc(file);
    }
    for (; isdigit(c) && number < 100000; c = fgetc(file)) {
        number = 10 * number + (c - '0');
    }
    return number; /* the one byte of white space after it is read */
}

/* A binary 8-bit PPM as packed RGB, to be freed; NULL where it is none. */
static uint8_t* read_ppm(const char* path, int* height, int* width) {
    FILE* file = fopen(path, "rb");
    uint8_t* pixels = NULL;
    if (file != NULL && fgetc(file) == 'P' && fgetc(file) == '6') {
        *width = header_number(file);
        *height = header_number(file);
        const int deepest = header_number(file);
        const size_t size = (size_t)3 * (size_t)*width * (size_t)*height;
        pixels = deepest == 255 && size > 0 ? malloc(size) : NULL;
        if (pixels != NULL && fread(pixels, 1, size, file) != size) {
            free(pixels);
            pixels = NULL;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return pixels;
}

/* Print the best classes, best first, by picking the largest logit that is left. */
static void print_best(const float* logits, size_t classes) {
    int best[TOP];
    for (int place = 0; place < TOP && (size_t)place < classes; ++place) {
        best[place] = -1;
        for (size_t i = 0; i < classes; ++i) {
            int taken = 0;
            for (int before = 0; before < place; ++before) {
                taken = taken || best[before] == (int)i;
            }
            if (!taken && (best[place] < 0 || logits[i] > logits[best[place]])) {
                best[place] = (int)i;
            }
        }
        printf("%d. class %d, logit %.4f\n", place + 1, best[place], logits[best[place]]);
    }
}

int main(int argc, char** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: classify BUNDLE IMAGE.ppm [PRECISION [ENGINE_LIBRARY]]\n");
        return 2;
    }
    int height = 0, width = 0;
    uint8_t* pixels = read_ppm(argv[2], &height, &width);
    if (pixels == NULL) {
        fprintf(stderr, "classify: %s is not an 8-bit binary PPM\n", argv[2]);
        return 1;
    }

    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_session* session = NULL;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.precision = argc > 3 ? saccade_precision_from_name(argv[3]) : SACCADE_FP32;
    options.engine_library = argc > 4 ? argv[4] : NULL;
    check(saccade_bundle_open(argv[1], &bundle));
    check(saccade_model_load(bundle, &options, &model));
    check(saccade_session_create(model, &session));

    saccade_image image = SACCADE_IMAGE_INIT;
    image.pixels = pixels;
    image.height = height;
    image.width = width;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    check(saccade_plan(model, &image, 1, NULL, &sizes)); /* options NULL: the bundle's own size and k */
    float* logits = malloc(sizes.logits * sizeof *logits);
    if (sizes.logits == 0 || logits == NULL) {
        fprintf(stderr, "classify: %s has no classes; export it with --task classify\n", argv[1]);
        return 1;
    }
    saccade_outputs out = SACCADE_OUTPUTS_INIT;
    out.logits = logits;
    out.logits_capacity = sizes.logits;
    check(saccade_run(session, &image, 1, NULL, &out));

    printf("%s\n", saccade_model_description(model));
    print_best(logits, sizes.logits);

    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    free(logits);
    free(pixels);
    return 0;
}
