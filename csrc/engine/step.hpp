// One call of the runtime as one thread of the pool sees it, and how threads share work.
#pragma once

#include <math.h>

#include "engine/activations.hpp"

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
    mutable int64_t phase = 0, taking = 0;  // phases that have ended, and calls of take() in this one

    // Waits for all threads: a new phase begins.
    void sync() const {
        pool.sync();
        for (; taking > 0; --taking) pool.taken(thread, phase % 2, taking - 1) = 0;  // everybody is past the phase that they count
        ++phase;
    }

    // f(begin, end) on this thread's share of `items`.
    template <class F>
    void share(int64_t items, F f) const {
        f(items * thread / pool.size(), items * (thread + 1) / pool.size());
    }

    // f(n) for this thread's rows; for a single one on every thread, which has its own (Scratch).
    template <class F>
    void own_rows(F f) const {
        N == 1 ? f(0) : each(N, f);
    }

    // The same for `items` rows, until all are ready for this thread.
    template <class F>
    void ready(int64_t items, F f) const {
        if (N == 1) return f(0);
        each(items, f);
        sync();
    }

    // f(begin, end) on pieces of `items`: those of this thread's share, then what others have left of theirs.
    template <class F>
    void take(int64_t items, F f) const {
        if (taking == Pool::SLOTS) return share(items, f);
        const int64_t slot = taking++;
        for (int turn = 0; turn < pool.size(); ++turn) {
            const int owner = (thread + turn) % pool.size();
            const int64_t begin = items * owner / pool.size(), end = items * (owner + 1) / pool.size();
            const int64_t fair = (end - begin) / 64 * 4;  // in fours, which tiles take together
            const int64_t piece = fair < 4 ? 4 : fair > 64 ? 64 : fair;
            std::atomic<int64_t>& taken = pool.taken(owner, phase % 2, slot);
            for (int64_t at; (at = begin + taken.fetch_add(piece, std::memory_order_relaxed)) < end;)
                f(at, at + piece < end ? at + piece : end);
        }
    }

    // f(item) for this thread's share.
    template <class F>
    void each(int64_t items, F f) const {
        share(items, [&](int64_t begin, int64_t end) {
            for (int64_t item = begin; item < end; ++item) f(item);
        });
    }

    // f(begin, end) on units of outputs of a product.
    template <class F>
    void outputs(const Matrix& matrix, F f) const {
        matrix.by_input ? share(units(matrix), f) : take(units(matrix), f);
    }

    void product(const Matrix& matrix, const Operand& x, float* y, int64_t rows) const {
        outputs(matrix, [&](int64_t begin, int64_t end) { multiply(matrix, x, rows, y, begin, end); });
    }

    // Rows x of `ins` floats as one side of a product.
    static Operand with(Operand operand, const float* x, int64_t ins) {
        operand.x = x;
        operand.width = row_width(ins);
        return operand;
    }

    int64_t position(int64_t n) const { return state.position[n / T] + n % T; }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
