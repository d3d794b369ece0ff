// AMX tiles in software, in place of the instructions: sanitizers do not see what a tile instruction loads and stores,
// and processors without AMX can run its tests. What each does: Intel SDM, volume 2, TILELOADD and on.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "simd/dispatch.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

struct EmulatedTile {
    int rows = 0, bytes = 0;  // bytes of a row
    alignas(64) uint8_t data[16][64];

    template <class T>
    T at(int row, int i) const {
        T value;
        std::memcpy(&value, data[row] + i * sizeof(T), sizeof value);
        return value;
    }
    float half(int row, int i) const {  // a bfloat16, none smaller than normal
        const uint32_t bits = uint32_t(at<uint16_t>(row, i)) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return (bits & 0x7f800000) ? value : 0;
    }
    template <class T>
    void add(int row, int i, T more) {
        more += at<T>(row, i);
        std::memcpy(data[row] + i * sizeof(T), &more, sizeof more);
    }
};

inline thread_local EmulatedTile emulated[8];

inline void emulated_release() {
    for (EmulatedTile& tile : emulated) tile.rows = tile.bytes = 0;
}

// What a processor would refuse ends the program here too.
inline EmulatedTile& emulated_tile(int i) {
    if (emulated[i].rows == 0) std::abort();
    return emulated[i];
}

inline void emulated_config(const void* from) {
    const uint8_t* config = (const uint8_t*)from;
    if (config[0] != 1 || config[1] != 0) std::abort();  // palette, row to start at
    for (int i = 0; i < 8; ++i) {
        uint16_t bytes;
        std::memcpy(&bytes, config + 16 + 2 * i, sizeof bytes);
        if (bytes > 64 || config[48 + i] > 16) std::abort();
        emulated[i].bytes = bytes, emulated[i].rows = config[48 + i];
        std::memset(emulated[i].data, 0, sizeof emulated[i].data);
    }
}

inline void emulated_zero(int i) { std::memset(emulated_tile(i).data, 0, sizeof emulated[i].data); }

inline void emulated_load(int i, const void* from, int64_t stride) {
    EmulatedTile& tile = emulated_tile(i);
    for (int row = 0; row < tile.rows; ++row) std::memcpy(tile.data[row], (const uint8_t*)from + row * stride, tile.bytes);
}

inline void emulated_store(int i, void* to, int64_t stride) {
    const EmulatedTile& tile = emulated_tile(i);
    for (int row = 0; row < tile.rows; ++row) std::memcpy((uint8_t*)to + row * stride, tile.data[row], tile.bytes);
}

// c += a b, where a row of b holds as many steps of depth for each column of c as fit in four bytes.
template <class Dot>
inline void emulated_product(int c, int a, int b, Dot dot) {
    EmulatedTile &to = emulated_tile(c), &left = emulated_tile(a), &right = emulated_tile(b);
    if (left.rows != to.rows || right.bytes != to.bytes || left.bytes != 4 * right.rows) std::abort();
    for (int row = 0; row < to.rows; ++row)
        for (int column = 0; column < to.bytes / 4; ++column) dot(to, left, right, row, column);
}

inline void emulated_signed_by_unsigned(int c, int a, int b) {
    emulated_product(c, a, b, [](EmulatedTile& to, const EmulatedTile& left, const EmulatedTile& right, int row, int column) {
        int32_t sum = 0;
        for (int i = 0; i < left.bytes; ++i) sum += left.at<int8_t>(row, i) * right.at<uint8_t>(i / 4, 4 * column + i % 4);
        to.add(row, column, sum);
    });
}

inline void emulated_halves(int c, int a, int b) {
    emulated_product(c, a, b, [](EmulatedTile& to, const EmulatedTile& left, const EmulatedTile& right, int row, int column) {
        float even = 0, odd = 0;
        for (int i = 0; i < left.bytes / 2; i += 2) {
            even += left.half(row, i) * right.half(i / 2, 2 * column);
            odd += left.half(row, i + 1) * right.half(i / 2, 2 * column + 1);
        }
        to.add(row, column, even + odd);
    });
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_release emulated_release
#define _tile_loadconfig emulated_config
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbsud emulated_signed_by_unsigned
#define _tile_dpbf16ps emulated_halves
