// What Python calls: tensors in (tensors.hpp), and on to the kernels of the chosen instruction set as raw pointers.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "simd/isa.hpp"
#include "simd/tensors.hpp"

namespace symboliclight {

namespace {

const Isa* isa = supported_isas().back();

const Kernels<float>& kernels(float) { return isa->float32; }
const Kernels<bf16>& kernels(bf16) { return isa->bfloat16; }

Gradient gradient_of(const std::string& name) {
    if (name == "local") return Gradient::local;
    if (name == "bptt") return Gradient::bptt;
    if (name == "bptt_detached") return Gradient::bptt_detached;
    throw nb::value_error("gradient must be local, bptt or bptt_detached");
}

Shape flat(const Sizes& s) {
    if (s.n < 3) throw nb::value_error("expected (B, T, ...)");
    return {s.of[0], s.of[1], s.n == 3 ? s.of[2] : s.of[2] * s.of[3]};
}

void lif_forward(nb::handle x, nb::handle r0, nb::handle leak, nb::handle threshold, nb::handle s, nb::handle v,
                 nb::handle r, float clamp, int threads) {
    by_dtype(x, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(x));
        auto *x_ = data<E>(x, {d.B, d.T, d.D}, "x"), *r0_ = data<E>(r0, {d.B, d.D}, "r0"),
             *leak_ = data<E>(leak, {d.D}, "leak"), *threshold_ = data<E>(threshold, {d.D}, "threshold"),
             *s_ = data<E>(s, {d.B, d.T, d.D}, "s"), *v_ = data<E>(v, {d.B, d.T, d.D}, "v"),
             *r_ = data<E>(r, {d.B, d.D}, "r");
        nb::gil_scoped_release free;
        kernels(element).lif_forward(d, x_, r0_, leak_, threshold_, s_, v_, r_,
                                     {0, clamp, Gradient::local, false, threads});
    });
}

void lif_backward(nb::handle grad_s, nb::handle grad_r, nb::handle v, nb::handle r0, nb::handle leak,
                  nb::handle threshold, nb::handle grad_x, nb::handle grad_r0, nb::handle grad_leak,
                  nb::handle grad_threshold, float alpha, float clamp, const std::string& gradient, bool learned,
                  int threads) {
    LifOptions options{alpha, clamp, gradient_of(gradient), learned, threads};
    by_dtype(v, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(v));
        auto *grad_s_ = data<E>(grad_s, {d.B, d.T, d.D}, "grad_s"), *grad_r_ = data<E>(grad_r, {d.B, d.D}, "grad_r"),
             *v_ = data<E>(v, {d.B, d.T, d.D}, "v"), *r0_ = data<E>(r0, {d.B, d.D}, "r0"),
             *leak_ = data<E>(leak, {d.D}, "leak"), *threshold_ = data<E>(threshold, {d.D}, "threshold"),
             *grad_x_ = data<E>(grad_x, {d.B, d.T, d.D}, "grad_x"), *grad_r0_ = data<E>(grad_r0, {d.B, d.D}, "grad_r0");
        auto *grad_leak_ = data<float>(grad_leak, {d.B, d.D}, "grad_leak"),
             *grad_threshold_ = data<float>(grad_threshold, {d.B, d.D}, "grad_threshold");
        nb::gil_scoped_release free;
        kernels(element).lif_backward(d, grad_s_, grad_r_, v_, r0_, leak_, threshold_, grad_x_, grad_r0_, grad_leak_,
                                      grad_threshold_, options);
    });
}

void decay_forward(nb::handle u, nb::handle decay, nb::handle h0, nb::handle h, nb::handle last, int threads) {
    by_dtype(u, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(u));
        auto [B, T, H, K] = sizes(u).of;
        auto *u_ = data<E>(u, {B, T, H, K}, "u"), *h_ = data<E>(h, {B, T, H, K}, "h");
        auto *decay_ = data<float>(decay, {H, K}, "decay"), *h0_ = data<float>(h0, {B, H, K}, "h0"),
             *last_ = data<float>(last, {B, H, K}, "last");
        nb::gil_scoped_release free;
        kernels(element).decay_forward(d, u_, decay_, h0_, h_, last_, threads);
    });
}

void decay_backward(nb::handle grad_h, nb::handle grad_last, nb::handle u, nb::handle h, nb::handle decay,
                    nb::handle h0, nb::handle grad_u, nb::handle grad_decay, nb::handle grad_h0, int threads) {
    by_dtype(u, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(u));
        auto [B, T, H, K] = sizes(u).of;
        auto *grad_h_ = data<E>(grad_h, {B, T, H, K}, "grad_h"), *u_ = data<E>(u, {B, T, H, K}, "u"),
             *h_ = data<E>(h, {B, T, H, K}, "h"), *grad_u_ = data<E>(grad_u, {B, T, H, K}, "grad_u");
        auto *grad_last_ = data<float>(grad_last, {B, H, K}, "grad_last"),
             *decay_ = data<float>(decay, {H, K}, "decay"), *h0_ = data<float>(h0, {B, H, K}, "h0"),
             *grad_decay_ = data<float>(grad_decay, {B, H, K}, "grad_decay"),
             *grad_h0_ = data<float>(grad_h0, {B, H, K}, "grad_h0");
        nb::gil_scoped_release free;
        kernels(element).decay_backward(d, grad_h_, grad_last_, u_, h_, decay_, h0_, grad_u_, grad_decay_, grad_h0_,
                                        threads);
    });
}

void conv_forward(nb::handle x, nb::handle taps, nb::handle tail, nb::handle y, int threads) {
    by_dtype(x, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(x));
        int64_t n = sizes(taps).of[0];
        auto *x_ = data<E>(x, {d.B, d.T, d.D}, "x"), *taps_ = data<E>(taps, {n, d.D}, "taps"),
             *tail_ = data<E>(tail, {d.B, n - 1, d.D}, "tail"), *y_ = data<E>(y, {d.B, d.T, d.D}, "y");
        nb::gil_scoped_release free;
        kernels(element).conv_forward(d, n, x_, taps_, tail_, y_, threads);
    });
}

void conv_backward(nb::handle grad_y, nb::handle x, nb::handle taps, nb::handle tail, nb::handle grad_x,
                   nb::handle grad_taps, nb::handle grad_tail, int threads) {
    by_dtype(x, [&](auto element) {
        using E = decltype(element);
        Shape d = flat(sizes(x));
        int64_t n = sizes(taps).of[0];
        auto *grad_y_ = data<E>(grad_y, {d.B, d.T, d.D}, "grad_y"), *x_ = data<E>(x, {d.B, d.T, d.D}, "x"),
             *taps_ = data<E>(taps, {n, d.D}, "taps"), *tail_ = data<E>(tail, {d.B, n - 1, d.D}, "tail"),
             *grad_x_ = data<E>(grad_x, {d.B, d.T, d.D}, "grad_x"),
             *grad_tail_ = data<E>(grad_tail, {d.B, n - 1, d.D}, "grad_tail");
        auto* grad_taps_ = data<float>(grad_taps, {d.B, n, d.D}, "grad_taps");
        nb::gil_scoped_release free;
        kernels(element).conv_backward(d, n, grad_y_, x_, taps_, tail_, grad_x_, grad_taps_, grad_tail_, threads);
    });
}

SpikeOptions spike_options(int code, float alpha, int levels, float cut) {
    if (code < 0 || code > int(SpikeCode::squared)) throw std::invalid_argument("no such code of a spike");
    return {SpikeCode(code), alpha, cut, levels};
}

// v is flat; threshold is one value or one per channel.
void spike_forward(nb::handle v, nb::handle threshold, int code, float alpha, int levels, float cut, nb::handle s,
                   int threads) {
    const SpikeOptions options = spike_options(code, alpha, levels, cut);
    by_dtype(v, [&](auto element) {
        using E = decltype(element);
        int64_t n = sizes(v).of[0], period = sizes(threshold).of[0];
        auto *v_ = data<E>(v, {n}, "v"), *threshold_ = data<E>(threshold, {period}, "threshold"),
             *s_ = data<E>(s, {n}, "s");
        nb::gil_scoped_release free;
        kernels(element).spike_forward(n, period, v_, threshold_, options, s_, threads);
    });
}

void spike_backward(nb::handle grad_s, nb::handle v, nb::handle threshold, int code, float alpha, int levels, float cut,
                    nb::handle grad_v, int threads) {
    const SpikeOptions options = spike_options(code, alpha, levels, cut);
    by_dtype(v, [&](auto element) {
        using E = decltype(element);
        int64_t n = sizes(v).of[0], period = sizes(threshold).of[0];
        auto *grad_s_ = data<E>(grad_s, {n}, "grad_s"), *v_ = data<E>(v, {n}, "v"),
             *threshold_ = data<E>(threshold, {period}, "threshold"), *grad_v_ = data<E>(grad_v, {n}, "grad_v");
        nb::gil_scoped_release free;
        kernels(element).spike_backward(n, period, grad_s_, v_, threshold_, options, grad_v_, threads);
    });
}

template <class E>
WindowKeys<E> window_keys(const WindowShape& w, nb::handle k, nb::handle v, nb::handle gate, nb::handle anchor_k,
                          nb::handle anchor_v, nb::handle anchor_gate, nb::handle position) {
    int64_t S = w.R + w.T;
    return {data<E>(k, {w.B, S, w.H, w.K}, "k"), data<E>(v, {w.B, S, w.H, w.K}, "v"),
            data<bool>(gate, {w.B, S}, "gate"),
            data<E>(anchor_k, {w.B, w.A, w.H, w.K}, "anchor_k"), data<E>(anchor_v, {w.B, w.A, w.H, w.K}, "anchor_v"),
            data<bool>(anchor_gate, {w.B, w.A}, "anchor_gate"), data<int64_t>(position, {w.B}, "position")};
}

WindowShape window_shape(nb::handle q, nb::handle k, nb::handle anchor_k, int64_t window) {
    Sizes from = sizes(q), keys = sizes(k), anchors = sizes(anchor_k);
    if (from.n != 4 || keys.n != 4 || anchors.n != 4 || keys.of[1] < from.of[1] || window < 0)
        throw nb::value_error("expected q (B, T, H, K), k (B, R + T, H, K), anchor_k (B, A, H, K) and a window");
    auto [B, T, H, K] = from.of;
    return {B, T, keys.of[1] - T, anchors.of[1], H, K, window};
}

void window_forward(nb::handle q, nb::handle k, nb::handle v, nb::handle gate, nb::handle anchor_k, nb::handle anchor_v,
                    nb::handle anchor_gate, nb::handle position, nb::handle out, int64_t window, int threads) {
    by_dtype(q, [&](auto element) {
        using E = decltype(element);
        WindowShape w = window_shape(q, k, anchor_k, window);
        auto keys = window_keys<E>(w, k, v, gate, anchor_k, anchor_v, anchor_gate, position);
        auto *q_ = data<E>(q, {w.B, w.T, w.H, w.K}, "q"), *out_ = data<E>(out, {w.B, w.T, w.H, w.K}, "out");
        nb::gil_scoped_release free;
        kernels(element).window_forward(w, q_, keys, out_, threads);
    });
}

void window_backward(nb::handle grad_out, nb::handle q, nb::handle k, nb::handle v, nb::handle gate,
                     nb::handle anchor_k, nb::handle anchor_v, nb::handle anchor_gate, nb::handle position,
                     nb::handle grad_q, nb::handle grad_k, nb::handle grad_v, nb::handle grad_anchor_k,
                     nb::handle grad_anchor_v, int64_t window, int threads) {
    by_dtype(q, [&](auto element) {
        using E = decltype(element);
        WindowShape w = window_shape(q, k, anchor_k, window);
        int64_t S = w.R + w.T;
        auto keys = window_keys<E>(w, k, v, gate, anchor_k, anchor_v, anchor_gate, position);
        auto *q_ = data<E>(q, {w.B, w.T, w.H, w.K}, "q"), *grad_q_ = data<E>(grad_q, {w.B, w.T, w.H, w.K}, "grad_q"),
             *grad_out_ = data<E>(grad_out, {w.B, w.T, w.H, w.K}, "grad_out");
        WindowGrads<E> grads{data<E>(grad_k, {w.B, S, w.H, w.K}, "grad_k"),
                             data<E>(grad_v, {w.B, S, w.H, w.K}, "grad_v"),
                             data<E>(grad_anchor_k, {w.B, w.A, w.H, w.K}, "grad_anchor_k"),
                             data<E>(grad_anchor_v, {w.B, w.A, w.H, w.K}, "grad_anchor_v")};
        nb::gil_scoped_release free;
        kernels(element).window_backward(w, grad_out_, q_, keys, grad_q_, grads, threads);
    });
}

void event_product(nb::handle s, nb::handle table, nb::handle out, bool by_columns, float threshold, int threads) {
    by_dtype(s, [&](auto element) {
        using E = decltype(element);
        int64_t R = sizes(s).of[0], M = sizes(s).of[1], N = sizes(table).of[1];
        auto *s_ = data<E>(s, {R, M}, "s"), *table_ = data<E>(table, {by_columns ? R : M, N}, "table"),
             *out_ = by_columns ? data<E>(out, {N, M}, "out") : data<E>(out, {R, N}, "out");
        nb::gil_scoped_release free;
        kernels(element).event_product(R, M, N, by_columns, threshold, s_, table_, out_, threads);
    });
}

// Entries of every step-th row of s (R, M) that are active for event_product.
int64_t count_active(nb::handle s, int64_t step, float threshold) {
    int64_t active = 0;
    by_dtype(s, [&](auto element) {
        using E = decltype(element);
        int64_t R = sizes(s).of[0], M = sizes(s).of[1];
        active = kernels(element).count_active(R, M, step, threshold, data<E>(s, {R, M}, "s"));
    });
    return active;
}

void dropout(nb::handle x, uint32_t seed, uint32_t limit, float scale, nb::handle y, int threads) {
    by_dtype(x, [&](auto element) {
        using E = decltype(element);
        int64_t n = sizes(x).of[0];
        auto *x_ = data<E>(x, {n}, "x"), *y_ = data<E>(y, {n}, "y");
        nb::gil_scoped_release free;
        kernels(element).dropout(n, seed, limit, scale, x_, y_, threads);
    });
}

void blend_backward(nb::handle grad, nb::handle a, nb::handle b, nb::handle grad_a, nb::handle grad_b, float share,
                    nb::handle sums, int threads) {
    by_dtype(a, [&](auto element) {
        using E = decltype(element);
        int64_t n = sizes(a).of[0];
        auto *grad_ = data<E>(grad, {n}, "grad"), *a_ = data<E>(a, {n}, "a"), *b_ = data<E>(b, {n}, "b"),
             *grad_a_ = data<E>(grad_a, {n}, "grad_a"), *grad_b_ = data<E>(grad_b, {n}, "grad_b");
        auto* sums_ = data<float>(sums, {(n + (1 << 14) - 1) >> 14}, "sums");
        nb::gil_scoped_release free;
        kernels(element).blend_backward(n, grad_, a_, b_, grad_a_, grad_b_, share, sums_, threads);
    });
}

void rope(nb::handle x, nb::handle cosine, nb::handle sine, float sign, nb::handle y, int threads) {
    by_dtype(x, [&](auto element) {
        using E = decltype(element);
        Sizes s = sizes(x);
        int64_t rows = s.of[0], H = s.of[1], K = s.of[2];
        auto *x_ = data<E>(x, {rows, H, K}, "x"), *y_ = data<E>(y, {rows, H, K}, "y");
        auto *cosine_ = data<float>(cosine, {rows, K / 2}, "cosine"), *sine_ = data<float>(sine, {rows, K / 2}, "sine");
        nb::gil_scoped_release free;
        kernels(element).rope(rows, H, K, sign, x_, cosine_, sine_, y_, threads);
    });
}

void softmax_loss(nb::handle logits, nb::handle targets, nb::handle scale, float z_loss, bool wanted, nb::handle sums,
                  int threads) {
    by_dtype(logits, [&](auto element) {
        using E = decltype(element);
        int64_t N = sizes(logits).of[0], V = sizes(logits).of[1];
        auto* logits_ = data<E>(logits, {N, V}, "logits");
        auto* targets_ = data<int64_t>(targets, {N}, "targets");
        auto *scale_ = data<float>(scale, {N}, "scale"), *sums_ = data<float>(sums, {N, 2}, "sums");
        for (int64_t i = 0; i < N; ++i)
            if (targets_[i] >= V) throw nb::value_error("a target lies outside the vocabulary");
        nb::gil_scoped_release free;
        kernels(element).softmax_loss(N, V, targets_, scale_, z_loss, wanted, logits_, sums_, threads);
    });
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Isa* one : supported_isas()) names.emplace_back(one->name);
    return names;
}

void set_isa(const std::string& name) {
    for (const Isa* one : supported_isas())
        if (name == one->name) {
            isa = one;
            return;
        }
    throw nb::value_error(("this machine has no " + name).c_str());
}

}  // namespace
}  // namespace symboliclight

NB_MODULE(_native, m) {
    using namespace symboliclight;
    m.def("set_dtypes", [](nb::handle float32, nb::handle bfloat16, nb::handle int64, nb::handle boolean) {
        dtype_object<float> = float32.inc_ref().ptr();
        dtype_object<bf16> = bfloat16.inc_ref().ptr();
        dtype_object<int64_t> = int64.inc_ref().ptr();
        dtype_object<bool> = boolean.inc_ref().ptr();
    });
    m.def("isas", &isas, "Instruction sets this machine can run, the fastest last.");
    m.def("isa", [] { return isa->name; }, "The instruction set in use.");
    m.def("set_isa", &set_isa, "Use one of isas().");
    m.def("lif_forward", &lif_forward);
    m.def("lif_backward", &lif_backward);
    m.def("decay_forward", &decay_forward);
    m.def("decay_backward", &decay_backward);
    m.def("conv_forward", &conv_forward);
    m.def("conv_backward", &conv_backward);
    m.def("spike_forward", &spike_forward);
    m.def("spike_backward", &spike_backward);
    m.def("window_forward", &window_forward);
    m.def("window_backward", &window_backward);
    m.def("event_product", &event_product);
    m.def("count_active", &count_active);
    m.def("dropout", &dropout);
    m.def("blend_backward", &blend_backward);
    m.def("rope", &rope);
    m.def("softmax_loss", &softmax_loss);
}
