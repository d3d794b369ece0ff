// Vectors of W floats for one instruction set, chosen by the compiler flags of the including source file.
// Everything lives in a namespace named after that set, so that no two sets can share a symbol.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "table.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * W)));
typedef int32_t vint __attribute__((vector_size(4 * W)));
typedef uint32_t vuint __attribute__((vector_size(4 * W)));
typedef uint16_t vhalf __attribute__((vector_size(2 * W)));

using Full = std::integral_constant<int, W>;  // number of lanes where all of them are in use

inline vfloat splat(float x) { return x - vfloat{}; }

inline vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }

// NaN stays NaN, as in torch.clamp.
inline vfloat clamp(vfloat x, vfloat limit) {
    x = x < -limit ? -limit : x;
    return x > limit ? limit : x;
}

inline vfloat widen(vhalf x) { return (vfloat)(__builtin_convertvector(x, vuint) << 16); }

// Round to nearest even; NaN becomes the quiet NaN 0x7fc0 so that rounding cannot turn it into infinity.
inline vhalf narrow(vfloat x) {
    vuint bits = (vuint)x;
    vuint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return __builtin_convertvector(x == x ? rounded : rounded * 0u + 0x7fc0u, vhalf);
}

template <class N>
inline vfloat load(const float* p, N n) {
    vfloat x{};
    std::memcpy(&x, p, sizeof(float) * n);
    return x;
}

template <class N>
inline vfloat load(const bf16* p, N n) {
    vhalf x{};
    std::memcpy(&x, p, sizeof(bf16) * n);
    return widen(x);
}

template <class N>
inline void store(float* p, vfloat x, N n) { std::memcpy(p, &x, sizeof(float) * n); }

template <class N>
inline void store(bf16* p, vfloat x, N n) {
    vhalf half = narrow(x);
    std::memcpy(p, &half, sizeof(bf16) * n);
}

// The value that T can hold nearest to x: what one elementwise torch operation in T leaves behind.
template <class T>
inline vfloat round_to(vfloat x) {
    if constexpr (std::is_same_v<T, bf16>) return widen(narrow(x));
    return x;
}

// f(i, lanes) over 0 <= i < n: whole vectors with a compile-time count, then the rest.
template <class F>
inline void lanes(int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, Full{});
    if (i < n) f(i, int(n - i));
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
