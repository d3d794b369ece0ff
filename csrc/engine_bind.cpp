// All of the runtime that knows Python: arrays in, their sizes checked, and on to the step of the chosen instruction set.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>

#include "engine.hpp"
#include "isa.hpp"
#include "room.hpp"

namespace nb = nanobind;

namespace symboliclight {

float kth_largest(float* values, int64_t n, int64_t k) {
    std::nth_element(values, values + k - 1, values + n, std::greater<float>());
    return values[k - 1];
}

namespace {

using Bytes = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Keys = Array<uint8_t>;  // bytes of float or bf16

std::vector<const EngineIsa*> supported() {
    std::vector<const EngineIsa*> found{&engine_portable};
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    if (avx2) found.push_back(&engine_avx2);
    if (avx2 && has_avxvnni()) found.push_back(&engine_avxvnni);
    if (avx512) found.push_back(&engine_avx512);
    if (vnni) found.push_back(&engine_vnni);
    if (vnni && has_tiles()) found.push_back(&engine_amx);
#endif
    return capped(found);
}

template <class T>
T* of_size(const Array<T>& array, int64_t size, const char* name) {
    if (int64_t(array.size()) != size) throw std::invalid_argument(std::string(name) + " has the wrong size");
    return array.data();
}

class Engine {
  public:
    Engine(nb::dict sizes, nb::dict switches, int threads) : pool_(std::min(std::max(threads, 1), 256)) {
        auto size = [&](const char* name) { return nb::cast<int64_t>(sizes[name]); };
        m_.D = size("d_model"), m_.H = size("n_heads"), m_.K = size("head_dim"), m_.F = size("d_ff"), m_.V = size("vocab_size");
        m_.W = size("window"), m_.A = size("n_anchors"), m_.L = size("n_layers"), m_.topk = size("topk"), m_.taps = size("conv");
        for (int64_t n : {m_.D, m_.H, m_.K, m_.F, m_.V, m_.L, m_.topk, m_.W + 1, m_.A + 1, m_.taps + 1})
            if (n < 1 || n > int64_t(1) << 31) throw std::invalid_argument("a size is out of range");
        if (m_.D != m_.H * m_.K || m_.topk > m_.D || m_.taps == 1) throw std::invalid_argument("sizes do not fit together");
        auto value = [&](const char* name) { return nb::cast<float>(switches[name]); };
        auto flag = [&](const char* name) { return nb::cast<bool>(switches[name]); };
        m_.v_clamp = value("v_clamp"), m_.exit_entropy = value("exit_entropy"), m_.prior_weight = value("prior_weight");
        m_.source = Source(nb::cast<int>(switches["source"])), m_.prior = Prior(nb::cast<int>(switches["prior"]));
        m_.gate = flag("gate"), m_.block_spikes = flag("block_spikes"), m_.ffn_spikes = flag("ffn_spikes");
        m_.decay = flag("decay"), m_.attention = flag("attention"), m_.short_keys = flag("short_keys");
        if (m_.short_keys && sight(m_) > SHORT_SIGHT) throw std::invalid_argument("the window is too wide for 8-bit keys");
        m_.norm = flag("norm"), m_.pre = flag("pre"), m_.spike_fed = flag("spike_fed");
        levels_.assign(m_.D, value("stream_threshold")), ffn_levels_.assign(up(m_.F, LANES), value("v_threshold"));
        layers_.resize(m_.L);
        for (Layer& p : layers_) p.mixer_level = p.level = levels_.data(), p.ffn_level = ffn_levels_.data();
        m_.layers = layers_.data();
        tcam_.resize(m_.L), up_.resize(m_.L), down_.resize(m_.L), exact_.resize(m_.L);
    }

    // Sites are named as in the checkpoint; the arrays are kept, not copied.
    void matrix(const std::string& site, int64_t layer, int format, bool by_input, int64_t outs, int64_t ins, Bytes data,
                std::optional<Bytes> scale) {
        Matrix m{Format(format), by_input, outs, ins, data.data(), scale ? scale->data() : nullptr};
        if (int64_t(data.nbytes()) != data_bytes(m) || int64_t(scale ? scale->nbytes() : 0) != scale_bytes(m))
            throw std::invalid_argument(site + " has the wrong size");
        const int64_t D = m_.D, P = D / 4;
        Layer& p = layers_.at(layer);
        struct { const char* name; Matrix* to; int64_t outs, ins; } places[] = {
            {"embedding", &m_.embedding, m_.V, D}, {"tcam", &p.tcam, D, D}, {"decay_gate", &p.decay_gate, m_.H, D},
            {"q", &p.q, D, D}, {"k", &p.k, D, D}, {"v", &p.v, D, D}, {"out", &p.out, D, D}, {"up", &p.up, m_.F, D},
            {"up.sketch", &p.sketch.rough, m_.F, D}, {"head.sketch", &m_.head_sketch.rough, m_.V, D}, {"prior_up.sketch", &m_.prior_sketch.rough, m_.V, P}, {"down", &p.down, D, m_.F},
            {"head", &m_.head, m_.V, D}, {"prior_down", &m_.prior_down, P, D}, {"prior_up", &m_.prior_up, m_.V, P},
            {"head.residual", &m_.residual.rows, int64_t(tokens_.size()), D}};
        for (auto& place : places)
            if (site == place.name) {
                if (outs != place.outs || ins != place.ins) throw std::invalid_argument(site + " has the wrong shape");
                *place.to = m;
                matrices_.push_back(data);
                if (scale) matrices_.push_back(*scale);
                return;
            }
        throw std::invalid_argument("unknown site " + site);
    }

    // The rows of the head that have a residual, before the matrix of it.
    void tokens(Array<const int64_t> ids) {
        tokens_.assign(ids.data(), ids.data() + ids.size()), first_.clear();
        const auto begin = tokens_.begin(), end = tokens_.end();
        if (begin != end && (*begin < 0 || end[-1] >= m_.V || std::adjacent_find(begin, end, std::greater_equal<>()) != end))
            throw std::invalid_argument("the tokens do not rise within the vocabulary");
        for (int64_t o = 0; o < m_.V + LANES; o += LANES) first_.push_back(std::lower_bound(begin, end, o) - begin);
        m_.residual = {{}, tokens_.data(), first_.data()};
    }

    void vector(const std::string& site, int64_t layer, Array<const float> data) {
        const int64_t D = m_.D;
        Layer& p = layers_.at(layer);
        struct { const char* name; const float** to; int64_t size; } places[] = {
            {"encoder_norm.weight", &m_.encoder_norm.weight, D}, {"encoder_norm.bias", &m_.encoder_norm.bias, D},
            {"mixer_norm.weight", &p.mixer_norm.weight, D}, {"mixer_norm.bias", &p.mixer_norm.bias, D},
            {"ffn_norm.weight", &p.ffn_norm.weight, D}, {"ffn_norm.bias", &p.ffn_norm.bias, D},
            {"leak", &m_.leak, D}, {"threshold", &m_.threshold, D}, {"decay", &p.decay, D}, {"bias", &m_.bias, m_.V},
            {"conv_u", &p.conv_u, m_.taps * D}, {"conv_k", &p.conv_k, m_.taps * D}, {"conv_v", &p.conv_v, m_.taps * D},
            {"mixer_level", &p.mixer_level, D}, {"ffn_level", &p.ffn_level, up(m_.F, LANES)}, {"level", &p.level, D},
            {"inverse", &m_.inverse, m_.K / 2}, {"up.sketch.lost", &p.sketch.lost, up(m_.F, LANES)},
            {"up.sketch.kept", &p.sketch.kept, up(m_.F, LANES)}, {"head.sketch.lost", &m_.head_sketch.lost, up(m_.V, LANES)},
            {"head.sketch.kept", &m_.head_sketch.kept, up(m_.V, LANES)},
            {"prior_up.sketch.lost", &m_.prior_sketch.lost, up(m_.V, LANES)},
            {"prior_up.sketch.kept", &m_.prior_sketch.kept, up(m_.V, LANES)}};
        if (site == "fuse") { p.fuse = *of_size(data, 1, "fuse"); return; }
        for (auto& place : places)
            if (site == place.name) {
                *place.to = of_size(data, place.size, place.name);
                vectors_.push_back(data);
                return;
            }
        throw std::invalid_argument("unknown site " + site);
    }

    void* of_keys(const Keys& array, int64_t heads, int64_t tokens, const char* name) const {
        const int64_t head = m_.short_keys ? blocks(tokens) * block_bytes(m_) : tokens * m_.K * int64_t(sizeof(float));
        if (int64_t(array.size()) != heads * head) throw std::invalid_argument(std::string(name) + " has the wrong size");
        return array.data();
    }

    // Reads tokens (B, T), advances the state arrays in place, fills logits (B, V), (B, T, V) or none, and notes spikes
    // (engine.hpp, Taps) where arrays are given.
    void forward(Array<const int64_t> tokens, Array<int64_t> position, Array<float> v, Array<float> h, Keys k,
                 Keys value, Array<uint8_t> gate, Keys anchor_k, Keys anchor_v,
                 Array<uint8_t> anchor_gate, Array<float> tails, std::optional<Array<float>> logits, bool all,
                 int64_t top, std::optional<Array<uint8_t>> encoder, std::optional<Array<uint8_t>> mixer,
                 std::optional<Array<uint8_t>> ffn, std::optional<Array<uint8_t>> blocks) {
        require_complete();
        if (tokens.ndim() != 2) throw std::invalid_argument("tokens must be (B, T)");
        const int64_t B = tokens.shape(0), T = tokens.shape(1), LB = m_.L * B, D = m_.decay ? m_.D : 0, X = m_.attention ? 1 : 0, XH = X * LB * m_.H;
        for (int64_t i = 0; i < B * T; ++i)
            if (tokens.data()[i] < 0 || tokens.data()[i] >= m_.V) throw std::invalid_argument("a token is outside the vocabulary");
        State state{of_size(position, B, "position"), of_size(v, B * m_.D, "v"), of_size(h, LB * D, "h"),
                    of_keys(k, XH, m_.W, "k"), of_keys(value, XH, m_.W, "value"),
                    of_size(gate, X * LB * m_.W, "gate"), of_keys(anchor_k, XH, m_.A, "anchor_k"),
                    of_keys(anchor_v, XH, m_.A, "anchor_v"), of_size(anchor_gate, X * LB * m_.A, "anchor_gate"),
                    of_size(tails, m_.taps ? LB * written(m_) * (m_.taps - 1) * m_.D : 0, "tails")};
        Call call{B, T, tokens.data(), !logits ? Logits::none : all ? Logits::all : Logits::last, nullptr, {}, all ? 0 : std::max<int64_t>(top, 0)};
        if (logits) call.logits = of_size(*logits, (all ? B * T : B) * m_.V, "logits");
        if (encoder) call.taps.encoder = of_size(*encoder, B * T * m_.D, "encoder spikes");
        if (mixer) call.taps.mixer = of_size(*mixer, LB * T * m_.D, "mixer spikes");
        if (ffn) call.taps.ffn = of_size(*ffn, LB * T * m_.F, "ffn spikes");
        if (blocks) call.taps.blocks = of_size(*blocks, LB * T * m_.D, "block spikes");
        nb::gil_scoped_release free;
        std::lock_guard one_call(mutex_);
        Stats stats{tcam_.data(), up_.data(), down_.data(), exact_.data(), chosen_, 0, 0};
        isa_->forward(m_, state, call, room_.lay_out(m_, B, T, pool_.size()), stats, pool_);
        layers_run_ += stats.layers, sketched_ += stats.sketched;
        for (int64_t b = 0; b < B; ++b) {
            const int64_t first = state.position[b], last = state.position[b] += T;
            for (int64_t j = std::max<int64_t>(first, 0); j < last; ++j) {
                ++tokens_read_;
                keys_read_ += std::min(j, m_.W) + 1 + std::clamp<int64_t>(j - m_.W, 0, m_.A);
            }
        }
    }

    // All threads wait for each other so many times: what a phase costs beside its work.
    void meet(int64_t times) {
        nb::gil_scoped_release free;
        std::lock_guard one_call(mutex_);
        struct Job { Pool& pool; int64_t times; } job{pool_, times};
        pool_.run([](void* argument, int) {
            const Job& j = *(Job*)argument;
            for (int64_t i = 0; i < j.times; ++i) j.pool.sync();
        }, &job);
    }

    void set_isa(const std::string& name) {
        for (const EngineIsa* one : supported())
            if (name == one->name) {
                isa_ = one;
                return;
            }
        throw std::invalid_argument("this machine has no " + name);
    }

    std::string isa() const { return isa_->name; }
    int threads() const { return pool_.size(); }
    int64_t tokens_read() const { return tokens_read_; }
    int64_t keys_read() const { return keys_read_; }
    nb::tuple counts() const { return nb::make_tuple(layers_run_, tcam_, down_, sketched_, exact_, chosen_[0], chosen_[1], up_); }

  private:
    static bool sound(const Sketch& sketch, const Matrix& exact) {
        return !sketch.rough.data || (sketch.lost && sketch.kept && sketch.rough.format == Format::int8 && !sketch.rough.by_input &&
                                      (exact.format == Format::float32 || exact.format == Format::bfloat16_rows) && !exact.by_input);
    }

    bool sound(const Norm& norm) const { return norm.bias && !norm.weight == !m_.norm; }

    // Is b there, and does what is prepared for a serve b?
    static bool alike(const Matrix& b, const Matrix& a) {
        auto integer = [](const Matrix& x) { return x.format == Format::int8 || x.format == Format::int4; };
        return b.data && a.by_input == b.by_input && (a.by_input || a.format == b.format || (integer(a) && integer(b)));
    }

    void require_complete() const {
        bool good = m_.embedding.data && m_.head.data && m_.inverse && m_.leak && m_.threshold && m_.encoder_norm.weight &&
                    m_.encoder_norm.bias && (m_.prior != Prior::fixed || m_.bias) &&
                    (m_.prior != Prior::dynamic || (m_.prior_down.data && m_.prior_up.data));
        good = good && sound(m_.head_sketch, m_.head) && sound(m_.prior_sketch, m_.prior_up) &&
               (!m_.residual.rows.data || (alike(m_.residual.rows, m_.head) && !m_.head_sketch.rough.data)) &&
               (m_.prior != Prior::dynamic || !m_.head_sketch.rough.data == !m_.prior_sketch.rough.data);
        for (const Layer& p : layers_) {
            good = good && p.out.data && p.up.data && p.down.data && sound(p.sketch, p.up);
            good = good && sound(p.mixer_norm) && sound(p.ffn_norm);
            if (m_.taps) good = good && (!m_.decay || p.conv_u) && (!m_.attention || (p.conv_k && p.conv_v));
            if (m_.decay) good = good && p.decay && p.tcam.data && (!p.decay_gate.data || alike(p.decay_gate, p.tcam));
            if (m_.attention) good = good && p.q.data && alike(p.k, p.q) && alike(p.v, p.q);
            if (m_.attention && m_.decay && m_.spike_fed) good = good && alike(p.q, p.tcam);
        }
        if (!good) throw std::invalid_argument("the model lacks a weight");
    }

    Model m_{};
    std::vector<Layer> layers_;
    std::vector<Bytes> matrices_;  // these keep the arrays alive
    std::vector<Array<const float>> vectors_;
    std::vector<float> levels_, ffn_levels_;    // thresholds where none is learned
    std::vector<int64_t> tokens_, first_, tcam_, up_, down_, exact_;
    int64_t tokens_read_ = 0, keys_read_ = 0, layers_run_ = 0, sketched_ = 0, chosen_[2] = {};
    const EngineIsa* isa_ = supported().back();
    Pool pool_;
    std::mutex mutex_;
    Room room_;
};

}  // namespace
}  // namespace symboliclight

NB_MODULE(_engine, m) {
    using namespace symboliclight;
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const EngineIsa* one : supported()) names.emplace_back(one->name);
        return names;
    }, "Instruction sets this machine can run, the fastest last.");
    nb::class_<Engine>(m, "Engine")
        .def(nb::init<nb::dict, nb::dict, int>())
        .def("matrix", &Engine::matrix, nb::arg("site"), nb::arg("layer"), nb::arg("format"), nb::arg("by_input"), nb::arg("outs"),
             nb::arg("ins"), nb::arg("data"), nb::arg("scale").none())
        .def("vector", &Engine::vector)
        .def("tokens", &Engine::tokens)
        .def("forward", &Engine::forward, nb::arg("tokens"), nb::arg("position"), nb::arg("v"), nb::arg("h"), nb::arg("k"),
             nb::arg("value"), nb::arg("gate"), nb::arg("anchor_k"), nb::arg("anchor_v"), nb::arg("anchor_gate"), nb::arg("tails"),
             nb::arg("logits").none(), nb::arg("all"), nb::arg("top") = 0, nb::arg("encoder").none() = nb::none(), nb::arg("mixer").none() = nb::none(),
             nb::arg("ffn").none() = nb::none(), nb::arg("blocks").none() = nb::none())
        .def("meet", &Engine::meet, "Let all threads wait for each other so many times.")
        .def("set_isa", &Engine::set_isa)
        .def("counts", &Engine::counts, "So far: tokens times layers run, active inputs of W_tcam and W_down by layer, tokens times layers sketched, "
             "outputs of W_up computed in full by layer, heads sketched, logits computed in full for them, active inputs of W_up.")
        .def_prop_ro("isa", &Engine::isa)
        .def_prop_ro("tokens_read", &Engine::tokens_read)
        .def_prop_ro("keys_read", &Engine::keys_read)
        .def_prop_ro("threads", &Engine::threads);
}
