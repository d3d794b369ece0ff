// Packed weights on their way from memory while others are multiplied.
#pragma once

#include <cstdint>

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t FETCH = 4096, FETCH_TILES = 16384;  // bytes in advance; tiles go through weights faster

// The same for a single row. On AMD's Zen 4 a line ahead is faster than a page; on Intel half a page is slower, two or four are level.
inline int64_t fetch_of_one() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_is("amd")) return 64;
#endif
    return FETCH;
}
inline const int64_t FETCH_ONE = fetch_of_one();

// Fetches for `C` of N rows, from row n on, while they are multiplied with K blocks of together `size` bytes from w on, K lines
// at each step. Where C is all rows and K one, what lies a little ahead; else the next blocks, C / N of them, which follow or lie at
// `next`.
struct Prefetch {
    const uint8_t* at;
    const int64_t stride;
    const bool one;

    Prefetch(const uint8_t* w, int64_t size, int64_t n, int64_t C, int64_t N, int64_t K = 1, const void* next = nullptr)
        : at(C == N && K == 1 && !next ? w + (N == 1 ? FETCH_ONE : FETCH) : (next ? (const uint8_t*)next : w + size) + size * n / N),
          stride(64 * K * C / N), one(N == 1) {}

    // Fetches `stride` bytes at each step, from `at` on.
    Prefetch(const uint8_t* at, int64_t stride) : at(at), stride(stride), one(false) {}

    void step() {
        if (one) __builtin_prefetch(at);
        else for (int64_t line = 0; line < stride; line += 64) __builtin_prefetch(at + line, 0, 2);  // into the second cache
        at += stride;
    }
};

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
