// The runtime without Python: a model put together site by site, its sizes checked, and calls of the chosen instruction set.
// engine_bind.cpp gives it arrays of Python, tests/engine/runtime_test.cpp those of a file.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "engine/engine.hpp"
#include "engine/workspace.hpp"

namespace symboliclight {

// An array somebody else keeps, of so many elements; null where nobody asks.
template <class T>
struct Span {
    T* data = nullptr;
    int64_t size = 0;
};

// The arrays of State, and what a call leaves beside it (Call). Their sizes are checked.
struct Buffers {
    Span<int64_t> position;
    Span<float> v, h;
    Span<uint8_t> k, value, gate, anchor_k, anchor_v, anchor_gate;  // keys and values as bytes
    Span<float> tails;
};

struct Wanted {
    Span<float> logits;
    bool all = false;
    int64_t top = 0;
    Span<uint8_t> encoder, mixer, ffn, blocks;
    Span<float> stream;
};

// Instruction sets this machine can run, the fastest last.
std::vector<const EngineIsa*> supported_engines();

class Runtime {
  public:
    // sizes and switches by their names in engine/model.py
    Runtime(const std::map<std::string, int64_t>& sizes, const std::map<std::string, float>& switches, int threads);
    Runtime(const Runtime&) = delete;

    // Sites are named as in the checkpoint. The memory is not copied: it must live as long as the runtime.
    void matrix(const std::string& site, int64_t layer, const Matrix& m, int64_t bytes, int64_t bytes_of_scale);
    void vector(const std::string& site, int64_t layer, Span<const float> data);
    // The rows of the head that have a residual, copied; before the matrix of it.
    void tokens(Span<const int64_t> ids);

    // Reads tokens (B, T), advances the state in place, fills logits (B, V), (B, T, V) or none, and notes spikes (engine.hpp,
    // Taps) where arrays are given.
    void forward(int64_t B, int64_t T, const int64_t* tokens, const Buffers& buffers, const Wanted& wanted);

    // All threads wait for each other so many times: what a phase costs beside its work.
    void meet(int64_t times);
    void set_isa(const std::string& name);

    std::string isa() const { return isa_->name; }
    int threads() const { return pool_.size(); }
    int64_t tokens_read() const { return tokens_read_; }
    int64_t keys_read() const { return keys_read_; }
    using List = std::vector<int64_t>;
    std::tuple<int64_t, List, List, int64_t, List, int64_t, int64_t, List> counts() const {
        return {layers_run_, tcam_, down_, sketched_, exact_, chosen_[0], chosen_[1], up_};
    }

  private:
    State checked(const Buffers& buffers, int64_t B) const;
    Call checked(const Wanted& wanted, int64_t B, int64_t T, const int64_t* tokens) const;
    void* keys(Span<uint8_t> array, int64_t heads, int64_t tokens, const char* name) const;
    bool sound(const Norm& norm) const { return norm.bias && !norm.weight == !m_.norm; }
    void require_complete() const;

    Model m_{};
    std::vector<Layer> layers_;
    std::vector<float> levels_, ffn_levels_;  // thresholds where none is learned
    List tokens_, first_, tcam_, up_, down_, exact_;
    int64_t tokens_read_ = 0, keys_read_ = 0, layers_run_ = 0, sketched_ = 0, chosen_[2] = {};
    const EngineIsa* isa_ = supported_engines().back();
    Pool pool_;
    std::mutex mutex_;
    Workspace room_;
};

}  // namespace symboliclight
