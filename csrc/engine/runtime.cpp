#include "engine/runtime.hpp"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "simd/isa.hpp"

namespace symboliclight {
namespace {

template <class T>
T* of_size(Span<T> array, int64_t size, const char* name) {
    if (array.size != size) throw std::invalid_argument(std::string(name) + " has the wrong size");
    return array.data;
}

bool sound(const Sketch& sketch, const Matrix& exact) {
    return !sketch.rough.data || (sketch.lost && sketch.kept && sketch.rough.format == Format::int8 && !sketch.rough.by_input &&
                                  (exact.format == Format::float32 || exact.format == Format::bfloat16_rows) && !exact.by_input);
}

// Is b there, and does what is prepared for a serve b?
bool alike(const Matrix& b, const Matrix& a) {
    auto integer = [](const Matrix& x) { return x.format == Format::int8 || x.format == Format::int4; };
    return b.data && a.by_input == b.by_input && (a.by_input || a.format == b.format || (integer(a) && integer(b)));
}

}  // namespace

float kth_largest(float* values, int64_t n, int64_t k) {
    std::nth_element(values, values + k - 1, values + n, std::greater<float>());
    return values[k - 1];
}

std::vector<const EngineIsa*> supported_engines() {
    std::vector<const EngineIsa*> found{&engine_portable};
#if defined(SYMBOLICLIGHT_PORTABLE)  // built with this one alone
#elif defined(__x86_64__)
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
#elif defined(__aarch64__)
    if (has_dotprod()) found.push_back(&engine_dotprod);
    if (has_i8mm()) found.push_back(&engine_i8mm);
#endif
    return capped(found);
}

Runtime::Runtime(const std::map<std::string, int64_t>& sizes, const std::map<std::string, float>& switches, int threads)
    : pool_(std::min(std::max(threads, 1), 256)) {
    auto size = [&](const char* name) { return sizes.at(name); };
    m_.D = size("d_model"), m_.H = size("n_heads"), m_.K = size("head_dim"), m_.F = size("d_ff"), m_.V = size("vocab_size");
    m_.W = size("window"), m_.A = size("n_anchors"), m_.L = size("n_layers"), m_.topk = size("topk"), m_.taps = size("conv");
    for (int64_t n : {m_.D, m_.H, m_.K, m_.F, m_.V, m_.L, m_.topk, m_.W + 1, m_.A + 1, m_.taps + 1})
        if (n < 1 || n > int64_t(1) << 31) throw std::invalid_argument("a size is out of range");
    if (m_.D != m_.H * m_.K || m_.topk > m_.D || m_.taps == 1) throw std::invalid_argument("sizes do not fit together");
    auto value = [&](const char* name) { return switches.at(name); };
    auto flag = [&](const char* name) { return value(name) != 0; };
    m_.v_clamp = value("v_clamp"), m_.exit_entropy = value("exit_entropy"), m_.prior_weight = value("prior_weight");
    m_.source = Source(int(value("source"))), m_.prior = Prior(int(value("prior")));
    m_.gate = flag("gate"), m_.block_spikes = flag("block_spikes"), m_.ffn_spikes = flag("ffn_spikes");
    m_.decay = flag("decay"), m_.attention = flag("attention"), m_.int8_keys = flag("int8_keys");
    if (m_.int8_keys && visible(m_) > MAX_VISIBLE_INT8) throw std::invalid_argument("the window is too wide for 8-bit keys");
    m_.norm = flag("norm"), m_.pre = flag("pre"), m_.spike_fed = flag("spike_fed");
    auto code = [&](const char* name) {
        if (!(value(name) >= 0 && value(name) <= float(SpikeCode::squared))) throw std::invalid_argument("no such code of a spike");
        return SpikeCode(int(value(name)));
    };
    m_.encoder_code = code("encoder_code"), m_.stream_code = code("stream_code"), m_.ffn_code = code("ffn_code");
    m_.levels = value("spike_levels");
    levels_.assign(m_.D, value("stream_threshold")), ffn_levels_.assign(up(m_.F, LANES), value("ffn_threshold"));
    layers_.resize(m_.L);
    for (Layer& p : layers_) p.mixer_level = p.level = levels_.data(), p.ffn_level = ffn_levels_.data();
    m_.layers = layers_.data();
    tcam_.resize(m_.L), up_.resize(m_.L), down_.resize(m_.L), exact_.resize(m_.L);
}

void Runtime::matrix(const std::string& site, int64_t layer, const Matrix& m, int64_t bytes, int64_t bytes_of_scale) {
    if (bytes != data_bytes(m) || bytes_of_scale != scale_bytes(m)) throw std::invalid_argument(site + " has the wrong size");
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
            if (m.outs != place.outs || m.ins != place.ins) throw std::invalid_argument(site + " has the wrong shape");
            *place.to = m;
            const SpikeCode read = site == "down" ? m_.ffn_code : layer || site == "up" ? m_.stream_code : m_.encoder_code;
            place.to->valued = m.by_input && read != SpikeCode::binary;
            return;
        }
    throw std::invalid_argument("unknown site " + site);
}

void Runtime::tokens(Span<const int64_t> ids) {
    tokens_.assign(ids.data, ids.data + ids.size), first_.clear();
    const auto begin = tokens_.begin(), end = tokens_.end();
    if (begin != end && (*begin < 0 || end[-1] >= m_.V || std::adjacent_find(begin, end, std::greater_equal<>()) != end))
        throw std::invalid_argument("the tokens do not rise within the vocabulary");
    for (int64_t o = 0; o < m_.V + LANES; o += LANES) first_.push_back(std::lower_bound(begin, end, o) - begin);
    m_.residual = {{}, tokens_.data(), first_.data()};
}

void Runtime::vector(const std::string& site, int64_t layer, Span<const float> data) {
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
            return;
        }
    throw std::invalid_argument("unknown site " + site);
}

void* Runtime::keys(Span<uint8_t> array, int64_t heads, int64_t tokens, const char* name) const {
    const int64_t head = m_.int8_keys ? blocks(tokens) * block_bytes(m_) : tokens * m_.K * int64_t(sizeof(float));
    return of_size(array, heads * head, name);
}

State Runtime::checked(const Buffers& s, int64_t B) const {
    const int64_t LB = m_.L * B, D = m_.decay ? m_.D : 0, X = m_.attention ? 1 : 0, XH = X * LB * m_.H;
    return {of_size(s.position, B, "position"), of_size(s.v, B * m_.D, "v"), of_size(s.h, LB * D, "h"),
            keys(s.k, XH, m_.W, "k"), keys(s.value, XH, m_.W, "value"),
            of_size(s.gate, X * LB * m_.W, "gate"), keys(s.anchor_k, XH, m_.A, "anchor_k"),
            keys(s.anchor_v, XH, m_.A, "anchor_v"), of_size(s.anchor_gate, X * LB * m_.A, "anchor_gate"),
            of_size(s.tails, m_.taps ? LB * written(m_) * (m_.taps - 1) * m_.D : 0, "tails")};
}

Call Runtime::checked(const Wanted& w, int64_t B, int64_t T, const int64_t* tokens) const {
    for (int64_t i = 0; i < B * T; ++i)
        if (tokens[i] < 0 || tokens[i] >= m_.V) throw std::invalid_argument("a token is outside the vocabulary");
    const int64_t LB = m_.L * B;
    Call call{B, T, tokens, !w.logits.data ? Logits::none : w.all ? Logits::all : Logits::last, nullptr, {}, w.all ? 0 : std::max<int64_t>(w.top, 0)};
    if (w.logits.data) call.logits = of_size(w.logits, (w.all ? B * T : B) * m_.V, "logits");
    if (w.encoder.data) call.taps.encoder = of_size(w.encoder, B * T * m_.D, "encoder spikes");
    if (w.mixer.data) call.taps.mixer = of_size(w.mixer, LB * T * m_.D, "mixer spikes");
    if (w.ffn.data) call.taps.ffn = of_size(w.ffn, LB * T * m_.F, "ffn spikes");
    if (w.blocks.data) call.taps.blocks = of_size(w.blocks, LB * T * m_.D, "block spikes");
    if (w.stream.data) call.taps.stream = of_size(w.stream, B * T * m_.D, "stream");
    return call;
}

void Runtime::forward(int64_t B, int64_t T, const int64_t* tokens, const Buffers& buffers, const Wanted& wanted) {
    require_complete();
    const State state = checked(buffers, B);
    const Call call = checked(wanted, B, T, tokens);
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

void Runtime::meet(int64_t times) {
    std::lock_guard one_call(mutex_);
    struct Job { Pool& pool; int64_t times; } job{pool_, times};
    pool_.run([](void* argument, int) {
        const Job& j = *(Job*)argument;
        for (int64_t i = 0; i < j.times; ++i) j.pool.sync();
    }, &job);
}

void Runtime::set_isa(const std::string& name) {
    for (const EngineIsa* one : supported_engines())
        if (name == one->name) {
            isa_ = one;
            return;
        }
    throw std::invalid_argument("this machine has no " + name);
}

void Runtime::require_complete() const {
    bool good = m_.embedding.data && m_.head.data && m_.inverse && m_.leak && m_.threshold && m_.encoder_norm.weight &&
                m_.encoder_norm.bias && (m_.prior != Prior::fixed || m_.bias) &&
                (m_.prior != Prior::dynamic || (m_.prior_down.data && m_.prior_up.data));
    good = good && symboliclight::sound(m_.head_sketch, m_.head) && symboliclight::sound(m_.prior_sketch, m_.prior_up) &&
           (!m_.residual.rows.data || (alike(m_.residual.rows, m_.head) && !m_.head_sketch.rough.data)) &&
           (m_.prior != Prior::dynamic || !m_.head_sketch.rough.data == !m_.prior_sketch.rough.data);
    for (const Layer& p : layers_) {
        good = good && p.out.data && p.up.data && p.down.data && symboliclight::sound(p.sketch, p.up);
        good = good && sound(p.mixer_norm) && sound(p.ffn_norm);
        if (m_.taps) good = good && (!m_.decay || p.conv_u) && (!m_.attention || (p.conv_k && p.conv_v));
        if (m_.decay) good = good && p.decay && p.tcam.data && (!p.decay_gate.data || alike(p.decay_gate, p.tcam));
        if (m_.attention) good = good && p.q.data && alike(p.k, p.q) && alike(p.v, p.q);
        if (m_.attention && m_.decay && m_.spike_fed) good = good && alike(p.q, p.tcam);
    }
    if (!good) throw std::invalid_argument("the model lacks a weight");
}

}  // namespace symboliclight
