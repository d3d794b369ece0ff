// Matrix products of 32 x 32 cells, the one building block of window attention.
//
// A left cell holds 32 rows by 32 steps of depth, a right cell 32 steps of depth by 32 columns, a result 32 x 32
// floats. `Floats` works in any instruction set, `Tiles` (bfloat16, AMX) does a cell in four tile products.
#pragma once

#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t SIDE = 32, CELL = SIDE * SIDE;

#if defined(__AVX2__) && !defined(__AVX512F__)
// to = fromᵀ for 8 x 8 words, rows `stride` words apart.
inline void transpose8(float* to, const float* from, int64_t stride) {
    __m256 row[8], pair[8];
    for (int i = 0; i < 8; ++i) row[i] = _mm256_loadu_ps(from + i * stride);
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)  // rows i .. i + 3 of columns c and c + 4
        for (int c = 0; c < 2; ++c) {
            row[i + 2 * c] = _mm256_shuffle_ps(pair[i + c], pair[i + c + 2], 0x44);
            row[i + 2 * c + 1] = _mm256_shuffle_ps(pair[i + c], pair[i + c + 2], 0xee);
        }
    for (int c = 0; c < 4; ++c) {
        _mm256_storeu_ps(to + c * stride, _mm256_permute2f128_ps(row[c], row[c + 4], 0x20));
        _mm256_storeu_ps(to + (c + 4) * stride, _mm256_permute2f128_ps(row[c], row[c + 4], 0x31));
    }
}
#endif

// to = fromᵀ for 16 x 16 words (floats, or pairs of bfloat16), rows `stride` words apart.
inline void transpose16(float* to, const float* from, int64_t stride) {
#if defined(__AVX512F__)
    __m512 row[16];
    for (int i = 0; i < 16; ++i) row[i] = _mm512_loadu_ps(from + i * stride);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int step = 1; step < 16; step *= 2) {  // swap the two step x step blocks beside each diagonal
        const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(step));
        const __m512i next = _mm512_add_epi32(lane, _mm512_set1_epi32(step));
        const __m512i low = _mm512_mask_add_epi32(lane, odd, lane, _mm512_set1_epi32(16 - step));
        const __m512i high = _mm512_mask_add_epi32(next, odd, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i & step) continue;
            __m512 a = row[i], b = row[i + step];
            row[i] = _mm512_permutex2var_ps(a, low, b);
            row[i + step] = _mm512_permutex2var_ps(a, high, b);
        }
    }
    for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * stride, row[i]);
#elif defined(__AVX2__)
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) transpose8(to + i * stride + j, from + j * stride + i, stride);
#else
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) to[i * stride + j] = from[j * stride + i];
#endif
}

// Row-major cell of `rows` x `cols` values whose rows lie `stride` apart; the rest is zero.
template <class To, class From>
void load_cell(To* to, const From* from, int64_t stride, int64_t rows, int64_t cols) {
    if (rows < SIDE || cols < SIDE) std::memset(to, 0, CELL * sizeof(To));
    auto copy_row = [&](int64_t i, auto n) {
        if constexpr (std::is_same_v<To, From>) std::memcpy(to + i * SIDE, from + i * stride, n * sizeof(To));
        else lanes(n, [&](int64_t j, auto m) { store(to + i * SIDE + j, load(from + i * stride + j, m), m); });
    };
    if (cols == SIDE)
        for (int64_t i = 0; i < rows; ++i) copy_row(i, std::integral_constant<int64_t, SIDE>{});
    else
        for (int64_t i = 0; i < rows; ++i) copy_row(i, cols);
}

struct Floats {
    using Element = float;

    struct Session {};

    static void from_floats(float* to, const float* cell) { std::memcpy(to, cell, CELL * sizeof(float)); }
    static void right(float* to, const float* cell) { from_floats(to, cell); }
    static void left_transposed(float* to, const float* cell) {
        for (int64_t i = 0; i < SIDE; i += 16)
            for (int64_t j = 0; j < SIDE; j += 16)
                transpose16(to + i * SIDE + j, cell + j * SIDE + i, SIDE);
    }
    static void right_transposed(float* to, const float* cell) { left_transposed(to, cell); }

    // c (+)= sum over `depth` cells of a left cell times a right cell, `a_step` and `b_step` elements apart.
    static void product(float* c, const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t depth,
                        bool add) {
        constexpr int ROWS = W == 16 ? 8 : 4, COLS = 2;  // sums that fit in the registers
        for (int64_t i = 0; i < SIDE; i += ROWS) {
            for (int64_t j = 0; j < SIDE; j += COLS * W) {
                vfloat sum[ROWS][COLS];
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < COLS; ++n)
                        sum[r][n] = add ? load(c + (i + r) * SIDE + j + n * W, Full{}) : vfloat{};
                for (int64_t cell = 0; cell < depth; ++cell) {
                    const float *left = a + cell * a_step + i * SIDE, *right = b + cell * b_step + j;
                    for (int64_t k = 0; k < SIDE; ++k, right += SIDE)
                        for (int r = 0; r < ROWS; ++r)
                            for (int n = 0; n < COLS; ++n)
                                sum[r][n] = fma(splat(left[r * SIDE + k]), load(right + n * W, Full{}), sum[r][n]);
                }
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < COLS; ++n) store(c + (i + r) * SIDE + j + n * W, sum[r][n], Full{});
            }
        }
    }
};

#if defined(__AMX_BF16__)

struct Tiles {
    using Element = bf16;

    // Tiles are set up for this thread while a Session lives: eight of 16 rows by 64 bytes.
    struct Session {
        Session() {
            TileShapes shapes;
            for (int tile = 0; tile < 8; ++tile) shapes.bytes[tile] = 64, shapes.rows[tile] = 16;
            shapes.load();
        }
        ~Session() { _tile_release(); }
    };

    static void from_floats(bf16* to, const float* cell) {
        for (int64_t i = 0; i < CELL; i += SIDE)
            _mm512_storeu_si512(
                to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(cell + i + 16), _mm512_loadu_ps(cell + i)));
    }

    // A right cell is two tiles of 16 columns; a tile row holds two steps of depth, interleaved.
    static void right(bf16* to, const bf16* cell) {
        alignas(64) uint16_t low[32], high[32];
        for (int i = 0; i < 32; ++i) low[i] = uint16_t(i / 2 + (i % 2) * 32), high[i] = uint16_t(low[i] + 16);
        const __m512i pick_low = _mm512_load_si512(low), pick_high = _mm512_load_si512(high);
        for (int64_t i = 0; i < SIDE; i += 2) {
            __m512i a = _mm512_loadu_si512(cell + i * SIDE), b = _mm512_loadu_si512(cell + (i + 1) * SIDE);
            _mm512_storeu_si512(to + i * 16, _mm512_permutex2var_epi16(a, pick_low, b));
            _mm512_storeu_si512(to + CELL / 2 + i * 16, _mm512_permutex2var_epi16(a, pick_high, b));
        }
    }

    // Both halves of a cell as 16 x 16 matrices of pairs, each transposed.
    static void transpose_pairs(bf16* to, const bf16* from) {
        for (int64_t half = 0; half < CELL; half += CELL / 2)
            transpose16((float*)(to + half), (const float*)(from + half), 16);
    }
    static void right_transposed(bf16* to, const bf16* cell) { transpose_pairs(to, cell); }
    static void left_transposed(bf16* to, const bf16* cell) {
        bf16 paired[CELL];
        right(paired, cell);
        transpose_pairs(to, paired);
    }

    static void product(float* c, const bf16* a, int64_t a_step, const bf16* b, int64_t b_step, int64_t depth,
                        bool add) {
        constexpr int result_stride = SIDE * sizeof(float), stride = 64;
        float *c1 = c + 16, *c2 = c + CELL / 2, *c3 = c2 + 16;
        tile_barrier();
        if (add) {
            _tile_loadd(0, c, result_stride);
            _tile_loadd(1, c1, result_stride);
            _tile_loadd(2, c2, result_stride);
            _tile_loadd(3, c3, result_stride);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int64_t cell = 0; cell < depth; ++cell, a += a_step, b += b_step) {
            _tile_loadd(4, a, stride);
            _tile_loadd(5, a + CELL / 2, stride);
            _tile_loadd(6, b, stride);
            _tile_loadd(7, b + CELL / 2, stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, c, result_stride);
        _tile_stored(1, c1, result_stride);
        _tile_stored(2, c2, result_stride);
        _tile_stored(3, c3, result_stride);
        tile_barrier();
    }
};

#endif

// What multiplies cells of storage type T fastest here.
#if defined(__AMX_BF16__)
template <class T>
using Products = std::conditional_t<std::is_same_v<T, bf16>, Tiles, Floats>;
#else
template <class T>
using Products = Floats;
#endif

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
