// Which keys and values a block of queries sees, and when (ops/window.py).
#pragma once

#include "engine/step.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// The ring of keys and that of values which the thread most likely reads next, on their way from memory into the second
// cache: a piece here and a piece there, so that memory works while this one computes.
struct Coming {
    const char *keys = nullptr, *values = nullptr;
    int64_t piece = 0, bytes = 0;  // of a step; of what is filled of a ring
    mutable int64_t at = 0, goal = 0;

    void fetch(int64_t pieces) const {
        for (goal += pieces * piece; at < goal && at < bytes; at += 64) __builtin_prefetch(keys + at, 0, 2), __builtin_prefetch(values + at, 0, 2);
    }
};

// Where a key lies: in the state, as an anchor or in the ring, or in this call.
enum class Place { anchors, ring, call };

struct Looking : Step {
    // f(place, first, end, from, to) for all that rows n .. n + Q - 1 see: anchors gone from the window, the ring, and the
    // keys of this call. Keys first .. end - 1 there, neighbours in time, are seen by rows n + from .. n + to, and by one
    // row later on either side for each key after the first.
    template <class F>
    void look(int64_t n, int64_t Q, F f) const {
        const int64_t i = position(n), last = i + Q - 1, start = state.position[n / T];
        auto see = [&](Place place, int64_t first, int64_t end, int64_t from, int64_t to) {
            if (first < end) f(place, first, end, int32_t(from - i), int32_t(to - i));
        };
        const int64_t far = least(m.A, last - m.W), old = most(least(far, start), 0);  // anchors behind the window
        see(Place::anchors, 0, old, m.W + 1, last);
        see(Place::call, most(start, 0) - start, far - start, old + m.W + 1, last);
        const int64_t first = most(i - m.W, 0);
        for (int64_t j = first; j < start;) {
            const int64_t slot = j % m.W, end = least(start, j + m.W - slot);  // to where the ring begins again
            see(Place::ring, slot, slot + end - j, j, j + m.W);
            j = end;
        }
        const int64_t here = most(first, start);
        see(Place::call, here - start, last + 1 - start, here, here + m.W);
    }

    // Keys, values and gates of head h of a sequence at a place; of this call those of the sequence's first token.
    struct Keys { const void *key, *value; const uint8_t* gate; };

    Keys past(Place place, int64_t layer, int64_t b, int64_t h, int64_t bytes) const {
        const int64_t at = b * m.L + layer, head = (at * m.H + h) * bytes;  // bytes of a head
        if (place == Place::ring) return {(char*)state.k + head, (char*)state.value + head, state.gate + at * m.W};
        return {(char*)state.anchor_k + head, (char*)state.anchor_v + head, state.anchor_gate + at * m.A};
    }

    // The ring of the item after head h of sequence b, at the same layer, if it is this thread's and one query reads it all.
    Coming next_ring(int64_t layer, int64_t b, int64_t h, int64_t bytes, int64_t piece, int64_t filled) const {
        const int64_t item = b * m.H + h + 1;
        if (T > 1 || item == B * m.H * (thread + 1) / pool.size()) return {};
        const Keys ring = past(Place::ring, layer, item / m.H, item % m.H, bytes);
        return {(const char*)ring.key, (const char*)ring.value, piece, filled};
    }

    int64_t filled(int64_t b) const { return least(m.W, most(state.position[b], 0)); }  // slots of a ring
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
