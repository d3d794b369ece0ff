// Dense-fed matrices whose outputs lie side by side in blocks of 16 (engine.hpp), times rows, in vectors.
#pragma once

#include "engine/prefetch.hpp"
#include "engine/gather.hpp"
#include "engine/rows.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int ROWS = W == 16 ? 8 : 4;  // rows multiplied together: their sums fill the registers

inline vint splat_int(int32_t x) { return x - vint{}; }

// f(first row, Count<rows at once>) over n rows.
template <int C, class F>
inline void by_rows(int64_t first, int64_t n, F f) {
    for (; first + C <= n; first += C) f(first, Count<C>{});
    if constexpr (C > 1) by_rows<(C + 1) / 2>(first, n, f);
}

// Weights and keys of 8 bits lie in memory with 128 added. Most sums are of them as they lie: they hold ADDED times the sum of the
// inputs too much. AVX2 alone multiplies sizes of inputs by signed weights, whose products in pairs then fit in 16 bits; the dot
// product of Arm is of signed by signed.
#if (defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)) || \
    (defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8))
constexpr int32_t ADDED = 0;
#else
constexpr int32_t ADDED = 128;
#endif

// sum[i] += the four weights of lane i times four activations (one a byte of `four`).
inline vint dot4(vint sum, vint weights, int32_t four) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return (vint)vusdotq_s32((int32x4_t)sum, (uint8x16_t)weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
#elif defined(__ARM_FEATURE_DOTPROD)
    return (vint)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, vreinterpretq_s8_s32(vdupq_n_s32(four)));
#elif defined(__AVX512VNNI__)
    return (vint)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(four));
#elif defined(__AVX512F__)
    __m512i w = (__m512i)weights, a = _mm512_set1_epi32(four);
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(a, 8));
    return sum + (vint)_mm512_add_epi32(even, odd);
#elif defined(__AVXVNNI__)
    return (vint)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)weights, _mm256_set1_epi32(four));
#elif defined(__AVX2__)
    __m256i a = _mm256_set1_epi32(four), pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8((__m256i)weights, a));
    return sum + (vint)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    for (int byte = 0; byte < 4; ++byte) sum += (weights >> (8 * byte) & 255) * int32_t(int8_t(four >> (8 * byte)));
    return sum;
#endif
}

// AVX2 alone has the sizes of activations ready, which `prepare` stored beside them: one instruction less of five.
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__)
constexpr bool SIZES = true;
inline vint dot4(vint sum, vint weights, int32_t four, int32_t sizes) {
    __m256i signed_weights = _mm256_sign_epi8((__m256i)weights, _mm256_set1_epi32(four));
    return sum + (vint)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi32(sizes), signed_weights), _mm256_set1_epi16(1));
}
#else
constexpr bool SIZES = false;
inline vint dot4(vint sum, vint weights, int32_t four, int32_t) { return dot4(sum, weights, four); }
#endif

inline vint load_words(const uint8_t* p) {
    vint x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// The same of weights or keys, for dot4.
inline vint load_bytes(const uint8_t* p) { return load_words(p) ^ splat_int(ADDED ? 0 : int32_t(0x80808080)); }

// The LEVELS that the bytes of `codes` number, for dot4.
inline vint levels(vint codes) {
#if defined(__aarch64__)
    return (vint)vqtbl1q_u8(vsubq_u8(vld1q_u8(LEVELS), vdupq_n_u8(uint8_t(128 - ADDED))), (uint8x16_t)codes);
#elif defined(__AVX512F__)
    return (vint)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(*(const __m128i*)LEVELS), (__m512i)codes);
#elif defined(__AVX2__)
    const __m128i table = _mm_add_epi8(*(const __m128i*)LEVELS, _mm_set1_epi8(char(ADDED - 128)));
    return (vint)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)codes);
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
    return __builtin_convertvector(dots - splat_int(ADDED * x.total[n]), vfloat) * scale;
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
        Prefetch ahead(w, padded(m.ins) * LANES * 2, n, C, N, 1, m.next);
        vfloat even[C][PIECES] = {}, odd[C][PIECES] = {};
        int64_t i = 0;
        for (; i + 1 < m.ins; i += 2, w += 64) {
            ahead.step();
            for (int p = 0; p < PIECES; ++p) {
                vint two = load_words(w + p * 4 * W);
                vfloat low = (vfloat)(two << 16), high = (vfloat)(two & splat_int(-65536));
                for (int c = 0; c < C; ++c) {
                    even[c][p] = fma(low, splat(in[c * m.ins + i]), even[c][p]);
                    odd[c][p] = fma(high, splat(in[c * m.ins + i + 1]), odd[c][p]);
                }
            }
        }
        for (int p = 0; p < PIECES; ++p)
            for (int c = 0; c < C; ++c) {
                if (i < m.ins) even[c][p] = fma((vfloat)(load_words(w + p * 4 * W) << 16), splat(in[c * m.ins + i]), even[c][p]);
                sum[c][p] = even[c][p] + odd[c][p];
            }
    }

    void bytes(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        const int64_t size = padded(m.ins) * LANES;
        const uint8_t* w = block_of(m, block, size);
        const int8_t* q = x.q + n * x.width;
        Prefetch ahead(w, K * size, n, C, N, K);
        vint dots[C][K * PIECES] = {};
        for (int64_t i = 0; i < padded(m.ins); i += 4, w += 64) {
            ahead.step();
            vint weights[K * PIECES];
            for (int p = 0; p < K * PIECES; ++p) weights[p] = load_bytes(w + p / PIECES * size + p % PIECES * 4 * W);
            for (int c = 0; c < C; ++c)
                for (int p = 0; p < K * PIECES; ++p) {
                    const int64_t at = c * x.width + i;
                    if constexpr (!SIZES || C == 1) dots[c][p] = dot4(dots[c][p], weights[p], four_of(q + at));
                    else dots[c][p] = dot4(dots[c][p], weights[p], four_of(q + at), four_of(x.low + n * x.width + at));
                }
        }
        for (int c = 0; c < C; ++c)
            for (int p = 0; p < K * PIECES; ++p) sum[c][p] = scaled(m, block, p, x, n + c, dots[c][p]);
    }

    void halves(const Matrix& m, int64_t block, const Operand& x, int64_t n, int64_t N) {
        int64_t groups = padded(m.ins) / GROUP;
        const uint8_t* w = block_of(m, block, groups * GROUP * LANES / 2);
        const bf16* scale = (const bf16*)m.scale + block * groups * LANES;
        const vint low_half = splat_int(0x0f0f0f0f);
        Prefetch ahead(w, groups * GROUP * LANES / 2, n, C, N);
        for (int64_t g = 0; g < groups; ++g, scale += LANES) {
            vint dots[C][PIECES];
            for (int c = 0; c < C; ++c)
                for (int p = 0; p < PIECES; ++p) dots[c][p] = splat_int(-ADDED * x.sums[(n + c) * (x.width / GROUP) + g]);
            for (int step = 0; step < 4; ++step, w += 64) {
                ahead.step();
                for (int p = 0; p < PIECES; ++p) {
                    vint two = load_words(w + p * 4 * W), low = levels(two & low_half), high = levels((two >> 4) & low_half);
                    for (int c = 0; c < C; ++c) {
                        const int8_t* q = x.q + (n + c) * x.width + g * GROUP + step * 8;
                        if constexpr (!SIZES || C == 1) dots[c][p] = dot4(dot4(dots[c][p], low, four_of(q)), high, four_of(q + 4));
                        else {
                            const int8_t* sizes = x.low + (q - x.q);
                            dots[c][p] = dot4(dots[c][p], low, four_of(q), four_of(sizes));
                            dots[c][p] = dot4(dots[c][p], high, four_of(q + 4), four_of(sizes + 4));
                        }
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
    // Of bfloat16 a row has two sums, of even and of odd inputs; beside those of 4 bits their levels take registers.
    constexpr int SUMS = W != 8 ? ROWS : format == Format::bfloat16 ? 2 : format == Format::int4 ? 3 : ROWS;
    auto some = [&](int64_t block, auto blocks) {
        by_rows<SUMS>(0, N, [&](int64_t n, auto rows) {
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

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
