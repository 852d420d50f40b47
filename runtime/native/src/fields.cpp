#include "fields.hpp"

#include <algorithm>
#include <cstddef>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr std::size_t MAX_FILE_NAME = 128;
constexpr std::size_t MAX_DEPTH = 32;  // of objects and arrays in each other
constexpr char HEX_DIGITS[] = "0123456789abcdef";
constexpr char BYTE_ORDER_MARK[] = "\xEF\xBB\xBF";  // the parser would pass over it, but JSON has none

bool is_alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

bool is_hex_digit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

// Takes all values out of a tree, the innermost first, without allocating.
void empty(nlohmann::json& tree) noexcept {
    if (tree.is_structured()) {
        for (nlohmann::json& child : tree) {
            empty(child);
        }
        tree.clear();
    }
}

// Builds a tree value by value in its place, so that nothing but EmptyTree ever takes a part of it apart. Of two fields
// with one name the last counts, as in Python.
class TreeBuilder : public nlohmann::json_sax<nlohmann::json> {
public:
    explicit TreeBuilder(nlohmann::json& root) : root_(root) {}

    bool null() override { return add(nullptr); }
    bool boolean(bool value) override { return add(value); }
    bool number_integer(number_integer_t value) override { return add(value); }
    bool number_unsigned(number_unsigned_t value) override { return add(value); }
    bool number_float(number_float_t value, const string_t&) override { return add(value); }
    bool string(string_t& value) override { return add(std::move(value)); }
    bool binary(binary_t&) override { return false; }  // not in JSON
    bool key(string_t& name) override {
        field_ = &(*open_.back())[name];
        empty(*field_);
        return true;
    }
    bool start_object(std::size_t) override { return enter(nlohmann::json::value_t::object); }
    bool start_array(std::size_t) override { return enter(nlohmann::json::value_t::array); }
    bool end_object() override { return leave(); }
    bool end_array() override { return leave(); }
    bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override { return false; }

private:
    // Where the next value belongs.
    nlohmann::json& place() {
        if (open_.empty()) {
            return root_;
        }
        if (open_.back()->is_object()) {
            return *field_;
        }
        open_.back()->push_back(nullptr);
        return open_.back()->back();
    }
    bool add(nlohmann::json value) {
        place() = std::move(value);
        return true;
    }
    bool enter(nlohmann::json::value_t kind) {
        nlohmann::json& entered = place();
        entered = kind;
        open_.push_back(&entered);
        return open_.size() <= MAX_DEPTH;
    }
    bool leave() {
        open_.pop_back();
        return true;
    }

    nlohmann::json& root_;
    std::vector<nlohmann::json*> open_;  // the objects and arrays around the next value
    nlohmann::json* field_ = nullptr;    // of the innermost object
};

}  // namespace

void EmptyTree::operator()(nlohmann::json* tree) const noexcept {
    empty(*tree);
    delete tree;
}

Document parse_json(const std::string& text, const std::string& where, const char* remedy) {
    Document document(new nlohmann::json);
    TreeBuilder builder(*document);
    const bool is_marked = text.rfind(BYTE_ORDER_MARK, 0) == 0;
    if (is_marked || !nlohmann::json::sax_parse(text, &builder) || !document->is_object()) {
        fail(SACCADE_INVALID_BUNDLE, where + ": not a JSON object; " + remedy);
    }
    return document;
}

std::string shown(const std::string& text, std::size_t limit) {
    std::string line;
    for (const char c : text.substr(0, limit)) {
        if (c >= ' ' && c <= '~') {
            line += c;
        } else {
            const auto byte = static_cast<unsigned char>(c);
            line += {'\\', 'x', HEX_DIGITS[byte >> 4], HEX_DIGITS[byte & 15]};
        }
    }
    return text.size() <= limit ? line : line + "\u2026";
}

bool is_file_name(const std::string& text) {
    const auto fits = [](char c) { return is_alphanumeric(c) || c == '_' || c == '.' || c == '-'; };
    return !text.empty() && text.size() <= MAX_FILE_NAME && (is_alphanumeric(text[0]) || text[0] == '_') &&
           std::all_of(text.begin(), text.end(), fits);
}

Fields::Fields(const nlohmann::json& object, std::string where, const char* remedy)
    : object_(object), where_(std::move(where)), remedy_(remedy) {
    if (!object.is_object()) {
        refuse("not an object");
    }
}

void Fields::refuse(const std::string& what) const { fail(SACCADE_INVALID_BUNDLE, where_ + ": " + what + "; " + remedy_); }

bool Fields::has(const char* name) {
    seen_.insert(name);
    const auto found = object_.find(name);
    return found != object_.end() && !found->is_null();
}

const nlohmann::json& Fields::value(const char* name) {
    seen_.insert(name);
    const auto found = object_.find(name);
    if (found == object_.end()) {
        refuse(std::string("field '") + name + "' is missing");
    }
    return *found;
}

std::int64_t Fields::checked_integer(const nlohmann::json& found, const char* name, std::int64_t lowest,
                                     std::int64_t highest) const {
    const bool fits = found.is_number_integer() && (!found.is_number_unsigned() || found.get<std::uint64_t>() <= INT64_MAX) &&
                      found.get<std::int64_t>() >= lowest && found.get<std::int64_t>() <= highest;
    if (!fits) {
        refuse(std::string("'") + name + "' must be a whole number, " + std::to_string(lowest) + " to " +
               std::to_string(highest));
    }
    return found.get<std::int64_t>();
}

double Fields::checked_number(const nlohmann::json& found, const char* name, double lowest, double highest) const {
    if (!found.is_number() || !(found.get<double>() >= lowest && found.get<double>() <= highest)) {
        refuse(std::string("'") + name + "' must be a number, " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return found.get<double>();
}

std::int64_t Fields::integer(const char* name, std::int64_t lowest, std::int64_t highest) {
    return checked_integer(value(name), name, lowest, highest);
}

double Fields::number(const char* name, double lowest, double highest) {
    return checked_number(value(name), name, lowest, highest);
}

std::vector<std::int64_t> Fields::integers(const char* name, std::size_t count, std::int64_t lowest, std::int64_t highest) {
    std::vector<std::int64_t> found;
    for (const nlohmann::json& each : array(name, count)) {
        found.push_back(checked_integer(each, name, lowest, highest));
    }
    return found;
}

std::vector<double> Fields::numbers(const char* name, std::size_t count, double lowest, double highest) {
    std::vector<double> found;
    for (const nlohmann::json& each : array(name, count)) {
        found.push_back(checked_number(each, name, lowest, highest));
    }
    return found;
}

const std::string& Fields::text(const char* name) {
    const nlohmann::json& found = value(name);
    if (!found.is_string()) {
        refuse(std::string("'") + name + "' must be a text");
    }
    return found.get_ref<const std::string&>();
}

bool Fields::boolean(const char* name) {
    const nlohmann::json& found = value(name);
    if (!found.is_boolean()) {
        refuse(std::string("'") + name + "' must be true or false");
    }
    return found.get<bool>();
}

std::string Fields::file_name(const char* name) {
    const std::string& found = text(name);
    if (!is_file_name(found)) {
        refuse(std::string("'") + name + "' is not the name of a file in this folder");
    }
    return found;
}

std::string Fields::sha256(const char* name) {
    const std::string& found = text(name);
    if (found.size() != 64 || !std::all_of(found.begin(), found.end(), is_hex_digit)) {
        refuse(std::string("'") + name + "' is not a SHA-256");
    }
    return found;
}

Fields Fields::object(const char* name) { return Fields(value(name), where_ + ": " + name, remedy_); }

const nlohmann::json& Fields::array(const char* name) {
    const nlohmann::json& found = value(name);
    if (!found.is_array()) {
        refuse(std::string("'") + name + "' must be an array");
    }
    return found;
}

const nlohmann::json& Fields::array(const char* name, std::size_t count) {
    const nlohmann::json& found = array(name);
    if (found.size() != count) {
        refuse(std::string("'") + name + "' must have " + std::to_string(count) + " elements");
    }
    return found;
}

void Fields::finish() const {
    for (const auto& [name, unused] : object_.items()) {
        if (seen_.count(name) == 0) {
            refuse("unknown field '" + shown(name) + "'");
        }
    }
}

}  // namespace saccade
