// One call through all layers, for the instruction set that the compiler flags of this object name (model/lm.py).
#include <math.h>

#include "engine/head.hpp"
#include "simd/spikes.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

struct Pass : Head {
    // to = LayerNorm(a + b), or a + b + bias; b may be null.
    void normalise(const Norm& norm, const float* a, const float* b, float* to) const {
        if (!norm.weight) return lanes(m.D, [&](int64_t i, auto l) {
            vfloat x = b ? load(a + i, l) + load(b + i, l) : load(a + i, l);
            store(to + i, x + load(norm.bias + i, l), l);
        });
        vfloat whole{}, squares{};
        lanes(m.D, [&](int64_t i, auto l) {
            vfloat x = b ? load(a + i, l) + load(b + i, l) : load(a + i, l);
            whole = whole + x;
            store(to + i, x, l);
        });
        const vfloat mean = splat(sum(whole) / float(m.D));
        lanes(m.D, [&](int64_t i, auto l) {
            store(to + i, load(to + i, l) - mean, l);
            vfloat d = load(to + i, l);  // zero in lanes beyond the end
            squares = fma(d, d, squares);
        });
        const vfloat rate = splat(1 / sqrtf(sum(squares) / float(m.D) + 1e-5f));
        lanes(m.D, [&](int64_t i, auto l) {
            store(to + i, fma(load(to + i, l) * rate, load(norm.weight + i, l), load(norm.bias + i, l)), l);
        });
    }

    // Ends a residual branch: what it left, y, joins the stream of row n, and n is what is read of that.
    void join(const Norm& norm, int64_t n, const float* y) const {
        float* c = w.c + n * m.D;
        if (m.pre) lanes(m.D, [&](int64_t i, auto l) { store(c + i, load(c + i, l) + load(y + i, l), l); });
        normalise(norm, c, m.pre ? nullptr : y, w.n + n * m.D);
    }

    // The spikes of n potentials.
    void spike(const float* x, const float* threshold, float* s, int64_t n, SpikeCode code) const {
        with_code(code, [&](auto one) {
            lanes(n, [&](int64_t i, auto l) {
                store(s + i, spike_value<one()>(load(x + i, l), load(threshold + i, l), splat(m.levels)), l);
            });
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
        if (m.pre) std::memcpy(w.n + n * m.D, c, m.D * sizeof(float));
    }

    // The encoder's neuron along the tokens of sequence b (model/encoder.py), whose membrane is `left` afterwards. No fma in the
    // membrane: as ops/lif.py.
    void fire(int64_t b, float* left) const {
        const vfloat limit = splat(m.v_clamp);
        for (int64_t n = b * T; n < (b + 1) * T; ++n) {
            const float* x = w.c + n * m.D;
            float *s = w.s + n * m.D, *r = n > b * T ? left : state.v + b * m.D;
            if (m.source == Source::dense) std::memcpy(s, x, m.D * sizeof(float));
            if (m.source == Source::threshold) spike(x, m.threshold, s, m.D, SpikeCode::binary);
            if (m.source == Source::topk) largest(x, s);
            if (m.source != Source::lif) continue;
            lanes(m.D, [&](int64_t i, auto l) {
                vfloat v = clamp(load(m.leak + i, l) * load(r + i, l) + load(x + i, l), limit);
                const vfloat level = load(m.threshold + i, l);
                auto fired = v >= level;
                const vfloat sent = m.encoder_code == SpikeCode::binary ? splat(1) : m.encoder_code == SpikeCode::graded ? v : v - level;
                store(s + i, fired ? sent : vfloat{}, l);
                store(left + i, fired ? vfloat{} : v, l);
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

    // Readies row n of what the mixer reads, and its gate.
    void open(const Layer& layer, int64_t n) const {
        float* s = w.s + n * m.D;
        bool present = position(n) >= 0, any = false;
        if (!present) std::memset(s, 0, m.D * sizeof(float));
        for (int64_t i = 0; m.gate && !any && i < m.D; ++i) any = s[i] != 0;
        w.gate[n] = present && (any || !m.gate);
        if (m.decay || m.spike_fed) prepare(m.decay ? layer.tcam : layer.q, with(w.spikes, w.s, m.D), n);
        if (m.attention && !m.spike_fed) prepare(layer.q, with(w.stream, w.n, m.D), n);
    }

    static void note(const float* s, uint8_t* to, int64_t n) {
        for (int64_t i = 0; i < n; ++i) to[i] = s[i] != 0;
    }

    // The same for row n of s, which is every thread's where there is one.
    void note_row(uint8_t* to, int64_t row) const {
        if (to && (N > 1 || thread == 0)) note(w.s + row % N * m.D, to + row * m.D, m.D);
    }

    // Neurons [begin, end) of the FFN, of all rows.
    void activate(int64_t layer, int64_t begin, int64_t end) const {
        for (int64_t n = 0; n < N; ++n) {
            float* f = w.f + n * m.F + begin;
            if (m.ffn_spikes) spike(f, m.layers[layer].ffn_level + begin, f, end - begin, m.ffn_code);
            else gelu(f, f, end - begin, 1);
            if (call.taps.ffn) note(f, call.taps.ffn + (layer * N + n) * m.F + begin, end - begin);
        }
    }

    const float* last_rows() const {
        if (T == 1) return w.n;
        each(B, [&](int64_t b) { std::memcpy(w.y + b * m.D, w.n + (b * T + T - 1) * m.D, m.D * sizeof(float)); });
        sync();
        return w.y;
    }

    // Early exit: is the next-token entropy of every sequence below the limit?
    bool certain() const {
        sync();
        head(last_rows(), B, w.trial);
        bool all = true;
        for (int64_t b = 0; b < B; ++b) {
            const float* z = w.trial + b * m.V;
            double top = z[0], sum = 0, mean = 0;
            for (int64_t i = 1; i < m.V; ++i) top = z[i] > top ? z[i] : top;
            for (int64_t i = 0; i < m.V; ++i) sum += ::exp(z[i] - top), mean += (z[i] - top) * ::exp(z[i] - top);
            all = all && log(sum) - mean / sum < m.exit_entropy;
        }
        return all;
    }

    void count(const int32_t* active, int64_t& into) const {
        for (int64_t n = 0; thread == 0 && n < N; ++n) into += active[n];
    }

    // The products with what the mixer reads.
    void read(const Layer& p, int64_t layer) const {
        const Operand spikes = with(w.spikes, w.s, m.D), seen = m.spike_fed ? spikes : with(w.stream, w.n, m.D);
        if ((m.decay ? p.tcam : p.q).by_input) count(w.spikes.active, stats.tcam[layer]);
        if (m.decay) product(p.tcam, spikes, w.u, N);
        if (p.decay_gate.data) product(p.decay_gate, spikes, w.chosen, N);
        if (!m.attention) return;
        product(p.q, seen, w.q, N);
        product(p.k, seen, w.k, N);
        product(p.v, seen, w.v, N);
    }

    // Row n of the stream after the mixer, and what W_up reads of it.
    void mixed(int64_t layer, int64_t n, const Operand& fed, bool sketched) const {
        const Layer& p = m.layers[layer];
        join(p.mixer_norm, n, w.y + n * m.D);
        if (fed.x == w.s) {
            spike(w.n + n * m.D, p.mixer_level, w.s + n * m.D, m.D, m.stream_code);
            note_row(call.taps.mixer, layer * N + n);
        }
        prepare(p.up, fed, n);
        if (sketched) prepare_sketch(p.sketch.rough, fed, n);
    }

    // W_up, and which neurons of the FFN fire.
    void rise(int64_t layer, const Operand& fed, bool sketched) const {
        const Layer& p = m.layers[layer];
        const Operand fired = with(w.stream, w.f, m.F);
        const bool at_once = sums_at_once(p.down);
        int64_t exact = 0;
        int32_t count = 0;
        auto piece = [&](int64_t begin, int64_t end) {
            const int64_t first = begin * LANES, last = least(end * LANES, m.F);
            if (sketched) exact += certify(p.up, p.sketch, fed, N, p.ffn_level, m.ffn_code, w.f, begin, end);
            else multiply(p.up, fed, N, w.f, begin, end);
            activate(layer, first, last);
            if (at_once) count = list_active(w.f, first, last, fired.index, count);
        };
        sketched ? share(units(p.up), piece) : outputs(p.up, piece);  // what a sketch leaves open is computed 16 rows at a time
        if (sketched) __atomic_fetch_add(&stats.exact[layer], exact, __ATOMIC_RELAXED);
        if (!at_once) return;
        gather_all<WIDE>(p.down, fired.index, count, w.found + thread * up(m.D, LANES));
        __atomic_fetch_add(&stats.down[layer], count, __ATOMIC_RELAXED);
    }

    // Does each thread add up the rows of W_down of the neurons that it finds firing? Sums of integers, in any order.
    bool sums_at_once(const Matrix& down) const { return N == 1 && down.by_input && down.format == Format::int8 && !down.valued; }

    // What W_down gave: row n of y, or the sum of what threads found.
    const float* fallen(const Matrix& down, int64_t n) const {
        if (!sums_at_once(down)) return w.y + n * m.D;
        lanes(m.D, [&](int64_t i, auto l) {
            vint sum{};
            for (int64_t t = 0; t < pool.size(); ++t) {
                vint part{};
                std::memcpy(&part, w.found + t * up(m.D, LANES) + i, sizeof(int32_t) * l);
                sum += part;
            }
            store(w.sum + i, load((const float*)down.scale + i, l) * __builtin_convertvector(sum, vfloat), l);
        });
        return w.sum;
    }

    void block(int64_t layer) const {
        const Layer& p = m.layers[layer];
        const bool sketched = p.sketch.rough.data && m.ffn_spikes && N <= SKETCH_ROWS;
        const Operand fed = m.spike_fed && m.block_spikes ? with(w.spikes, w.s, m.D) : with(w.stream, w.n, m.D);  // to W_up
        ready(N, [&](int64_t n) { open(p, n); });
        read(p, layer);
        sync();
        each(B * m.H, [&](int64_t item) { mix(layer, item / m.H, item % m.H); });
        sync();
        each(B, [&](int64_t b) { keep_gates(layer, b, true); });
        if (prepared(p.out)) ready(N, [&](int64_t n) { prepare(p.out, with(w.stream, w.o, m.D), n); });
        product(p.out, with(w.stream, w.o, m.D), w.y, N);
        sync();
        ready(N, [&](int64_t n) { mixed(layer, n, fed, sketched); });
        if (p.up.by_input) count(fed.active, stats.up[layer]);
        rise(layer, fed, sketched);
        sync();
        if (!sums_at_once(p.down)) {
            const Operand fired = with(w.stream, w.f, m.F);
            ready(N, [&](int64_t n) { prepare(p.down, fired, n); });
            if (p.down.by_input) count(fired.active, stats.down[layer]);
            product(p.down, fired, w.y, N);
            sync();
        }
        own_rows([&](int64_t n) { close(layer, n); });
        if (thread == 0) stats.layers += N, stats.sketched += sketched ? N : 0;
    }

    // Row n of the stream after the block, and its spikes.
    void close(int64_t layer, int64_t n) const {
        const Layer& p = m.layers[layer];
        float *s = w.s + n * m.D, *seen = w.n + n * m.D;
        join(p.ffn_norm, n, fallen(p.down, n));
        if (m.block_spikes) spike(seen, p.level, s, m.D, m.stream_code);
        else std::memcpy(s, seen, m.D * sizeof(float));
        note_row(call.taps.blocks, layer * N + n);
    }

    void run() const {
        own_rows([&](int64_t n) {
            embed(n);
            for (int64_t i = 0; i < m.K / 2; ++i) {
                float angle = float(position(n)) * m.inverse[i], *turn = w.turn + n * m.K;
                turn[i] = float(cos(double(angle))), turn[i + m.K / 2] = float(sin(double(angle)));  // the same float from every C library
            }
        });
        if (N > 1) sync();
        N == 1 ? fire(0, w.sum) : each(B, [&](int64_t b) { fire(b, state.v + b * m.D); });
        sync();
        if (N == 1 && thread == 0 && m.source == Source::lif) std::memcpy(state.v, w.sum, m.D * sizeof(float));
        own_rows([&](int64_t n) { note_row(call.taps.encoder, n); });
        for (int64_t layer = 0; layer < m.L; ++layer) {
            block(layer);
            if (m.exit_entropy < 0 || !certain()) continue;
            for (int64_t left = layer + 1; left < m.L; ++left) each(B, [&](int64_t b) { pass_over(left, b); });
            break;
        }
        sync();
        if (call.taps.stream && (N > 1 || thread == 0))
            own_rows([&](int64_t n) { std::memcpy(call.taps.stream + n * m.D, w.n + n * m.D, m.D * sizeof(float)); });
        if (call.want == Logits::last) head(last_rows(), B, call.logits, call.top);
        if (call.want == Logits::all) head(w.n, N, call.logits);
    }
};

void forward(const Model& m, const State& state, const Call& call, const Scratch* of_threads, Stats& stats, Pool& pool) {
    struct Job { const Model& m; const State& state; const Call& call; const Scratch* w; Stats& stats; Pool& pool; };
    Job job{m, state, call, of_threads, stats, pool};
    pool.run([](void* argument, int thread) {
        Job& j = *(Job*)argument;
        Pass{{{{{{j.m, j.state, j.call, j.w[thread], j.stats, j.pool, thread}}}}}}.run();
    }, &job);
}

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA

#define SYMBOLICLIGHT_JOIN(a, b) a##b
#define SYMBOLICLIGHT_NAMED(prefix, name) SYMBOLICLIGHT_JOIN(prefix, name)
#define SYMBOLICLIGHT_STRING(name) #name
#define SYMBOLICLIGHT_QUOTED(name) SYMBOLICLIGHT_STRING(name)

extern const EngineIsa SYMBOLICLIGHT_NAMED(engine_, SYMBOLICLIGHT_ISA) = {
    SYMBOLICLIGHT_QUOTED(SYMBOLICLIGHT_ISA), SYMBOLICLIGHT_ISA::forward};

}  // namespace symboliclight
