// The runtime without Python, held against what Python wrote down (cases.py): golden spikes and logits, the bits of the portable
// instruction set, whole = chunks = single tokens, threads, and states that go on elsewhere. Every instruction set of this machine.
// Usage: runtime_test portable[,..] CASE...   the first argument names all sets that the machine must have. Exit 1 on a mismatch.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>

#include "engine/runtime.hpp"

using namespace symboliclight;

namespace {

using Bytes = std::vector<char>;
using Arrays = std::map<std::string, Bytes>;

const std::vector<std::string> STATE{"position", "v", "h", "k", "value", "gate", "anchor_k", "anchor_v", "anchor_gate", "tails"};
const std::vector<std::string> SPIKES{"encoder", "mixer", "ffn", "blocks"};

std::string where;  // case, instruction set and route, for errors

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "runtime_test: %s: %s\n", where.c_str(), what.c_str());
    std::exit(1);
}

template <class T>
Span<T> span(Bytes& bytes) { return {(T*)bytes.data(), int64_t(bytes.size() / sizeof(T))}; }

template <class T>
const T* at(const Bytes& bytes) { return (const T*)bytes.data(); }

// A file of records: a line with a name, one with a number of bytes, and these.
std::vector<std::pair<std::string, Bytes>> records(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<std::pair<std::string, Bytes>> found;
    std::string name, size;
    while (std::getline(file, name) && std::getline(file, size)) {
        found.emplace_back(name, Bytes(std::stoul(size)));
        if (!file.read(found.back().second.data(), found.back().second.size())) fail("ends too soon");
    }
    if (found.empty()) fail("cannot be read");
    return found;
}

template <class T>
std::map<std::string, T> numbers(const Bytes& text) {
    std::istringstream lines(std::string(text.begin(), text.end()));
    std::map<std::string, T> found;
    std::string name;
    for (T value; lines >> name >> value;) found[name] = value;
    return found;
}

struct Case {
    std::vector<std::pair<std::string, Bytes>> all;
    Arrays named;  // what is no weight
    std::map<std::string, int64_t> sizes;
    std::map<std::string, float> switches;
    int64_t B = 0, T = 0;

    explicit Case(const std::string& path) : all(records(path)) {
        for (auto& [name, bytes] : all)
            if (name.compare(0, 7, "tokens ") == 0) std::istringstream(name.substr(7)) >> B >> T, named["tokens"] = bytes;
            else if (name.compare(0, 7, "matrix ") && name.compare(0, 7, "vector ")) named[name] = bytes;
        sizes = numbers<int64_t>(get("sizes")), switches = numbers<float>(get("switches"));
    }

    const Bytes& get(const std::string& name) const {
        const auto found = named.find(name);
        if (found == named.end()) fail("lacks " + name);
        return found->second;
    }

    int64_t size(const char* name) const { return sizes.at(name); }
    bool gelu() const { return Prior(switches.at("prior")) == Prior::dynamic; }

    void fill(Runtime& runtime) const {
        if (named.count("ids")) runtime.tokens({at<int64_t>(get("ids")), int64_t(get("ids").size() / 8)});
        for (size_t i = 0; i < all.size(); ++i) {
            const Bytes& bytes = all[i].second;
            std::istringstream words(all[i].first);
            std::string kind, site;
            int64_t layer;
            words >> kind >> site >> layer;
            if (kind == "vector") runtime.vector(site, layer, {at<float>(bytes), int64_t(bytes.size() / sizeof(float))});
            if (kind != "matrix") continue;
            const Bytes& scale = all.at(i + 1).second;
            int format;
            Matrix m;
            words >> format >> m.by_input >> m.outs >> m.ins;
            m.format = Format(format), m.data = bytes.data(), m.scale = scale.empty() ? nullptr : scale.data();
            runtime.matrix(site, layer, m, bytes.size(), scale.size());
        }
    }

    Arrays state(const std::string& when) const {
        Arrays found;
        for (const std::string& name : STATE) found[name] = get(when + " " + name);
        return found;
    }
};

// What a call leaves, rows in the order of the whole text; state after it.
struct Result {
    Bytes logits;
    Arrays spikes, state;
};

struct Machine {
    const Case& c;
    Runtime runtime;

    Machine(const Case& given, const std::string& isa, int threads) : c(given), runtime(c.sizes, c.switches, threads) {
        runtime.set_isa(isa);
        c.fill(runtime);
    }

    static Buffers buffers(Arrays& s) {
        return {span<int64_t>(s["position"]), span<float>(s["v"]), span<float>(s["h"]), span<uint8_t>(s["k"]), span<uint8_t>(s["value"]),
                span<uint8_t>(s["gate"]), span<uint8_t>(s["anchor_k"]), span<uint8_t>(s["anchor_v"]), span<uint8_t>(s["anchor_gate"]),
                span<float>(s["tails"])};
    }

    std::vector<int64_t> tokens(int64_t first, int64_t end) const {
        std::vector<int64_t> part;
        for (int64_t b = 0; b < c.B; ++b)
            for (int64_t t = first; t < end; ++t) part.push_back(at<int64_t>(c.get("tokens"))[b * c.T + t]);
        return part;
    }

    // Tokens [first, end) after r.state, into their places in r.
    void read(Result& r, int64_t first, int64_t end) {
        const int64_t D = c.size("d_model"), F = c.size("d_ff"), V = c.size("vocab_size"), L = c.size("n_layers"), n = end - first, N = c.B * n;
        const std::map<std::string, std::pair<int64_t, int64_t>> shapes{{"encoder", {1, D}}, {"mixer", {L, D}}, {"ffn", {L, F}}, {"blocks", {L, D}}};
        Bytes logits(N * V * sizeof(float));
        Arrays seen;
        for (auto& [site, shape] : shapes) seen[site].resize(shape.first * N * shape.second);
        auto noted = [&](const char* site) { return span<uint8_t>(seen[site]); };
        runtime.forward(c.B, n, tokens(first, end).data(), buffers(r.state),
                        {span<float>(logits), true, 0, noted("encoder"), noted("mixer"), noted("ffn"), noted("blocks")});
        auto place = [&](const Bytes& from, Bytes& to, int64_t layers, int64_t bytes) {
            to.resize(layers * c.B * c.T * bytes);
            for (int64_t row = 0; row < layers * c.B; ++row)
                std::memcpy(to.data() + (row * c.T + first) * bytes, from.data() + row * n * bytes, n * bytes);
        };
        place(logits, r.logits, 1, V * sizeof(float));
        for (auto& [site, shape] : shapes) place(seen[site], r.spikes[site], shape.first, shape.second);
    }

    // The text in pieces of the given lengths, the last of them repeated.
    Result pieces(const std::vector<int64_t>& lengths) {
        Result r{{}, {}, c.state("start")};
        size_t i = 0;
        for (int64_t first = 0, end; first < c.T; first = end, ++i)
            read(r, first, end = std::min(c.T, first + lengths[std::min(i, lengths.size() - 1)]));
        return r;
    }
};

void same_bytes(const Bytes& found, const Bytes& expected, const std::string& what) {
    if (found.size() != expected.size()) fail(what + " has another size");
    for (size_t i = 0; i < found.size(); ++i)
        if (found[i] != expected[i]) fail(what + " differs at byte " + std::to_string(i) + " of " + std::to_string(found.size()));
}

void same(const Result& found, const Result& expected, const std::string& route) {
    same_bytes(found.logits, expected.logits, route + ": logits");
    for (const std::string& site : SPIKES) same_bytes(found.spikes.at(site), expected.spikes.at(site), route + ": spikes of " + site);
    for (const std::string& name : STATE) same_bytes(found.state.at(name), expected.state.at(name), route + ": state " + name);
}

template <class T>
void close(const T* found, const double* expected, int64_t n, double limit, const std::string& what) {
    for (int64_t i = 0; i < n; ++i)
        if (!(std::fabs(found[i] - expected[i]) <= limit)) fail(what + " " + std::to_string(i) + " is off by " + std::to_string(found[i] - expected[i]));
}

// The golden data, in float64: spikes a token exactly, logits to 1e-5 (tests/golden/README.md).
void check_golden(const Case& c, const Result& r) {
    const int64_t D = c.size("d_model"), V = c.size("vocab_size"), L = c.size("n_layers"), first = c.get("golden logits").size() / sizeof(double) / c.T;
    auto count = [&](const Bytes& spikes, const Bytes& expected, int64_t rows, const char* what) {
        for (int64_t row = 0; row < rows; ++row) {
            int64_t sum = 0;
            for (int64_t i = 0; i < D; ++i) sum += spikes[row * D + i];
            if (sum != at<int64_t>(expected)[row]) fail(std::string(what) + " has " + std::to_string(sum) + " spikes in row " + std::to_string(row));
        }
    };
    count(r.spikes.at("encoder"), c.get("golden encoder"), c.T, "encoder");
    count(r.spikes.at("blocks"), c.get("golden blocks"), L * c.T, "blocks");
    for (int64_t t = 0; t < c.T; ++t) {
        const float* z = at<float>(r.logits) + t * V;
        close(z, at<double>(c.get("golden logits")) + t * first, first, 1e-5, "golden logits of token " + std::to_string(t) + ":");
        double sum = 0;
        for (int64_t i = 0; i < V; ++i) sum += std::exp(double(z[i]));
        sum = std::log(sum);
        close(&sum, at<double>(c.get("golden logsumexp")) + t, 1, 1e-5, "golden logsumexp of token " + std::to_string(t) + ":");
        if (std::max_element(z, z + V) - z != at<int64_t>(c.get("golden argmax"))[t]) fail("another golden argmax");
    }
}

// What Python's portable runtime computed: bit for bit. Only where the GELU of the prior asks the C library for erff, whose last bits are
// its own (musl and glibc: 5e-8 apart), logits are compared to 5e-7 of the largest; spikes and state do not depend on it.
void check_expected(const Case& c, const Result& r) {
    for (const std::string& site : SPIKES) same_bytes(r.spikes.at(site), c.get(site), "spikes of " + site);
    for (const std::string& name : STATE) same_bytes(r.state.at(name), c.get("end " + name), "state " + name);
    const float *found = at<float>(r.logits), *expected = at<float>(c.get("logits"));
    const int64_t n = c.get("logits").size() / sizeof(float);
    if (!c.gelu()) return same_bytes(r.logits, c.get("logits"), "logits");
    float largest = 0, off = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(expected[i])), off = std::fmax(off, std::fabs(found[i] - expected[i]));
    if (!(off <= 5e-7f * largest)) fail("logits are off by " + std::to_string(off / largest) + " of the largest");
}

// States: copied, of a file, of another run of the program (Python's), each goes on with the same bits.
void check_states(const Case& c, const std::string& isa, const Result& whole) {
    const int64_t half = c.T / 2;
    Machine machine(c, isa, 1), other(c, isa, 1);
    Result first{{}, {}, c.state("start")};
    machine.read(first, 0, half);
    const Arrays copy = first.state;
    std::FILE* file = std::tmpfile();
    for (const std::string& name : STATE) std::fwrite(copy.at(name).data(), 1, copy.at(name).size(), file);
    std::rewind(file);
    Result goes_on = first, restored = first, python = first;
    machine.read(goes_on, half, c.T);
    same(goes_on, whole, "halves");
    for (const std::string& name : STATE) {
        Bytes& array = restored.state[name];
        std::fill(array.begin(), array.end(), char(0xff));
        if (std::fread(array.data(), 1, array.size(), file) != array.size()) fail("the state file ends too soon");
    }
    std::fclose(file);
    other.read(restored, half, c.T);
    same(restored, whole, "a state of a file");
    for (const std::string& name : STATE) same_bytes(copy.at(name), c.get("half " + name), "after half: state " + name);
    python.state = c.state("half");
    other.read(python, half, c.T);
    same(python, whole, "a state that Python wrote");
}

// The last logits, of which only the `top` largest matter: those that are there are those of the whole, and the largest are there.
void check_largest(const Case& c, const std::string& isa, const Result& whole) {
    const int64_t V = c.size("vocab_size"), top = 5;
    Machine machine(c, isa, 1);
    Result r{{}, {}, c.state("start")};
    machine.read(r, 0, c.T - 1);
    Bytes last(c.B * V * sizeof(float));
    machine.runtime.forward(c.B, 1, machine.tokens(c.T - 1, c.T).data(), Machine::buffers(r.state), {span<float>(last), false, top, {}, {}, {}, {}});
    for (int64_t b = 0; b < c.B; ++b) {
        const float *all = at<float>(whole.logits) + (b * c.T + c.T - 1) * V, *some = at<float>(last) + b * V;
        std::vector<float> sorted(all, all + V);
        std::nth_element(sorted.begin(), sorted.begin() + top - 1, sorted.end(), std::greater<float>());
        for (int64_t i = 0; i < V; ++i)
            if (some[i] != all[i] && (all[i] >= sorted[top - 1] || some[i] != -HUGE_VALF)) fail("the " + std::to_string(top) + " largest: logit " + std::to_string(i) + " differs");
    }
}

Result check(const Case& c, const std::string& isa) {
    const Result whole = Machine(c, isa, 1).pieces({c.T});
    if (c.named.count("golden logits")) check_golden(c, whole);
    check_expected(c, whole);
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{13, 14, 13}, {20, 1}, {1}})
        same(Machine(c, isa, 1).pieces(lengths), whole, "pieces of " + std::to_string(lengths[0]));
    same(Machine(c, isa, 2).pieces({7}), whole, "two threads");
    check_states(c, isa, whole);
    check_largest(c, isa, whole);
    return whole;
}

}  // namespace

int main(int count, char** arguments) try {
    std::string found;
    std::vector<std::string> isas;
    for (const EngineIsa* one : supported_engines()) isas.push_back(one->name), found += (found.empty() ? "" : ",") + isas.back();
    where = "this machine";
    if (count < 3) fail("needs the instruction sets and cases");
    if (found != arguments[1]) fail("has " + found + ", not " + arguments[1]);
    for (int i = 2; i < count; ++i) {
        where = arguments[i];
        const Case c(arguments[i]);
        Result portable;
        for (const std::string& isa : isas) {
            where = std::string(arguments[i]) + ", " + isa;
            const Result result = check(c, isa);
            if (isa == "portable") portable = result;
            else same(result, portable, "beside portable");  // logits too: with one C library nothing is left to differ
        }
    }
    std::printf("%d cases are right on %s\n", count - 2, found.c_str());
} catch (const std::exception& error) {
    fail(error.what());
}
