// Vectors of W floats for one instruction set, chosen by the compiler flags of the including source file.
// Everything lives in a namespace named after that set, so that no two sets can share a symbol.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 takes its own undefined vectors for a mistake
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "simd/dispatch.hpp"

#if defined(SYMBOLICLIGHT_EMULATE_TILES) && defined(__AMX_TILE__)
#include "simd/emulate.hpp"
#endif

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
typedef int8_t vsmall __attribute__((vector_size(W)));

#if defined(__AMX_TILE__)
// Tile instructions, tile configuration too, read memory that GCC does not know they read, so that it may leave out or put off what
// is written before them. Not across this.
inline void tile_barrier() { asm volatile("" ::: "memory"); }

// The 64 bytes that set up the tiles of a thread.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};

    void load() const {
        tile_barrier();
        _tile_loadconfig(this);
    }
};
#endif

using Full = std::integral_constant<int, W>;  // number of lanes where all of them are in use
using One = std::integral_constant<int, 1>;

inline vfloat splat(float x) { return x - vfloat{}; }

inline vint lane_numbers() {
    vint lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane;
}

inline vfloat fma(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__)
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }  // one instruction; of NaN it may lose track

// NaN stays NaN, as in torch.clamp.
inline vfloat clamp(vfloat x, vfloat limit) {
    x = x < -limit ? -limit : x;
    return x > limit ? limit : x;
}

// Longer integers of the same values: GCC 12 converts halves of a vector and joins them, or one lane after another.
inline vuint longer(vhalf x) {
#if defined(__AVX512F__)
    return (vuint)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
    return (vuint)_mm256_cvtepu16_epi32((__m128i)x);
#else
    return __builtin_convertvector(x, vuint);
#endif
}

inline vint longer(vsmall x) {
#if defined(__AVX512F__)
    return (vint)_mm512_cvtepi8_epi32((__m128i)x);
#elif defined(__AVX2__)
    return (vint)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)x));
#else
    return __builtin_convertvector(x, vint);
#endif
}

inline vfloat widen(vhalf x) { return (vfloat)(longer(x) << 16); }

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
inline vfloat load(const int8_t* p, N n) {
    vsmall x{};
    std::memcpy(&x, p, n);
    return __builtin_convertvector(longer(x), vfloat);
}

template <class N>
inline void store(float* p, vfloat x, N n) { std::memcpy(p, &x, sizeof(float) * n); }

template <class N>
inline void store(bf16* p, vfloat x, N n) {
    vhalf half = narrow(x);
    std::memcpy(p, &half, sizeof(bf16) * n);
}

// Stores past the caches where p is aligned to 64 bytes: for what nobody reads soon. finish_past() makes it visible.
template <class T, class N>
inline void store_past(T* p, vfloat x, N n, bool aligned) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<T, float> && std::is_same_v<N, Full>)
        if (aligned) return _mm512_stream_ps(p, (__m512)x);
#endif
    (void)aligned;
    store(p, x, n);
}

inline void finish_past() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

// The value that T can hold nearest to x: what one elementwise torch operation in T leaves behind.
template <class T>
inline vfloat round_to(vfloat x) {
    if constexpr (std::is_same_v<T, bf16>) return widen(narrow(x));
    return x;
}

// One number from all lanes, halving: f is + or max.
template <class F>
inline float reduce(vfloat x, F f) {
    float lane[W];
    std::memcpy(lane, &x, sizeof lane);
    for (int n = W / 2; n; n /= 2)
        for (int i = 0; i < n; ++i) lane[i] = f(lane[i], lane[i + n]);
    return lane[0];
}

inline float sum(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);  // halves too
#else
    return reduce(x, [](float a, float b) { return a + b; });
#endif
}

// The sums of four vectors, each as sum() adds it up.
inline void sum4(vfloat a, vfloat b, vfloat c, vfloat d, float* to) {
#if defined(__AVX512F__)
    auto halves = [](__m512 x, __m512 y) {  // (x, y) halved once: 8 lanes of each
        return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    };
    __m512 ab = halves((__m512)a, (__m512)b), cd = halves((__m512)c, (__m512)d);
    __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
    all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), all)));
#elif defined(__AVX2__)
    auto halves = [](vfloat x) { return _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1)); };
    auto pairs = [](__m128 x, __m128 y) { return _mm_add_ps(_mm_movelh_ps(x, y), _mm_movehl_ps(y, x)); };
    __m128 ab = pairs(halves(a), halves(b)), cd = pairs(halves(c), halves(d));
    _mm_storeu_ps(to, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xdd)));
#else
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
#endif
}

inline float max(vfloat x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    return reduce(x, [](float a, float b) { return a > b ? a : b; });
#endif
}

// e^x for x <= 0 within two units in the last place; 0 below the smallest normal result, -inf included; NaN stays.
inline vfloat exp(vfloat x) {
    const vfloat shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
    vfloat n = fma(x, splat(1.44269504f), shift);
    vuint exponent = ((vuint)n - (vuint)shift) << 23;
    n = n - shift;
    vfloat r = fma(n, splat(-1.42860677e-6f), fma(n, splat(-0.693145752f), x));  // x - n ln 2, in two parts
    vfloat y = fma(r, splat(1.98756912e-4f), splat(1.39819994e-3f));
    y = fma(y, r, splat(8.33345205e-3f));
    y = fma(y, r, splat(4.16657962e-2f));
    y = fma(y, r, splat(0.166666657f));
    y = fma(y, r, splat(0.5f));
    y = fma(y, r * r, r + splat(1));
    return x < splat(-87.3f) ? vfloat{} : (vfloat)((vuint)y + exponent);
}

// The integer nearest to each x, half away from 0; 0 for NaN. |x| must be less than 2^31.
inline vint nearest(vfloat x) {
    x = x == x ? x : vfloat{};
    return __builtin_convertvector(x + (x < vfloat{} ? splat(-.5f) : splat(.5f)), vint);
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
