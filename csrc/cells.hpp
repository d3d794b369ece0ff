// Matrix products of 32 x 32 cells, the one building block of window attention.
//
// A left cell holds 32 rows by 32 steps of depth, a right cell 32 steps of depth by 32 columns, a result 32 x 32 floats.
// `Floats` works in any instruction set, `Tiles` (bfloat16, AMX) does a cell in four tile products.
#pragma once

#include "simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t SIDE = 32, CELL = SIDE * SIDE;

// Row-major cell of `rows` x `cols` values whose rows lie `stride` apart; the rest is zero.
template <class To, class From>
void load_cell(To* to, const From* from, int64_t stride, int64_t rows, int64_t cols) {
    std::memset(to, 0, CELL * sizeof(To));
    for (int64_t i = 0; i < rows; ++i) {
        if constexpr (std::is_same_v<To, From>) std::memcpy(to + i * SIDE, from + i * stride, cols * sizeof(To));
        else lanes(cols, [&](int64_t j, auto m) { store(to + i * SIDE + j, load(from + i * stride + j, m), m); });
    }
}

struct Floats {
    using Element = float;

    struct Session {};

    static void from_floats(float* to, const float* cell) { std::memcpy(to, cell, CELL * sizeof(float)); }
    static void right(float* to, const float* cell) { from_floats(to, cell); }
    static void left_transposed(float* to, const float* cell) {
        for (int64_t i = 0; i < SIDE; ++i)
            for (int64_t j = 0; j < SIDE; ++j) to[i * SIDE + j] = cell[j * SIDE + i];
    }
    static void right_transposed(float* to, const float* cell) { left_transposed(to, cell); }

    // c (+)= sum over `depth` cells of a left cell times a right cell, `a_step` and `b_step` elements apart.
    static void product(float* c, const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t depth, bool add) {
        constexpr int ROWS = W == 16 ? 8 : 4, COLS = 2;  // sums that fit in the registers
        for (int64_t i = 0; i < SIDE; i += ROWS) {
            for (int64_t j = 0; j < SIDE; j += COLS * W) {
                vfloat sum[ROWS][COLS];
                for (int r = 0; r < ROWS; ++r)
                    for (int n = 0; n < COLS; ++n)
                        sum[r][n] = add ? load(c + (i + r) * SIDE + j + n * W, Full{}) : vfloat{};
                for (int64_t cell = 0; cell < depth; ++cell) {
                    const float *left = a + cell * a_step + i * SIDE, *right = b + cell * b_step + j;
                    for (int64_t k = 0; k < SIDE; ++k)
                        for (int r = 0; r < ROWS; ++r)
                            for (int n = 0; n < COLS; ++n)
                                sum[r][n] = fma(splat(left[r * SIDE + k]), load(right + k * SIDE + n * W, Full{}), sum[r][n]);
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
            alignas(64) uint8_t shape[64] = {1};  // palette; from 16 on two bytes a tile for its row, from 48 on its rows
            for (int i = 0; i < 8; ++i) shape[16 + 2 * i] = 64, shape[48 + i] = 16;
            memory_barrier();
            _tile_loadconfig(shape);
        }
        ~Session() { _tile_release(); }
    };

    // GCC does not know that tile instructions touch memory.
    static void memory_barrier() { asm volatile("" ::: "memory"); }

    static void from_floats(bf16* to, const float* cell) {
        for (int64_t i = 0; i < CELL; i += SIDE)
            _mm512_storeu_si512(to + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(cell + i + 16), _mm512_loadu_ps(cell + i)));
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
        uint32_t pairs[CELL / 2], turned[CELL / 2];
        std::memcpy(pairs, from, sizeof pairs);
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 16; ++i)
                for (int j = 0; j < 16; ++j) turned[half * 256 + i * 16 + j] = pairs[half * 256 + j * 16 + i];
        std::memcpy(to, turned, sizeof turned);
    }
    static void right_transposed(bf16* to, const bf16* cell) { transpose_pairs(to, cell); }
    static void left_transposed(bf16* to, const bf16* cell) {
        bf16 paired[CELL];
        right(paired, cell);
        transpose_pairs(to, paired);
    }

    static void product(float* c, const bf16* a, int64_t a_step, const bf16* b, int64_t b_step, int64_t depth, bool add) {
        constexpr int result_stride = SIDE * sizeof(float), stride = 64;
        float *c1 = c + 16, *c2 = c + CELL / 2, *c3 = c2 + 16;
        memory_barrier();
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
        memory_barrier();
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
