// Fuzz target: the files of a bundle that are parsed. The first byte says which, the rest is the file's content:
//   m  bundle.json
//   n  positions.npy
//   r  receipt.json, after a line with the name of its folder
#include <string>

#include "bundle.hpp"
#include "failure.hpp"
#include "fuzz.hpp"
#include "npy.hpp"
#include "plan.hpp"
#include "receipts.hpp"

using namespace saccade;

namespace {

constexpr char REMEDY[] = "export the bundle again";

// A bundle that is let in must be one that a run can be planned for, whatever the plan says of it.
void read_manifest(const std::string& text) {
    const Manifest manifest = manifest_from_json(text, "bundle.json");
    saccade_image image = SACCADE_IMAGE_INIT;
    image.height = image.width = 1;
    const saccade_run_options defaults = SACCADE_RUN_OPTIONS_INIT;
    sizes_of(manifest, plan_of(manifest, &image, 1, defaults));
}

void read_receipt(const std::string& text) {
    const std::size_t line = text.find('\n');
    if (line != std::string::npos) {
        receipt_from_json(text.substr(line + 1), "lookwhere/engines/" + text.substr(0, line));
    }
}

}  // namespace

bool accepts(const std::uint8_t* data, std::size_t size) {
    if (size == 0) {
        return false;
    }
    const std::string content(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0]) {
            case 'm': read_manifest(content); return true;
            case 'n': array_from_npy(content, "positions.npy", REMEDY); return true;
            case 'r': read_receipt(content); return true;
            default: return false;
        }
    } catch (const Failure&) {
        return false;
    }
}
