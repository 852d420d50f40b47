#include "files.hpp"

#include <fcntl.h>
#define OPENSSL_SUPPRESS_DEPRECATED  // see Sha256
#include <openssl/sha.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "failure.hpp"

namespace saccade {
namespace {

constexpr std::size_t BLOCK = std::size_t{1} << 20;  // bytes hashed at a time

[[noreturn]] void fail_to_read(const std::string& path, int error, const char* remedy) {
    if (error == ENOMEM) {
        throw std::bad_alloc();
    }
    if (error == EMFILE || error == ENFILE) {
        remedy = "raise the limit of open files";
    }
    const bool missing = error == ENOENT || error == ENOTDIR;
    const std::string what = missing ? path + " is missing" : "cannot read " + path + ": " + std::strerror(error);
    fail(missing ? SACCADE_NOT_FOUND : SACCADE_IO_ERROR, what + "; " + remedy);
}

// An open regular file. O_NONBLOCK: opening a pipe that somebody put there must not wait for its writer.
class OpenFile {
public:
    OpenFile(const std::string& path, const char* remedy) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
        if (descriptor_ < 0) {
            fail_to_read(path, errno, remedy);
        }
        if (fstat(descriptor_, &facts_) != 0) {
            const int error = errno;
            close(descriptor_);
            fail_to_read(path, error, remedy);
        }
        if (!S_ISREG(facts_.st_mode)) {
            close(descriptor_);
            fail(SACCADE_INVALID_BUNDLE, path + " is not a regular file; " + remedy);
        }
    }
    ~OpenFile() {
        if (descriptor_ >= 0) {
            close(descriptor_);
        }
    }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    const struct stat& facts() const { return facts_; }
    std::size_t size() const { return static_cast<std::size_t>(facts_.st_size); }
    int descriptor() const { return descriptor_; }
    int release() {
        const int descriptor = descriptor_;
        descriptor_ = -1;
        return descriptor;
    }

    // Reads up to `size` bytes; fewer only at the end of the file.
    std::size_t read_some(char* out, std::size_t size, const std::string& path, const char* remedy) const {
        std::size_t done = 0;
        while (done < size) {
            const ssize_t count = ::read(descriptor_, out + done, size - done);
            if (count < 0 && errno != EINTR) {
                fail_to_read(path, errno, remedy);
            }
            if (count == 0) {
                break;
            }
            done += count > 0 ? static_cast<std::size_t>(count) : 0;
        }
        return done;
    }

private:
    int descriptor_;
    struct stat facts_ {};
};

// By libcrypto's plain functions: its EVP ones read the system's configuration, which may forbid them, keep global state,
// and crash in a program that is exiting.
class Sha256 {
public:
    Sha256() { SHA256_Init(&context_); }
    void update(const void* data, std::size_t size) { SHA256_Update(&context_, data, size); }
    std::string hex() {
        std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
        SHA256_Final(digest.data(), &context_);
        constexpr char DIGITS[] = "0123456789abcdef";
        std::string text;
        for (const unsigned char byte : digest) {
            text += {DIGITS[byte >> 4], DIGITS[byte & 15]};
        }
        return text;
    }

private:
    SHA256_CTX context_;
};

}  // namespace

std::string read_file(const std::string& path, std::size_t limit, const char* remedy) {
    const OpenFile file(path, remedy);
    if (file.size() > limit) {
        fail(SACCADE_INVALID_BUNDLE, path + ": larger than " + std::to_string(limit) + " bytes; " + remedy);
    }
    std::string content(file.size(), '\0');
    content.resize(file.read_some(content.data(), content.size(), path, remedy));
    return content;
}

std::string sha256(const void* data, std::size_t size) {
    Sha256 digest;
    digest.update(data, size);
    return digest.hex();
}

std::string sha256_of_file(const std::string& path, const char* remedy) {
    const OpenFile file(path, remedy);
    Sha256 digest;
    std::vector<char> block(BLOCK);
    while (const std::size_t count = file.read_some(block.data(), block.size(), path, remedy)) {
        digest.update(block.data(), count);
    }
    return digest.hex();
}

void check_digest(const std::string& digest, const std::string& expected, const std::string& path, const char* recorded_in,
                  const char* remedy) {
    if (digest != expected) {
        fail(SACCADE_INVALID_BUNDLE,
             path + " was changed or cut short: its SHA-256 is not the one in " + recorded_in + "; " + remedy);
    }
}

MappedFile::MappedFile(const std::string& path, const char* remedy) : path_(path), descriptor_(-1) {
    OpenFile file(path, remedy);
    size_ = file.size();
    written_ = file.facts().st_mtim;
    if (size_ == 0) {
        fail(SACCADE_INVALID_BUNDLE, path + " is empty; " + remedy);
    }
    void* pages = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
    if (pages == MAP_FAILED) {
        fail_to_read(path, errno, remedy);
    }
    data_ = static_cast<const char*>(pages);
    descriptor_ = file.release();
}

MappedFile::~MappedFile() {
    munmap(const_cast<char*>(data_), size_);
    close(descriptor_);
}

bool MappedFile::is_unchanged() const {
    struct stat now {};
    return fstat(descriptor_, &now) == 0 && static_cast<std::size_t>(now.st_size) == size_ &&
           now.st_mtim.tv_sec == written_.tv_sec && now.st_mtim.tv_nsec == written_.tv_nsec;
}

}  // namespace saccade
