// Which keys and values a block of queries sees, and when (ops/window.py).
#pragma once

#include "step.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

struct Looking : Step {
    // Keys and values of one head of one token: K floats, or K int8 and behind them the float that they stand in units of.
    template <class Key>
    int64_t length() const { return sizeof(Key) == 1 ? m.K + int64_t(sizeof(float)) : m.K; }

    // The ring of keys and that of values which the thread most likely reads next, on their way from memory into the second
    // cache: a piece here and a piece there, so that memory works while this one computes.
    struct Coming {
        const char *keys = nullptr, *values = nullptr;
        int64_t row = 0, bytes = 0;  // of a key; of what is filled of a ring
        mutable int64_t at = 0, goal = 0;

        void fetch(int64_t rows) const {
            for (goal += rows * row; at < goal && at < bytes; at += 64) __builtin_prefetch(keys + at, 0, 2), __builtin_prefetch(values + at, 0, 2);
        }
    };

    // What the queries of a block see.
    struct Sight {
        Run* run;
        float* score;  // (Q, room)
        int64_t room, runs, count;  // of keys
        Coming coming;

        // Adds the open ones of a run.
        void add(Run all, const uint8_t* open) {
            for (int64_t j = 0; j < all.count;) {
                const void* shut = std::memchr(open + j, 0, all.count - j);
                const int64_t end = shut ? (const uint8_t*)shut - open : all.count;
                const int64_t at = j * all.step;
                if (end > j) run[runs++] = {all.key + at, all.value + at, all.step, end - j, int32_t(all.from + j), int32_t(all.to + j)};
                count += end - j;
                j = end + 1;
            }
        }
    };

    // What rows n .. n + Q - 1 of head h see: anchors gone from the window, the ring, and the keys of this call.
    template <class Key>
    Sight look(int64_t layer, int64_t n, int64_t h, int64_t Q) const {
        const int64_t b = n / T, i = position(n), last = i + Q - 1, start = state.position[b], at = (b * m.L + layer) * m.H + h;
        const int64_t size = length<Key>();
        const Key *ring = (Key*)state.k + at * m.W * size, *ring_value = (Key*)state.value + at * m.W * size;
        const Key *anchors = (Key*)state.anchor_k + at * m.A * size, *anchor_value = (Key*)state.anchor_v + at * m.A * size;
        const uint8_t *ring_gate = state.gate + (b * m.L + layer) * m.W, *anchor_gate = state.anchor_gate + (b * m.L + layer) * m.A;
        const int64_t room = sight(m);
        Sight s{w.runs + thread * room, w.score + thread * QUERIES * room, room, 0, 0, {}};
        const int64_t item = b * m.H + h + 1;  // the next, at the same layer
        if (Q == 1 && item < B * m.H) {  // one query: keys come from memory
            const int64_t step = (((item / m.H) * m.L + layer) * m.H + item % m.H - at) * m.W * size, bytes = size * sizeof(Key);
            const int64_t filled = least(m.W, most(state.position[item / m.H], 0));
            s.coming = {(const char*)(ring + step), (const char*)(ring_value + step), bytes, filled * bytes};
        }
        auto see = [&](int64_t begin, int64_t end, const uint8_t* open, const Key* key, const Key* value, int64_t step, int64_t from,
                       int64_t to) {  // positions begin .. end - 1
            s.add({(const char*)key, (const char*)value, step * int64_t(sizeof(Key)), end - begin, int32_t(from - i), int32_t(to - i)}, open);
        };
        auto see_here = [&](int64_t begin, int64_t end, int64_t from, int64_t to) {  // of this call
            const int64_t row = b * T + begin - start, place = (row * m.H + h) * size;
            see(begin, end, w.gate + row, (Key*)w.key + place, (Key*)w.value + place, m.H * size, from, to);
        };
        const int64_t far = least(m.A, last - m.W), old = most(least(far, start), 0);  // anchors behind the window
        see(0, old, anchor_gate, anchors, anchor_value, size, m.W + 1, last);
        see_here(most(start, 0), far, old + m.W + 1, last);
        const int64_t first = most(i - m.W, 0);
        for (int64_t j = first; j < start;) {
            const int64_t slot = j % m.W, end = least(start, j + m.W - slot);  // to where the ring begins again
            see(j, end, ring_gate + slot, ring + slot * size, ring_value + slot * size, size, j, j + m.W);
            j = end;
        }
        const int64_t here = most(first, start);
        see_here(here, last + 1, here, here + m.W);
        return s;
    }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
