// Where the arrays of a call lie (engine.hpp, Scratch).
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "engine/engine.hpp"

namespace symboliclight {

// Memory that calls share, one after another.
class Workspace {
  public:
    // The arrays for B sequences of T tokens: one view for each thread.
    const Scratch* lay_out(const Model& m, int64_t B, int64_t T, int64_t threads) {
        views_.resize(threads);
        for (int pass = 0; pass < 2; ++pass) {  // first to find their size, then in memory
            used_ = 0;
            views_[0] = for_all(m, B, T, threads);
            for (Scratch& w : views_) {
                const bool first = &w == &views_[0];
                if (!first) w = views_[0];
                if (first || B * T == 1) add_rows(m, B * T, w);
                add_own(m, T, w);
            }
            if (used_ > capacity_) {
                memory_.reset(new (std::align_val_t(64)) char[used_]);
                capacity_ = used_;
            }
        }
        return views_.data();
    }

  private:
    template <class T>
    T* take(int64_t count) {
        used_ = up(used_, 64);
        T* at = (T*)(memory_.get() + used_);
        used_ += count * sizeof(T);
        return at;
    }

    Scratch for_all(const Model& m, int64_t B, int64_t T, int64_t threads) {
        const int64_t N = B * T;
        Scratch w{};
        for (float** to : {&w.y, &w.u, &w.q, &w.k, &w.v, &w.o}) *to = take<float>(N * m.D);
        w.chosen = take<float>(N * m.H), w.f = take<float>(N * m.F), w.prior = take<float>(N * (m.D / 4));
        w.residual = take<float>(N * m.residual.rows.outs);
        w.found = take<int32_t>(threads * up(m.D, LANES));
        w.trial = take<float>(m.exit_entropy < 0 ? 0 : B * m.V);
        w.least = take<float>(B * up(m.V, LANES) / LANES), w.bar = take<float>(B);
        return w;
    }

    void add_rows(const Model& m, int64_t N, Scratch& w) {
        const int64_t width = row_width(std::max(m.D, m.F));
        w.c = take<float>(N * m.D), w.s = take<float>(N * m.D), w.n = m.pre ? take<float>(N * m.D) : w.c;
        w.turn = take<float>(N * m.K), w.blend = take<float>(N * (m.D / 4));
        w.gate = take<uint8_t>(N);
        for (Operand* x : {&w.spikes, &w.stream})
            *x = {nullptr, take<int32_t>(N * width), take<int32_t>(N), take<int8_t>(N * width), take<float>(N),
                  take<int32_t>(N * width / GROUP), take<int32_t>(N), take<bf16>(N * 3 * width), nullptr, take<int8_t>(N * width),
                  take<float>(N), take<float>(N), width, width};
    }

    void add_own(const Model& m, int64_t T, Scratch& w) {
        const int64_t many = m.int8_keys ? 1 : 0;
        w.sum = take<float>(m.D);
        w.spikes.packed = w.stream.packed = take<bf16>(2 * up(m.D, GROUP) * LANES);
        w.score = take<float>(QUERIES * (many ? visible_blocks(m) * LANES : visible(m)));
        w.runs = take<Run>((1 - many) * visible(m)), w.blocks = take<KeyBlock>(many * visible_blocks(m));
        for (uint8_t** to : {&w.short_k, &w.short_v}) *to = take<uint8_t>(many * blocks(T) * block_bytes(m));
        w.short_rows = take<uint8_t>(many * T * 2 * wide(m)), w.units = take<float>(many * T * 2);
        w.halves = take<int8_t>(many * QUERIES * 2 * wide(m)), w.shares = take<int8_t>(many * QUERIES * 2 * visible_blocks(m) * LANES);
    }

    struct Free { void operator()(char* p) const { operator delete[](p, std::align_val_t(64)); } };

    std::vector<Scratch> views_;
    std::unique_ptr<char[], Free> memory_;
    int64_t used_ = 0, capacity_ = 0;
};

}  // namespace symboliclight
