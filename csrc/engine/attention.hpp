// The mixer of the runtime: both paths, their mix, and what they leave in the state (model/mixer.py, ops/window.py).
#pragma once

#include <math.h>

#include "engine/attention_int8.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

struct Attention : Short {
    // Rotates the pair (x[i], x[i + K/2]) of one head (ops/rope.py).
    void rotate(float* x, const float* turn) const {
        int64_t half = m.K / 2;
        for (int64_t i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half], cosine = turn[i], sine = turn[i + half];
            x[i] = a * cosine - b * sine;
            x[i + half] = b * cosine + a * sine;
        }
    }

    // What a block of queries sees.
    struct Visible {
        Run* run;
        float* score;  // (Q, capacity)
        int64_t capacity, runs, count;  // of keys
        Coming coming;

        // Adds the open ones of a run.
        void add(Run all, const uint8_t* open) {
            for (int64_t j = 0; j < all.count;) {
                const void* shut = std::memchr(open + j, 0, all.count - j);
                const int64_t end = shut ? (const uint8_t*)shut - open : all.count;
                const int64_t at = j * all.step;
                if (end > j) run[runs++] = {all.key + at, all.value + at, all.step, end - j, int32_t(all.from + j), int32_t(all.to + j)};
                count += end - j;
                j = end + 1;
            }
        }
    };

    // What rows n .. n + Q - 1 of head h see.
    Visible sight_of(int64_t layer, int64_t n, int64_t h, int64_t Q) const {
        const int64_t b = n / T, capacity = visible(m), row = m.K * sizeof(float);
        Visible s{w.runs, w.score, capacity, 0, 0, next_ring(layer, b, h, m.W * row, row, filled(b) * row)};
        const int64_t first_here = b * T * m.D + h * m.K;
        const Keys here{w.k + first_here, w.v + first_here, w.gate + b * T};
        look(n, Q, [&](Place place, int64_t first, int64_t end, int32_t from, int32_t to) {
            const Keys keys = place == Place::call ? here : past(place, layer, b, h, (place == Place::ring ? m.W : m.A) * row);
            const int64_t step = place == Place::call ? m.D : m.K;
            s.add({(float*)keys.key + first * step, (float*)keys.value + first * step, step, end - first, from, to}, keys.gate + first);
        });
        return s;
    }

    // score = q . key, keys by fours; every sum has one order, whatever its neighbours.
    template <int Q>
    void scores(const float* q, const Visible& s) const {
        float* score = s.score;
        auto some = [&](const float* first, int64_t step, auto keys) {
            constexpr int C = decltype(keys)::value;
            vfloat found[Q][C] = {};
            lanes(m.K, [&](int64_t i, auto l) {
                vfloat key[C];
                for (int c = 0; c < C; ++c) key[c] = load(first + c * step + i, l);
                for (int r = 0; r < Q; ++r) {
                    vfloat x = load(q + r * m.D + i, l);
                    for (int c = 0; c < C; ++c) found[r][c] = fma(x, key[c], found[r][c]);
                }
            });
            for (int r = 0; r < Q; ++r) {
                float* to = score + r * s.capacity;
                if constexpr (C == 4) sum4(found[r][0], found[r][1], found[r][2], found[r][3], to);
                else *to = sum(found[r][0]);
            }
            score += C;
        };
        for (const Run* run = s.run; run < s.run + s.runs; ++run) {
            int64_t j = 0;
            for (; j + 4 <= run->count; j += 4) {
                s.coming.fetch(2);
                some(run->key + j * run->step, run->step, Count<4>{});
            }
            for (; j < run->count; ++j) some(run->key + j * run->step, 0, Count<1>{});
        }
    }

    // Turns the scores of query r into shares before division; returns their sum, added in order: zeros change nothing.
    float softmax(const Visible& s, int32_t r) const {
        float *const score = s.score + r * s.capacity, *at = score, whole = 0;
        const vfloat scale = splat(1 / sqrtf(float(m.K))), never = splat(-HUGE_VALF);
        vfloat most = never;
        for (const Run* run = s.run; run < s.run + s.runs; at += run++->count)
            lanes(run->count, [&](int64_t j, auto l) {
                const vint first = splat_int(int32_t(run->from + j)) + lane_numbers(), last = first + splat_int(run->to - run->from);
                vint seen = (lane_numbers() < splat_int(l)) & (first <= splat_int(r)) & (last >= splat_int(r));
                vfloat x = seen ? load(at + j, l) * scale : never;
                store(at + j, x, l);
                most = max(most, x);
                s.coming.fetch(2);
            });
        most = splat(max(most));
        lanes(s.count, [&](int64_t j, auto l) {
            store(score + j, exp(load(score + j, l) - most), l);
            s.coming.fetch(2);
        });
        for (int64_t j = 0; j < s.count; ++j) whole += score[j];
        return whole;
    }

    // out (Q rows) = sum of the values by their shares, G vectors of every one at a time from `at` on; returns what is left.
    template <int Q, int G>
    int64_t sums(int64_t at, const Visible& s, float* out) const {
        for (; at + G * W <= m.K; at += G * W) {
            vfloat sum[Q][G] = {};
            over_values(s, [&](const float* row, int64_t j) {
                if (at == 0 && j % 2) s.coming.fetch(1);
                vfloat value[G];
                for (int g = 0; g < G; ++g) value[g] = load(row + at + g * W, Full{});
                for (int r = 0; r < Q; ++r)
                    for (int g = 0; g < G; ++g) sum[r][g] = fma(splat(s.score[r * s.capacity + j]), value[g], sum[r][g]);
            });
            for (int r = 0; r < Q; ++r)
                for (int g = 0; g < G; ++g) store(out + r * m.D + at + g * W, sum[r][g], Full{});
        }
        return at;
    }

    // f(value, its number) for all that is seen.
    template <class F>
    static void over_values(const Visible& s, F f) {
        int64_t j = 0;
        for (const Run* run = s.run; run < s.run + s.runs; ++run)
            for (int64_t i = 0; i < run->count; ++i) f(run->value + i * run->step, j++);
    }

    // Attention of rows n .. n + Q - 1, head h, over what look() says. A row's result does not depend on Q.
    template <int Q>
    void attend(int64_t layer, int64_t n, int64_t h, float* out) const {
        const Visible s = sight_of(layer, n, h, Q);
        scores<Q>(w.q + n * m.D + h * m.K, s);
        float whole[Q];
        for (int r = 0; r < Q; ++r) whole[r] = softmax(s, r);
        int64_t done = sums<Q, 1>(sums<Q, W == 16 ? 4 : 2>(0, s, out), s, out);
        for (; done < m.K; ++done)
            for (int r = 0; r < Q; ++r) {
                float sum = 0;
                over_values(s, [&](const float* row, int64_t j) { sum += s.score[r * s.capacity + j] * row[done]; });
                out[r * m.D + done] = sum;
            }
        for (int r = 0; r < Q; ++r)
            for (int64_t k = 0; k < m.K; ++k) out[r * m.D + k] = w.gate[n + r] ? out[r * m.D + k] / whole[r] : 0;
    }

    // f(first, Count<rows at once>) over the tokens of sequence b.
    template <class F>
    void by_queries(int64_t b, F f) const {
        int64_t n = b * T;
        for (; n + QUERIES <= b * T + T; n += QUERIES) f(n, Count<QUERIES>{});
        for (; n < b * T + T; ++n) f(n, Count<1>{});
    }

    // Rotated queries and keys of one head: attention into o, then the keys enter the state.
    void attend_all(int64_t layer, int64_t b, int64_t h) const {
        const int64_t first = b * T * m.D + h * m.K, row = m.K * sizeof(float);
        by_queries(b, [&](int64_t n, auto rows) { attend<decltype(rows)::value>(layer, n, h, w.o + n * m.D + h * m.K); });
        keep(layer, b, h, m.W * row, m.A * row, [&](const Keys& to, int64_t t, int64_t slot) {
            std::memcpy((float*)to.key + slot * m.K, w.k + first + t * m.D, row);
            std::memcpy((float*)to.value + slot * m.K, w.v + first + t * m.D, row);
        });
    }

    void attend_all_short(int64_t layer, int64_t b, int64_t h) const {
        const Keys call = shorten_all(b, h);
        by_queries(b, [&](int64_t n, auto rows) { attend_short<decltype(rows)::value>(layer, n, h, call, w.o + n * m.D + h * m.K); });
        keep(layer, b, h, blocks(m.W) * bytes, blocks(m.A) * bytes,
             [&](const Keys& to, int64_t t, int64_t slot) { insert(t, to, slot); });
    }

    // f(where, t, slot) for the keys and values of this call that a later one can see; bytes of a head in ring and anchors.
    template <class F>
    void keep(int64_t layer, int64_t b, int64_t h, int64_t ring, int64_t anchors, F f) const {
        for (int64_t t = 0; t < T; ++t) {
            const int64_t j = state.position[b] + t;
            if (j >= 0 && j < m.A) f(past(Place::anchors, layer, b, h, anchors), t, j);
            if (j >= 0 && t + m.W >= T && m.W) f(past(Place::ring, layer, b, h, ring), t, j % m.W);
        }
    }

    float* tail_of(int64_t layer, int64_t b, int64_t which) const {
        return state.tails + ((b * m.L + layer) * written(m) + which) * (m.taps - 1) * m.D;
    }

    // Convolves head h of x along the tokens of sequence b, in place, and keeps its last inputs (ops/conv.py).
    void convolve(const float* taps, float* tail, float* x, int64_t b, int64_t h) const {
        const int64_t column = h * m.K, last = (m.taps - 2) * m.D + column;
        for (int64_t n = b * T; n < (b + 1) * T; ++n)
            lanes(m.K, [&](int64_t i, auto l) {
                float *here = x + n * m.D + column + i, *past = tail + i;
                const vfloat in = position(n) < 0 ? vfloat{} : load(here, l);  // absent: left padding
                vfloat y = in * load(taps + column + i, l);
                for (int64_t j = 1; j < m.taps; ++j)
                    y = fma(load(past + last - (j - 1) * m.D, l), load(taps + j * m.D + column + i, l), y);
                for (int64_t at = column; at < last; at += m.D) store(past + at, load(past + at + m.D, l), l);
                store(past + last, in, l);
                store(here, y, l);
            });
    }

    void convolve_all(int64_t layer, int64_t b, int64_t h) const {
        const Layer& p = m.layers[layer];
        if (m.decay) convolve(p.conv_u, tail_of(layer, b, 0), w.u, b, h);
        if (!m.attention) return;
        convolve(p.conv_k, tail_of(layer, b, m.decay), w.k, b, h);
        convolve(p.conv_v, tail_of(layer, b, m.decay + 1), w.v, b, h);
    }

    // Both paths and their mix for one head of one sequence; then its keys enter the state (model/mixer.py).
    void mix(int64_t layer, int64_t b, int64_t h) const {
        const int64_t K = m.K, first = b * T, column = h * K;
        if (m.taps) convolve_all(layer, b, h);
        for (int64_t n = first; m.attention && n < first + T; ++n) {
            rotate(w.q + n * m.D + column, w.turn + n * K);
            rotate(w.k + n * m.D + column, w.turn + n * K);
        }
        if (m.attention) m.int8_keys ? attend_all_short(layer, b, h) : attend_all(layer, b, h);
        for (int64_t n = first; m.decay && n < first + T; ++n)
            fade(m.layers[layer], n, h, state.h + (b * m.L + layer) * m.D + column, w.u + n * m.D + column, w.o + n * m.D + column);
    }

    // past <- d past + (1 - d) u (ops/decay.py, ops/gated.py), mixed into o.
    void fade(const Layer& p, int64_t n, int64_t h, float* past, const float* u, float* o) const {
        const float* rate = p.decay + h * m.K;
        const bool chosen = p.decay_gate.data;
        const vfloat one = splat(chosen ? float(1 / (1 + ::exp(-double(*rate + w.chosen[n * m.H + h])))) : 0), a = splat(p.fuse);
        lanes(m.K, [&](int64_t i, auto l) {
            const vfloat d = chosen ? one : load(rate + i, l), rest = splat(1) - d;
            vfloat x = fma(d, load(past + i, l), rest * load(u + i, l));
            store(past + i, x, l);
            store(o + i, m.attention ? fma(a, load(o + i, l) - x, x) : x, l);
        });
    }

    // The gates of the keys that a later call can see; all closed for a layer that did not run.
    void keep_gates(int64_t layer, int64_t b, bool ran) const {
        uint8_t *ring = state.gate + (b * m.L + layer) * m.W, *anchors = state.anchor_gate + (b * m.L + layer) * m.A;
        for (int64_t t = 0; m.attention && t < T; ++t) {
            const int64_t j = state.position[b] + t;
            if (j < 0) continue;
            if (ran && j < m.A) anchors[j] = w.gate[b * T + t];
            if (m.W) ring[j % m.W] = ran && w.gate[b * T + t];
        }
    }

    // Leaves this call's tokens out of a layer, after an early exit: no keys, zeros for the convolutions.
    void pass_over(int64_t layer, int64_t b) const {
        keep_gates(layer, b, false);
        if (!m.taps) return;
        const int64_t capacity = (m.taps - 1) * m.D, gone = (T < m.taps - 1 ? T : m.taps - 1) * m.D;
        for (int64_t which = 0; which < written(m); ++which) {
            float* past = tail_of(layer, b, which);
            std::memmove(past, past + gone, (capacity - gone) * sizeof(float));
            std::memset(past + capacity - gone, 0, gone * sizeof(float));
        }
    }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
