// Packed weights on their way from memory while others are multiplied.
#pragma once

#include <cstdint>

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t FETCH = 4096;  // bytes in advance

// The same for a single row. On AMD's Zen 4 a line ahead was faster than a page; elsewhere nothing else was tried since.
inline int64_t fetch_of_one() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_is("amd")) return 64;
#endif
    return FETCH;
}
inline const int64_t FETCH_ONE = fetch_of_one();

// Fetches for `C` of N rows, from row n on, while they are multiplied with a block of `size` bytes from w on, a line at each
// step of 64 bytes. Where C is all rows, what lies a little ahead; else the next block, C / N of it.
struct Fetch {
    const uint8_t* at;
    const int64_t stride;
    const bool one;

    Fetch(const uint8_t* w, int64_t size, int64_t n, int64_t C, int64_t N)
        : at(C < N ? w + size + size * n / N : w + (N == 1 ? FETCH_ONE : FETCH)), stride(64 * C / N), one(N == 1) {}

    void step() {
        if (one) __builtin_prefetch(at);
        else __builtin_prefetch(at, 0, 2);  // into the second cache
        at += stride;
    }
};

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
