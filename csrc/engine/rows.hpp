// Rows of bfloat16 weights brought side by side, as packed matrices have them (engine.hpp): scattered rows then have the very
// products that packed ones have, on every instruction set.
#pragma once

#include "engine/engine.hpp"
#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int PIECES = LANES / W;  // vectors that hold 16 outputs

inline int64_t padded(int64_t ins) { return (ins + GROUP - 1) / GROUP * GROUP; }

// Lane i of row j becomes lane j of row i: each round turns the bits of (row, lane) by one.
inline void transpose(vint* rows) {
#pragma GCC unroll 4
    for (int round = 1; round < W; round *= 2) {
        vint turned[W];
#pragma GCC unroll 8
        for (int r = 0; r < W / 2; ++r) {
            const vint a = rows[r], b = rows[r + W / 2];
            vint &low = turned[2 * r], &high = turned[2 * r + 1];
#if defined(__AVX512F__)
            const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            low = (vint)_mm512_permutex2var_epi32((__m512i)a, first, (__m512i)b);
            high = (vint)_mm512_permutex2var_epi32((__m512i)a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), (__m512i)b);
#elif defined(__AVX2__)
            const __m256i even = _mm256_unpacklo_epi32((__m256i)a, (__m256i)b), odd = _mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
            low = (vint)_mm256_permute2x128_si256(even, odd, 0x20), high = (vint)_mm256_permute2x128_si256(even, odd, 0x31);
#elif defined(__aarch64__)
            low = (vint)vzip1q_s32((int32x4_t)a, (int32x4_t)b), high = (vint)vzip2q_s32((int32x4_t)a, (int32x4_t)b);
#else
            for (int i = 0; i < W / 2; ++i) {
                low[2 * i] = a[i], low[2 * i + 1] = b[i];
                high[2 * i] = a[W / 2 + i], high[2 * i + 1] = b[W / 2 + i];
            }
#endif
        }
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) rows[r] = turned[r];
    }
}

// The 16 rows which(0), .., which(15) of m, bfloat16_rows, as one block of a packed matrix.
template <class F>
inline void side_by_side(const Matrix& m, F which, bf16* to) {
    const bf16* from[LANES];
    for (int64_t row = 0; row < LANES; ++row) from[row] = (const bf16*)m.data + which(row) * m.ins;
    int64_t i = 0;
    for (; i + 2 * W <= m.ins; i += 2 * W)  // squares of W rows by W pairs of inputs
        for (int p = 0; p < PIECES; ++p) {
            vint pairs[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) std::memcpy(&pairs[r], from[p * W + r] + i, sizeof pairs[r]);
            transpose(pairs);
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) std::memcpy(to + i * LANES + (r * LANES + p * W) * 2, &pairs[r], sizeof pairs[r]);
        }
    for (; i < padded(m.ins); ++i)
        for (int64_t row = 0; row < LANES; ++row)
            to[i / 2 * 2 * LANES + row * 2 + i % 2] = i < m.ins ? from[row][i] : bf16{};
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
