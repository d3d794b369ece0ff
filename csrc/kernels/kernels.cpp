// All kernels for the instruction set that the compiler flags of this object name.
#include "kernels/events.hpp"
#include "kernels/pointwise.hpp"
#include "kernels/scan.hpp"
#include "kernels/window.hpp"

namespace symboliclight {

namespace SYMBOLICLIGHT_ISA {
template <class T>
constexpr Kernels<T> table() {
    return {lif_forward<T>,   lif_backward<T>,   decay_forward<T>,  decay_backward<T>,
            spike_forward<T>, spike_backward<T>, window_forward<T>, window_backward<T>,
            event_product<T>, count_active<T>,   dropout<T>,        rope<T>,
            softmax_loss<T>,  conv_forward<T>,  conv_backward<T>,
            blend_backward<T>};
}
}  // namespace SYMBOLICLIGHT_ISA

#define SYMBOLICLIGHT_JOIN(a, b) a##b
#define SYMBOLICLIGHT_NAMED(prefix, name) SYMBOLICLIGHT_JOIN(prefix, name)
#define SYMBOLICLIGHT_STRING(name) #name
#define SYMBOLICLIGHT_QUOTED(name) SYMBOLICLIGHT_STRING(name)

extern const Isa SYMBOLICLIGHT_NAMED(isa_, SYMBOLICLIGHT_ISA) = {
    SYMBOLICLIGHT_QUOTED(SYMBOLICLIGHT_ISA), SYMBOLICLIGHT_ISA::table<float>(), SYMBOLICLIGHT_ISA::table<bf16>()};

}  // namespace symboliclight
