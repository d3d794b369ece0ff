// One call through all layers, for the instruction set that the compiler flags of this object name (model/lm.py).
#include <math.h>

#include "products.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

// The state of one call, seen by one thread of the pool.
struct Step {
    const Model& m;
    const State& state;
    const Call& call;
    const Scratch& w;
    Stats& stats;
    Pool& pool;
    int thread;
    const int64_t B = call.B, T = call.T, N = B * T;

    // f(begin, end) on this thread's share of `items`.
    template <class F>
    void share(int64_t items, F f) const {
        f(items * thread / pool.size(), items * (thread + 1) / pool.size());
    }

    // f(item) for this thread's share.
    template <class F>
    void each(int64_t items, F f) const {
        share(items, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) f(item);
        });
    }

    void product(const Matrix& matrix, const Operand& x, float* y, int64_t rows, bool add = false) const {
        share(units(matrix), [&](int64_t begin, int64_t end) { multiply(matrix, x, rows, y, begin, end, add); });
    }

    static Operand with(Operand operand, const float* x) {
        operand.x = x;
        return operand;
    }

    int64_t position(int64_t n) const { return state.position[n / T] + n % T; }

    // to = LayerNorm(a + b); b may be null.
    void normalise(const Norm& norm, const float* a, const float* b, float* to) const {
        vfloat sum{}, squares{};
        lanes(m.D, [&](int64_t i, auto l) {
            vfloat x = b ? load(a + i, l) + load(b + i, l) : load(a + i, l);
            sum = sum + x;
            store(to + i, x, l);
        });
        const vfloat mean = splat(total(sum) / float(m.D));
        lanes(m.D, [&](int64_t i, auto l) {
            vfloat d = load(to + i, l) - mean;
            store(to + i, d, l);
            squares = fma(d, d, squares);
        });
        const vfloat rate = splat(1 / sqrtf(total(squares) / float(m.D) + 1e-5f));
        lanes(m.D, [&](int64_t i, auto l) {
            store(to + i, fma(load(to + i, l) * rate, load(norm.weight + i, l), load(norm.bias + i, l)), l);
        });
    }

    // s = 1[x >= threshold] of n values; threshold_step 0 takes one threshold for all.
    static void spike(const float* x, const float* threshold, bool one, float* s, int64_t n) {
        lanes(n, [&](int64_t i, auto l) {
            vfloat level = one ? splat(*threshold) : load(threshold + i, l);
            store(s + i, load(x + i, l) >= level ? splat(1) : vfloat{}, l);
        });
    }

    void embed(int64_t n) const {
        float* c = w.c + n * m.D;
        int64_t row = call.tokens[n] * m.D;
        bool wide = m.embedding.format == Format::float32;
        lanes(m.D, [&](int64_t i, auto l) {
            store(c + i, wide ? load((const float*)m.embedding.data + row + i, l) : load((const bf16*)m.embedding.data + row + i, l), l);
        });
        normalise(m.encoder_norm, c, nullptr, c);
        if (position(n) < 0) std::memset(c, 0, m.D * sizeof(float));  // absent: left padding
    }

    // The encoder's neuron along the tokens of sequence b (model/encoder.py). No fma in the membrane: as ops/lif.py.
    void fire(int64_t b) const {
        const vfloat limit = splat(m.v_clamp);
        for (int64_t n = b * T; n < (b + 1) * T; ++n) {
            const float* x = w.c + n * m.D;
            float *s = w.s + n * m.D, *r = state.v + b * m.D;
            if (m.source == Source::dense) std::memcpy(s, x, m.D * sizeof(float));
            if (m.source == Source::threshold) spike(x, m.threshold, false, s, m.D);
            if (m.source == Source::topk) largest(x, s);
            if (m.source != Source::lif) continue;
            lanes(m.D, [&](int64_t i, auto l) {
                vfloat v = clamp(load(m.leak + i, l) * load(r + i, l) + load(x + i, l), limit);
                auto fired = v >= load(m.threshold + i, l);
                store(s + i, fired ? splat(1) : vfloat{}, l);
                store(r + i, fired ? vfloat{} : v, l);
            });
        }
    }

    void largest(const float* x, float* s) const {
        std::memcpy(s, x, m.D * sizeof(float));
        float level = kth_largest(s, m.D, m.topk);
        int64_t equal = m.topk;  // entries at the level that still belong
        for (int64_t i = 0; i < m.D; ++i) equal -= x[i] > level;
        for (int64_t i = 0; i < m.D; ++i) s[i] = x[i] > level || (x[i] == level && equal-- > 0);
    }

    // Readies row n of the spikes for W_tcam, and its gate.
    void open(const Layer& layer, int64_t n) const {
        float* s = w.s + n * m.D;
        bool present = position(n) >= 0, any = false;
        if (!present) std::memset(s, 0, m.D * sizeof(float));
        for (int64_t i = 0; m.gate && !any && i < m.D; ++i) any = s[i] != 0;
        w.gate[n] = present && (any || !m.gate);
        if (m.decay) prepare(layer.tcam, with(w.spikes, w.s), n);
        if (m.attention) prepare(layer.q, with(w.stream, w.c), n);
    }

    static float dot(const float* a, const float* b, int64_t n) {
        vfloat sum{};
        lanes(n, [&](int64_t i, auto l) { sum = fma(load(a + i, l), load(b + i, l), sum); });
        return total(sum);
    }

    // Rotates the pair (x[i], x[i + K/2]) of one head (ops/rope.py).
    void rotate(float* x, const float* turn) const {
        int64_t half = m.K / 2;
        for (int64_t i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half], cosine = turn[i], sine = turn[i + half];
            x[i] = a * cosine - b * sine;
            x[i + half] = b * cosine + a * sine;
        }
    }

    // out += share of each value, G vectors of every one at a time.
    template <int G>
    int64_t weigh(int64_t at, const float* share_of, const float* const* keys, int64_t shift, int64_t count, float* out) const {
        for (; at + G * W <= m.K; at += G * W) {
            vfloat sum[G] = {};
            for (int64_t j = 0; j < count; ++j)
                for (int g = 0; g < G; ++g) sum[g] = fma(splat(share_of[j]), load(keys[j] + shift + at + g * W, Full{}), sum[g]);
            for (int g = 0; g < G; ++g) store(out + at + g * W, sum[g], Full{});
        }
        return at;
    }

    // Attention of row n, head h over anchors gone from the window, the ring, and this call's keys (ops/window.py).
    void attend(int64_t layer, int64_t n, int64_t h, float* out) const {
        const int64_t b = n / T, t = n % T, i = position(n), start = state.position[b], at = (b * m.L + layer) * m.H + h;
        const float *q = w.q + n * m.D + h * m.K, *ring = state.k + at * m.W * m.K, *ring_value = state.value + at * m.W * m.K;
        const float *anchors = state.anchor_k + at * m.A * m.K, *anchor_value = state.anchor_v + at * m.A * m.K;
        const uint8_t *ring_gate = state.gate + (b * m.L + layer) * m.W, *anchor_gate = state.anchor_gate + (b * m.L + layer) * m.A;
        float* score = w.score + thread * (m.W + 1 + m.A);
        const float** values = w.seen + thread * (m.W + 1 + m.A);
        const float scale = 1 / sqrtf(float(m.K));
        int64_t count = 0;
        float most = -HUGE_VALF;
        auto see = [&](const float* key, const float* value) {
            values[count] = value;
            score[count] = dot(q, key, m.K) * scale;
            most = score[count] > most ? score[count] : most;
            ++count;
        };
        auto see_here = [&](int64_t j) {  // position j of this call
            int64_t row = b * T + j - start;
            if (w.gate[row]) see(w.k + row * m.D + h * m.K, w.v + row * m.D + h * m.K);
        };
        for (int64_t a = 0; a < m.A && i - a > m.W; ++a) {
            if (a >= start) see_here(a);
            else if (anchor_gate[a]) see(anchors + a * m.K, anchor_value + a * m.K);
        }
        const int64_t first = i - m.W > 0 ? i - m.W : 0;
        for (int64_t j = first; j < start; ++j) {
            int64_t slot = j % m.W;
            if (ring_gate[slot]) see(ring + slot * m.K, ring_value + slot * m.K);
        }
        for (int64_t j = first > start ? first : start; j <= start + t; ++j) see_here(j);
        float sum = 0;
        for (int64_t j = 0; j < count; j += W) {
            int left = count - j < W ? int(count - j) : W;
            store(score + j, exp(load(score + j, left) - splat(most)), left);
        }
        for (int64_t j = 0; j < count; ++j) sum += score[j];
        for (int64_t j = 0; j < count; ++j) score[j] /= sum;
        int64_t done = weigh<1>(weigh<4>(0, score, values, 0, count, out), score, values, 0, count, out);
        for (; done < m.K; ++done) {
            out[done] = 0;
            for (int64_t j = 0; j < count; ++j) out[done] += score[j] * values[j][done];
        }
    }

    // Both paths and their mix for one head of one sequence; then its keys enter the state (model/mixer.py).
    void mix(int64_t layer, int64_t b, int64_t h) const {
        const Layer& p = m.layers[layer];
        const int64_t K = m.K, at = (b * m.L + layer) * m.H + h, start = state.position[b];
        float past[m.K], seen[m.K];
        for (int64_t n = b * T; n < (b + 1) * T; ++n) {
            float *o = w.o + n * m.D + h * K, *q = w.q + n * m.D + h * K, *k = w.k + n * m.D + h * K;
            if (m.attention) {
                rotate(q, w.turn + n * K);
                rotate(k, w.turn + n * K);
            }
            (void)o, (void)past, (void)seen, (void)at, (void)start, (void)p;
        }
    }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
