// The head of the runtime, in full or for the largest logits only (model/head.py).
#pragma once

#include <math.h>

#include "engine/attention.hpp"
#include "engine/sketch.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

struct Head : Attention {
    // to = weight GELU(x)
    static void gelu(const float* x, float* to, int64_t n, float weight) {
        for (int64_t i = 0; i < n; ++i) to[i] = weight * .5f * x[i] * (1 + erff(x[i] * 0.707106781f));
    }

    // Logits (rows, V) of rows x (model/head.py); with `top`, those that cannot be among so many largest may be left out
    // as -infinity. Ends in step.
    void head(const float* x, int64_t rows, float* logits, int64_t top = 0) const {
        Operand in = with(w.stream, x, m.D), prior = with(w.spikes, w.blend, m.prior_down.outs);
        const bool dynamic = m.prior == Prior::dynamic;
        const bool rough = top && rows <= SKETCH_ROWS && m.head_sketch.rough.data && m.prior != Prior::fixed;
        ready(rows, [&](int64_t n) {
            prepare(m.head, in, n);
            if (rough) prepare_sketch(m.head_sketch.rough, in, n);
        });
        const Residual& residual = m.residual;
        if (residual.rows.data) product(residual.rows, in, w.residual, rows);
        if (dynamic) product(m.prior_down, in, w.prior, rows);
        if (dynamic || residual.rows.data) sync();
        if (dynamic)
            ready(rows, [&](int64_t n) {
                const int64_t outs = m.prior_down.outs, row = n * outs;
                gelu(w.prior + row, w.blend + row, outs, m.prior_weight);
                prepare(m.prior_up, prior, n);
                if (rough) prepare_sketch(m.prior_sketch.rough, prior, n);
            });
        if (rough) return choose(in, prior, rows, logits, top, dynamic);
        take(units(m.head), [&](int64_t begin, int64_t end) {
            multiply(m.head, in, rows, logits, begin, end);
            if (m.prior == Prior::dynamic) multiply(m.prior_up, prior, rows, logits, begin, end, true);
            for (int64_t n = 0; residual.rows.data && n < rows; ++n)
                for (int64_t i = residual.first[begin]; i < residual.first[end]; ++i)
                    logits[n * m.V + residual.tokens[i]] += w.residual[n * residual.rows.outs + i];
            int64_t last = end * LANES < m.V ? end * LANES : m.V;
            for (int64_t n = 0; m.prior == Prior::fixed && n < rows; ++n)
                for (int64_t o = begin * LANES; o < last; ++o) logits[n * m.V + o] += m.bias[o];
        });
        sync();
    }

    // The rest of `head` by sketches: bounds of all logits, from them a bar that the k-th largest reaches, and then only
    // the logits that may reach it.
    void choose(const Operand& in, const Operand& prior, int64_t rows, float* logits, int64_t top, bool dynamic) const {
        const int64_t blocks = units(m.head);
        take(blocks, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin * rows; item < end * rows; ++item) {
                const int64_t block = item / rows, n = item % rows;
                Estimate e = estimate(m.head_sketch, in, n, block), add{};
                if (dynamic) add = estimate(m.prior_sketch, prior, n, block);
                vfloat most = splat(-HUGE_VALF);
                for (int p = 0; p < PIECES; ++p) {
                    vfloat about = e.about[p] + add.about[p], size = max(about, -about);
                    vfloat radius = fma(splat(1e-6f), size, e.radius[p] + add.radius[p]);  // the sum of the two rounds too
                    put(m.head, block, p, about + radius, logits + n * m.V, false);
                    vint real = lane_numbers() < splat_int(int32_t(m.V - block * LANES - p * W));
                    most = max(most, real ? about - radius : splat(-HUGE_VALF));
                }
                w.least[n * blocks + block] = max(most);
            }
        });
        sync();
        each(rows, [&](int64_t n) { w.bar[n] = kth_largest(w.least + n * blocks, blocks, top < blocks ? top : blocks); });
        sync();
        take(blocks, [&](int64_t begin, int64_t end) {
            int64_t exact = 0;
            for (int64_t n = 0; n < rows; ++n) {
                const float bar = top < blocks ? w.bar[n] : -HUGE_VALF;
                float* z = logits + n * m.V;
                int32_t open[4 * LANES], count = 0;  // computed together: `exactly` reads 16 rows at a time
                for (int64_t o = begin * LANES; o < end * LANES && o < m.V; ++o) {
                    if (z[o] < bar) z[o] = -HUGE_VALF;
                    else open[count++] = int32_t(o);
                    if (count < 4 * LANES && o + 1 < end * LANES && o + 1 < m.V) continue;
                    exactly(m.head, in, n, open, count, z, false);
                    if (dynamic) exactly(m.prior_up, prior, n, open, count, z, true);
                    exact += count;
                    count = 0;
                }
            }
            __atomic_fetch_add(&stats.chosen[1], exact, __ATOMIC_RELAXED);
        });
        if (thread == 0) stats.chosen[0] += rows;
        sync();
    }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
