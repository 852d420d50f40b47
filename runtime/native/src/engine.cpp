#include "engine.hpp"

#include "failure.hpp"
#include "names.hpp"

namespace saccade {

std::unique_ptr<Engine> load_engine([[maybe_unused]] const Bundle& bundle, const EngineRequest& request) {
#ifdef SACCADE_WITH_OPENVINO
    if (request.engine == SACCADE_ENGINE_OPENVINO) {
        return load_openvino(bundle, request);
    }
#endif
#ifdef SACCADE_WITH_TENSORRT
    if (request.engine == SACCADE_ENGINE_TENSORRT || request.engine == SACCADE_ENGINE_TENSORRT_RTX) {
        return load_tensorrt(bundle, request);
    }
#endif
    fail(SACCADE_UNSUPPORTED, std::string(engine_name(request.engine)) +
                                  " is not built into this libsaccade; configure it with that engine, or use another");
}

}  // namespace saccade
