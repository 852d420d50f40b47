#include "openvino_library.hpp"

#include <openvino/core/version.hpp>

#include <cstdlib>
#include <cstring>
#include <locale>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr long OLDEST_MAJOR = 2025;  // as in setup.cfg
constexpr char CHECK[] = "check its installation";
constexpr char REMEDY[] = "install OpenVINO, or give the path of the file libopenvino_c.so.* as engine_library";

// The SONAME carries the release as two digits of the year, the minor and the patch number: 2026.4.1 is .so.2641.
std::vector<std::string> library_names() {
    return {"libopenvino_c.so." + std::to_string(OPENVINO_VERSION_MAJOR % 100) + std::to_string(OPENVINO_VERSION_MINOR) +
                std::to_string(OPENVINO_VERSION_PATCH),
            "libopenvino_c.so"};
}

// OpenVINO's messages run over several lines with places in its source; the last one says what is wrong.
std::string last_line(const char* text) {
    std::string all = text == nullptr ? "" : text;
    while (!all.empty() && (all.back() == '\n' || all.back() == ' ')) {
        all.pop_back();
    }
    all = all.substr(all.rfind('\n') + 1);
    return all.empty() ? "no reason given" : all;
}

}  // namespace

OpenVINO::OpenVINO(const std::string& path) : library_("OpenVINO's C library", path, library_names(), REMEDY) {
    library_.bind(ov_get_openvino_version, "ov_get_openvino_version");  // before anything else is asked of it
    library_.bind(ov_version_free, "ov_version_free");
    ov_version_t version{};
    if (ov_get_openvino_version(&version) != OK || version.buildNumber == nullptr) {
        fail(SACCADE_ENGINE_UNAVAILABLE, library_.path() + " does not say its version; " + REMEDY);
    }
    const Owned<ov_version_t> owner(&version, ov_version_free);
    version_ = version.buildNumber;
    if (std::strtol(version_.c_str(), nullptr, 10) < OLDEST_MAJOR) {
        fail(SACCADE_ENGINE_UNAVAILABLE, library_.path() + " is OpenVINO " + version_ + ", but " +
                                             std::to_string(OLDEST_MAJOR) + ".0 or newer is needed; " + REMEDY);
    }
#define SACCADE_BIND(name) library_.bind(name, #name);
    SACCADE_OPENVINO_FUNCTIONS(SACCADE_BIND)
#undef SACCADE_BIND
}

void OpenVINO::check(ov_status_e status, const char* what, const char* object, const char* remedy) const {
    if (status != OK) {
        const Owned<const char> reason(ov_get_last_err_msg(), ov_free);
        const auto says = [&](const char* words) { return reason != nullptr && std::strstr(reason.get(), words) != nullptr; };
        if (says("bad_alloc") || says("can't alloc") || says("Cannot allocate memory")) {
            fail(SACCADE_OUT_OF_MEMORY, std::string("openvino cannot ") + what + " " + object + ": no memory is left; free some");
        }
        if (says("Resource temporarily unavailable") || says("Too many open files")) {
            remedy = "raise the limits of this process";
        } else if (std::locale() != std::locale::classic()) {  // with digit grouping it cannot read what it has written
            remedy = "set the global C++ locale to the classic one while loading";
        }
        fail(SACCADE_ENGINE_FAILED, std::string("openvino cannot ") + what + " " + object + ": " + last_line(reason.get()) + "; " + remedy);
    }
}

Core::Core(const std::string& library) : api(library), core_(nullptr, api.ov_core_free) {
    ov_core_t* core = nullptr;
    api.check(api.ov_core_create(&core), "start its", OPENVINO_DEVICE, CHECK);
    core_.reset(core);
}

void Core::set(const char* name, const std::string& value) const {
    api.check(api.ov_core_set_property(core_.get(), OPENVINO_DEVICE, name, value.c_str()), "set", name, CHECK);
}

std::string Core::property(const char* name) const {
    char* value = nullptr;
    api.check(api.ov_core_get_property(core_.get(), OPENVINO_DEVICE, name, &value), "read", name, CHECK);
    const Owned<const char> owner(value, api.ov_free);
    return value;
}

}  // namespace saccade
