// Passes over memory that torch makes several times: dropout, rotary embedding, the gradients of a blend, and softmax
// with its gradient in place. The equations are those of ops/dropout.py, ops/rope.py, ops/blend.py and ops/loss.py.
#pragma once

#include <cmath>

#include "kernels/parallel.hpp"
#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

// Bijective mixing of 32 bits; every input bit changes every output bit with a chance near one half.
inline vuint mix(vuint x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

constexpr int64_t PIECE = 1 << 14;  // elements that a thread takes at a time

// y_i = x_i · scale where mix(mix(i) + seed) >= limit, else 0.
template <class T>
void dropout(int64_t n, uint32_t seed, uint32_t limit, float scale, const T* x, T* y, int threads) {
    const vfloat factor = splat(scale), zero{};
    parallel_for((n + PIECE - 1) / PIECE, threads, [&](int64_t item) {
        int64_t first = item * PIECE, count = n - first < PIECE ? n - first : PIECE;
        lanes(count, [&](int64_t i, auto m) {
            vuint at = (vuint)lane_numbers() + uint32_t(first + i);
            auto kept = mix(mix(at) + seed) >= limit;
            store(y + first + i, kept ? load(x + first + i, m) * factor : zero, m);
        });
    });
}

// Gradients of (1 - share) a + share b; sums has the part of share's that each PIECE has.
template <class T>
void blend_backward(int64_t n, const T* grad, const T* a, const T* b, T* grad_a, T* grad_b, float share, float* sums,
                    int threads) {
    const vfloat to_b = splat(share), to_a = splat(1 - share);
    parallel_for((n + PIECE - 1) / PIECE, threads, [&](int64_t item) {
        int64_t first = item * PIECE, count = n - first < PIECE ? n - first : PIECE;
        vfloat total{};
        lanes(count, [&](int64_t i, auto m) {
            vfloat g = load(grad + first + i, m);
            total = fma(g, load(b + first + i, m) - load(a + first + i, m), total);
            store(grad_a + first + i, g * to_a, m);
            store(grad_b + first + i, g * to_b, m);
        });
        sums[item] = sum(total);
    });
}

// Rotates the pairs (x_i, x_{i + K/2}) of every head; cosine and sine (rows, K/2) are shared by the H heads of a row.
template <class T>
void rope(int64_t rows, int64_t H, int64_t K, float sign, const T* x, const float* cosine, const float* sine, T* y,
          int threads) {
    constexpr int64_t piece = 64;  // rows a thread takes at a time: taking one costs as much as turning it
    const int64_t half = K / 2;
    const vfloat turn = splat(sign);
    parallel_for((rows + piece - 1) / piece, threads, [&](int64_t item) {
        for (int64_t at = item * piece * H; at < (item + 1) * piece * H && at < rows * H; ++at) {
            const int64_t row = at / H, h = at % H;
            const T* from = x + (row * H + h) * K;
            T* to = y + (row * H + h) * K;
            lanes(half, [&](int64_t i, auto m) {
                vfloat c = load(cosine + row * half + i, m), s = load(sine + row * half + i, m) * turn;
                vfloat a = load(from + i, m), b = load(from + half + i, m);
                store(to + i, a * c - b * s, m);
                store(to + half + i, b * c + a * s, m);
            });
        }
    });
}

// For each row of logits (N, V): sums (scale · nll, scale · lse²); with `wanted`, logits become the gradient
// scale · ((1 + 2 z lse) softmax - onehot(target)). A row whose scale is 0 counts nothing, whatever its target.
template <class T>
void softmax_loss(int64_t N, int64_t V, const int64_t* targets, const float* scale, float z_loss, bool wanted, T* logits,
                  float* sums, int threads) {
    parallel_for(N, threads, [&](int64_t row) {
        T* x = logits + row * V;
        vfloat largest = splat(-INFINITY), total{};
        lanes(V, [&](int64_t i, auto m) {
            vfloat v = load(x + i, m);
            for (int lane = m; lane < W; ++lane) v[lane] = -INFINITY;
            largest = max(largest, v);
        });
        const float top = max(largest);
        const int64_t target = targets[row] < 0 ? 0 : targets[row];
        T one = x[target];
        const bool keep = wanted && std::is_same_v<T, float>;  // exponentials that bfloat16 would round a second time
        lanes(V, [&](int64_t i, auto m) {
            vfloat e = exp(load(x + i, m) - splat(top));
            for (int lane = m; lane < W; ++lane) e[lane] = 0;
            if (keep) store(x + i, e, m);
            total = total + e;
        });
        const float lse = top + std::log(sum(total));
        const float nll = lse - load(&one, 1)[0];
        sums[2 * row] = scale[row] * nll;
        sums[2 * row + 1] = scale[row] * lse * lse;
        if (!wanted) return;
        const vfloat factor = splat(scale[row] * (1 + 2 * z_loss * lse));
        const vfloat hit = exp(load(&one, 1) - splat(lse)) * factor - splat(scale[row]);
        const vfloat share = factor / splat(sum(total));
        lanes(V, [&](int64_t i, auto m) {
            vfloat v = load(x + i, m);
            store(x + i, keep ? v * share : exp(v - splat(lse)) * factor, m);
        });
        store(x + target, hit, 1);
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
