/* lifetimes BUNDLE ENGINE_LIBRARY: handles may be freed in any order, and a session needs neither its bundle nor its model. */
#include "check.h"

enum { BUNDLE, MODEL, SESSION };

int main(int argc, char** argv) {
    CHECK(argc == 3);
    const int orders[6][3] = {{BUNDLE, MODEL, SESSION}, {BUNDLE, SESSION, MODEL}, {MODEL, BUNDLE, SESSION},
                              {MODEL, SESSION, BUNDLE}, {SESSION, BUNDLE, MODEL}, {SESSION, MODEL, BUNDLE}};
    const saccade_model_options options = options_with(argv[2]);
    saccade_image image = made_image(75, 100);
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    results first = {SACCADE_OUTPUTS_INIT, NULL, 0};
    for (int i = 0; i < 6; ++i) {
        saccade_bundle* bundle = NULL;
        saccade_model* model = NULL;
        saccade_session* session = NULL;
        OK(saccade_bundle_open(argv[1], &bundle));
        OK(saccade_model_load(bundle, &options, &model));
        OK(saccade_session_create(model, &session));
        OK(saccade_plan(model, &image, 1, NULL, &sizes));
        results now = results_for(&sizes);
        for (int place = 0; place < 3; ++place) {
            switch (orders[i][place]) {
                case BUNDLE: saccade_bundle_free(bundle); break;
                case MODEL: saccade_model_free(model); break;
                default: /* run last thing, with whatever is left */
                    OK(saccade_run(session, &image, 1, NULL, &now.out));
                    saccade_session_free(session);
            }
        }
        if (i == 0) {
            first = now;
        } else {
            CHECK(is_same(&now, &first));
            free(now.bytes);
        }
    }
    free(first.bytes);
    free_image(&image);
    return 0;
}
