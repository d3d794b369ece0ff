// Gated window attention, forward and backward, one (batch, head) at a time (equations in ops/window.py).
//
// The keys of a head are packed once into columns of 32: the R + T keys in time order, then the anchors. A block of 32
// queries multiplies the columns it can see, so its scores are 32 x (W + 64 + A) floats whatever T. The backward pass
// computes the probabilities again.
#pragma once

#include <cmath>
#include <limits>

#include "simd/matmul.hpp"
#include "kernels/parallel.hpp"
#include "kernels/scratch.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

inline int64_t columns(int64_t n) { return (n + SIDE - 1) / SIDE; }

// One head of one sequence: its packed keys and the scores of the block at hand.
template <class T>
class Head {
    using P = Products<T>;
    using E = typename P::Element;
    static constexpr int64_t SCORES = CELL + 16;  // floats from column to column, so that rows fall into different sets

public:
    Head(WindowShape shape, const WindowKeys<T>& keys, int64_t b, int64_t h, bool backward, Scratch& scratch)
        : s(shape), row(s.H * s.K), depth(columns(s.K)), own(columns(s.R + s.T)), all(own + columns(s.A)),
          scale(1 / std::sqrt(float(s.K))), position(keys.position[b]) {
        int64_t window = columns(s.W) + 2, seen = (window < own ? window : own) + all - own;  // most columns of a block
        int64_t cells = all * depth * 3 + seen * 3 + depth * 4, sums = all * depth * 2;
        scratch.reserve(cells * CELL * sizeof(E) + (all * SIDE + seen * SCORES * 2 + CELL + sums * CELL) * 4, 16);
        bias = scratch.take<float>(all * SIDE);
        k_across = scratch.take<E>(all * depth * CELL);
        v_along = scratch.take<E>(all * depth * CELL);
        k_along = scratch.take<E>(all * depth * CELL);
        left = scratch.take<E>(seen * CELL);
        right = scratch.take<E>(seen * CELL);
        right_p = scratch.take<E>(seen * CELL);
        for (auto& block : blocks) block = scratch.take<E>(depth * CELL);
        scores = scratch.take<float>(seen * SCORES);
        slopes = scratch.take<float>(seen * SCORES);
        result = scratch.take<float>(CELL);
        sums_k = scratch.take<float>(sums * CELL);
        sums_v = sums_k + sums / 2 * CELL;
        pack(keys, b, h, backward);
    }

    void forward(int64_t first, const T* q, T* out) {
        open_block(first);
        multiply(scores, load_block(blocks[0], q), k_across);
        softmax();
        for (int64_t x = 0; x < seen(); ++x) P::from_floats(left + x * CELL, scores + x * SCORES);
        write_product(out, v_along, inverse);
    }

    void clear_gradients() { std::memset(sums_k, 0, 2 * (sums_v - sums_k) * sizeof(float)); }

    // grad_q of one block; the gradients of its keys and values are added to the head's sums.
    void backward(int64_t first, const T* grad_out, const T* q, T* grad_q) {
        open_block(first);
        multiply(scores, load_block(blocks[0], q), k_across);
        softmax();
        multiply(slopes, load_block(blocks[1], grad_out), v_along);
        differentiate_softmax();
        for (int64_t d = 0; d < depth; ++d) {
            P::left_transposed(blocks[2] + d * CELL, blocks[0] + d * CELL);
            P::left_transposed(blocks[3] + d * CELL, blocks[1] + d * CELL);
        }
        for (int64_t x = 0; x < seen(); ++x) {
            alignas(64) E cell[CELL];
            P::from_floats(cell, scores + x * SCORES);
            P::right(right_p + x * CELL, cell);
            P::from_floats(left + x * CELL, slopes + x * SCORES);
            P::right(right + x * CELL, left + x * CELL);
            for (int64_t d = 0; d < depth; ++d) {
                int64_t at = (column(x) * depth + d) * CELL;
                P::product(sums_k + at, blocks[2] + d * CELL, 0, right + x * CELL, 0, 1, true);
                P::product(sums_v + at, blocks[3] + d * CELL, 0, right_p + x * CELL, 0, 1, true);
            }
        }
        write_product(grad_q, k_along, nullptr);
    }

    void write_gradients(int64_t b, int64_t h, const WindowGrads<T>& grads) {
        for (int64_t j = 0; j < all; ++j) {
            T* k = const_cast<T*>(of(j, b, h, grads.k, grads.anchor_k));
            T* v = const_cast<T*>(of(j, b, h, grads.v, grads.anchor_v));
            for (int64_t d = 0; d < depth; ++d) {
                int64_t at = (j * depth + d) * CELL;
                write_transposed(k + d * SIDE, sums_k + at, rows(j), dims(d));
                write_transposed(v + d * SIDE, sums_v + at, rows(j), dims(d));
            }
        }
    }

private:
    void pack(const WindowKeys<T>& keys, int64_t b, int64_t h, bool backward) {
        const float closed = -std::numeric_limits<float>::infinity();
        for (int64_t j = 0; j < all * SIDE; ++j) bias[j] = closed;
        for (int64_t j = 0; j < s.R + s.T; ++j) bias[j] = keys.gate[b * (s.R + s.T) + j] ? 0 : closed;
        for (int64_t a = 0; a < s.A; ++a) bias[own * SIDE + a] = keys.anchor_gate[b * s.A + a] ? 0 : closed;
        for (int64_t j = 0; j < all; ++j) {
            const T* k = of(j, b, h, keys.k, keys.anchor_k);
            const T* v = of(j, b, h, keys.v, keys.anchor_v);
            for (int64_t d = 0; d < depth; ++d) {
                alignas(64) E cell[CELL];
                int64_t at = (j * depth + d) * CELL;
                load_cell(cell, k + d * SIDE, row, rows(j), dims(d));
                P::right_transposed(k_across + at, cell);
                if (backward) P::right(k_along + at, cell);
                load_cell(cell, v + d * SIDE, row, rows(j), dims(d));
                // The backward pass needs v only across: the gradient of the probabilities is grad_out vᵀ.
                backward ? P::right_transposed(v_along + at, cell) : P::right(v_along + at, cell);
            }
        }
    }

    const T* of(int64_t j, int64_t b, int64_t h, const T* keys, const T* anchors) const {
        const T* first = j < own ? keys + b * (s.R + s.T) * row : anchors + b * s.A * row;
        return first + (j < own ? j : j - own) * SIDE * row + h * s.K;
    }
    int64_t rows(int64_t j) const {
        int64_t left_over = j < own ? s.R + s.T - j * SIDE : s.A - (j - own) * SIDE;
        return left_over < SIDE ? left_over : SIDE;
    }
    int64_t dims(int64_t d) const { return s.K - d * SIDE < SIDE ? s.K - d * SIDE : SIDE; }

    // Which columns queries first .. first + 31 can see: a run of their window, and the anchors once one has left it.
    void open_block(int64_t first) {
        query = first;
        queries = s.T - first < SIDE ? s.T - first : SIDE;
        int64_t from = s.R + first - s.W;
        start = from < 0 ? 0 : from / SIDE;
        recent = (s.R + first + queries - 1) / SIDE - start + 1;
        anchors = position + first + queries - 1 > s.W ? all - own : 0;
    }
    int64_t seen() const { return recent + anchors; }
    int64_t column(int64_t x) const { return x < recent ? start + x : own + x - recent; }

    const E* load_block(E* to, const T* from) const {
        for (int64_t d = 0; d < depth; ++d)
            load_cell(to + d * CELL, from + query * row + d * SIDE, row, queries, dims(d));
        return to;
    }

    // to = block · keysᵀ for every column seen.
    void multiply(float* to, const E* block, const E* keys) const {
        for (int64_t x = 0; x < seen(); ++x)
            P::product(to + x * SCORES, block, CELL, keys + column(x) * depth * CELL, CELL, depth, false);
    }

    // to = factor · left · keys, rows of the block's queries.
    void write_product(T* to, const E* keys, const float* factor) const {
        for (int64_t d = 0; d < depth; ++d) {
            P::product(result, left, CELL, keys + (start * depth + d) * CELL, depth * CELL, recent, false);
            if (anchors) {
                const E* last = keys + (own * depth + d) * CELL;
                P::product(result, left + recent * CELL, CELL, last, depth * CELL, anchors, true);
            }
            for (int64_t i = 0; i < queries; ++i)
                lanes(dims(d), [&](int64_t c, auto m) {
                    vfloat x = load(result + i * SIDE + c, m) * splat(factor ? factor[i] : 1);
                    store(to + (query + i) * row + d * SIDE + c, x, m);
                });
        }
    }

    void write_transposed(T* to, const float* cell, int64_t rows, int64_t cols) const {
        float turned[CELL];
        Floats::left_transposed(turned, cell);
        for (int64_t i = 0; i < rows; ++i)
            lanes(cols, [&](int64_t c, auto m) { store(to + i * row + c, load(turned + i * SIDE + c, m), m); });
    }

    // f(offset into the scores, column x) for row i of every column seen.
    template <class F>
    void over_columns(int64_t i, F f) const {
        for (int64_t x = 0; x < seen(); ++x) f(x * SCORES + i * SIDE, x);
    }

    // f(offset into the scores) for the vectors of row i.
    template <class F>
    void over_row(int64_t i, F f) const {
        over_columns(i, [&](int64_t offset, int64_t) {
            for (int64_t c = 0; c < SIDE; c += W) f(offset + c);
        });
    }

    // A distance in 32 bits; how far beyond a cell it reaches does not matter.
    static int32_t lane_of(int64_t x) { return int32_t(x < -1 ? -1 : x > SIDE ? SIDE : x); }

    // scores -> scale * scores where query i sees the key, else -inf; returns the largest.
    float mask(int64_t i) {
        const int64_t at = s.R + query + i;  // the query's place among the keys
        const vfloat closed = splat(-std::numeric_limits<float>::infinity()), factor = splat(scale);
        vfloat most = closed;
        if (i >= queries || bias[at] != 0) return closed[0];
        over_columns(i, [&](int64_t offset, int64_t x) {
            const bool anchor = x >= recent;
            const int64_t key = column(x) * SIDE, last = anchor ? own * SIDE + position + query + i - s.W - 1 : at;
            const int32_t low = anchor ? 0 : lane_of(at - s.W - key), high = lane_of(last - key);
            for (int32_t c = 0; c < SIDE; c += W) {
                vfloat score = fma(load(scores + offset + c, Full{}), factor, load(bias + key + c, Full{}));
                if (low > 0 || high < SIDE - 1) {
                    vint lane = lane_numbers() + c;
                    score = ((lane >= low) & (lane <= high)) ? score : closed;
                }
                store(scores + offset + c, score, Full{});
                most = max(most, score);
            }
        });
        return max(most);
    }

    // scores -> e^(score - largest), and in `inverse` one over their sum; a row that sees nothing becomes 0
    // (and stays NaN where it is).
    void softmax() {
        for (int64_t i = 0; i < SIDE; ++i) {
            const float top = mask(i);
            vfloat total{};
            if (top == -std::numeric_limits<float>::infinity()) {
                over_row(i, [&](int64_t at) {
                    vfloat score = load(scores + at, Full{});
                    store(scores + at, score == score ? vfloat{} : score, Full{});
                });
                inverse[i] = 0;
                continue;
            }
            over_row(i, [&](int64_t at) {
                vfloat p = exp(load(scores + at, Full{}) - splat(top));
                store(scores + at, p, Full{});
                total = total + p;
            });
            inverse[i] = 1 / sum(total);
        }
    }

    // scores -> probabilities p; slopes: ∂L/∂p -> ∂L/∂(q · k) = scale · p · (∂L/∂p - Σ p ∂L/∂p).
    void differentiate_softmax() {
        for (int64_t i = 0; i < SIDE; ++i) {
            vfloat products{};
            over_row(i, [&](int64_t at) {
                products = fma(load(scores + at, Full{}), load(slopes + at, Full{}), products);
            });
            const vfloat mean = splat(sum(products) * inverse[i]), one_over = splat(inverse[i]), factor = splat(scale);
            over_row(i, [&](int64_t at) {
                vfloat p = load(scores + at, Full{}) * one_over;
                store(scores + at, p, Full{});
                store(slopes + at, p * factor * (load(slopes + at, Full{}) - mean), Full{});
            });
        }
    }

    const WindowShape s;
    const int64_t row, depth, own, all;  // elements a token, cells a head, columns of keys, and with anchors
    const float scale;
    const int64_t position;
    int64_t query, queries, start, recent, anchors;  // of the block at hand
    float inverse[SIDE];  // one over the sum of each row's exponentials
    E *k_across, *v_along, *k_along, *left, *right, *right_p, *blocks[4];
    float *bias, *scores, *slopes, *result, *sums_k, *sums_v;
};

// f(head, b, h, offset of its queries) for every (batch, head), each on one thread.
template <class T, class F>
void over_heads(WindowShape s, const WindowKeys<T>& keys, bool backward, int threads, F f) {
    parallel_for(s.B * s.H, threads, [&](int64_t item) {
        static thread_local Scratch scratch;
        typename Products<T>::Session session;
        (void)session;
        int64_t b = item / s.H, h = item % s.H;
        Head<T> head(s, keys, b, h, backward, scratch);
        f(head, b, h, (b * s.T * s.H + h) * s.K);
    });
}

template <class T>
void window_forward(WindowShape s, const T* q, WindowKeys<T> keys, T* out, int threads) {
    over_heads(s, keys, false, threads, [&](Head<T>& head, int64_t, int64_t, int64_t at) {
        for (int64_t first = 0; first < s.T; first += SIDE) head.forward(first, q + at, out + at);
    });
}

template <class T>
void window_backward(WindowShape s, const T* grad_out, const T* q, WindowKeys<T> keys, T* grad_q, WindowGrads<T> grads,
                     int threads) {
    over_heads(s, keys, true, threads, [&](Head<T>& head, int64_t b, int64_t h, int64_t at) {
        head.clear_gradients();
        for (int64_t first = 0; first < s.T; first += SIDE) head.backward(first, grad_out + at, q + at, grad_q + at);
        head.write_gradients(b, h, grads);
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
