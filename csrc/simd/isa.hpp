// Which instruction sets this machine can run, and how far the user lets it: SYMBOLICLIGHT_MAX_ISA names the last one.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "simd/dispatch.hpp"

namespace symboliclight {

// AMX tiles belong to a process only after the kernel has granted them.
inline bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

// Tiles of bfloat16 and int8 products, if this process may use them.
inline bool has_tiles() {
#if defined(SYMBOLICLIGHT_EMULATE_TILES)
    return true;
#elif defined(__x86_64__)
    unsigned a, b, c, d = 0;
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    return (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && tiles_granted();  // AMX-BF16, AMX-TILE, AMX-INT8
#else
    return false;
#endif
}

// VNNI on vectors of 32 bytes, as processors for desktops have it.
inline bool has_avxvnni() {
#if defined(__x86_64__)
    unsigned a = 0, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
    return false;
#endif
}

// Sums of products of 8-bit integers on Arm, signed by signed and unsigned by signed, as Linux tells of them.
inline bool has_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
    const unsigned long found = getauxval(AT_HWCAP);
    return (found >> 20 & 1) && (found >> 8 & 1);  // ASIMDDP, and ATOMICS, which code for Armv8.2 takes for granted
#else
    return false;
#endif
}

inline bool has_i8mm() {
#if defined(__aarch64__) && defined(__linux__)
    return has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1);
#else
    return false;
#endif
}

// Drops what comes after the named instruction set in the order of all names; `found` is a part of them in that order.
// A name that is none of them, which Python refuses (processor.py), caps nothing.
template <class T>
inline std::vector<T> capped(std::vector<T> found) {
    static const std::vector<std::string> order{"portable", "avx2", "avxvnni", "avx512", "vnni", "amx", "dotprod", "i8mm"};
    auto place = [](const std::string& name) {
        size_t at = 0;
        while (at < order.size() && order[at] != name) ++at;
        return at;
    };
    const char* most = std::getenv("SYMBOLICLIGHT_MAX_ISA");
    while (most && place(found.back()->name) > place(most)) found.pop_back();
    return found;
}

// From the plainest to the fastest.
inline std::vector<const Isa*> supported_isas() {
    std::vector<const Isa*> found{&isa_portable};
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    bool amx = avx512 && __builtin_cpu_supports("avx512bf16") && has_tiles();
    if (avx2) found.push_back(&isa_avx2);
    if (avx512) found.push_back(&isa_avx512);
    if (amx) found.push_back(&isa_amx);
#endif
    return capped(found);
}

}  // namespace symboliclight
