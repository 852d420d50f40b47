#include "engine.hpp"

#include "failure.hpp"
#include "names.hpp"

namespace saccade {

std::unique_ptr<Engine> load_engine(const Bundle& bundle, const EngineRequest& request) {
    if (bundle.manifest.model.kind == Kind::backbone && request.engine != SACCADE_ENGINE_OPENVINO) {
        fail(SACCADE_UNSUPPORTED, bundle.path + ": libsaccade runs plain backbones on openvino alone, not on " +
                                      engine_name(request.engine) + "; use openvino, or Python's saccade");
    }
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
