// What the test programs share.
#pragma once

#include "tt_metal.hpp"

#include <cstdio>
#include <cstdlib>

namespace program {

// Ends the program with a message if something is not as it must be, with ttalloc or without.
inline void check(bool holds, const char* what) {
    if (!holds) {
        std::printf("FAILED: %s\n", what);
        std::fflush(stdout);
        std::_Exit(1);
    }
}

} // namespace program
