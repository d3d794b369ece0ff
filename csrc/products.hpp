// Matrix times rows, in every layout of engine.hpp. A sum has one order, whatever the number of rows or threads:
// whole, chunked, batched and single-token calls give the same bits.
#pragma once

#include "fetch.hpp"
#include "gather.hpp"
#include "rows.hpp"
#if defined(__AMX_INT8__)
#include "tiles.hpp"
#endif

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int ROWS = W == 16 ? 8 : 4;              // rows multiplied together
constexpr int DOT_ROWS = W == 16 ? 6 : 4, DOT_OUTS = W == 16 ? 4 : 2;  // sums of a float32 tile fill the registers
#if defined(__AMX_INT8__)
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

inline vint splat_int(int32_t x) { return x - vint{}; }

// f(first row, Count<rows at once>) over n rows.
template <int C, class F>
inline void by_rows(int64_t first, int64_t n, F f) {
    for (; first + C <= n; first += C) f(first, Count<C>{});
    if constexpr (C > 1) by_rows<C / 2>(first, n, f);
}

// ---- dense-fed float32: rows of weights as they are in the file

template <int R, int C>
inline void dot_tile(const float* w, const float* x, int64_t ins, float* y, int64_t stride, bool add) {
    vfloat dots[R][C] = {};
    lanes(ins, [&](int64_t i, auto m) {
        vfloat in[C];
        for (int c = 0; c < C; ++c) {
            in[c] = load(x + c * ins + i, m);
#if defined(__AVX512F__)
            asm("" : "+v"(in[c]));  // keeps it in a register: reading it again for every output would take the load ports
#endif
        }
        for (int r = 0; r < R; ++r) {
            vfloat weight = load(w + r * ins + i, m);
            __builtin_prefetch(w + R * (ins + i) + r * W);  // the next tile's, from its beginning to its end
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
        by_rows<DOT_ROWS>(0, N, [&](int64_t n, auto rows) {
            constexpr int C = decltype(rows)::value, R = C == 1 ? 4 : DOT_OUTS;
            int64_t o = tile;
            for (; o + R <= last; o += R) dot_tile<R, C>(w + o * m.ins, x.x + n * m.ins, m.ins, y + n * m.outs + o, m.outs, add);
            for (; o < last; ++o) dot_tile<1, C>(w + o * m.ins, x.x + n * m.ins, m.ins, y + n * m.outs + o, m.outs, add);
        });
    }
}

// ---- dense-fed, packed: 16 outputs side by side

// sum[i] += the four weights of lane i times four activations (one a byte of `four`).
inline vint dot4(vint sum, vint weights, int32_t four) {
#if defined(__AVX512VNNI__)
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(four));
#elif defined(__AVX512F__)
    __m512i w = (__m512i)weights, a = _mm512_set1_epi32(four);
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(a, 8));
    return sum + (vint)_mm512_add_epi32(even, odd);
#elif defined(__AVXVNNI__)
    return (vint)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, _mm256_set1_epi32(four));
#elif defined(__AVX2__)
    __m256i w = (__m256i)weights, a = _mm256_set1_epi32(four);
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
    __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
    return sum + (vint)_mm256_add_epi32(even, odd);
#else
    for (int byte = 0; byte < 4; ++byte) sum += (weights >> (8 * byte) & 255) * int32_t(int8_t(four >> (8 * byte)));
    return sum;
#endif
}

inline vint load_words(const uint8_t* p) {
    vint x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// The LEVELS that the bytes of `codes` number.
inline vint levels(vint codes) {
#if defined(__AVX512F__)
    return (vint)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(*(const __m128i*)LEVELS), (__m512i)codes);
#elif defined(__AVX2__)
    return (vint)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(*(const __m128i*)LEVELS), (__m256i)codes);
#else
    uint8_t bytes[4 * W];
    std::memcpy(bytes, &codes, sizeof bytes);
    for (uint8_t& byte : bytes) byte = LEVELS[byte];
    return load_words(bytes);
#endif
}

inline int32_t four_of(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return four;
}

// A block of a packed matrix whose blocks take `size` bytes.
inline const uint8_t* block_of(const Matrix& m, int64_t block, int64_t size) {
    return (const uint8_t*)m.data + (block - m.first) * size;
}

// Piece p of a block of int8 sums of row n, in floats.
inline vfloat scaled(const Matrix& m, int64_t block, int p, const Operand& x, int64_t n, vint dots) {
    vfloat scale = load((const float*)m.scale + block * LANES + p * W, Full{}) * splat(x.scale[n]);
    return __builtin_convertvector(dots - splat_int(128 * x.total[n]), vfloat) * scale;
}

// Sums of K blocks of 16 outputs, which follow each other, for C rows, in floats.
template <Format format, int C, int K>
struct Blocks {
    vfloat sum[C][K * PIECES] = {};

    void run(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        if constexpr (format == Format::bfloat16) floats(m, block, x, n, N);
        if constexpr (format == Format::int8) bytes(m, block, x, n, N);
        if constexpr (format == Format::int4) halves(m, block, x, n, N);
    }

    void floats(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        const uint8_t* w = block_of(m, block, padded(m.ins) * LANES * 2);
        const float* in = x.x + n * m.ins;
        Fetch ahead(w, padded(m.ins) * LANES * 2, n, C, N, 1, m.next);
        vfloat odd[C][PIECES] = {};
        int64_t i = 0;
        for (; i + 1 < m.ins; i += 2, w += 64) {
            ahead.step();
            for (int p = 0; p < PIECES; ++p) {
                vint two = load_words(w + p * 4 * W);
                vfloat low = (vfloat)(two << 16), high = (vfloat)(two & splat_int(-65536));
                for (int c = 0; c < C; ++c) {
                    sum[c][p] = fma(low, splat(in[c * m.ins + i]), sum[c][p]);
                    odd[c][p] = fma(high, splat(in[c * m.ins + i + 1]), odd[c][p]);
                }
            }
        }
        for (int p = 0; p < PIECES; ++p)
            for (int c = 0; c < C; ++c) {
                if (i < m.ins) sum[c][p] = fma((vfloat)(load_words(w + p * 4 * W) << 16), splat(in[c * m.ins + i]), sum[c][p]);
                sum[c][p] = sum[c][p] + odd[c][p];
            }
    }

    void bytes(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        const int64_t size = padded(m.ins) * LANES;
        const uint8_t* w = block_of(m, block, size);
        const int8_t* q = x.q + n * x.width;
        Fetch ahead(w, K * size, n, C, N, K);
        vint dots[C][K * PIECES] = {};
        for (int64_t i = 0; i < padded(m.ins); i += 4, w += 64) {
            ahead.step();
            vint weights[K * PIECES];
            for (int p = 0; p < K * PIECES; ++p) weights[p] = load_words(w + p / PIECES * size + p % PIECES * 4 * W);
            for (int c = 0; c < C; ++c)
                for (int p = 0; p < K * PIECES; ++p) dots[c][p] = dot4(dots[c][p], weights[p], four_of(q + c * x.width + i));
        }
        for (int c = 0; c < C; ++c)
            for (int p = 0; p < K * PIECES; ++p) sum[c][p] = scaled(m, block, p, x, n + c, dots[c][p]);
    }

    void halves(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        int64_t groups = padded(m.ins) / GROUP;
        const uint8_t* w = block_of(m, block, groups * GROUP * LANES / 2);
        const bf16* scale = (const bf16*)m.scale + block * groups * LANES;
        const vint low_half = splat_int(0x0f0f0f0f);
        Fetch ahead(w, groups * GROUP * LANES / 2, n, C, N);
        for (int64_t g = 0; g < groups; ++g, scale += LANES) {
            vint dots[C][PIECES];
            for (int c = 0; c < C; ++c)
                for (int p = 0; p < PIECES; ++p) dots[c][p] = splat_int(-128 * x.sums[(n + c) * (x.width / GROUP) + g]);
            for (int step = 0; step < 4; ++step, w += 64) {
                ahead.step();
                for (int p = 0; p < PIECES; ++p) {
                    vint two = load_words(w + p * 4 * W), low = levels(two & low_half), high = levels((two >> 4) & low_half);
                    for (int c = 0; c < C; ++c) {
                        const int8_t* q = x.q + (n + c) * x.width + g * GROUP + step * 8;
                        dots[c][p] = dot4(dot4(dots[c][p], low, four_of(q)), high, four_of(q + 4));
                    }
                }
            }
            for (int p = 0; p < PIECES; ++p) {
                vfloat by = load(scale + p * W, Full{});
                for (int c = 0; c < C; ++c) sum[c][p] = fma(__builtin_convertvector(dots[c][p], vfloat), by, sum[c][p]);
            }
        }
        for (int c = 0; c < C; ++c)
            for (int p = 0; p < PIECES; ++p) sum[c][p] = sum[c][p] * splat(x.scale[n + c]);
    }
};

// y (one row of m.outs) at piece p of a block; with `add`, added to it.
inline void put(const Matrix& m, int64_t block, int p, vfloat sum, float* y, bool add) {
    const int64_t o = block * LANES + p * W, left = m.outs - o;
    if (left >= W) store(y + o, add ? load(y + o, Full{}) + sum : sum, Full{});
    else if (left > 0) store(y + o, add ? load(y + o, int(left)) + sum : sum, int(left));
}

template <Format format>
void multiply_packed(const Matrix& m, const Operand& x, int64_t N, float* y, int64_t begin, int64_t end, bool add) {
    auto some = [&](int64_t block, auto blocks) {
        by_rows<ROWS>(0, N, [&](int64_t n, auto rows) {
            constexpr int C = decltype(rows)::value, K = decltype(blocks)::value;
            Blocks<format, C, K> found;
            found.run(m, block, x, n, N);
            for (int c = 0; c < C; ++c)
                for (int p = 0; p < K * PIECES; ++p) put(m, block, p, found.sum[c][p], y + (n + c) * m.outs, add);
        });
    };
    int64_t block = begin;
    if constexpr (format == Format::int8 && W == 16)  // in pairs an activation is loaded once for two
        if (N > 1) for (; block + 2 <= end; block += 2) some(block, Count<2>{});
    for (; block < end; ++block) some(block, Count<1>{});
}

#if defined(__AMX_INT8__)
// Fetches while K blocks of together `size` bytes are multiplied with rows n .. n + rows - 1: a little ahead where these are all rows,
// else what comes after these blocks.
template <int K>
Fetch fetch_tiles(const Matrix& m, const uint8_t* w, int64_t size, int64_t n, int64_t rows, int64_t N) {
    if (N > TILE_ROWS) return Fetch(w, size, n, rows, N, K * TILE_BYTES / 64, m.next);
    return Fetch(m.next ? (const uint8_t*)m.next : w + FETCH_TILES, TILE_BYTES);
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
    const Fetch ahead = fetch_tiles<1>(m, w, size, n, rows, N);
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
