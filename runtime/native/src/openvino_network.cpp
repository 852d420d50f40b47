#include "openvino_network.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr char LOAD_AGAIN[] = "load the model again";
constexpr char FREE_MEMORY[] = "free some memory";

bool is_same(const Array& one, const Array& other) {
    return one.data == other.data && one.rank == other.rank && std::equal(one.shape, one.shape + one.rank, other.shape);
}

}  // namespace

OpenVINONetwork::OpenVINONetwork(std::shared_ptr<const Core> core, ov_compiled_model_t* model, Role role)
    : core_(std::move(core)), role_(role), request_(nullptr, core_->api.ov_infer_request_free) {
    ov_infer_request_t* request = nullptr;
    core_->api.check(core_->api.ov_compiled_model_create_infer_request(model, &request), "create an infer request for the", name_of(role), FREE_MEMORY);
    request_.reset(request);
}

void OpenVINONetwork::run(Arrays inputs, Arrays outputs) {
    for (const Array& each : inputs) {
        bind(each);
    }
    for (const Array& each : outputs) {
        bind(each);
    }
    core_->api.check(core_->api.ov_infer_request_infer(request_.get()), "run the", name_of(role_), LOAD_AGAIN);
    for (const Array& each : outputs) {
        check_size(each);
    }
}

void OpenVINONetwork::cancel() noexcept { core_->api.ov_infer_request_cancel(request_.get()); }

// Tells the request where an array lies, unless it knows.
void OpenVINONetwork::bind(const Array& array) {
    const auto same_name = [&](const Bound& each) { return std::strcmp(each.array.name, array.name) == 0; };
    const auto known = std::find_if(bound_.begin(), bound_.end(), same_name);
    if (known != bound_.end() && is_same(known->array, array)) {
        return;
    }
    Bound fresh{array, wrapped(array)};
    core_->api.check(core_->api.ov_infer_request_set_tensor(request_.get(), array.name, fresh.owner.get()),
                     "take the tensor", array.name, LOAD_AGAIN);
    if (known != bound_.end()) {
        *known = std::move(fresh);
    } else {
        bound_.push_back(std::move(fresh));
    }
}

// A graph that gives less than it was asked for shrinks the tensor and leaves the rest of the array as it was.
void OpenVINONetwork::check_size(const Array& output) {
    const auto same_name = [&](const Bound& each) { return std::strcmp(each.array.name, output.name) == 0; };
    const auto bound = std::find_if(bound_.begin(), bound_.end(), same_name);
    std::size_t given = 0;
    core_->api.check(core_->api.ov_tensor_get_byte_size(bound->owner.get(), &given), "measure the tensor", output.name, LOAD_AGAIN);
    if (given != bytes_of(output)) {
        bound_.erase(bound);  // its shape is not what it was bound with
        fail(SACCADE_INVALID_BUNDLE, std::string("the ") + name_of(role_) + " gave " + std::to_string(given) + " bytes of " +
                                         output.name + " and not " + std::to_string(bytes_of(output)) + "; " + EXPORT_AGAIN);
    }
}

Owned<ov_tensor_t> OpenVINONetwork::wrapped(const Array& array) const {
    const OpenVINO& api = core_->api;
    ov_shape_t shape{};
    api.check(api.ov_shape_create(array.rank, array.shape, &shape), "make a shape for", array.name, FREE_MEMORY);
    ov_tensor_t* made = nullptr;
    const ov_status_e status = api.ov_tensor_create_from_host_ptr(F32, shape, array.data, &made);
    api.ov_shape_free(&shape);
    api.check(status, "make a tensor for", array.name, FREE_MEMORY);
    return Owned<ov_tensor_t>(made, api.ov_tensor_free);
}

}  // namespace saccade
