// Certified spikes, and certified choices: which side of a threshold W x falls on, from 8-bit weights where a proven bound decides it, from the
// row itself where it does not. The spikes are those of the product in full, bit by bit. In the same way the head finds
// the k largest logits: what cannot be among them is not computed.
//
// Write W_j = s q_j + R_j for row j and x = t k + e with 16-bit integers k. The estimate s t (q_j . k) is summed exactly
// and differs from W_j . x by at most |R_j| |x| + |s q_j| |e| (Cauchy-Schwarz, Euclidean norms). The product in full
// and the estimate themselves round by at most (ins + 32) u |W_j| |x| and 32 u |s q_j| |t k|, with u = 2^-24: weights are float32
// or bfloat16, sums float32, and AMX adds up short sums of three parts that are x exactly.
// `lost` and `kept` hold those factors of |x| and |e|, rounded up (pack.sketch); `size` and `slip` bound |x| and |e|.
#pragma once

#include "engine/products.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t SKETCH_ROWS = 4;  // beyond, reading the whole matrix once for all rows is cheaper

// Fills in what `certify` needs of row n of x.x.
inline void prepare_sketch(const Matrix& rough, const Operand& x, int64_t n) {
    const float* in = x.x + n * rough.ins;
    int8_t *high = x.q + n * x.width, *low = x.low + n * x.width;
    vfloat most{};
    lanes(rough.ins, [&](int64_t i, auto l) { most = max(most, max(load(in + i, l), -load(in + i, l))); });
    const float top = max(most), step = top / 32512;
    std::memset(high + rough.ins, 0, padded(rough.ins) - rough.ins);
    std::memset(low + rough.ins, 0, padded(rough.ins) - rough.ins);
    vint high_sum{}, low_sum{};
    vfloat size{}, slip{};
    const bool sound = top > 1e-15f && top < 1e15f;  // squares neither vanish nor overflow
    const vfloat by = splat(sound ? 32512 / top : 0);
    lanes(rough.ins, [&](int64_t i, auto l) {
        vfloat value = load(in + i, l);
        vint k = nearest(value * by), h = (k + 128) >> 8, rest = k - h * 256;
        vsmall h8 = __builtin_convertvector(h, vsmall), l8 = __builtin_convertvector(rest, vsmall);
        std::memcpy(high + i, &h8, l);
        std::memcpy(low + i, &l8, l);
        high_sum += h, low_sum += rest;
        vfloat left = fma(__builtin_convertvector(k, vfloat), splat(-step), value);
        size = fma(value, value, size);
        slip = fma(left, left, slip);
    });
    int32_t sums[2] = {};
    for (int i = 0; i < W; ++i) sums[0] += high_sum[i], sums[1] += low_sum[i];
    x.total[n] = sums[0];
    x.sums[n * (x.width / GROUP)] = sums[1];
    x.scale[n] = step;
    x.size[n] = sqrtf(sum(size)) * 1.01f;
    x.slip[n] = sound ? sqrtf(sum(slip)) * 1.01f + 4e-7f * x.size[n] : HUGE_VALF;  // the second term: rounding of `left`
}

// What a sketch knows of 16 outputs for row n: W x lies within `radius` of `about`.
struct Estimate { vfloat about[PIECES], radius[PIECES]; };

inline Estimate estimate(const Sketch& sketch, const Operand& x, int64_t n, int64_t block) {
    const Matrix& rough = sketch.rough;
    const uint8_t* w = (const uint8_t*)rough.data + block * padded(rough.ins) * LANES;
    const int8_t *high = x.q + n * x.width, *low = x.low + n * x.width;
    Prefetch ahead(w, padded(rough.ins) * LANES, 0, 1, 1);
    vint a[PIECES] = {}, b[PIECES] = {};
    for (int64_t i = 0; i < padded(rough.ins); i += 4, w += 64) {
        ahead.step();
        for (int p = 0; p < PIECES; ++p) {
            vint weights = load_bytes(w + p * 4 * W);
            a[p] = dot4(a[p], weights, four_of(high + i));
            b[p] = dot4(b[p], weights, four_of(low + i));
        }
    }
    Estimate found;
    for (int p = 0; p < PIECES; ++p) {
        const int64_t o = block * LANES + p * W;
        vfloat fine = __builtin_convertvector(b[p] - splat_int(ADDED * x.sums[n * (x.width / GROUP)]), vfloat);
        vfloat whole = fma(__builtin_convertvector(a[p] - splat_int(ADDED * x.total[n]), vfloat), splat(256), fine);
        found.about[p] = whole * (load((const float*)rough.scale + o, Full{}) * splat(x.scale[n]));
        found.radius[p] = fma(load(sketch.lost + o, Full{}), splat(x.size[n]),
                              fma(load(sketch.kept + o, Full{}), splat(x.slip[n]), splat(1e-30f)));
    }
    return found;
}

// y[o] = row o of M times row n of x for the `count` outputs o that are `open`, the bits that `multiply` gives; with `add`, added
// to y[o].
inline void exactly(const Matrix& m, const Operand& x, int64_t n, const int32_t* open, int64_t count, float* y, bool add) {
    Operand row = x;
    row.x += n * m.ins, row.parts += n * 3 * x.width;
    if (m.format == Format::float32) {
        for (int64_t i = 0; i < count; ++i)
            dot_tile<1, 1>((const float*)m.data + open[i] * m.ins, row.x, m.ins, y + open[i], m.outs, add);
        return;
    }
    for (; count > 0; count -= LANES, open += LANES) {
        const int64_t some = count < LANES ? count : LANES;
        side_by_side(m, [&](int64_t i) { return open[i < some ? i : 0]; }, x.packed);
        float found[LANES];
        multiply({Format::bfloat16, false, LANES, m.ins, x.packed}, row, 1, found, 0, 1);
        for (int64_t i = 0; i < some; ++i) y[open[i]] = found[i] + (add ? y[open[i]] : 0.f);
    }
}

// Rows [0, N) of y, for outputs of blocks [begin, end): numbers that spike as the product does. Where the bound tells what is
// sent, which of a valued code is that nothing is, they are estimates; all else is the product in full. Returns how many that was.
inline int64_t certify(const Matrix& m, const Sketch& sketch, const Operand& x, int64_t N, const float* threshold, SpikeCode code,
                       float* y, int64_t begin, int64_t end) {
    int64_t exact = 0;
    const bool known = code == SpikeCode::binary || code == SpikeCode::ternary;  // what fires sends no more than that it does
    const vfloat share = splat(code == SpikeCode::integer ? 0.499f : 1);         // round(v / θ) is 0 up to half of θ
    for (int64_t n = 0; n < N; ++n) {
        int32_t *open = x.index + n * x.room + begin * LANES, count = 0;
        for (int64_t block = begin; block < end; ++block) {
            Estimate e = estimate(sketch, x, n, block);
            for (int p = 0; p < PIECES; ++p) {
                const int64_t o = block * LANES + p * W;
                const vfloat level = load(threshold + o, Full{}) * share, low = e.about[p] - e.radius[p], high = e.about[p] + e.radius[p];
                vint silent = high < level, sure = silent;
                if (code == SpikeCode::ternary) sure = (silent & (low > -level)) | (high <= -level);
                if (known) sure |= low >= level;
                put(m, block, p, e.about[p], y + n * m.outs, false);
                for (int i = 0; i < W && o + i < m.outs; ++i) {
                    open[count] = int32_t(o + i);
                    count += !sure[i];
                }
            }
        }
        exactly(m, x, n, open, count, y + n * m.outs, false);
        exact += count;
    }
    return exact;
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
