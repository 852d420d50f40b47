#include "receipts.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <set>

#include "failure.hpp"
#include "fields.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAX_RECEIPT_BYTES = std::size_t{1} << 20;
constexpr std::size_t KEY_DIGITS = 16;

std::map<std::string, std::string> texts(Fields fields) {
    std::map<std::string, std::string> found;
    for (const auto& [name, unused] : fields.json().items()) {
        found[name] = fields.text(name.c_str());
    }
    return found;
}

std::string quoted(const std::string& text) {
    return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// 16 hex digits over all conditions as a JSON array of pairs, as the store names an engine's folder.
std::string key_of(const Conditions& conditions) {
    std::string text;
    for (const auto& [name, value] : conditions) {
        text += (text.empty() ? "[[" : ",[") + quoted(name) + "," + quoted(value) + "]";
    }
    text += text.empty() ? "[]" : "]";
    return sha256(text.data(), text.size()).substr(0, KEY_DIGITS);
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Compares what a receipt says twice, and its roles with those that there are.
bool is_consistent(const Receipt& receipt) {
    std::set<std::string> files, hashed;
    for (const auto& [role, file] : receipt.files) {
        const auto is_it = [&role = role](Role known) { return role == name_of(known); };
        if (std::none_of(std::begin(ALL_ROLES), std::end(ALL_ROLES), is_it)) {
            return false;
        }
        files.insert(file);
    }
    for (const auto& [file, digest] : receipt.sha256) {
        hashed.insert(file);
    }
    const auto says = [&](const char* name, const std::string& value) {
        const auto found = receipt.conditions.find(name);
        return found != receipt.conditions.end() && found->second == value;
    };
    return files == hashed && says("engine", receipt.engine) && says("precision", receipt.precision);
}

// What lies in a folder, sorted, without what is hidden (an interrupted build); where there is no folder there is nothing.
// Not by std::filesystem, whose iterator ends the process where no memory is left.
std::vector<std::string> names_in(const std::string& path) {
    struct Close {
        void operator()(DIR* folder) const { closedir(folder); }
    };
    const std::unique_ptr<DIR, Close> folder(opendir(path.c_str()));
    if (folder == nullptr && (errno == ENOENT || errno == ENOTDIR)) {
        return {};
    }
    const auto refuse = [&](int error) {
        error == ENOMEM ? throw std::bad_alloc()
                        : fail(SACCADE_IO_ERROR, "cannot read " + path + ": " + std::strerror(error) + "; make it readable");
    };
    if (folder == nullptr) {
        refuse(errno);
    }
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* each = readdir(folder.get())) {
        if (each->d_name[0] != '.') {
            names.emplace_back(each->d_name);
        }
        errno = 0;
    }
    if (errno != 0) {
        refuse(errno);
    }
    std::sort(names.begin(), names.end());
    return names;
}

std::string shortened(const std::string& value) { return shown(value, value.size() <= 40 ? 40 : 12); }

}  // namespace

Receipt receipt_from_json(const std::string& text, const std::string& folder) {
    const std::string where = folder + "/receipt.json";
    const Document parsed = parse_json(text, where, BUILD_AGAIN);
    Fields fields(*parsed, where, BUILD_AGAIN);
    Receipt receipt{};
    receipt.folder = folder;
    receipt.name = folder.substr(folder.rfind('/') + 1);
    receipt.engine = fields.text("engine");
    receipt.precision = fields.text("precision");
    receipt.realised = fields.text("realised");
    receipt.conditions = texts(fields.object("conditions"));
    Fields files = fields.object("files"), digests = fields.object("sha256");
    for (const auto& [role, unused] : files.json().items()) {
        const std::string file = files.file_name(role.c_str());
        receipt.files[role] = file;
    }
    for (const auto& [file, unused] : digests.json().items()) {
        receipt.sha256[file] = digests.sha256(file.c_str());
    }
    const std::string key = fields.text("key");
    for (const char* name : {"audit", "seconds", "saccade"}) {
        fields.skip(name);
    }
    fields.finish();
    if (key.size() != KEY_DIGITS || key_of(receipt.conditions) != key || !ends_with(folder, "-" + key)) {
        fields.refuse("not this engine's receipt (key " + shortened(key) + ")");
    }
    if (!is_consistent(receipt)) {
        fields.refuse("it contradicts itself, so somebody changed it");
    }
    return receipt;
}

std::vector<Receipt> receipts_of(const Bundle& bundle) {
    const std::string engines = bundle.path_of("engines");
    std::vector<Receipt> found;
    for (const std::string& name : names_in(engines)) {
        const std::string folder = engines + "/" + name;
        try {
            found.push_back(receipt_from_json(read_file(folder + "/receipt.json", MAX_RECEIPT_BYTES, BUILD_AGAIN), folder));
        } catch (const Failure&) {  // somebody else's, or damaged: not an engine
        }
    }
    return found;
}

void add_graphs(Conditions& conditions, const Bundle& bundle, const std::string& variant) {
    for (const Role role : roles_of(bundle.manifest)) {
        conditions[std::string(name_of(role)) + "_sha256"] = bundle.graph(role, variant).sha256;
    }
}

void check_wanted_folder(const Bundle& bundle, const Conditions& wanted) {
    const std::string name = wanted.at("engine") + "-" + wanted.at("precision") + "-" + key_of(wanted);
    const std::string folder = bundle.path_of("engines") + "/" + name;
    struct stat facts {};
    if (lstat(folder.c_str(), &facts) == 0) {
        receipt_from_json(read_file(folder + "/receipt.json", MAX_RECEIPT_BYTES, BUILD_AGAIN), folder);
    }
}

// Conditions of engines of another form: static ones, and those without patch tokens, which this library does not run.
bool has_form(const Conditions& conditions) { return conditions.count("static_k") + conditions.count("cls_only") != 0; }

std::string why_none_serves(const std::vector<Receipt>& receipts, const Conditions& wanted) {
    const std::string kind = wanted.at("engine") + " " + wanted.at("precision");
    const auto value_in = [](const Conditions& conditions, const std::string& name) {
        const auto found = conditions.find(name);
        return found == conditions.end() ? "none" : found->second;
    };
    std::string nearest;
    std::size_t fewest = SIZE_MAX;
    for (const Receipt& receipt : receipts) {
        if (receipt.engine != wanted.at("engine") || receipt.precision != wanted.at("precision") || has_form(receipt.conditions)) {
            continue;
        }
        Conditions either = wanted;
        either.insert(receipt.conditions.begin(), receipt.conditions.end());
        std::string changes;
        std::size_t count = 0;
        for (const auto& [name, unused] : either) {
            const std::string old = value_in(receipt.conditions, name), now = value_in(wanted, name);
            if (old != now) {
                changes += (count++ == 0 ? "" : "; ") + shown(name) + " " + shortened(old) + " -> " + shortened(now);
            }
        }
        if (count < fewest) {
            fewest = count;
            nearest = changes;
        }
    }
    return nearest.empty() ? "no " + kind + " engine is built yet"
                           : "the built " + kind + " engine is for other conditions (" + nearest + ")";
}

std::unique_ptr<MappedFile> map_engine_file(const Receipt& receipt, Role role) {
    const auto file = receipt.files.find(name_of(role));
    if (file == receipt.files.end()) {
        fail(SACCADE_INVALID_BUNDLE, receipt.folder + ": has no " + name_of(role) + "; " + BUILD_AGAIN);
    }
    const std::string path = receipt.folder + "/" + file->second;
    auto mapped = std::make_unique<MappedFile>(path, BUILD_AGAIN);
    check_digest(sha256(mapped->data(), mapped->size()), receipt.sha256.at(file->second), path, "receipt.json", BUILD_AGAIN);
    return mapped;
}

}  // namespace saccade
