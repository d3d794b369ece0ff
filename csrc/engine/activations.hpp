// What products need of their inputs beside the floats: active inputs, 8-bit integers, parts in bfloat16.
#pragma once

#include "engine/products.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

// Whether products with `m` need more of their inputs than x.x.
inline bool prepared(const Matrix& m) {
    return m.by_input || m.format == Format::int8 || m.format == Format::int4 || (TILES && m.format != Format::float32);
}

// Adds the inputs of [begin, end) that are not zero to a list of `count`; returns how many it has then. Up to a vector more
// is written.
inline int32_t list_active(const float* in, int64_t begin, int64_t end, int32_t* index, int32_t count) {
    int64_t i = begin;
#if defined(__AVX512F__)
    for (; i + W <= end; i += W) {
        const __mmask16 fired = _mm512_cmp_ps_mask((__m512)load(in + i, Full{}), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        // Not compressed into memory: some processors are slow at that. What is stored too much is overwritten.
        __m512i list = _mm512_maskz_compress_epi32(fired, (__m512i)(lane_numbers() + splat_int(int32_t(i))));
        _mm512_storeu_si512(index + count, list);
        count += __builtin_popcount(fired);
    }
#endif
    for (; i < end; ++i) {
        index[count] = int32_t(i);
        count += in[i] != 0;
    }
    return count;
}

// Fills in what products with `m` need of row n of x.x.
inline void prepare(const Matrix& m, const Operand& x, int64_t n) {
    const float* in = x.x + n * m.ins;
    if (m.by_input) {
        const int32_t* index = x.index + n * x.width;
        x.active[n] = list_active(in, 0, m.ins, x.index + n * x.width, 0);
        if (!m.valued || m.format != Format::int8) return;
        float top = 0;
        for (int64_t j = 0; j < x.active[n]; ++j) top = fmaxf(top, fabsf(in[index[j]]));
        const float by = top > 1e-30f ? 127 / top : 0;
        x.scale[n] = top / 127;
        for (int64_t j = 0; j < x.active[n]; ++j) x.q[n * x.width + index[j]] = int8_t(nearest(splat(in[index[j]] * by))[0]);
#if defined(__AMX_INT8__)
    } else if (m.format == Format::bfloat16 || m.format == Format::bfloat16_rows) {
        bf16* parts = x.parts + n * 3 * x.width;
        for (int part = 0; part < 3; ++part)
            std::memset(parts + part * x.width + m.ins, 0, (padded(m.ins) - m.ins) * sizeof(bf16));
        lanes(m.ins, [&](int64_t i, auto l) { split(load(in + i, l), parts, x.width, i, l); });
#endif
    } else if (m.format == Format::int8 || m.format == Format::int4) {
        int8_t* q = x.q + n * x.width;
        vfloat most{};
        lanes(m.ins, [&](int64_t i, auto l) { most = max(most, max(load(in + i, l), -load(in + i, l))); });
        float top = max(most), by = top > 1e-30f ? 127 / top : 0;
        x.scale[n] = top / 127;
        x.total[n] = 0;
        for (int64_t g = 0; g * GROUP < m.ins; ++g) {
            const int64_t first = g * GROUP, count = m.ins - first < GROUP ? m.ins - first : GROUP;
            vint whole{};
            std::memset(q + first, 0, GROUP);
            lanes(count, [&](int64_t i, auto l) {
                vint rounded = nearest(load(in + first + i, l) * splat(by));
                vsmall narrow = __builtin_convertvector(rounded, vsmall);
                std::memcpy(q + first + i, &narrow, l);
                whole += rounded;
            });
            for (int64_t i = first; SIZES && i < first + GROUP; ++i) x.low[n * x.width + i] = q[i] < 0 ? -q[i] : q[i];
            int32_t sum = 0;
            for (int i = 0; i < W; ++i) sum += whole[i];
            x.sums[n * (x.width / GROUP) + g] = sum;
            x.total[n] += sum;
        }
    }
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
