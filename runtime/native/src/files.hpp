// Files of a bundle: read whole within a bound, or mapped; and their SHA-256.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>

namespace saccade {

// The content of a regular file of at most `limit` bytes; `remedy` ends the line of what goes wrong.
std::string read_file(const std::string& path, std::size_t limit, const char* remedy);

// SHA-256 as 64 hex digits.
std::string sha256(const void* data, std::size_t size);
std::string sha256_of_file(const std::string& path, const char* remedy);

// Fails unless the digest of a file is the one that `recorded_in` holds.
void check_digest(const std::string& digest, const std::string& expected, const std::string& path, const char* recorded_in,
                  const char* remedy);

// A file mapped for reading, page by page as it is used: its pages are the disk's, and can be dropped under pressure.
class MappedFile {
public:
    MappedFile(const std::string& path, const char* remedy);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const char* data() const { return data_; }
    std::size_t size() const { return size_; }
    const std::string& path() const { return path_; }

    // False once the file was written to or cut, which a mapping shows (pages that are gone would end the process). A
    // file that was replaced or deleted is another one: this mapping keeps the old content.
    bool is_unchanged() const;

private:
    std::string path_;
    int descriptor_;
    const char* data_ = nullptr;
    std::size_t size_ = 0;
    std::timespec written_{};
};

}  // namespace saccade
