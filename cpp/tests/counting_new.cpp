#include "counting_new.hpp"

#include <dlfcn.h>
#include <execinfo.h>

#include <cstdlib>
#include <cstring>
#include <new>

thread_local Allocations allocations;
thread_local bool counting = false;

namespace {

// Whether the code that wanted memory is this program's: the first caller that is not libstdc++,
// through which strings and the like ask.
bool from_program(const void* caller) {
    static const void* const program = [] {
        Dl_info own{};
        dladdr(reinterpret_cast<const void*>(&from_program), &own);
        return static_cast<const void*>(own.dli_fbase);
    }();
    void* frames[24];
    const int depth = backtrace(frames, 24);
    int i = 0;
    while (i < depth && frames[i] != caller) ++i;
    for (; i < depth; ++i) {
        Dl_info info{};
        if (dladdr(frames[i], &info) == 0 || info.dli_fname == nullptr) continue;
        if (std::strstr(info.dli_fname, "libstdc++") == nullptr) return info.dli_fbase == program;
    }
    return true;  // not known: counted against us
}

void* counted(std::size_t size, std::size_t alignment, const void* caller) {
    if (counting) {
        counting = false;  // looking for the caller may allocate
        ++(from_program(caller) ? allocations.program : allocations.others);
        counting = true;
    }
    if (size == 0) size = 1;
    const std::size_t whole = (size + alignment - 1) / alignment * alignment;
    void* memory = alignment <= alignof(std::max_align_t) ? std::malloc(size)
                                                          : std::aligned_alloc(alignment, whole);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

}  // namespace

// The other forms of new and delete call these (the standard's default behaviour).
void* operator new(std::size_t size) { return counted(size, 1, __builtin_return_address(0)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return counted(size, static_cast<std::size_t>(alignment), __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
