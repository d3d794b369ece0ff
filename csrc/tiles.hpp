// Products of packed matrices on AMX tiles: 16 rows by 16 outputs at a time, 64 bytes of each input row a step.
// Steps of a packed block (engine.hpp) follow each other as the rows of a weight tile.
#pragma once

#include <type_traits>

#include "engine.hpp"
#include "simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t TILE_ROWS = 16, TILE_BYTES = 1024;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// The tiles of this thread while in scope: below `weights` they hold `rows` rows, from there on 16.
class Tiles {
  public:
    explicit Tiles(int weights) : weights_(weights) {}
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;

    void rows(int64_t rows) {
        if (rows == rows_) return;
        rows_ = rows;
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) shapes.bytes[tile] = 64, shapes.rows[tile] = uint8_t(tile < weights_ ? rows : 16);
        _tile_loadconfig(&shapes);
    }

  private:
    const int weights_;
    int64_t rows_ = 0;
};

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

template <class T>
inline void store_sums(T* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

// sums (4 blocks, 16 rows, 16 outputs) of rows x, `width` bytes apart, signed int8 or bfloat16, and BLOCKS blocks, `gap`
// bytes apart.
template <class T, int BLOCKS>
inline void tile_rows(const uint8_t* w, int64_t gap, const char* x, int64_t width, int64_t steps, T* sums) {
    constexpr bool bytes = sizeof(T) == 4 && std::is_integral_v<T>;
    zero_sums();
    for (int64_t s = 0; s < steps; ++s, w += TILE_BYTES, x += 64) {
        for (int b = 0; b < BLOCKS; ++b)
            for (int64_t at = 0; at < TILE_BYTES; at += 64) __builtin_prefetch(w + b * gap + 8 * TILE_BYTES + at);
        _tile_loadd(4, x, width);
        _tile_loadd(5, w, 64);
        if constexpr (bytes) _tile_dpbsud(0, 4, 5);
        else _tile_dpbf16ps(0, 4, 5);
        if constexpr (BLOCKS > 1) {
            _tile_loadd(6, w + gap, 64);
            if constexpr (bytes) _tile_dpbsud(1, 4, 6);
            else _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (BLOCKS > 2) {
            _tile_loadd(7, w + 2 * gap, 64);
            if constexpr (bytes) _tile_dpbsud(2, 4, 7);
            else _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (BLOCKS > 3) {
            _tile_loadd(5, w + 3 * gap, 64);
            if constexpr (bytes) _tile_dpbsud(3, 4, 5);
            else _tile_dpbf16ps(3, 4, 5);
        }
    }
    store_sums(sums);
}

// sums (blocks, 3, 16 rows, 16 outputs) of rows in three bfloat16 parts (row stride 3 `width`) and up to 2 blocks.
inline void tile_parts(const uint8_t* w, int64_t gap, int64_t blocks, const bf16* parts, int64_t width, int64_t steps, float* sums) {
    const int64_t stride = 3 * width * sizeof(bf16);
    zero_sums();
    _tile_zero(4);
    _tile_zero(5);
    for (int64_t s = 0; s < steps; ++s, w += TILE_BYTES, parts += 32) {
        _tile_loadd(7, w, 64);
        _tile_loadd(6, parts, stride);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(6, parts + width, stride);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(6, parts + 2 * width, stride);
        _tile_dpbf16ps(2, 6, 7);
        if (blocks == 1) continue;
        _tile_loadd(7, w + gap, 64);
        _tile_dpbf16ps(5, 6, 7);
        _tile_loadd(6, parts + width, stride);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(6, parts, stride);
        _tile_dpbf16ps(3, 6, 7);
    }
    store_sums(sums);
    _tile_stored(4, sums + 1024, 64);
    _tile_stored(5, sums + 1280, 64);
}

// x = its three parts exactly, as long as none is too small for bfloat16.
inline void split(vfloat x, bf16* parts, int64_t width, int64_t i, int count) {
    for (int part = 0; part < 3; ++part) {
        store(parts + part * width + i, x, count);
        x = x - round_to<bf16>(x);
    }
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
