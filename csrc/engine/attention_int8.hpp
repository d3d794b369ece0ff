// Attention over keys and values of 8 bits, in blocks of 16 neighbouring tokens (engine.hpp, block_bytes). Queries and
// shares are integers of 16 bits, in two halves, so that all sums are of integers: no order of keys or calls shows in them.
#pragma once

#include <math.h>

#include "engine/visibility.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {
namespace {

constexpr float LARGEST = 127 * 256;  // of 16 bits whose upper half, rounded, fits in 8

// What attention over short keys needs; Attention (attention.hpp) calls it.
struct Short : Looking {
    const int64_t wide = ::symboliclight::wide(m), bytes = block_bytes(m);

    static float largest(const float* x, int64_t n) {
        vfloat most{};
        lanes(n, [&](int64_t i, auto l) { most = max(most, max(load(x + i, l), -load(x + i, l))); });
        return max(most);
    }

    // x (K) as `wide` bytes x / unit + 128; returns the unit.
    float shorten(const float* x, uint8_t* to) const {
        const float top = largest(x, m.K), by = top > 1e-30f ? 127 / top : 0;
        std::memset(to + m.K, 128, wide - m.K);
        lanes(m.K, [&](int64_t i, auto l) {
            vsmall small = __builtin_convertvector(nearest(load(x + i, l) * splat(by)) + splat_int(128), vsmall);
            std::memcpy(to + i, &small, l);
        });
        return top / 127;
    }

    // The key and the value of token t of this call, of one head, as slot `slot` of blocks.
    void insert(int64_t t, const Keys& to, int64_t slot) const {
        const Rows from = rows(t);
        const int64_t lane = slot % LANES, shift = lane % 4 * 8;
        char *key = (char*)to.key + slot / LANES * bytes, *value = (char*)to.value + slot / LANES * bytes, *four = value + lane / 4 * 4 * wide;
        for (int64_t i = 0; i < wide; i += 4) std::memcpy(key + i * LANES + lane * 4, from.key + i, 4);
        for (int64_t i = 0; i < wide; i += W) {  // one byte of each word
            vsmall row;
            vuint words;
            std::memcpy(&row, from.value + i, W), std::memcpy(&words, four + i * 4, sizeof words);
            words = (words & ~(255u << shift)) | ((vuint)(longer(row) & 255) << uint32_t(shift));
            std::memcpy(four + i * 4, &words, sizeof words);
        }
        std::memcpy(key + LANES * wide + lane * sizeof(float), from.units, sizeof(float));
        std::memcpy(value + LANES * wide + lane * sizeof(float), from.units + 1, sizeof(float));
    }

    struct Rows { uint8_t *key, *value; float* units; };

    Rows rows(int64_t t) const {
        return {w.short_rows + t * 2 * wide, w.short_rows + (t * 2 + 1) * wide, w.units + t * 2};
    }

    // Keys and values of one head of this call, in blocks.
    Keys shorten_all(int64_t b, int64_t h) const {
        const Keys call{w.short_k, w.short_v, w.gate + b * T};
        for (int64_t t = 0, at = b * T * m.D + h * m.K; t < T; ++t, at += m.D) {
            const Rows to = rows(t);
            to.units[0] = shorten(w.k + at, to.key), to.units[1] = shorten(w.v + at, to.value);
            insert(t, call, t);
        }
        return call;
    }

    // Bit i: is gate i of up to 16 open?
    static int32_t open(const uint8_t* gate, int64_t n) {
        uint64_t two[2] = {};
        n == LANES ? std::memcpy(two, gate, LANES) : std::memcpy(two, gate, n);
        int32_t bits = 0;
        for (int i = 0; i < 2; ++i) {
            const uint64_t low = 0x7f7f7f7f7f7f7f7f, set = (((two[i] & low) + low) | two[i]) >> 7 & 0x0101010101010101;  // 1 where not 0
            bits |= int32_t(set * 0x0102040810204080 >> 56) << 8 * i;
        }
        return bits;
    }

    // The blocks that rows n .. n + Q - 1 see of head h; returns how many.
    int64_t gather_blocks(int64_t layer, int64_t n, int64_t h, int64_t Q, const Keys& call, KeyBlock* to) const {
        int64_t count = 0;
        look(n, Q, [&](Place place, int64_t first, int64_t end, int32_t from, int32_t until) {
            const bool ring = place == Place::ring;
            const Keys keys = place == Place::call ? call : past(place, layer, n / T, h, blocks(ring ? m.W : m.A) * bytes);
            for (int64_t at = first, next; at < end; at = next) {
                const int64_t block = at / LANES, lane = at % LANES;
                next = least(end, (block + 1) * LANES);
                const int32_t bits = open(keys.gate + at, next - at) << lane, shift = int32_t(block * LANES - first);
                if (bits) to[count++] = {(uint8_t*)keys.key + block * bytes, (uint8_t*)keys.value + block * bytes, from + shift, until + shift, bits};
            }
        });
        return count;
    }

    // x (K) / scale in two signed halves of `wide` bytes each, 256 high + low; sums of both, negative and times ADDED: what
    // is added to keys comes to.
    float halve(const float* x, int8_t* halves, int32_t* less) const {
        const float top = largest(x, m.K), by = top > 1e-30f ? LARGEST / top : 0;
        vint sums[2] = {};
        std::memset(halves, 0, 2 * wide);
        lanes(m.K, [&](int64_t i, auto l) { put_halves(nearest(load(x + i, l) * splat(by)), halves + i, wide, sums, l); });
        for (int half = 0; half < 2; ++half) less[half] = -ADDED * total(sums[half]);
        return top / LARGEST;
    }

    template <class N>
    static void put_halves(vint x, int8_t* to, int64_t gap, vint* sums, N n) {
        const vint half[2] = {(x + splat_int(128)) >> 8, x - ((x + splat_int(128)) >> 8 << 8)};
        for (int i = 0; i < 2; ++i) {
            vsmall narrow = __builtin_convertvector(half[i], vsmall);
            std::memcpy(to + i * gap, &narrow, n);
            sums[i] += half[i];
        }
    }

    static vfloat whole(vint high, vint low) {
        return fma(__builtin_convertvector(high, vfloat), splat(256), __builtin_convertvector(low, vfloat));
    }

    static int32_t total(vint x) {
        int32_t sum = 0;
        for (int i = 0; i < W; ++i) sum += x[i];
        return sum;
    }

    // score (Q, capacity) of C blocks, -infinity where a row does not see; `most` of them all.
    template <int Q, int C>
    void dots(const KeyBlock* s, const int8_t* halves, const int32_t (*less)[2], const float* unit, float* score, int64_t capacity, vfloat* most) const {
        for (int p = 0; p < PIECES; ++p) {
            vint sums[C][Q][2];
            for (int c = 0; c < C; ++c)
                for (int r = 0; r < Q; ++r)
                    for (int half = 0; half < 2; ++half) sums[c][r][half] = splat_int(less[r][half]);
            for (int64_t i = 0; i < wide; i += 4)
                for (int c = 0; c < C; ++c) {
                    const vint keys = load_bytes(s[c].key + i * LANES + p * 4 * W);
                    for (int r = 0; r < Q; ++r)
                        for (int half = 0; half < 2; ++half)
                            sums[c][r][half] = dot4(sums[c][r][half], keys, four_of(halves + (2 * r + half) * wide + i));
                }
            for (int c = 0; c < C; ++c) {
                const vfloat units = load((const float*)(s[c].key + LANES * wide) + p * W, Full{});
                const vint lane = lane_numbers() + splat_int(p * W), from = splat_int(s[c].from) + lane, to = splat_int(s[c].to) + lane;
                const vint open = splat_int(s[c].open) >> lane & 1;
                for (int r = 0; r < Q; ++r) {
                    vfloat x = whole(sums[c][r][0], sums[c][r][1]);
                    x = ((open > 0) & (from <= splat_int(r)) & (to >= splat_int(r))) ? x * (units * splat(unit[r])) : splat(-HUGE_VALF);
                    store(score + r * capacity + c * LANES + p * W, x, Full{});
                    most[r] = max(most[r], x);
                }
            }
        }
    }

    // Turns the scores of one row into shares times the units of their values, in two halves as `halve` does; returns what
    // one of these integers stands for.
    float shares(const KeyBlock* seen, int64_t count, float* score, float most, int8_t* halves, int64_t capacity, int32_t* less, const Coming& coming) const {
        const float fixed = float(1 << (29 - top_bit(capacity / 4)));  // no lane's sum of shares reaches 2^31, of four lanes or more
        vint all_shares{}, sums[2] = {};
        vfloat top{};
        for (int64_t b = 0; b < count; ++b, coming.fetch(1))
            for (int p = 0; p < PIECES; ++p) {
                float* at = score + b * LANES + p * W;
                const vfloat share = exp(load(at, Full{}) - splat(most)), unit = load((const float*)(seen[b].value + LANES * wide) + p * W, Full{});
                const vfloat x = share > vfloat{} ? share * unit : vfloat{};
                all_shares += nearest(share * splat(fixed));
                top = max(top, x);
                store(at, x, Full{});
            }
        const float largest = max(top), by = largest > 1e-30f ? LARGEST / largest : 0;
        for (int64_t j = 0; j < count * LANES; j += W) put_halves(nearest(load(score + j, Full{}) * splat(by)), halves + j, capacity, sums, Full{});
        for (int half = 0; half < 2; ++half) less[half] = -ADDED * total(sums[half]);
        int64_t all = 0;
        for (int i = 0; i < W; ++i) all += all_shares[i];
        return largest / LARGEST / (float(all) / fixed);
    }

    static int top_bit(int64_t n) {
        int bit = 0;
        while (n >>= 1) ++bit;
        return bit;
    }

    // out (Q rows) = sums of values by shares, G vectors of every one at a time from `at` on; returns what is left.
    template <int Q, int G>
    int64_t weigh(int64_t at, const KeyBlock* seen, int64_t count, const int8_t* halves, int64_t capacity, const int32_t (*less)[2], const float* unit,
                  const Coming& coming, float* out) const {
        for (; at + G * W <= wide; at += G * W) {
            vint sums[Q][2][G];
            for (int r = 0; r < Q; ++r)
                for (int half = 0; half < 2; ++half)
                    for (int g = 0; g < G; ++g) sums[r][half][g] = splat_int(less[r][half]);
            for (int64_t b = 0; b < count; ++b) {
                if (at == 0) coming.fetch(1);
                const uint8_t* value = seen[b].value + at * 4;
                const int8_t* share = halves + b * LANES;
                for (int64_t j = 0; j < LANES; j += 4, value += 4 * wide, share += 4)
                    for (int g = 0; g < G; ++g) {
                        const vint values = load_bytes(value + g * W * 4);
                        for (int r = 0; r < Q; ++r)
                            for (int half = 0; half < 2; ++half) sums[r][half][g] = dot4(sums[r][half][g], values, four_of(share + (2 * r + half) * capacity));
                    }
            }
            for (int r = 0; r < Q; ++r)
                for (int g = 0; g < G && at + g * W < m.K; ++g) {
                    const vfloat x = whole(sums[r][0][g], sums[r][1][g]) * splat(unit[r]);
                    const int64_t i = at + g * W;
                    if (i + W <= m.K) store(out + r * m.D + i, x, Full{});
                    else store(out + r * m.D + i, x, int(m.K - i));
                }
        }
        return at;
    }

    // Attention of rows n .. n + Q - 1, head h, over what look() says. A row's result does not depend on Q.
    template <int Q>
    void attend_short(int64_t layer, int64_t n, int64_t h, const Keys& call, float* out) const {
        const int64_t b = n / T, capacity = visible_blocks(m) * LANES, head = blocks(m.W) * bytes;
        KeyBlock* seen = w.blocks;
        int8_t *queries = w.halves, *halves = w.shares;
        float *score = w.score, unit[Q];
        int32_t less[Q][2];
        vfloat most[Q];
        const int64_t count = gather_blocks(layer, n, h, Q, call, seen);
        const Coming coming = next_ring(layer, b, h, head, bytes * 3 / 8, blocks(filled(b)) * bytes);
        for (int r = 0; r < Q; ++r) {
            unit[r] = halve(w.q + (n + r) * m.D + h * m.K, queries + r * 2 * wide, less[r]) / sqrtf(float(m.K));
            most[r] = splat(-HUGE_VALF);
        }
        by_rows<Q == 1 ? 2 : 1>(0, count, [&](int64_t i, auto some) {
            constexpr int C = decltype(some)::value;
            coming.fetch(C);
            dots<Q, C>(seen + i, queries, less, unit, score + i * LANES, capacity, most);
        });
        for (int r = 0; r < Q; ++r)
            unit[r] = w.gate[n + r] ? shares(seen, count, score + r * capacity, max(most[r]), halves + r * 2 * capacity, capacity, less[r], coming) : 0;
        constexpr int G = Q == 1 ? 4 : W == 16 ? 2 : 1;
        weigh<Q, 1>(weigh<Q, G>(0, seen, count, halves, capacity, less, unit, coming, out), seen, count, halves, capacity, less, unit, coming, out);
        for (int r = 0; r < Q; ++r)
            if (!w.gate[n + r]) std::memset(out + r * m.D, 0, m.K * sizeof(float));
    }
};

}  // namespace
}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
