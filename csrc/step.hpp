// One call of the runtime as one thread of the pool sees it, and how threads share work.
#pragma once

#include <math.h>

#include "prepare.hpp"

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
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
