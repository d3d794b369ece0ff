// What a spike of each code says (ops/spike.py), for training and for the runtime.
#pragma once

#include <type_traits>

#include "simd/simd.hpp"
#include "simd/dispatch.hpp"

namespace symboliclight {
namespace SYMBOLICLIGHT_ISA {

// The value of a vector v at thresholds t. `top` is D of integer spikes.
inline vfloat round_even(vfloat x) { return (x + splat(12582912.0f)) - splat(12582912.0f); }  // for |x| < 2^22

template <SpikeCode code>
vfloat spike_value(vfloat v, vfloat t, vfloat top) {
    const vfloat one = splat(1), zero{};
    if constexpr (code == SpikeCode::binary) return v >= t ? one : zero;
    if constexpr (code == SpikeCode::ternary) return v >= t ? one : (v <= -t ? -one : zero);
    if constexpr (code == SpikeCode::graded) return v >= t ? v : zero;
    if constexpr (code == SpikeCode::integer) {
        const vfloat x = max(v / t, zero);
        return round_even(x < top ? x : top);
    }
    const vfloat over = max(v - t, zero);
    return code == SpikeCode::squared ? over * over : over;
}

// f(the code as a constant of the compiler).
template <class F>
void with_code(SpikeCode code, F f) {
    switch (code) {
        case SpikeCode::binary: return f(std::integral_constant<SpikeCode, SpikeCode::binary>{});
        case SpikeCode::ternary: return f(std::integral_constant<SpikeCode, SpikeCode::ternary>{});
        case SpikeCode::integer: return f(std::integral_constant<SpikeCode, SpikeCode::integer>{});
        case SpikeCode::graded: return f(std::integral_constant<SpikeCode, SpikeCode::graded>{});
        case SpikeCode::shifted: return f(std::integral_constant<SpikeCode, SpikeCode::shifted>{});
        case SpikeCode::squared: return f(std::integral_constant<SpikeCode, SpikeCode::squared>{});
    }
}

}  // namespace SYMBOLICLIGHT_ISA
}  // namespace symboliclight
