/* classify BUNDLE IMAGE.ppm [PRECISION [ENGINE_LIBRARY]]: print the five best classes of an image. */
#include <stdio.h>
#include <stdlib.h>

#include "ppm.h"
#include "saccade.h"

#define TOP 5

/* End the program with the library's own line, which says what to do. */
static void check(saccade_status status) {
    if (status != SACCADE_OK) {
        fprintf(stderr, "classify: %s\n", saccade_last_error());
        exit(1);
    }
}

/* Insert each class into the best so far, which stay in order. */
static void print_best(const float* logits, size_t classes) {
    size_t best[TOP + 1];
    size_t count = 0;
    for (size_t i = 0; i < classes; ++i) {
        size_t place = count;
        for (; place > 0 && logits[i] > logits[best[place - 1]]; --place) {
            best[place] = best[place - 1];
        }
        best[place] = i;
        count += count < TOP;
    }
    for (size_t place = 0; place < count; ++place) {
        printf("%d. class %d, logit %.4f\n", (int)place + 1, (int)best[place], logits[best[place]]);
    }
}

int main(int argc, char** argv) {
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: classify BUNDLE IMAGE.ppm [PRECISION [ENGINE_LIBRARY]]\n");
        return 2;
    }
    saccade_image image = SACCADE_IMAGE_INIT;
    const char* wrong = read_ppm(argv[2], &image);
    if (wrong != NULL) {
        fprintf(stderr, "classify: %s: %s\n", argv[2], wrong);
        return 1;
    }

    saccade_bundle* bundle = NULL;
    saccade_model* model = NULL;
    saccade_session* session = NULL;
    saccade_model_options options = SACCADE_MODEL_OPTIONS_INIT;
    options.precision = argc > 3 ? saccade_precision_from_name(argv[3]) : SACCADE_FP32;
    options.engine_library = argc > 4 ? argv[4] : NULL;
    if (options.precision < 0) {
        fprintf(stderr, "classify: precision %s is unknown; give fp32, bf16, fp16 or int8\n", argv[3]);
        return 1;
    }
    check(saccade_bundle_open(argv[1], &bundle));
    check(saccade_model_load(bundle, &options, &model));
    check(saccade_session_create(model, &session));

    saccade_sizes sizes = SACCADE_SIZES_INIT;
    check(saccade_plan(model, &image, 1, NULL, &sizes)); /* options NULL: the bundle's own size and k */
    if (sizes.logits == 0) {
        fprintf(stderr, "classify: %s has no classes; export it with --task classify\n", argv[1]);
        return 1;
    }
    saccade_outputs out = SACCADE_OUTPUTS_INIT;
    out.logits = malloc(sizes.logits * sizeof *out.logits);
    out.logits_capacity = sizes.logits;
    if (out.logits == NULL) {
        fprintf(stderr, "classify: no memory for %d logits\n", (int)sizes.logits);
        return 1;
    }
    check(saccade_run(session, &image, 1, NULL, &out));

    printf("%s\n", saccade_model_description(model));
    print_best(out.logits, sizes.logits);

    free(out.logits);
    saccade_session_free(session);
    saccade_model_free(model);
    saccade_bundle_free(bundle);
    free((void*)image.pixels);
    return 0;
}
