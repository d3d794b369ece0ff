// Matrix times rows, in every layout of engine.hpp. A sum has one order, whatever the number of rows or threads:
// whole, chunked, batched and single-token calls give the same bits.
#pragma once

#include "engine/packed.hpp"
#if defined(__AMX_INT8__)
#include "engine/tiles.hpp"
#endif

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int DOT_ROWS = W == 16 ? 6 : W == 8 ? 3 : 4, DOT_OUTS = W >= 8 ? 4 : 2;  // sums of a float32 tile fill the registers
#if defined(__AMX_INT8__)
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

// ---- dense-fed float32: rows of weights as they are in the file

template <int R, int C>
inline void dot_tile(const float* w, const float* x, int64_t ins, float* y, int64_t stride, bool add) {
    vfloat dots[R][C] = {};
    lanes(ins, [&](int64_t i, auto m) {
        vfloat in[C];
        for (int c = 0; c < C; ++c) {
            in[c] = load(x + c * ins + i, m);
#if defined(__AVX2__)
            asm("" : "+v"(in[c]));  // keeps it in a register: reading it again for every output would take the load ports
#endif
        }
        for (int r = 0; r < R; ++r) {
            vfloat weight = load(w + r * ins + i, m);
            if (r * W % 16 == 0) __builtin_prefetch(w + R * (ins + i) + r * W);  // lines of the next tile, from its beginning to its end
            for (int c = 0; c < C; ++c) dots[r][c] = fma(weight, in[c], dots[r][c]);
        }
    });
    for (int c = 0; c < C; ++c) {
        float found[R];
        if constexpr (R == 4) sum4(dots[0][c], dots[1][c], dots[2][c], dots[3][c], found);
        else for (int r = 0; r < R; ++r) found[r] = sum(dots[r][c]);
        for (int r = 0; r < R; ++r) y[c * stride + r] = found[r] + (add ? y[c * stride + r] : 0.f);
    }
}

inline void multiply_float(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end, bool add) {
    const float* w = (const float*)m.data;
    constexpr int64_t TILE = 64;  // outputs whose weights stay in the second-level cache
    for (int64_t tile = begin; tile < end; tile += TILE) {
        int64_t last = tile + TILE < end ? tile + TILE : end;
        auto some = [&](int64_t n, auto rows) {
            constexpr int C = decltype(rows)::value, R = C == 1 ? 4 : W == 8 && C == 4 ? 2 : DOT_OUTS;
            int64_t o = tile;
            for (; o + R <= last; o += R) dot_tile<R, C>(w + o * m.ins, x.x + n * m.ins, m.ins, y + n * m.outs + o, m.outs, add);
            for (; o < last; ++o) dot_tile<1, C>(w + o * m.ins, x.x + n * m.ins, m.ins, y + n * m.outs + o, m.outs, add);
        };
        N == 4 ? by_rows<4>(0, N, some) : by_rows<DOT_ROWS>(0, N, some);  // four read the weights from memory in one go
    }
}

// ---- dense-fed, packed, on tiles

#if defined(__AMX_INT8__)
// Fetches while K blocks of together `size` bytes are multiplied with rows n .. n + rows - 1: a little ahead where these are all rows,
// else what comes after these blocks.
template <int K>
Prefetch fetch_tiles(const Matrix& m, const uint8_t* w, int64_t size, int64_t n, int64_t rows, int64_t N) {
    if (N > TILE_ROWS) return Prefetch(w, size, n, rows, N, K * TILE_BYTES / 64, m.next);
    return Prefetch(m.next ? (const uint8_t*)m.next : w + FETCH_TILES, TILE_BYTES);
}

// Up to 16 rows of x.q, from row n on, times K blocks that follow each other. A few rows wait for memory, which is fastest in one
// stream, block after block; for many, four blocks share the loads of their rows.
template <int K>
void tile_bytes(const Matrix& m, int64_t first, const Operand& x, int64_t n, int64_t rows, int64_t N, float* y, bool add) {
    const int64_t size = padded(m.ins) * LANES, steps = size / TILE_BYTES;
    const uint8_t* w = block_of(m, first, size);
    const int8_t* q = x.q + n * x.width;
    const bool shared = K == 4 && N > TILE_ROWS, whole = (first + K) * LANES <= m.outs && !add;
    alignas(64) int32_t sums[K][512];
    if (shared) tile_blocks(w, size, q, x.width, steps, fetch_tiles<K>(m, w, K * size, n, rows, N), sums[0]);
    else
        for (int b = 0; b < K; ++b, w += size)
            tile_rows(w, (const char*)q, x.width, steps, fetch_tiles<1>(m, w, size, n, rows, N), sums[b]);
    for (int64_t r = 0; r < rows; ++r)
        for (int b = 0; b < K; ++b) {
            vint dots = load_words((const uint8_t*)(sums[b] + r * 16));
            if (!shared) dots += load_words((const uint8_t*)(sums[b] + 256 + r * 16));
            const vfloat sum = scaled(m, first + b, 0, x, n + r, dots);
            float* to = y + (n + r) * m.outs;
            if (whole) store(to + (first + b) * LANES, sum, Full{});
            else put(m, first + b, 0, sum, to, add);
        }
}

// The same of x.parts and one block; the three parts of a few rows are rows of one tile.
template <bool few>
void tile_halves(const Matrix& m, int64_t first, const Operand& x, int64_t n, int64_t rows, int64_t N, float* y, bool add) {
    const int64_t size = padded(m.ins) * LANES * 2, steps = size / TILE_BYTES;
    const uint8_t* w = block_of(m, first, size);
    const bf16* parts = x.parts + n * 3 * x.width;
    const Prefetch ahead = fetch_tiles<1>(m, w, size, n, rows, N);
    alignas(64) float sums[3 * 256];
    if (few) tile_rows(w, (const char*)parts, 2 * x.width, steps, ahead, sums);
    else tile_parts(w, parts, x.width, steps, ahead, sums);
    for (int64_t r = 0; r < rows; ++r) {
        vfloat part[3];
        for (int p = 0; p < 3; ++p) part[p] = load(sums + (few ? (3 * r + p) * 16 : p * 256 + r * 16), Full{});
        put(m, first, 0, part[0] + (part[1] + part[2]), y + (n + r) * m.outs, add);
    }
}

template <Format format>
void multiply_tiles(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end, bool add) {
    constexpr bool bytes = format == Format::int8;
    const bool few = bytes || 3 * N <= TILE_ROWS;
    Tiles tiles(few ? 5 : 7);
    auto some = [&](int64_t first, auto blocks) {
        for (int64_t n = 0; n < N; n += TILE_ROWS) {
            const int64_t rows = N - n < TILE_ROWS ? N - n : TILE_ROWS;
            tiles.rows(few && !bytes ? 3 * rows : rows);
            if constexpr (bytes) tile_bytes<decltype(blocks)::value>(m, first, x, n, rows, N, y, add);
            else if (few) tile_halves<true>(m, first, x, n, rows, N, y, add);
            else tile_halves<false>(m, first, x, n, rows, N, y, add);
        }
    };
    int64_t block = begin;
    if constexpr (bytes) for (; block + 4 <= end; block += 4) some(block, Count<4>{});
    for (; block < end; ++block) some(block, Count<1>{});
}
#endif

// ---- any layout

constexpr int WIDE = W == 16 ? 24 : 8, NARROW = 4;  // columns of inputs: narrow ones of all stay in the cache for many rows

inline int64_t units(const Matrix& m) {  // what threads share out: 16 outputs
    return (m.outs + LANES - 1) / LANES;
}

// y (N, outs) = M x for output units [begin, end); with `add`, added to y (dense-fed only).
inline void multiply(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end, bool add = false) {
    int64_t first = begin * LANES, last = end * LANES < m.outs ? end * LANES : m.outs;
    if (begin >= end) return;
    if (m.by_input) {
        if (N < 32) gather_columns<WIDE>(m, x, N, y, first, last);
        else gather_columns<NARROW>(m, x, N, y, first, last);
        return;
    }
#if defined(__AMX_INT8__)
    if (m.format == Format::bfloat16) return multiply_tiles<Format::bfloat16>(m, x, N, y, begin, end, add);
    if (m.format == Format::int8 && N >= 2 && padded(m.ins) % 64 == 0)
        return multiply_tiles<Format::int8>(m, x, N, y, begin, end, add);
#endif
    if (m.format == Format::bfloat16_rows)
        for (; begin < end; ++begin) {
            const int64_t from = begin * LANES;
            const Matrix packed{Format::bfloat16, false, m.outs, m.ins, x.packed, nullptr, begin, (const bf16*)m.data + (from + LANES) * m.ins};
            side_by_side(m, [&](int64_t row) { return from + row < m.outs ? from + row : 0; }, x.packed);
            multiply(packed, x, N, y, begin, begin + 1, add);
        }
    else if (m.format == Format::float32) multiply_float(m, x, N, y, first, last, add);
    else if (m.format == Format::bfloat16) multiply_packed<Format::bfloat16>(m, x, N, y, begin, end, add);
    else if (m.format == Format::int8) multiply_packed<Format::int8>(m, x, N, y, begin, end, add);
    else multiply_packed<Format::int4>(m, x, N, y, begin, end, add);
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
