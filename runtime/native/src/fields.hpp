// Reading JSON that nobody vouches for: typed fields with bounds, and an error that names the field.
#pragma once

// No assertion of the JSON library may end the caller's process, whatever kind of build this is; ours under sanitizers may.
#ifndef SACCADE_JSON_ASSERTIONS
#define JSON_ASSERT(met) static_cast<void>(0)
#endif
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace saccade {

// A parsed text, always an object. The destructor of nlohmann::json allocates to take a tree apart, which ends the process
// where no memory is left, so the tree is emptied before.
struct EmptyTree {
    void operator()(nlohmann::json* tree) const noexcept;
};
using Document = std::unique_ptr<nlohmann::json, EmptyTree>;

// Parses `text`; `where` and `remedy` frame the line of what goes wrong.
Document parse_json(const std::string& text, const std::string& where, const char* remedy);

// What a file says, fit to stand in a line: anything but printable ASCII made visible, and cut to `limit` bytes.
std::string shown(const std::string& text, std::size_t limit = 40);

// Whether a text is a name of one file: nothing hidden, no separator, so that no path leads out of the folder.
bool is_file_name(const std::string& text);

// One JSON object, read field by field. A field that nobody asked for is an error on `finish`, since its writer meant
// something by it.
class Fields {
public:
    Fields(const nlohmann::json& object, std::string where, const char* remedy);

    bool has(const char* name);  // and is not null
    std::int64_t integer(const char* name, std::int64_t lowest, std::int64_t highest);
    double number(const char* name, double lowest, double highest);
    const std::string& text(const char* name);
    bool boolean(const char* name);
    std::string file_name(const char* name);
    std::string sha256(const char* name);
    Fields object(const char* name);
    const nlohmann::json& array(const char* name);  // any length
    std::vector<std::int64_t> integers(const char* name, std::size_t count, std::int64_t lowest, std::int64_t highest);
    std::vector<double> numbers(const char* name, std::size_t count, double lowest, double highest);
    void skip(const char* name) { seen_.insert(name); }
    void finish() const;

    const nlohmann::json& json() const { return object_; }
    const std::string& where() const { return where_; }
    [[noreturn]] void refuse(const std::string& what) const;

private:
    const nlohmann::json& value(const char* name);
    const nlohmann::json& array(const char* name, std::size_t count);
    std::int64_t checked_integer(const nlohmann::json& found, const char* name, std::int64_t lowest, std::int64_t highest) const;
    double checked_number(const nlohmann::json& found, const char* name, double lowest, double highest) const;

    const nlohmann::json& object_;
    std::string where_;
    const char* remedy_;
    std::set<std::string> seen_;
};

}  // namespace saccade
