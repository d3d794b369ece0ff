// All of the runtime that knows Python: its arrays are handed on to runtime.hpp as spans, and kept alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "engine/runtime.hpp"

namespace nb = nanobind;

namespace symboliclight {
namespace {

using Bytes = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Spikes = std::optional<Array<uint8_t>>;

template <class T>
Span<T> span(const Array<T>& array) { return {array.data(), int64_t(array.size())}; }

template <class T>
Span<T> span(const std::optional<Array<T>>& array) { return array ? span(*array) : Span<T>{}; }

struct Engine : Runtime {
    using Runtime::Runtime;

    void matrix(const std::string& site, int64_t layer, int format, bool by_input, int64_t outs, int64_t ins, Bytes data,
                std::optional<Bytes> scale) {
        const Matrix m{Format(format), by_input, outs, ins, data.data(), scale ? scale->data() : nullptr};
        Runtime::matrix(site, layer, m, int64_t(data.nbytes()), int64_t(scale ? scale->nbytes() : 0));
        matrices_.push_back(data);
        if (scale) matrices_.push_back(*scale);
    }

    void vector(const std::string& site, int64_t layer, Array<const float> data) {
        Runtime::vector(site, layer, span(data));
        vectors_.push_back(data);
    }

    void tokens(Array<const int64_t> ids) { Runtime::tokens(span(ids)); }

    void forward(Array<const int64_t> tokens, Array<int64_t> position, Array<float> v, Array<float> h, Array<uint8_t> k,
                 Array<uint8_t> value, Array<uint8_t> gate, Array<uint8_t> anchor_k, Array<uint8_t> anchor_v,
                 Array<uint8_t> anchor_gate, Array<float> tails, std::optional<Array<float>> logits, bool all,
                 int64_t top, Spikes encoder, Spikes mixer, Spikes ffn, Spikes blocks, std::optional<Array<float>> stream) {
        if (tokens.ndim() != 2) throw std::invalid_argument("tokens must be (B, T)");
        const Buffers state{span(position), span(v), span(h), span(k), span(value), span(gate), span(anchor_k), span(anchor_v),
                            span(anchor_gate), span(tails)};
        const Wanted wanted{span(logits), all, top, span(encoder), span(mixer), span(ffn), span(blocks), span(stream)};
        nb::gil_scoped_release free;
        Runtime::forward(int64_t(tokens.shape(0)), int64_t(tokens.shape(1)), tokens.data(), state, wanted);
    }

  private:
    std::vector<Bytes> matrices_;  // these keep the arrays alive
    std::vector<Array<const float>> vectors_;
};

}  // namespace
}  // namespace symboliclight

NB_MODULE(_engine, m) {
    using namespace symboliclight;
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const EngineIsa* one : supported_engines()) names.emplace_back(one->name);
        return names;
    }, "Instruction sets this machine can run, the fastest last.");
    nb::class_<Engine>(m, "Engine")
        .def(nb::init<const std::map<std::string, int64_t>&, const std::map<std::string, float>&, int>())
        .def("matrix", &Engine::matrix, nb::arg("site"), nb::arg("layer"), nb::arg("format"), nb::arg("by_input"), nb::arg("outs"),
             nb::arg("ins"), nb::arg("data"), nb::arg("scale").none())
        .def("vector", &Engine::vector)
        .def("tokens", &Engine::tokens)
        .def("forward", &Engine::forward, nb::arg("tokens"), nb::arg("position"), nb::arg("v"), nb::arg("h"), nb::arg("k"),
             nb::arg("value"), nb::arg("gate"), nb::arg("anchor_k"), nb::arg("anchor_v"), nb::arg("anchor_gate"), nb::arg("tails"),
             nb::arg("logits").none(), nb::arg("all"), nb::arg("top") = 0, nb::arg("encoder").none() = nb::none(), nb::arg("mixer").none() = nb::none(),
             nb::arg("ffn").none() = nb::none(), nb::arg("blocks").none() = nb::none(), nb::arg("stream").none() = nb::none())
        .def("meet", [](Engine& engine, int64_t times) {
            nb::gil_scoped_release free;
            engine.meet(times);
        }, "Let all threads wait for each other so many times.")
        .def("set_isa", [](Engine& engine, const std::string& name) { engine.set_isa(name); })
        .def("counts", [](const Engine& engine) { return engine.counts(); },
             "So far: tokens times layers run, active inputs of W_tcam and W_down by layer, tokens times layers sketched, "
             "outputs of W_up computed in full by layer, heads sketched, logits computed in full for them, active inputs of W_up.")
        .def_prop_ro("isa", [](const Engine& engine) { return engine.isa(); })
        .def_prop_ro("tokens_read", [](const Engine& engine) { return engine.tokens_read(); })
        .def_prop_ro("keys_read", [](const Engine& engine) { return engine.keys_read(); })
        .def_prop_ro("threads", [](const Engine& engine) { return engine.threads(); });
}
