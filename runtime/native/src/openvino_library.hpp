// OpenVINO's C API, opened at run time: the functions that are used, as a table, owners of its objects, and a core.
#pragma once

#include <openvino/c/openvino.h>

#include <memory>
#include <string>

#include "library.hpp"

namespace saccade {

// One member per function, named as in OpenVINO's headers, which give the types.
#define SACCADE_OPENVINO_FUNCTIONS(apply)     \
    apply(ov_get_openvino_version)            \
    apply(ov_version_free)                    \
    apply(ov_get_last_err_msg)                \
    apply(ov_free)                            \
    apply(ov_core_create)                     \
    apply(ov_core_free)                       \
    apply(ov_core_set_property)               \
    apply(ov_core_get_property)               \
    apply(ov_core_import_model)               \
    apply(ov_core_read_model_from_memory_buffer) \
    apply(ov_core_compile_model)              \
    apply(ov_model_free)                      \
    apply(ov_compiled_model_free)             \
    apply(ov_compiled_model_get_property)     \
    apply(ov_compiled_model_inputs_size)      \
    apply(ov_compiled_model_outputs_size)     \
    apply(ov_compiled_model_input_by_index)   \
    apply(ov_compiled_model_output_by_index)  \
    apply(ov_compiled_model_create_infer_request) \
    apply(ov_output_const_port_free)          \
    apply(ov_port_get_any_name)               \
    apply(ov_port_get_partial_shape)          \
    apply(ov_port_get_element_type)           \
    apply(ov_partial_shape_free)              \
    apply(ov_infer_request_free)              \
    apply(ov_infer_request_set_tensor)        \
    apply(ov_infer_request_infer)             \
    apply(ov_infer_request_cancel)            \
    apply(ov_tensor_create_from_host_ptr)     \
    apply(ov_tensor_get_byte_size)            \
    apply(ov_tensor_free)                     \
    apply(ov_shape_create)                    \
    apply(ov_shape_free)

class OpenVINO {
public:
    // Opens the library and checks its version; `path` may be empty.
    explicit OpenVINO(const std::string& path);

    const std::string& version() const { return version_; }  // as in receipts

    // Fails with SACCADE_ENGINE_FAILED, what could not be done with which object, and OpenVINO's own reason, unless
    // `status` is OK. Pointers, so that a call that succeeds builds no text.
    void check(ov_status_e status, const char* what, const char* object, const char* remedy) const;

#define SACCADE_MEMBER(name) decltype(&::name) name = nullptr;
    SACCADE_OPENVINO_FUNCTIONS(SACCADE_MEMBER)
#undef SACCADE_MEMBER

private:
    Library library_;
    std::string version_;
};

// Owner of one OpenVINO object; the function that frees it comes from the table.
template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

constexpr char OPENVINO_DEVICE[] = "CPU";

// OpenVINO's plugins, and the properties that models are compiled and imported with.
class Core {
public:
    explicit Core(const std::string& library);

    void set(const char* name, const std::string& value) const;
    std::string property(const char* name) const;
    ov_core_t* get() const { return core_.get(); }

    const OpenVINO api;

private:
    Owned<ov_core_t> core_;
};

}  // namespace saccade
