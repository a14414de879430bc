// Counts what operator new gives to this thread, and who asked for it. The runtimes' own threads do
// not run the library's code.
#pragma once

#include <cstddef>

struct Allocations {
    std::size_t program = 0;  // asked for by code of this program: the library and its headers
    std::size_t others = 0;   // by code of another shared library: the runtime
};

extern thread_local Allocations allocations;
extern thread_local bool counting;  // finding out who asked is slow
