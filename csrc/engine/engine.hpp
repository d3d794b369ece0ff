// One step of the torch-free runtime as plain structs and one function a instruction set. Dimensions: B sequences,
// T tokens each, N = B T rows, D d_model, H heads, K head_dim, F d_ff, V vocabulary, W window, A anchors, L layers.
// The equations are those of model/*.py.
#pragma once

#include <cstdint>

#include "engine/thread_pool.hpp"
#include "simd/dispatch.hpp"

namespace symboliclight {

enum class Format { float32, bfloat16, int8, int4, bfloat16_rows };

constexpr int64_t LANES = 16, GROUP = 32;  // outputs side by side in a packed matrix; inputs padded to, int4 group

// What the 16 values of int4 stand for, in units of their scale, + 128: rounding.LEVELS.
alignas(16) constexpr uint8_t LEVELS[16] = {1, 27, 47, 64, 79, 92, 104, 116, 128, 140, 153, 167, 181, 197, 216, 239};

// y = M x. Three layouts:
//   dense-fed float32 and bfloat16_rows: (outs, ins), as in the checkpoint. The latter has the products of bfloat16, packed.
//   dense-fed, packed: blocks of 16 outputs; a block holds steps of 64 bytes, 16 outputs by 2 (bfloat16), 4 (int8) or
//     8 (int4) inputs, outputs and inputs padded with zeros to 16 and 32. int8 is unsigned, weight + 128, and has a float
//     scale an output. int4 is a number of LEVELS, in a step the low halves are its first 4 inputs, and has a bfloat16
//     scale for each group of 32 inputs: (blocks, groups, 16).
//   spike-fed (by_input): (ins, outs) in float32, bfloat16 or signed int8 with a float scale an output.
struct Matrix {
    Format format = Format::float32;
    bool by_input = false;
    int64_t outs = 0, ins = 0;
    const void* data = nullptr;
    const void* scale = nullptr;
    int64_t first = 0;           // the block of a packed matrix that `data` begins with
    const void* next = nullptr;  // what is fetched during a product, if it is not what follows
    bool valued = false;         // by_input: spikes may be other than 0 and 1; at 8 bits they are 8-bit integers, a scale a row
};

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Bytes that a matrix and its scales take.
inline int64_t data_bytes(const Matrix& m) {
    const int64_t bits = m.format == Format::float32 ? 32 : m.format == Format::int8 ? 8 : m.format == Format::int4 ? 4 : 16;
    bool plain = m.by_input || m.format == Format::float32 || m.format == Format::bfloat16_rows;
    return (plain ? m.outs * m.ins : up(m.outs, LANES) * up(m.ins, GROUP)) * bits / 8;
}

inline int64_t scale_bytes(const Matrix& m) {
    if (m.format == Format::int8) return (m.by_input ? m.outs : up(m.outs, LANES)) * 4;
    return m.format == Format::int4 ? up(m.outs, LANES) * up(m.ins, GROUP) / GROUP * 2 : 0;
}

// A matrix of float32 or bfloat16_rows seen through 8 bits (sketch.hpp): int8 as above, and how far the two can lie apart.
struct Sketch {
    Matrix rough;
    const float *lost = nullptr, *kept = nullptr;  // (outs up to 16,) bounds an output: see pack.sketch
};

// What int4 leaves of the rows of some tokens of the head, int4 again.
struct Residual {
    Matrix rows;
    const int64_t *tokens = nullptr;  // (rows,) whose they are, rising
    const int64_t *first = nullptr;   // (blocks of 16 tokens + 1,) the first row of each
};

struct Norm { const float *weight = nullptr, *bias = nullptr; };  // without a weight: the bias alone, no statistics

struct Layer {
    Matrix tcam, decay_gate, q, k, v, out, up, down;  // decay_gate: (H, D), only where spikes choose the decay
    Sketch sketch;  // of up, if there is one
    Norm mixer_norm, ffn_norm;
    const float* decay = nullptr;  // (D,) rates of the channels; their logits, equal within a head, beside a decay_gate
    float fuse = 0;                // share of attention in the mix
    const float *conv_u = nullptr, *conv_k = nullptr, *conv_v = nullptr;          // (taps, D)
    const float *mixer_level = nullptr, *ffn_level = nullptr, *level = nullptr;   // (D,), (F up to 16,), (D,) thresholds
};

enum class Source { lif, threshold, topk, dense };
enum class Prior { none, fixed, dynamic };

struct Model {
    int64_t D, H, K, F, V, W, A, L;
    float v_clamp, exit_entropy;  // nats; negative: no early exit
    int64_t taps;                 // of the convolutions; 0: there are none
    Source source;
    int64_t topk;
    bool gate, block_spikes, ffn_spikes, decay, attention, int8_keys;
    SpikeCode encoder_code, stream_code, ffn_code;
    float levels;               // largest value of an integer spike
    bool norm, pre, spike_fed;  // LayerNorms in the stream; off the stream; q, k, v and up read spikes
    Prior prior;
    float prior_weight;
    Matrix embedding;  // (V, D) float32 or bfloat16, row by row
    Norm encoder_norm;
    const float *leak, *threshold;  // (D,)
    Matrix head, prior_down, prior_up;
    Residual residual;
    Sketch head_sketch, prior_sketch;
    const float* bias = nullptr;     // (V,) weighted static prior
    const float* inverse = nullptr;  // (K / 2,) RoPE radians a position
    const Layer* layers = nullptr;
};

constexpr int64_t QUERIES = 4;  // of neighbouring tokens, that attend together

static inline int64_t visible(const Model& m) { return m.W + QUERIES + m.A; }  // keys that they see at most

// Keys and values of a head under int8 and int4 (Model::int8_keys), in blocks of 16 neighbouring tokens: `wide` bytes of x + 128
// a token, keys as (wide / 4, 16 tokens, 4) and values as (4, wide, 4 tokens), then 16 floats, what the tokens count in.
static inline int64_t wide(const Model& m) { return up(m.K, LANES); }
static inline int64_t block_bytes(const Model& m) { return LANES * (wide(m) + int64_t(sizeof(float))); }
static inline int64_t blocks(int64_t tokens) { return up(tokens, LANES) / LANES; }
static inline int64_t visible_blocks(const Model& m) { return visible(m) / LANES + 11; }  // blocks that queries see at most: five pieces
constexpr int64_t MAX_VISIBLE_INT8 = 60000;  // so many short keys can be summed in 32 bits

// Convolutions of a layer: of u, then of keys and values.
static inline int64_t written(const Model& m) { return m.decay + 2 * m.attention; }

// The past of B sequences, arrays contiguous with B in front; a key of position j is in slot j mod W.
struct State {
    int64_t* position;                  // (B,) of the next token
    float *v, *h;                       // (B, D), (B, L, D)
    void *k, *value;                    // (B, L, H, W, K) floats, or (B, L, H, blocks(W)) blocks where they are short
    uint8_t* gate;                      // (B, L, W)
    void *anchor_k, *anchor_v;          // (B, L, H, A, K), or blocks
    uint8_t* anchor_gate;               // (B, L, A)
    float* tails;                       // (B, L, written, taps - 1, D) the last inputs of the convolutions, oldest first
};

// One side of a product, ready for matrices of any format: rows of floats, and what the format needs beside them.
struct Operand {
    const float* x;     // (N, ins)
    int32_t* index;     // (N, width) active inputs
    int32_t* active;    // (N,) how many
    int8_t* q;          // (N, width) x / scale, zeros up to a multiple of 32
    float* scale;       // (N,)
    int32_t *sums, *total;  // (N, width / 32) of q by group, (N,) of all
    bf16* parts;        // (N, 3, width) x as a sum of three, for AMX
    bf16* packed;       // (ins up to 32, 16) of this thread: 16 rows as a block, and room that is only fetched
    int8_t* low;        // (N, width) of a sketch: x is about scale (256 q + low); else |q| where products want it (packed.hpp)
    float *size, *slip; // (N,) of a sketch: bounds of the Euclidean norms of x and of what it leaves of x
    int64_t width, room;  // from row to row, and at most: what `index` has for each
};

// Rows of `ins` bytes lie an odd number of cache lines apart: at a multiple of 4 KiB they would displace each other, and farther
// apart than they need be some would.
inline int64_t row_width(int64_t ins) { return up(ins, 128) + 64; }

// Keys and values that lie `step` floats apart, and the first and last query of a block that may see the first of them; each
// key is one later than the one before it.
struct Run {
    const float *key, *value;
    int64_t step, count;
    int32_t from, to;
};

// The same for a block of short ones, of which those count whose bit in `open` is set.
struct KeyBlock {
    const uint8_t *key, *value;
    int32_t from, to, open;
};

// Working memory of a call, as one thread sees it.
struct Scratch {
    // Of all threads: what products and heads leave.
    float *y, *u, *q, *k, *v, *o, *chosen;  // (N, D), but `chosen` (N, H)
    float *f, *prior;                       // (N, F), (N, P)
    float* residual;                        // (N, rows of the residual) its part of their logits
    int32_t* found;                         // (threads, D up to 16) rows of W_down that a thread has added up for itself
    float* trial;                           // (B, V) logits for the early exit
    float *least, *bar;                     // (B, V / 16) largest lower bound of a block of logits; (B,)
    // Rows that threads share out. Of a single row every thread has its own, so that none waits for another to ready it.
    float *c, *s, *n;       // (N, D); n is what is read of the stream c: c itself but with `pre`
    float *turn, *blend;    // (N, K) cosines and sines, (N, P)
    uint8_t* gate;          // (N,)
    Operand spikes, stream; // inputs of the products of a phase
    // Of this thread.
    float* sum;                  // (D,)
    float* score;                // (QUERIES, visible), of short keys by blocks
    Run* runs;                   // (visible,)
    KeyBlock* blocks;            // (visible_blocks,)
    uint8_t *short_k, *short_v;  // (blocks(T)) blocks: keys and values of this call, of one head
    uint8_t* short_rows;         // (T, 2, wide) the same token by token
    float* units;                // (T, 2)
    int8_t *halves, *shares;     // (QUERIES, 2, wide) and (QUERIES, 2, 16 visible_blocks)
};

// What calls did, for honest byte counts.
struct Stats {
    int64_t *tcam, *up, *down;  // (L,) active inputs; those of tcam are those of decay_gate and of spike-fed q, k, v
    int64_t* exact;        // (L,) outputs of `up` computed in full because the sketch left them open
    int64_t *chosen;       // 2: rows whose head was sketched, and logits computed in full for them
    int64_t sketched;      // tokens times layers whose spikes come from the sketch
    int64_t layers;        // tokens times layers run
};

enum class Logits { none, last, all };

// Where to note who spiked, 0 or 1; null where nobody asks: (N, D), (L, N, D), (L, N, F) and (L, N, D). And the stream that the
// head reads, (N, D).
struct Taps { uint8_t *encoder = nullptr, *mixer = nullptr, *ffn = nullptr, *blocks = nullptr; float* stream = nullptr; };

struct Call {
    int64_t B, T;
    const int64_t* tokens;  // (B, T)
    Logits want;
    float* logits;  // (B, V) or (B, T, V)
    Taps taps;
    int64_t top;  // with Logits::last: what is surely not among so many largest logits may be -infinity; 0: all are wanted
};

struct EngineIsa {
    const char* name;
    void (*forward)(const Model&, const State&, const Call&, const Scratch* of_threads, Stats&, Pool&);
};

extern const EngineIsa engine_portable, engine_avx2, engine_avxvnni, engine_avx512, engine_vnni, engine_amx, engine_dotprod, engine_i8mm;

// The k-th largest of n values, which are reordered. Not in the sets' own source: it instantiates std templates.
float kth_largest(float* values, int64_t n, int64_t k);

}  // namespace symboliclight
