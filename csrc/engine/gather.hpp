// Products of spike-fed matrices: the sum of the rows of active inputs. Like products.hpp, in one order of sums.
#pragma once

#include <cmath>

#include "engine/engine.hpp"
#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t AHEAD = 16;  // active inputs fetched in advance, into the second cache
typedef int16_t vshort __attribute__((vector_size(4 * W)));
typedef int8_t vbyte __attribute__((vector_size(2 * W)));

inline vshort longer(vbyte x) {  // as in simd.hpp
#if defined(__AVX512BW__)
    return (vshort)_mm512_cvtepi8_epi16((__m256i)x);
#else
    return __builtin_convertvector(x, vshort);
#endif
}

template <int N>
using Count = std::integral_constant<int, N>;

// The active inputs of one row of x. Valued ones have a float each, by input, or an 8-bit integer.
struct Spikes {
    const int32_t* index;
    int64_t active;
    const float* x;
    const int8_t* q;
    float scale;  // of q
};

// G vectors of outputs of one row of x, from output o on.
template <int G, bool valued, class T>
inline void gather_floats(const T* w, int64_t outs, const Spikes& spikes, float* y, int64_t o) {
    const int32_t* index = spikes.index;
    const int64_t active = spikes.active;
    vfloat sum[G] = {};
    for (int64_t j = 0; j < active; ++j) {
        const T* row = w + index[j] * outs + o;
        const T* next = w + index[j + AHEAD < active ? j + AHEAD : j] * outs + o;
        for (size_t at = 0; at < G * W * sizeof(T); at += 64) __builtin_prefetch((const char*)next + at, 0, 2);
        for (int g = 0; g < G; ++g) {
            if constexpr (valued) sum[g] = fma(splat(spikes.x[index[j]]), load(row + g * W, Full{}), sum[g]);
            else sum[g] = sum[g] + load(row + g * W, Full{});
        }
    }
    for (int g = 0; g < G; ++g) store(y + o + g * W, sum[g], Full{});
}

// total[i] = the sum of weight o + i of the active rows, of int8: 16-bit sums of up to 256 rows, then 32-bit ones; G vectors
// of 2 W outputs.
template <int G>
inline void gather_bytes(const int8_t* w, int64_t outs, const int32_t* index, int64_t active, int32_t* total, int64_t o) {
    std::memset(total, 0, G * 2 * W * sizeof *total);
    for (int64_t first = 0; first < active; first += 256) {
        int64_t last = first + 256 < active ? first + 256 : active;
        vshort sum[G] = {};
        for (int64_t j = first; j < last; ++j) {
            const int8_t* row = w + index[j] * outs + o;
            const int8_t* next = w + index[j + AHEAD < active ? j + AHEAD : j] * outs + o;
            for (size_t at = 0; at < G * 2 * W; at += 64) __builtin_prefetch((const char*)next + at, 0, 2);
            for (int g = 0; g < G; ++g) {
                vbyte weights;
                std::memcpy(&weights, row + g * 2 * W, sizeof weights);
                sum[g] += longer(weights);
            }
        }
        for (int g = 0; g < G; ++g)
            for (int i = 0; i < 2 * W; ++i) total[g * 2 * W + i] += sum[g][i];
    }
}

// The same of rows times their 8-bit values.
template <int G>
inline void gather_valued(const int8_t* w, int64_t outs, const Spikes& spikes, int32_t* total, int64_t o) {
    vint sum[G][2] = {};
    for (int64_t j = 0; j < spikes.active; ++j) {
        const int64_t at = spikes.index[j], ahead = spikes.index[j + AHEAD < spikes.active ? j + AHEAD : j];
        const int8_t *row = w + at * outs + o, *next = w + ahead * outs + o;
        for (size_t byte = 0; byte < G * 2 * W; byte += 64) __builtin_prefetch((const char*)next + byte, 0, 2);
        const int16_t value = spikes.q[at];
        for (int g = 0; g < G; ++g) {
            vbyte weights;
            std::memcpy(&weights, row + g * 2 * W, sizeof weights);
            const vshort product = longer(weights) * value;
            for (int half = 0; half < 2; ++half) {
                int16_t __attribute__((vector_size(2 * W))) part;
                std::memcpy(&part, (const char*)&product + half * sizeof part, sizeof part);
                sum[g][half] += __builtin_convertvector(part, vint);
            }
        }
    }
    std::memcpy(total, sum, sizeof sum);
}

// Widest pieces first, then narrower ones; f(output, Count<G>) does G vectors of `lane` outputs. Returns what is left.
template <int G, class F>
inline int64_t by_columns(int64_t o, int64_t end, int64_t lane, F f) {
    for (; o + G * lane <= end; o += G * lane) f(o, Count<G>{});
    if constexpr (G > 1) return by_columns<G / 2>(o, end, lane, f);
    return o;
}

// total (outs) = the sum of the active rows of int8 weights.
template <int G>
void gather_all(const Matrix& m, const int32_t* index, int64_t active, int32_t* total) {
    const int8_t* w = (const int8_t*)m.data;
    int64_t o = by_columns<G>(0, m.outs, 2 * W, [&](int64_t o, auto g) {
        gather_bytes<decltype(g)::value>(w, m.outs, index, active, total + o, o);
    });
    for (; o < m.outs; ++o) {
        total[o] = 0;
        for (int64_t j = 0; j < active; ++j) total[o] += w[index[j] * m.outs + o];
    }
}

// Columns [begin, end) of N rows of y; f(spikes, y of the row) for each of them.
template <int G, bool valued>
void gather_columns_of(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end) {
    auto each_row = [&](auto f) {
        for (int64_t n = 0; n < N; ++n)
            f(Spikes{x.index + n * x.width, x.active[n], x.x + n * m.ins, x.q + n * x.width, valued ? x.scale[n] : 1}, y + n * m.outs);
    };
    const float* scale = (const float*)m.scale;
    int64_t rest;
    if (m.format == Format::int8)
        rest = by_columns<G>(begin, end, 2 * W, [&](int64_t o, auto g) {
            each_row([&](const Spikes& spikes, float* to) {
                constexpr int count = decltype(g)::value;
                int32_t total[count * 2 * W];
                if constexpr (valued) gather_valued<count>((const int8_t*)m.data, m.outs, spikes, total, o);
                else gather_bytes<count>((const int8_t*)m.data, m.outs, spikes.index, spikes.active, total, o);
                for (int i = 0; i < count * 2 * W; ++i) to[o + i] = scale[o + i] * float(total[i]) * spikes.scale;
            });
        });
    else
        rest = by_columns<G>(begin, end, W, [&](int64_t o, auto g) {
            each_row([&](const Spikes& spikes, float* to) {
                constexpr int count = decltype(g)::value;
                if (m.format == Format::bfloat16) gather_floats<count, valued>((const bf16*)m.data, m.outs, spikes, to, o);
                else gather_floats<count, valued>((const float*)m.data, m.outs, spikes, to, o);
            });
        });
    for (int64_t o = rest; o < end; ++o)  // fewer outputs than a vector holds
        each_row([&](const Spikes& spikes, float* to) {
            float sum = 0;
            int32_t whole = 0;
            for (int64_t j = 0; j < spikes.active; ++j) {
                const int64_t input = spikes.index[j], at = input * m.outs + o;
                if (m.format == Format::int8) {
                    whole += ((const int8_t*)m.data)[at] * (valued ? spikes.q[input] : 1);
                    continue;
                }
                const float weight = m.format == Format::float32 ? ((const float*)m.data)[at] : load((const bf16*)m.data + at, 1)[0];
                sum = valued ? std::fma(spikes.x[input], weight, sum) : sum + weight;
            }
            to[o] = m.format == Format::int8 ? scale[o] * float(whole) * spikes.scale : sum;
        });
}

template <int G>
void gather_columns(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end) {
    (m.valued ? gather_columns_of<G, true> : gather_columns_of<G, false>)(m, x, N, y, begin, end);
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
