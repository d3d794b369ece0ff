// Working memory of a thread.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

// Memory of one thread, kept between calls: a fresh allocation of this size costs more in page faults than it holds.
class Scratch {
public:
    ~Scratch() { std::free(memory); }
    void reserve(int64_t bytes) {
        used = 0;
        if (bytes <= size) return;
        std::free(memory);
        memory = std::aligned_alloc(64, size = (bytes + 63) / 64 * 64);
        if (!memory) std::abort();
    }
    template <class T>
    T* take(int64_t n) {
        T* start = reinterpret_cast<T*>(static_cast<char*>(memory) + used);
        used += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
        return start;
    }

private:
    void* memory = nullptr;
    int64_t size = 0, used = 0;
};

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
