// Working memory of a thread.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

// Memory of one thread, kept between calls: a fresh allocation of this size costs more in page faults than it holds.
class Scratch {
public:
    ~Scratch() { release(); }

    // Room for `pieces` arrays of `bytes` in all; what take() returned before is gone.
    void reserve(int64_t bytes, int64_t pieces) {
        bytes += pieces * (64 + GAP);
        used = 0;
        if (bytes > size) {
            release();
            memory = static_cast<char*>(std::aligned_alloc(64, size = (bytes + 63) / 64 * 64));
            if (!memory) std::abort();
        }
#if defined(__SANITIZE_ADDRESS__)
        ASAN_POISON_MEMORY_REGION(memory, size);
#endif
    }

    template <class T>
    T* take(int64_t n) {
        char* start = memory + used;
        used += (n * int64_t(sizeof(T)) + 63) / 64 * 64 + GAP;
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(start, n * sizeof(T));
#endif
        return reinterpret_cast<T*>(start);
    }

private:
    void release() {
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(memory, size);
#endif
        std::free(memory);
    }

#if defined(__SANITIZE_ADDRESS__)
    static constexpr int64_t GAP = 64;  // poisoned, so that the sanitizer sees one array run into the next
#else
    static constexpr int64_t GAP = 0;
#endif
    char* memory = nullptr;
    int64_t size = 0, used = 0;
};

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
