// One call through all layers, for the instruction set that the compiler flags of this object name (model/lm.py).
#include <math.h>

#include "sketch.hpp"

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

    // s = 1[x >= threshold] of n values; `one` takes one threshold for all.
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

    // Rotates the pair (x[i], x[i + K/2]) of one head (ops/rope.py).
    void rotate(float* x, const float* turn) const {
        int64_t half = m.K / 2;
        for (int64_t i = 0; i < half; ++i) {
            float a = x[i], b = x[i + half], cosine = turn[i], sine = turn[i + half];
            x[i] = a * cosine - b * sine;
            x[i + half] = b * cosine + a * sine;
        }
    }

    // What the queries of a block see: keys, values, and the first and last query that may, counted from the block's first.
    struct Sight {
        const void **keys, **values;
        int32_t *from, *to;
        float* score;  // (Q, room)
        int64_t room, count;
    };

    static void fetch(const void* const* rows, int64_t j, int64_t count, size_t size) {
        for (size_t at = 0; j < count && at < size; at += 64) __builtin_prefetch((const char*)rows[j] + at);
    }

    // score = q . key, keys by fours; every sum has one order, whatever its neighbours.
    template <class Key, int Q>
    void dots(const float* q, const Sight& s) const {
        auto some = [&](int64_t j, auto keys) {
            constexpr int C = decltype(keys)::value;
            vfloat found[Q][C] = {};
            lanes(m.K, [&](int64_t i, auto l) {
                vfloat key[C];
                for (int c = 0; c < C; ++c) key[c] = load((const Key*)s.keys[j + c] + i, l);
                for (int r = 0; r < Q; ++r) {
                    vfloat x = load(q + r * m.D + i, l);
                    for (int c = 0; c < C; ++c) found[r][c] = fma(x, key[c], found[r][c]);
                }
            });
            for (int r = 0; r < Q; ++r)
                if constexpr (C == 4) sum4(found[r][0], found[r][1], found[r][2], found[r][3], s.score + r * s.room + j);
                else s.score[r * s.room + j] = sum(found[r][0]);
        };
        int64_t j = 0;
        for (; j + 4 <= s.count; j += 4) {
            for (int64_t next = j; Q == 1 && next < j + 4; ++next) {  // one query: they come from memory
                fetch(s.keys, next + 16, s.count, m.K * sizeof(Key));
                fetch(s.values, next, s.count, m.K * sizeof(Key));
            }
            some(j, Count<4>{});
        }
        for (; j < s.count; ++j) some(j, Count<1>{});
    }

    // Turns the scores of query r into shares before division; returns their sum, added in order: zeros change nothing.
    float softmax(const Sight& s, int32_t r) const {
        float *score = s.score + r * s.room, whole = 0;
        const vfloat scale = splat(1 / sqrtf(float(m.K))), never = splat(-HUGE_VALF);
        vfloat most = never;
        lanes(s.count, [&](int64_t j, auto l) {
            vint from, to = lane_numbers() < splat_int(l) ? splat_int(-1) : vint{};
            std::memcpy(&from, s.from + j, sizeof(int32_t) * l);
            std::memcpy(&to, s.to + j, sizeof(int32_t) * l);
            vint seen = (lane_numbers() < splat_int(l)) & (from <= splat_int(r)) & (to >= splat_int(r));
            vfloat x = seen ? load(score + j, l) * scale : never;
            store(score + j, x, l);
            most = max(most, x);
        });
        most = splat(max(most));
        lanes(s.count, [&](int64_t j, auto l) { store(score + j, exp(load(score + j, l) - most), l); });
        for (int64_t j = 0; j < s.count; ++j) whole += score[j];
        return whole;
    }

    // out (Q rows) = sum of the values by their shares, G vectors of every one at a time from `at` on; returns what is left.
    template <class Key, int Q, int G>
    int64_t weigh(int64_t at, const Sight& s, float* out) const {
        for (; at + G * W <= m.K; at += G * W) {
            vfloat sum[Q][G] = {};
            for (int64_t j = 0; j < s.count; ++j) {
                vfloat value[G];
                for (int g = 0; g < G; ++g) value[g] = load((const Key*)s.values[j] + at + g * W, Full{});
                for (int r = 0; r < Q; ++r)
                    for (int g = 0; g < G; ++g) sum[r][g] = fma(splat(s.score[r * s.room + j]), value[g], sum[r][g]);
            }
            for (int r = 0; r < Q; ++r)
                for (int g = 0; g < G; ++g) store(out + r * m.D + at + g * W, sum[r][g], Full{});
        }
        return at;
    }

    // Attention of rows n .. n + Q - 1, head h, over anchors gone from the window, the ring, and this call's keys
    // (ops/window.py). A row's result does not depend on Q.
    template <class Key, int Q>
    void attend(int64_t layer, int64_t n, int64_t h, float* out) const {
        const int64_t b = n / T, i = position(n), last = i + Q - 1, start = state.position[b], at = (b * m.L + layer) * m.H + h;
        const Key *ring = (Key*)state.k + at * m.W * m.K, *ring_value = (Key*)state.value + at * m.W * m.K;
        const Key *anchors = (Key*)state.anchor_k + at * m.A * m.K, *anchor_value = (Key*)state.anchor_v + at * m.A * m.K;
        const uint8_t *ring_gate = state.gate + (b * m.L + layer) * m.W, *anchor_gate = state.anchor_gate + (b * m.L + layer) * m.A;
        const int64_t room = sight(m);
        Sight s{w.keys + thread * room, w.values + thread * room, w.from + thread * room, w.to + thread * room,
                w.score + thread * QUERIES * room, room, 0};
        auto see = [&](bool open, const Key* key, const Key* value, int64_t from, int64_t to) {
            s.keys[s.count] = key, s.values[s.count] = value;
            s.from[s.count] = int32_t(from - i), s.to[s.count] = int32_t(to - i);
            s.count += open;
        };
        auto see_here = [&](int64_t j, int64_t from, int64_t to) {  // position j of this call
            int64_t row = b * T + j - start, place = row * m.D + h * m.K;
            see(w.gate[row], (Key*)w.key + place, (Key*)w.value + place, from, to);
        };
        for (int64_t a = 0; a < m.A && last - a > m.W; ++a) {
            if (a >= start) see_here(a, a + m.W + 1, last);
            else see(anchor_gate[a], anchors + a * m.K, anchor_value + a * m.K, a + m.W + 1, last);
        }
        const int64_t first = i - m.W > 0 ? i - m.W : 0;
        for (int64_t j = first, slot = first % (m.W + !m.W); j < start; ++j) {
            see(ring_gate[slot], ring + slot * m.K, ring_value + slot * m.K, j, j + m.W);
            if (++slot == m.W) slot = 0;
        }
        for (int64_t j = first > start ? first : start; j <= last; ++j) see_here(j, j, j + m.W);
        dots<Key, Q>(w.q + n * m.D + h * m.K, s);
        float whole[Q];
        for (int r = 0; r < Q; ++r) whole[r] = softmax(s, r);
        int64_t done = weigh<Key, Q, 1>(weigh<Key, Q, W == 16 ? 4 : 2>(0, s, out), s, out);
        for (; done < m.K; ++done)
            for (int r = 0; r < Q; ++r) {
                float sum = 0;
                for (int64_t j = 0; j < s.count; ++j) sum += s.score[r * room + j] * load((const Key*)s.values[j] + done, 1)[0];
                out[r * m.D + done] = sum;
            }
        for (int r = 0; r < Q; ++r)
            for (int64_t k = 0; k < m.K; ++k) out[r * m.D + k] = w.gate[n + r] ? out[r * m.D + k] / whole[r] : 0;
    }

    // Both paths and their mix for one head of one sequence; then its keys enter the state (model/mixer.py).
    template <class Key>
    void mix(int64_t layer, int64_t b, int64_t h) const {
        const int64_t K = m.K, first = b * T, column = h * K;
        for (int64_t n = first; m.attention && n < first + T; ++n) {
            rotate(w.q + n * m.D + column, w.turn + n * K);
            rotate(w.k + n * m.D + column, w.turn + n * K);
            if constexpr (std::is_same_v<Key, bf16>)
                lanes(K, [&](int64_t i, auto l) {
                    store((Key*)w.key + n * m.D + column + i, load(w.k + n * m.D + column + i, l), l);
                    store((Key*)w.value + n * m.D + column + i, load(w.v + n * m.D + column + i, l), l);
                });
        }
        int64_t n = first;
        if (m.attention) {
            for (; n + QUERIES <= first + T; n += QUERIES) attend<Key, QUERIES>(layer, n, h, w.o + n * m.D + column);
            for (; n < first + T; ++n) attend<Key, 1>(layer, n, h, w.o + n * m.D + column);
        }
        for (n = first; m.decay && n < first + T; ++n)
            fade(m.layers[layer], h, state.h + (b * m.L + layer) * m.D + column, w.u + n * m.D + column, w.o + n * m.D + column);
        if (m.attention) keep<Key>(layer, b, h);
    }

    // past <- d past + (1 - d) u (ops/decay.py), mixed into o.
    void fade(const Layer& p, int64_t h, float* past, const float* u, float* o) const {
        const vfloat d = splat(p.decay[h]), rest = splat(1) - d, a = splat(p.fuse);
        lanes(m.K, [&](int64_t i, auto l) {
            vfloat x = fma(d, load(past + i, l), rest * load(u + i, l));
            store(past + i, x, l);
            store(o + i, m.attention ? fma(a, load(o + i, l) - x, x) : x, l);
        });
    }

    // The keys and values of this call that a later one can see.
    template <class Key>
    void keep(int64_t layer, int64_t b, int64_t h) const {
        const int64_t at = (b * m.L + layer) * m.H + h, start = state.position[b];
        const size_t size = m.K * sizeof(Key);
        for (int64_t t = 0; t < T; ++t) {
            const int64_t j = start + t, row = (b * T + t) * m.D + h * m.K;
            if (j >= 0 && j < m.A) {
                std::memcpy((Key*)state.anchor_k + (at * m.A + j) * m.K, (Key*)w.key + row, size);
                std::memcpy((Key*)state.anchor_v + (at * m.A + j) * m.K, (Key*)w.value + row, size);
            }
            if (j < 0 || t + m.W < T) continue;
            if (m.W) {
                std::memcpy((Key*)state.k + (at * m.W + j % m.W) * m.K, (Key*)w.key + row, size);
                std::memcpy((Key*)state.value + (at * m.W + j % m.W) * m.K, (Key*)w.value + row, size);
            }
        }
    }

    // The gates of those keys; all closed for a layer that an early exit left out.
    void keep_gates(int64_t layer, int64_t b, bool ran) const {
        uint8_t *ring = state.gate + (b * m.L + layer) * m.W, *anchors = state.anchor_gate + (b * m.L + layer) * m.A;
        for (int64_t t = 0; m.attention && t < T; ++t) {
            const int64_t j = state.position[b] + t;
            if (j < 0) continue;
            if (ran && j < m.A) anchors[j] = w.gate[b * T + t];
            if (m.W) ring[j % m.W] = ran && w.gate[b * T + t];
        }
    }

    static void note(const float* s, uint8_t* to, int64_t n) {
        for (int64_t i = 0; i < n; ++i) to[i] = s[i] != 0;
    }

    void hidden(int64_t layer, int64_t n) const {
        const Layer& p = m.layers[layer];
        float* f = w.f + n * m.F;
        if (m.ffn_spikes) spike(f, &m.v_threshold, true, f, m.F);
        else gelu(f, m.F, 1);
        if (call.taps.ffn) note(f, call.taps.ffn + (layer * N + n) * m.F, m.F);
        prepare(p.down, with(w.stream, w.f), n);
    }

    static void gelu(float* x, int64_t n, float weight) {
        for (int64_t i = 0; i < n; ++i) x[i] = weight * .5f * x[i] * (1 + erff(x[i] * 0.707106781f));
    }

    // Logits (rows, V) of rows x (model/head.py); with `top`, those that cannot be among so many largest may be left out
    // as -infinity. Ends in step.
    void head(const float* x, int64_t rows, float* logits, int64_t top = 0) const {
        Operand in = with(w.stream, x), prior = with(w.spikes, w.prior);
        const bool dynamic = m.prior == Prior::dynamic;
        const bool rough = top && rows <= SKETCH_ROWS && m.head_sketch.rough.data && m.prior != Prior::fixed;
        each(rows, [&](int64_t n) { rough ? prepare_sketch(m.head_sketch.rough, in, n) : prepare(m.head, in, n); });
        pool.sync();
        if (dynamic) {
            product(m.prior_down, in, w.prior, rows);
            pool.sync();
            each(rows, [&](int64_t n) {
                gelu(w.prior + n * m.prior_down.outs, m.prior_down.outs, m.prior_weight);
                rough ? prepare_sketch(m.prior_sketch.rough, prior, n) : prepare(m.prior_up, prior, n);
            });
            pool.sync();
        }
        if (rough) return choose(in, prior, rows, logits, top, dynamic);
        share(units(m.head), [&](int64_t begin, int64_t end) {
            multiply(m.head, in, rows, logits, begin, end);
            if (m.prior == Prior::dynamic) multiply(m.prior_up, prior, rows, logits, begin, end, true);
            int64_t last = end * LANES < m.V ? end * LANES : m.V;
            for (int64_t n = 0; m.prior == Prior::fixed && n < rows; ++n)
                for (int64_t o = begin * LANES; o < last; ++o) logits[n * m.V + o] += m.bias[o];
        });
        pool.sync();
    }

    // The rest of `head` by sketches: bounds of all logits, from them a bar that the k-th largest reaches, and then only
    // the logits that may reach it.
    void choose(const Operand& in, const Operand& prior, int64_t rows, float* logits, int64_t top, bool dynamic) const {
        const int64_t blocks = units(m.head);
        share(blocks, [&](int64_t begin, int64_t end) {
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
        pool.sync();
        each(rows, [&](int64_t n) { w.bar[n] = kth_largest(w.least + n * blocks, blocks, top < blocks ? top : blocks); });
        pool.sync();
        share(blocks, [&](int64_t begin, int64_t end) {
            int64_t exact = 0;
            for (int64_t n = 0; n < rows; ++n) {
                const float bar = top < blocks ? w.bar[n] : -HUGE_VALF;
                float* z = logits + n * m.V;
                for (int64_t o = begin * LANES; o < end * LANES && o < m.V; ++o) {
                    if (z[o] < bar) {
                        z[o] = -HUGE_VALF;
                        continue;
                    }
                    exactly(m.head, in, n, o, z, false);
                    if (dynamic) exactly(m.prior_up, prior, n, o, z, true);
                    ++exact;
                }
            }
            __atomic_fetch_add(&stats.chosen[1], exact, __ATOMIC_RELAXED);
        });
        if (thread == 0) stats.chosen[0] += rows;
        pool.sync();
    }

    const float* last_rows() const {
        if (T == 1) return w.c;
        each(B, [&](int64_t b) { std::memcpy(w.y + b * m.D, w.c + (b * T + T - 1) * m.D, m.D * sizeof(float)); });
        pool.sync();
        return w.y;
    }

    // Early exit: is the next-token entropy of every sequence below the limit?
    bool certain() const {
        pool.sync();
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

    void block(int64_t layer) const {
        const Layer& p = m.layers[layer];
        const bool sketched = p.sketch.rough.data && m.ffn_spikes && N <= SKETCH_ROWS;
        each(N, [&](int64_t n) { open(p, n); });
        pool.sync();
        if (m.decay) {
            if (p.tcam.by_input) count(w.spikes.active, stats.tcam[layer]);
            product(p.tcam, with(w.spikes, w.s), w.u, N);
        }
        if (m.attention) {
            product(p.q, with(w.stream, w.c), w.q, N);
            product(p.k, with(w.stream, w.c), w.k, N);
            product(p.v, with(w.stream, w.c), w.v, N);
        }
        pool.sync();
        each(B * m.H, [&](int64_t item) {
            if (m.short_keys) mix<bf16>(layer, item / m.H, item % m.H);
            else mix<float>(layer, item / m.H, item % m.H);
        });
        pool.sync();
        each(B, [&](int64_t b) { keep_gates(layer, b, true); });
        if (prepared(p.out)) {
            each(N, [&](int64_t n) { prepare(p.out, with(w.stream, w.o), n); });
            pool.sync();
        }
        product(p.out, with(w.stream, w.o), w.y, N);
        pool.sync();
        each(N, [&](int64_t n) {
            normalise(p.mixer_norm, w.c + n * m.D, w.y + n * m.D, w.c + n * m.D);
            if (sketched) prepare_sketch(p.sketch.rough, with(w.stream, w.c), n);
            else prepare(p.up, with(w.stream, w.c), n);
        });
        pool.sync();
        if (sketched)
            share(units(p.up), [&](int64_t begin, int64_t end) {
                int64_t exact = certify(p.up, p.sketch, with(w.stream, w.c), N, m.v_threshold, w.f, begin, end);
                __atomic_fetch_add(&stats.exact[layer], exact, __ATOMIC_RELAXED);
            });
        else product(p.up, with(w.stream, w.c), w.f, N);
        pool.sync();
        each(N, [&](int64_t n) { hidden(layer, n); });
        pool.sync();
        if (p.down.by_input) count(w.stream.active, stats.down[layer]);
        product(p.down, with(w.stream, w.f), w.y, N);
        pool.sync();
        each(N, [&](int64_t n) {
            float *c = w.c + n * m.D, *s = w.s + n * m.D;
            normalise(p.ffn_norm, c, w.y + n * m.D, c);
            if (m.block_spikes) spike(c, &m.v_threshold, true, s, m.D);
            else std::memcpy(s, c, m.D * sizeof(float));
            if (call.taps.blocks) note(s, call.taps.blocks + (layer * N + n) * m.D, m.D);
        });
        if (thread == 0) stats.layers += N, stats.sketched += sketched ? N : 0;
    }

    void run() const {
        each(N, [&](int64_t n) {
            embed(n);
            for (int64_t i = 0; i < m.K / 2; ++i) {
                float angle = float(position(n)) * m.inverse[i], *turn = w.turn + n * m.K;
                turn[i] = float(cos(angle)), turn[i + m.K / 2] = float(sin(angle));
            }
        });
        pool.sync();
        each(B, [&](int64_t b) { fire(b); });
        pool.sync();
        if (call.taps.encoder) each(N, [&](int64_t n) { note(w.s + n * m.D, call.taps.encoder + n * m.D, m.D); });
        for (int64_t layer = 0; layer < m.L; ++layer) {
            block(layer);
            if (m.exit_entropy < 0 || !certain()) continue;
            for (int64_t left = layer + 1; left < m.L; ++left) each(B, [&](int64_t b) { keep_gates(left, b, false); });
            break;
        }
        pool.sync();
        if (call.want == Logits::last) head(last_rows(), B, call.logits, call.top);
        if (call.want == Logits::all) head(w.c, N, call.logits);
    }
};

void forward(const Model& m, const State& state, const Call& call, const Scratch& w, Stats& stats, Pool& pool) {
    struct Job { const Model& m; const State& state; const Call& call; const Scratch& w; Stats& stats; Pool& pool; };
    Job job{m, state, call, w, stats, pool};
    pool.run([](void* argument, int thread) {
        Job& j = *(Job*)argument;
        Step{j.m, j.state, j.call, j.w, j.stats, j.pool, thread}.run();
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
