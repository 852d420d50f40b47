/* rounds BUNDLE ENGINE_LIBRARY COUNT: open, load, run and free COUNT times; print the resident memory after a fifth of the
 * rounds and after all of them, in KiB. */
#include <unistd.h>

#include "check.h"

static long resident_kib(void) {
    long total = 0, resident = 0;
    FILE* file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%ld %ld", &total, &resident) == 2);
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static void one_round(const char* path, const char* engine_library, const saccade_image* image) {
    saccade_model* model = loaded_model(path, engine_library);
    saccade_session* session = NULL;
    saccade_sizes sizes = SACCADE_SIZES_INIT;
    OK(saccade_plan(model, image, 1, NULL, &sizes));
    results made = results_for(&sizes);
    OK(saccade_session_create(model, &session));
    OK(saccade_run(session, image, 1, NULL, &made.out));
    CHECK(!is_untouched(&made));
    saccade_session_free(session);
    saccade_model_free(model);
    free(made.bytes);
}

int main(int argc, char** argv) {
    CHECK(argc == 4);
    const int count = atoi(argv[3]);
    saccade_image image = made_image(75, 100);
    long early = 0;
    for (int i = 0; i < count; ++i) {
        one_round(argv[1], argv[2], &image);
        if (i + 1 == count / 5) {
            early = resident_kib();
        }
    }
    printf("%ld %ld\n", early, resident_kib());
    free_image(&image);
    return 0;
}
