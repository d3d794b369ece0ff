// Tensors of Python as raw pointers, after their type, shape and place were checked.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "simd/dispatch.hpp"

namespace nb = nanobind;

namespace symboliclight {

// torch.float32 and so on, handed over by Python: nothing here imports torch.
template <class T>
PyObject* dtype_object = nullptr;

struct Sizes {
    int64_t of[4];
    int n;
    bool operator==(std::initializer_list<int64_t> other) const {
        return std::equal(of, of + n, other.begin(), other.end());
    }
};

inline nb::object call(nb::handle tensor, const char* method) { return tensor.attr(method)(); }

inline Sizes sizes(nb::handle tensor) {
    nb::tuple shape = nb::borrow<nb::tuple>(tensor.attr("shape"));
    if (shape.size() > 4) throw nb::value_error("at most four dimensions are expected");
    Sizes found{{}, int(shape.size())};
    for (int i = 0; i < found.n; ++i) found.of[i] = nb::cast<int64_t>(shape[i]);
    return found;
}

template <class T>
bool holds(nb::handle tensor) {
    return tensor.attr("dtype").ptr() == dtype_object<T>;
}

// The memory of a contiguous CPU tensor of exactly this element type and shape.
template <class T>
T* data(nb::handle tensor, std::initializer_list<int64_t> shape, const char* name) {
    auto refuse = [&](const char* why) { throw nb::value_error((std::string(name) + " " + why).c_str()); };
    if (!holds<T>(tensor)) refuse("has the wrong dtype");
    if (!(sizes(tensor) == shape)) refuse("has the wrong shape");
    if (!nb::cast<bool>(call(tensor, "is_contiguous"))) refuse("is not contiguous");
    if (!nb::cast<bool>(tensor.attr("is_cpu"))) refuse("is not on the CPU");
    auto address = nb::cast<uintptr_t>(call(tensor, "data_ptr"));
    if (address % alignof(T)) refuse("is not aligned to its elements");
    return reinterpret_cast<T*>(address);
}

// f(element) with an element of the tensor's type, float or bf16.
template <class F>
void by_dtype(nb::handle tensor, F f) {
    if (holds<float>(tensor)) return f(float{});
    if (holds<bf16>(tensor)) return f(bf16{});
    throw nb::type_error("expected a float32 or bfloat16 tensor");
}

}  // namespace symboliclight
