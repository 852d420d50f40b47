// Whose allocation is it: the nearest caller that is no allocator, language library or libcrypto decides.
#pragma once

#include <execinfo.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "check.h"

class Origin {
public:
    // To be made once libsaccade is loaded, and before allocations are asked about: it allocates.
    Origin() {
        dl_iterate_phdr(add_module, this);
        CHECK(has_ours_);
        void* frames[1];
        backtrace(frames, 1);  // loads what it needs
    }

    // Whether the caller of this function is about to allocate for libsaccade. Allocates nothing.
    bool is_ours() const {
        void* frames[DEPTH];
        const int count = backtrace(frames, DEPTH);
        for (int i = 0; i < count; ++i) {
            const auto address = reinterpret_cast<std::uintptr_t>(frames[i]);
            const Module* module = module_of(address);
            if (module == nullptr || !module->passes_through) {
                return module != nullptr;
            }
        }
        return false;
    }

private:
    static constexpr int DEPTH = 24;

    struct Module {
        std::uintptr_t begin;
        std::uintptr_t end;
        bool passes_through;  // allocates for its caller; else it is libsaccade
    };

    static int add_module(dl_phdr_info* info, std::size_t, void* self) {
        const bool is_program = info->dlpi_name[0] == '\0';  // where the hooks are
        bool passes_through = is_program;
        for (const char* name : {"/libstdc++.so", "/libc.so", "/libcrypto.so", "/libgcc_s.so", "/libasan.so", "/libubsan.so"}) {
            passes_through = passes_through || std::strstr(info->dlpi_name, name) != nullptr;
        }
        const bool is_ours = std::strstr(info->dlpi_name, "/libsaccade.so") != nullptr;
        auto* origin = static_cast<Origin*>(self);
        origin->has_ours_ = origin->has_ours_ || is_ours;
        for (int i = 0; (passes_through || is_ours) && i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type == PT_LOAD && (header.p_flags & PF_X) != 0) {
                const std::uintptr_t begin = info->dlpi_addr + header.p_vaddr;
                origin->modules_.push_back({begin, begin + header.p_memsz, passes_through});
            }
        }
        return 0;
    }

    const Module* module_of(std::uintptr_t address) const {
        for (const Module& each : modules_) {
            if (address >= each.begin && address < each.end) {
                return &each;
            }
        }
        return nullptr;
    }

    std::vector<Module> modules_;
    bool has_ours_ = false;
};
