// The kernels of one instruction set as a table of function pointers: what bind.cpp chooses between at run time.
#pragma once

#include <cstdint>

namespace symboliclight {

struct bf16 { uint16_t bits; };

enum class Gradient { local, bptt, bptt_detached };

struct Shape { int64_t B, T, D; };  // batch, tokens, channels

struct LifOptions {
    float alpha, clamp;
    Gradient gradient;
    bool learned;
    int threads;
};

enum class SpikeCode { binary, ternary, integer, graded, shifted, squared };  // in the order of ops/spike.py

struct SpikeOptions {
    SpikeCode code;
    float alpha, cut;  // of the surrogate: steepness, and the distance beyond which it is 0
    int levels;        // largest value of an integer spike
};

// T queries over R + T keys and A anchors, H heads of K dimensions, W tokens of look-back (ops/window.py).
struct WindowShape { int64_t B, T, R, A, H, K, W; };

template <class T>
struct WindowKeys {
    const T *k, *v;
    const bool* gate;
    const T *anchor_k, *anchor_v;
    const bool* anchor_gate;
    const int64_t* position;
};

template <class T>
struct WindowGrads { T *k, *v, *anchor_k, *anchor_v; };

// Arrays are contiguous, in the layout named in the Python docstrings; T is float or bf16.
template <class T>
struct Kernels {
    void (*lif_forward)(Shape, const T* x, const T* r0, const T* leak, const T* threshold, T* s, T* v, T* r,
                        LifOptions);
    // grad_leak and grad_threshold (B, D) are sums over tokens; the caller adds up the rows.
    void (*lif_backward)(Shape, const T* grad_s, const T* grad_r, const T* v, const T* r0, const T* leak,
                         const T* threshold, T* grad_x, T* grad_r0, float* grad_leak, float* grad_threshold,
                         LifOptions);
    // decay (D,) per channel; grad_decay (B, D) as above.
    void (*decay_forward)(Shape, const T* u, const float* decay, const float* h0, T* h, float* last, int threads);
    void (*decay_backward)(Shape, const T* grad_h, const float* grad_last, const T* u, const T* h, const float* decay,
                           const float* h0, T* grad_u, float* grad_decay, float* grad_h0, int threads);
    // threshold has `period` entries: 1, or one per channel of the last dimension.
    void (*spike_forward)(int64_t n, int64_t period, const T* v, const T* threshold, SpikeOptions, T* s, int threads);
    void (*spike_backward)(int64_t n, int64_t period, const T* grad_s, const T* v, const T* threshold, SpikeOptions,
                           T* grad_v, int threads);
    void (*window_forward)(WindowShape, const T* q, WindowKeys<T>, T* out, int threads);
    void (*window_backward)(WindowShape, const T* grad_out, const T* q, WindowKeys<T>, T* grad_q, WindowGrads<T>,
                            int threads);
    // By rows: out (R, N) = s (R, M) · table (M, N). By columns: out (N, M) = tableᵀ · s for table (R, N). With a
    // threshold other than NaN s stands for 1[s >= threshold].
    void (*event_product)(int64_t R, int64_t M, int64_t N, bool by_columns, float threshold, const T* s, const T* table,
                          T* out, int threads);
    int64_t (*count_active)(int64_t R, int64_t M, int64_t step, float threshold, const T* s);
    void (*dropout)(int64_t n, uint32_t seed, uint32_t limit, float scale, const T* x, T* y, int threads);
    // x, y (rows, H, K); cosine, sine (rows, K / 2).
    void (*rope)(int64_t rows, int64_t H, int64_t K, float sign, const T* x, const float* cosine, const float* sine,
                 T* y, int threads);
    // logits (N, V), targets and scale (N,), sums (N, 2).
    void (*softmax_loss)(int64_t N, int64_t V, const int64_t* targets, const float* scale, float z_loss, bool wanted,
                         T* logits, float* sums, int threads);
    void (*conv_forward)(Shape, int64_t taps, const T* x, const T* w, const T* tail, T* y, int threads);
    void (*conv_backward)(Shape, int64_t taps, const T* grad_y, const T* x, const T* w, const T* tail, T* grad_x,
                          float* grad_w, T* grad_tail, int threads);
    // grad, a, b (n,); sums (ceil(n / 2^14),).
    void (*blend_backward)(int64_t n, const T* grad, const T* a, const T* b, T* grad_a, T* grad_b, float share,
                           float* sums, int threads);
};

struct Isa {
    const char* name;
    Kernels<float> float32;
    Kernels<bf16> bfloat16;
};

extern const Isa isa_portable, isa_avx2, isa_avx512, isa_amx;

}  // namespace symboliclight
