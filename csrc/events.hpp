// Products with sparse inputs by gathering only what is active: y_r = sum over active i of s_ri * table_i.
// With the roles of rows and columns exchanged the same code gives the gradient of the table.
#pragma once

#include "parallel.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t GROUP = 64;    // outputs that share one pass over the table
constexpr int PANEL = 8;         // vectors of a panel of columns: its sums stay in registers
constexpr int64_t BLOCK = 512;   // inputs of a block: block x panel of the table stays in the second-level cache

inline uint32_t active_lanes(vfloat x, int count) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ) & ((1u << count) - 1);
#else
    uint32_t on = 0;
    for (int i = 0; i < count; ++i) on |= uint32_t(x[i] != 0) << i;
    return on;
#endif
}

// The active entries of one vector, in order: where they are and what they hold.
struct Active {
    int32_t* index;
    float* value;
    int64_t n, next;  // entries, and the first that no block has taken yet

    void append(int64_t at, float x) {
        index[n] = int32_t(at);
        value[n++] = x;
    }
};

// f(lane, value) for the active lanes of x.
template <class F>
void over_active(vfloat x, int count, F f) {
    for (uint32_t on = active_lanes(x, count); on; on &= on - 1) f(__builtin_ctz(on), x[__builtin_ctz(on)]);
}

// Lists of the rows, or the columns, first .. first + count - 1 of s (R, M).
template <class T>
void list_rows(Active* lists, const T* s, int64_t first, int64_t count, int64_t, int64_t M) {
    for (int64_t r = 0; r < count; ++r)
        lanes(M, [&](int64_t i, auto m) {
            over_active(load(s + (first + r) * M + i, m), m, [&](int lane, float x) { lists[r].append(i + lane, x); });
        });
}

template <class T>
void list_columns(Active* lists, const T* s, int64_t first, int64_t count, int64_t R, int64_t M) {
    for (int64_t r = 0; r < R; ++r)
        lanes(count, [&](int64_t c, auto m) {
            over_active(load(s + r * M + first + c, m), m, [&](int lane, float x) { lists[c + lane].append(r, x); });
        });
}

// total[n] += the listed rows before `end` of table, its VECTORS vectors (or the `tail` of one) from the pointer on.
template <int VECTORS, class T, class N>
void gather(float* total, Active& list, int64_t end, const T* table, int64_t stride, N tail) {
    vfloat sums[VECTORS];
    for (int n = 0; n < VECTORS; ++n) sums[n] = load(total + n * W, Full{});
    for (; list.next < list.n && list.index[list.next] < end; ++list.next) {
        const T* row = table + list.index[list.next] * stride;
        const vfloat value = splat(list.value[list.next]);
        for (int n = 0; n < VECTORS; ++n) sums[n] = fma(value, load(row + n * W, tail), sums[n]);
    }
    for (int n = 0; n < VECTORS; ++n) store(total + n * W, sums[n], Full{});
}

// One panel of all outputs of a group, block by block of the inputs.
template <int VECTORS, class T, class N>
void gather_panel(T* out, Active* lists, int64_t count, const T* table, int64_t inputs, int64_t stride, N tail) {
    float total[GROUP * VECTORS * W] = {};
    for (int64_t r = 0; r < count; ++r) lists[r].next = 0;
    for (int64_t end = BLOCK; end < inputs + BLOCK; end += BLOCK)
        for (int64_t r = 0; r < count; ++r)
            gather<VECTORS>(total + r * VECTORS * W, lists[r], end, table, stride, tail);
    for (int64_t r = 0; r < count; ++r)
        for (int n = 0; n < VECTORS; ++n)
            store(out + r * stride + n * W, load(total + (r * VECTORS + n) * W, Full{}), tail);
}

template <class T>
void gather_group(T* out, Active* lists, int64_t count, const T* table, int64_t inputs, int64_t N) {
    int64_t c = 0;
    for (; c + PANEL * W <= N; c += PANEL * W) gather_panel<PANEL>(out + c, lists, count, table + c, inputs, N, Full{});
    lanes(N - c, [&](int64_t i, auto m) { gather_panel<1>(out + c + i, lists, count, table + c + i, inputs, N, m); });
}

// s (R, M). By rows: out (R, N) = s · table (M, N). By columns: out (M, N) = sᵀ · table (R, N).
template <class T>
void event_product(int64_t R, int64_t M, int64_t N, bool by_columns, const T* s, const T* table, T* out, int threads) {
    const int64_t outputs = by_columns ? M : R, inputs = by_columns ? R : M;
    parallel_for((outputs + GROUP - 1) / GROUP, threads, [&](int64_t item) {
        static thread_local Scratch scratch;
        scratch.reserve(GROUP * inputs * 8, GROUP * 2);
        int64_t first = item * GROUP, count = outputs - first < GROUP ? outputs - first : GROUP;
        Active lists[GROUP];
        for (int64_t r = 0; r < count; ++r)
            lists[r] = {scratch.template take<int32_t>(inputs), scratch.template take<float>(inputs), 0, 0};
        (by_columns ? list_columns<T> : list_rows<T>)(lists, s, first, count, R, M);
        gather_group(out + first * N, lists, count, table, inputs, N);
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
