// Products of packed matrices on AMX tiles: 16 rows by 16 outputs at a time, 64 bytes of each input row a step.
// Steps of a packed block (engine.hpp) follow each other as the rows of a weight tile.
#pragma once

#include <type_traits>

#include "engine/engine.hpp"
#include "engine/prefetch.hpp"
#include "simd/simd.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

constexpr int64_t TILE_ROWS = 16, TILE_BYTES = 1024;

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
        shapes.load();
    }

  private:
    const int weights_;
    int64_t rows_ = 0;
};

// sums (2, 16 rows, 16 outputs) of rows x, `width` bytes apart, and a block: of signed int8 those of even and of odd steps, so that
// one product need not wait for the other; of bfloat16 all in the first, in order.
template <class T>
inline void tile_rows(const uint8_t* w, const char* x, int64_t width, int64_t steps, Prefetch ahead, T* sums) {
    constexpr bool bytes = std::is_integral_v<T>;
    tile_barrier();
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t s = 0; s < steps; ++s, w += TILE_BYTES, x += 64) {
        ahead.step();
        _tile_loadd(4, x, width);
        _tile_loadd(5, w, 64);
        if constexpr (!bytes) _tile_dpbf16ps(0, 4, 5);
        else if (s % 2) _tile_dpbsud(1, 4, 5);
        else _tile_dpbsud(0, 4, 5);
    }
    _tile_stored(0, sums, 64);
    if (bytes) _tile_stored(1, sums + 256, 64);
}

// sums (4 blocks, 2, 16 rows, 16 outputs), of the 2 the first, of rows x of signed int8, `width` bytes apart, and 4 blocks, `size`
// bytes each.
inline void tile_blocks(const uint8_t* w, int64_t size, const int8_t* x, int64_t width, int64_t steps, Prefetch ahead, int32_t* sums) {
    tile_barrier();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s, w += TILE_BYTES, x += 64) {
        ahead.step();
        _tile_loadd(4, x, width);
        _tile_loadd(5, w, 64);
        _tile_dpbsud(0, 4, 5);
        _tile_loadd(6, w + size, 64);
        _tile_dpbsud(1, 4, 6);
        _tile_loadd(7, w + 2 * size, 64);
        _tile_dpbsud(2, 4, 7);
        _tile_loadd(5, w + 3 * size, 64);
        _tile_dpbsud(3, 4, 5);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 512, 64);
    _tile_stored(2, sums + 1024, 64);
    _tile_stored(3, sums + 1536, 64);
}

// sums (3, 16 rows, 16 outputs) of rows in three bfloat16 parts (row stride 3 `width`) and a block.
inline void tile_parts(const uint8_t* w, const bf16* parts, int64_t width, int64_t steps, Prefetch ahead, float* sums) {
    const int64_t stride = 3 * width * sizeof(bf16);
    tile_barrier();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t s = 0; s < steps; ++s, w += TILE_BYTES, parts += 32) {
        ahead.step();
        _tile_loadd(7, w, 64);
        _tile_loadd(4, parts, stride);
        _tile_dpbf16ps(0, 4, 7);
        _tile_loadd(5, parts + width, stride);
        _tile_dpbf16ps(1, 5, 7);
        _tile_loadd(6, parts + 2 * width, stride);
        _tile_dpbf16ps(2, 6, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
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
