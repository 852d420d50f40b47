// One infer request of OpenVINO on one compiled graph.
#pragma once

#include <memory>
#include <vector>

#include "engine.hpp"
#include "openvino_library.hpp"

namespace saccade {

class OpenVINONetwork : public Network {
public:
    OpenVINONetwork(std::shared_ptr<const Core> core, ov_compiled_model_t* model, Role role);

    void run(Arrays inputs, Arrays outputs) override;
    void cancel() noexcept override;

private:
    struct Bound {
        Array array;
        Owned<ov_tensor_t> owner;
    };

    void bind(const Array& array);
    void check_size(const Array& output);
    Owned<ov_tensor_t> wrapped(const Array& array) const;

    std::shared_ptr<const Core> core_;
    Role role_;
    std::vector<Bound> bound_;
    Owned<ov_infer_request_t> request_;  // goes before the tensors that it was given
};

}  // namespace saccade
