// Products with sparse inputs by gathering only what is active: y_r = sum over active i of s_ri * table_i.
// With the roles of rows and columns exchanged the same code gives the gradient of the table. Inputs are spikes, or what
// spikes where it reaches a threshold: spikes that nobody else needs are never written.
#pragma once

#include "kernels/parallel.hpp"
#include "kernels/scratch.hpp"
#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t GROUP = 64;    // outputs that share one pass over the table
constexpr int PANEL = 8;         // vectors of a panel of columns: its sums stay in registers
constexpr int64_t BLOCK = 512;   // inputs of a block: block x panel of the table stays in the second-level cache

// Which entries are active: those other than 0 (a threshold that is NaN), or those of at least `threshold`, as 1.
struct Rule {
    float threshold;
    bool spikes = threshold == threshold;

    uint32_t active(vfloat x, int count) const {
#if defined(__AVX512F__)
        const uint32_t on = spikes ? _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(threshold), _CMP_GE_OQ)
                                   : _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
#elif defined(__AVX2__)
        const uint32_t on = uint32_t(_mm256_movemask_ps(
            spikes ? _mm256_cmp_ps((__m256)x, _mm256_set1_ps(threshold), _CMP_GE_OQ)
                   : _mm256_cmp_ps((__m256)x, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
#else
        uint32_t on = 0;
        for (int i = 0; i < W; ++i) on |= uint32_t(spikes ? x[i] >= threshold : x[i] != 0) << i;
#endif
        return on & ((1u << count) - 1);
    }
};

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
void over_active(Rule rule, vfloat x, int count, F f) {
    for (uint32_t on = rule.active(x, count); on; on &= on - 1) {
        const int lane = __builtin_ctz(on);
        f(lane, rule.spikes ? 1 : x[lane]);
    }
}

// Lists of the rows, or the columns, first .. first + count - 1 of s (R, M).
template <class T>
void list_rows(Active* lists, Rule rule, const T* s, int64_t first, int64_t count, int64_t, int64_t M) {
    for (int64_t r = 0; r < count; ++r)
        lanes(M, [&](int64_t i, auto m) {
            over_active(rule, load(s + (first + r) * M + i, m), m,
                        [&](int lane, float x) { lists[r].append(i + lane, x); });
        });
}

template <class T>
void list_columns(Active* lists, Rule rule, const T* s, int64_t first, int64_t count, int64_t R, int64_t M) {
    for (int64_t r = 0; r < R; ++r)
        lanes(count, [&](int64_t c, auto m) {
            over_active(rule, load(s + r * M + first + c, m), m,
                        [&](int lane, float x) { lists[c + lane].append(r, x); });
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

// One panel of all outputs of a group, block by block of the inputs. With `turned` the outputs are columns of `out`,
// `turned` entries to a row.
template <int VECTORS, class T, class N>
void gather_panel(T* out, Active* lists, int64_t count, const T* table, int64_t inputs, int64_t stride, N tail,
                  int64_t turned) {
    float total[GROUP * VECTORS * W] = {};
    for (int64_t r = 0; r < count; ++r) lists[r].next = 0;
    for (int64_t end = BLOCK; end < inputs + BLOCK; end += BLOCK)
        for (int64_t r = 0; r < count; ++r)
            gather<VECTORS>(total + r * VECTORS * W, lists[r], end, table, stride, tail);
    if (turned) {
        const int64_t columns = VECTORS > 1 ? VECTORS * W : int64_t(tail);
        for (int64_t c = 0; c < columns; ++c)
            for (int64_t r = 0; r < count; ++r) store(out + c * turned + r, splat(total[r * VECTORS * W + c]), One{});
        return;
    }
    for (int64_t r = 0; r < count; ++r)
        for (int n = 0; n < VECTORS; ++n)
            store(out + r * stride + n * W, load(total + (r * VECTORS + n) * W, Full{}), tail);
}

template <class T>
void gather_group(T* out, Active* lists, int64_t count, const T* table, int64_t inputs, int64_t N, int64_t turned) {
    int64_t c = 0;
    auto at = [&](int64_t column) { return out + column * (turned ? turned : 1); };
    for (; c + PANEL * W <= N; c += PANEL * W)
        gather_panel<PANEL>(at(c), lists, count, table + c, inputs, N, Full{}, turned);
    lanes(N - c, [&](int64_t i, auto m) {
        gather_panel<1>(at(c + i), lists, count, table + c + i, inputs, N, m, turned);
    });
}

// Active entries of every step-th row of s (R, M).
template <class T>
int64_t count_active(int64_t R, int64_t M, int64_t step, float threshold, const T* s) {
    const Rule rule{threshold};
    int64_t active = 0;
    for (int64_t r = 0; r < R; r += step)
        lanes(M, [&](int64_t i, auto m) { active += __builtin_popcount(rule.active(load(s + r * M + i, m), m)); });
    return active;
}

// s (R, M). By rows: out (R, N) = s · table (M, N). By columns: out (N, M) = tableᵀ · s for table (R, N).
template <class T>
void event_product(int64_t R, int64_t M, int64_t N, bool by_columns, float threshold, const T* s, const T* table, T* out,
                   int threads) {
    const int64_t outputs = by_columns ? M : R, inputs = by_columns ? R : M;
    parallel_for((outputs + GROUP - 1) / GROUP, threads, [&](int64_t item) {
        static thread_local Scratch scratch;
        scratch.reserve(GROUP * inputs * 8, GROUP * 2);
        int64_t first = item * GROUP, count = outputs - first < GROUP ? outputs - first : GROUP;
        Active lists[GROUP];
        for (int64_t r = 0; r < count; ++r)
            lists[r] = {scratch.template take<int32_t>(inputs), scratch.template take<float>(inputs), 0, 0};
        (by_columns ? list_columns<T> : list_rows<T>)(lists, {threshold}, s, first, count, R, M);
        gather_group(out + (by_columns ? first : first * N), lists, count, table, inputs, N, by_columns ? M : 0);
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
