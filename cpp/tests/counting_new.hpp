// Counts what operator new gives to this thread; the runtimes' own threads do not run our code.
#pragma once

#include <cstddef>

extern thread_local std::size_t allocations;
