// Membrane scan, decay scan, short convolution and spikes: T is walked, channels are vectors. The equations are those
// of ops/lif.py, ops/decay.py, ops/conv.py and ops/spike.py.
#pragma once

#include "kernels/parallel.hpp"
#include "simd/simd.hpp"
#include "simd/spikes.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t CHUNK = 1024;     // most channels that walk through time together: their carries stay in the cache
constexpr int64_t SMALL = 1 << 15;  // elements that are done before a second thread has woken up

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f(offset of (b, t = 0, c) in (B, T, D), offset of (b, c) in (B, D), c, channels n) for pieces of channels.
template <class F>
void over_channels(Shape shape, int threads, F f) {
    if (shape.B * shape.T * shape.D < SMALL) threads = 1;
    // Long runs of channels suit the memory; with few sequences they are cut so that every thread has some.
    int64_t cuts = ceil_div(2 * threads, shape.B), most = ceil_div(shape.D, 64), fewest = ceil_div(shape.D, CHUNK);
    int64_t pieces = cuts < fewest ? fewest : cuts < most ? cuts : most;
    int64_t width = ceil_div(ceil_div(shape.D, pieces), 16) * 16;
    pieces = ceil_div(shape.D, width);
    parallel_for(shape.B * pieces, threads, [&](int64_t item) {
        int64_t b = item / pieces, c = item % pieces * width;
        int64_t n = shape.D - c < width ? shape.D - c : width;
        f(b * shape.T * shape.D + c, b * shape.D + c, c, n);
    });
}

// Copies n values (zeros without a source) in another storage type.
template <class To, class From>
void copy(To* to, const From* from, int64_t n) {
    lanes(n, [&](int64_t i, auto m) { store(to + i, from ? load(from + i, m) : vfloat{}, m); });
}

template <class T>
void lif_forward(Shape shape, const T* x, const T* r0, const T* leak, const T* threshold, T* s, T* v, T* r,
                 LifOptions options) {
    const vfloat limit = round_to<T>(splat(options.clamp)), one = splat(1), zero{};
    const bool aligned = (uintptr_t(v) | shape.D * sizeof(T)) % 64 == 0;
    over_channels(shape, options.threads, [&](int64_t at, int64_t row, int64_t c, int64_t n) {
        float carry[CHUNK];
        copy(carry, r0 + row, n);
        for (int64_t t = 0; t < shape.T; ++t, at += shape.D) {
            lanes(n, [=, &carry](int64_t i, auto m) {
                __builtin_prefetch(x + at + shape.D + i);  // the next token lies in another page
                __builtin_prefetch(s + at + shape.D + i, 1);
                vfloat kept = round_to<T>(load(carry + i, m) * load(leak + c + i, m));
                vfloat v_t = clamp(round_to<T>(kept + load(x + at + i, m)), limit);
                auto fired = v_t >= load(threshold + c + i, m);
                store_past(v + at + i, v_t, m, aligned);
                store(s + at + i, fired ? one : zero, m);
                store(carry + i, fired ? zero : v_t, m);
            });
        }
        finish_past();
        copy(r + row, carry, n);
    });
}

inline vfloat surrogate(vfloat v, vfloat threshold, vfloat alpha) {
    vfloat x = (v - threshold) * alpha;
    return splat(1) / (x * x + splat(1));
}

template <Gradient gradient, bool learned, class T>
void lif_backward_as(Shape shape, const T* grad_s, const T* grad_r, const T* v, const T* r0, const T* leak,
                     const T* threshold, T* grad_x, T* grad_r0, float* grad_leak, float* grad_threshold,
                     LifOptions options) {
    const vfloat limit = round_to<T>(splat(options.clamp)), alpha = splat(options.alpha), zero{};
    constexpr bool recurrent = gradient != Gradient::local;
    over_channels(shape, options.threads, [&](int64_t start, int64_t row, int64_t c, int64_t n) {
        float carry[CHUNK], leak_sum[CHUNK], threshold_sum[CHUNK];
        copy(carry, recurrent ? grad_r + row : nullptr, n);
        copy<float, float>(leak_sum, nullptr, n);
        copy<float, float>(threshold_sum, nullptr, n);
        for (int64_t step = 0; step < shape.T; ++step) {
            // Without a recurrence either direction is right, and memory is read faster forwards.
            int64_t t = recurrent ? shape.T - 1 - step : step, at = start + t * shape.D;
            int64_t next = recurrent ? -shape.D : shape.D;
            lanes(n, [&](int64_t i, auto m) {
                __builtin_prefetch(v + at + next + i);
                __builtin_prefetch(grad_s + at + next + i);
                __builtin_prefetch(grad_x + at + next + i, 1);
                vfloat theta = load(threshold + c + i, m), v_t = load(v + at + i, m), fire = load(grad_s + at + i, m);
                vfloat slope = surrogate(v_t, theta, alpha), back{};
                if constexpr (recurrent) back = load(carry + i, m);
                if constexpr (gradient == Gradient::bptt) fire = fire - back * v_t;
                vfloat grad_v = fire * slope;
                if constexpr (recurrent) grad_v = grad_v + (v_t < theta ? back : zero);
                vfloat grad = v_t < limit && v_t > -limit ? grad_v : zero;
                store(grad_x + at + i, grad, m);
                if constexpr (recurrent) store(carry + i, grad * load(leak + c + i, m), m);
                if constexpr (learned) {
                    vfloat before = t ? load(v + at - shape.D + i, m) : load(r0 + row + i, m);
                    if (t) before = before < theta ? before : zero;
                    store(leak_sum + i, fma(grad, before, load(leak_sum + i, m)), m);
                    store(threshold_sum + i, load(threshold_sum + i, m) - fire * slope, m);
                }
            });
        }
        copy(grad_r0 + row, carry, n);
        copy(grad_leak + row, leak_sum, n);
        copy(grad_threshold + row, threshold_sum, n);
    });
}

template <class T>
void lif_backward(Shape shape, const T* grad_s, const T* grad_r, const T* v, const T* r0, const T* leak,
                  const T* threshold, T* grad_x, T* grad_r0, float* grad_leak, float* grad_threshold,
                  LifOptions options) {
    auto f = options.gradient == Gradient::local  ? options.learned ? lif_backward_as<Gradient::local, true, T>
                                                                    : lif_backward_as<Gradient::local, false, T>
             : options.gradient == Gradient::bptt ? options.learned ? lif_backward_as<Gradient::bptt, true, T>
                                                                    : lif_backward_as<Gradient::bptt, false, T>
             : options.learned                    ? lif_backward_as<Gradient::bptt_detached, true, T>
                                                  : lif_backward_as<Gradient::bptt_detached, false, T>;
    f(shape, grad_s, grad_r, v, r0, leak, threshold, grad_x, grad_r0, grad_leak, grad_threshold, options);
}

template <class T>
void decay_forward(Shape shape, const T* u, const float* decay, const float* h0, T* h, float* last, int threads) {
    const vfloat one = splat(1);
    over_channels(shape, threads, [&](int64_t at, int64_t row, int64_t c, int64_t n) {
        float carry[CHUNK];
        copy(carry, h0 + row, n);
        for (int64_t t = 0; t < shape.T; ++t, at += shape.D) {
            lanes(n, [=, &carry](int64_t i, auto m) {
                __builtin_prefetch(u + at + shape.D + i);
                __builtin_prefetch(h + at + shape.D + i, 1);
                vfloat d = load(decay + c + i, m);
                vfloat h_t = fma(d, load(carry + i, m), (one - d) * load(u + at + i, m));
                store(h + at + i, h_t, m);
                store(carry + i, h_t, m);
            });
        }
        copy(last + row, carry, n);
    });
}

template <class T>
void decay_backward(Shape shape, const T* grad_h, const float* grad_last, const T* u, const T* h, const float* decay,
                    const float* h0, T* grad_u, float* grad_decay, float* grad_h0, int threads) {
    const vfloat one = splat(1);
    over_channels(shape, threads, [&](int64_t at, int64_t row, int64_t c, int64_t n) {
        float carry[CHUNK], sum[CHUNK];
        copy(carry, grad_last + row, n);
        copy<float, float>(sum, nullptr, n);
        at += (shape.T - 1) * shape.D;
        for (int64_t t = shape.T - 1; t >= 0; --t, at -= shape.D) {
            lanes(n, [&](int64_t i, auto m) {
                __builtin_prefetch(grad_h + at - shape.D + i);
                __builtin_prefetch(u + at - shape.D + i);
                __builtin_prefetch(h + at - 2 * shape.D + i);
                __builtin_prefetch(grad_u + at - shape.D + i, 1);
                vfloat d = load(decay + c + i, m), grad = load(grad_h + at + i, m) + load(carry + i, m);
                vfloat before = t ? load(h + at - shape.D + i, m) : load(h0 + row + i, m);
                store(grad_u + at + i, (one - d) * grad, m);
                store(sum + i, fma(grad, before - load(u + at + i, m), load(sum + i, m)), m);
                store(carry + i, d * grad, m);
            });
        }
        copy(grad_h0 + row, carry, n);
        copy(grad_decay + row, sum, n);
    });
}

// y_t of ops/conv.py; `tail` (B, taps - 1, D) are the inputs before x.
template <class T>
void conv_forward(Shape shape, int64_t taps, const T* x, const T* w, const T* tail, T* y, int threads) {
    over_channels(shape, threads, [&](int64_t at, int64_t row, int64_t c, int64_t n) {
        const T* before = tail + (row - c) * (taps - 1) + c;
        for (int64_t t = 0; t < shape.T; ++t, at += shape.D) {
            lanes(n, [&](int64_t i, auto m) {
                __builtin_prefetch(x + at + shape.D + i);
                __builtin_prefetch(y + at + shape.D + i, 1);
                vfloat sum = load(x + at + i, m) * load(w + c + i, m);
                for (int64_t j = 1; j < taps; ++j) {
                    const T* from = t >= j ? x + at - j * shape.D : before + (taps - 1 + t - j) * shape.D;
                    sum = fma(load(from + i, m), load(w + j * shape.D + c + i, m), sum);
                }
                store(y + at + i, sum, m);
            });
        }
    });
}

template <class T>
void conv_backward(Shape shape, int64_t taps, const T* grad_y, const T* x, const T* w, const T* tail, T* grad_x,
                   float* grad_w, T* grad_tail, int threads) {
    over_channels(shape, threads, [&](int64_t at, int64_t row, int64_t c, int64_t n) {
        const int64_t own = (row - c) * (taps - 1) + c;  // of this sequence in (B, taps - 1, D)
        float* sums = grad_w + (row - c) * taps + c;
        for (int64_t j = 0; j < taps; ++j) copy<float, float>(sums + j * shape.D, nullptr, n);
        for (int64_t t = 1 - taps; t < shape.T; ++t) {
            const int64_t here = at + t * shape.D;
            T* to = t < 0 ? grad_tail + own + (taps - 1 + t) * shape.D : grad_x + here;
            const T* value = t < 0 ? tail + own + (taps - 1 + t) * shape.D : x + here;
            lanes(n, [&](int64_t i, auto m) {
                if (t >= 0) {
                    __builtin_prefetch(x + here + shape.D + i);
                    __builtin_prefetch(grad_y + here + taps * shape.D + i);
                    __builtin_prefetch(grad_x + here + shape.D + i, 1);
                }
                vfloat sum{}, input = load(value + i, m);
                for (int64_t j = t < 0 ? -t : 0; j < taps && t + j < shape.T; ++j) {
                    vfloat grad = load(grad_y + here + j * shape.D + i, m);
                    sum = fma(grad, load(w + j * shape.D + c + i, m), sum);
                    float* one = sums + j * shape.D + i;
                    store(one, fma(grad, input, load(one, m)), m);
                }
                store(to + i, sum, m);
            });
        }
    });
}

// f(first, n) for pieces of a flat array that do not cross a row of `period` entries (any piece if it is 1).
template <class F>
void over_rows(int64_t n, int64_t period, int threads, F f) {
    if (n < SMALL) threads = 1;
    int64_t row = period > 1 ? period : 1 << 14, step = row * (1 + (1 << 14) / row);
    parallel_for((n + step - 1) / step, threads, [&](int64_t item) {
        int64_t end = (item + 1) * step < n ? (item + 1) * step : n;
        for (int64_t first = item * step; first < end; first += row) f(first, end - first < row ? end - first : row);
    });
}

// Slopes of ops/spike.py, as spike_value has the values.
template <SpikeCode code>
vfloat spike_slope(vfloat v, vfloat t, vfloat top, vfloat alpha, vfloat cut) {
    const vfloat one = splat(1), zero{};
    auto jump = [&](vfloat at) {
        const vfloat distance = v - at;
        return distance > cut || distance < -cut ? zero : surrogate(v, at, alpha);
    };
    if constexpr (code == SpikeCode::binary) return jump(t);
    if constexpr (code == SpikeCode::ternary) return jump(t) + jump(-t);
    if constexpr (code == SpikeCode::graded) return jump(t) * t + (v >= t ? one : zero);
    if constexpr (code == SpikeCode::integer) return v >= zero && v <= top * t ? one / t : zero;
    if constexpr (code == SpikeCode::shifted) return v > t ? one : zero;
    return splat(2) * max(v - t, zero);
}

template <class T>
void spike_forward(int64_t n, int64_t period, const T* v, const T* threshold, SpikeOptions options, T* s, int threads) {
    const vfloat theta = load(threshold, One{}), top = splat(float(options.levels));
    with_code(options.code, [&](auto code) {
        over_rows(n, period, threads, [&](int64_t first, int64_t count) {
            lanes(count, [&](int64_t i, auto m) {
                vfloat level = period > 1 ? load(threshold + i, m) : splat(theta[0]);
                store(s + first + i, spike_value<code()>(load(v + first + i, m), level, top), m);
            });
        });
    });
}

template <class T>
void spike_backward(int64_t n, int64_t period, const T* grad_s, const T* v, const T* threshold, SpikeOptions options,
                    T* grad_v, int threads) {
    const vfloat theta = load(threshold, One{}), top = splat(float(options.levels));
    const vfloat alpha = splat(options.alpha), cut = splat(options.cut);
    with_code(options.code, [&](auto code) {
        over_rows(n, period, threads, [&](int64_t first, int64_t count) {
            lanes(count, [&](int64_t i, auto m) {
                vfloat level = period > 1 ? load(threshold + i, m) : splat(theta[0]);
                vfloat slope = spike_slope<code()>(load(v + first + i, m), level, top, alpha, cut);
                store(grad_v + first + i, load(grad_s + first + i, m) * slope, m);
            });
        });
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
