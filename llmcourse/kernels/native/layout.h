// What the native code works on: weights in tiles, activations in groups, one table of operators.
#pragma once
#include <cstdint>
#include <cstring>

constexpr int kRows = 16;   // rows of a tile
constexpr int kGroup = 32;  // activations that share a scale; weights share one for 1, 2, 4, … groups
constexpr int kChunk = 64;  // positions that attention handles at a time
constexpr int kMaxGroup = 64;  // queries that can share a key/value head

// A matrix (rows, cols) of 4-bit codes 0..15: w = factor * scale * code + low, where
// low = mins[...] if there are mins, else ratio * scale. Sixteen rows make a tile, and a tile is a
// run of blocks, one for each scale group along the columns:
//
//     16 scales (fp16) | 16 minima (fp16, may be missing) | 256 bytes of codes for each 32 columns
//
// Of 32 columns, byte (v, r, j) of the codes, v < 4, r < 16, j < 4, holds column 4v + j of row r in
// its low and column 16 + 4v + j in its high half: 64 bytes are four columns of all sixteen rows,
// and a 32-bit lane meets four activations that all lanes share. These are the halves of GGUF's
// Q4_1, so its blocks are moved, never changed.
struct Matrix {
    const uint8_t* codes;   // of the first block; null: no matrix
    const uint8_t* scales;  // likewise; the minima, if any, lie behind them
    int64_t code_step;      // bytes from a block to the next
    int64_t scale_step;
    int32_t rows, cols;     // cols in whole blocks; rows of any number, the last tile is filled up
    int32_t groups;         // groups of 32 columns in a block
    int32_t mins;           // whether there are any
    float factor, ratio;
};

// Eight bits are two such matrices, the high and the low halves of every code, and y is the sum.
struct Linear { Matrix high, low; };  // low.codes is null for four bits

// Activations of some tokens, 32 at a time as int8: x ≈ scale * q, and `sum` is scale * Σ q. *Subtle*:
// the sum of the true x would be worse. Codes 0..15 meet the error of q far from zero, and only the
// same error in the minimum's term takes most of it back.
struct Acts {
    int8_t* q;              // (tokens, cols)
    float* scale;           // (tokens, cols / 32)
    float* sum;             // (tokens, cols / 32)
    int32_t cols;
    const float* energy = nullptr;  // Σ x² of each group; only `spread` of matmul needs it
};

// kChunk positions of one key/value head of one layer, fp16. Keys lie in blocks of 16 positions, turned:
// [block][D][16], so that a vector holds one coordinate of neighbours. Values lie plainly: [position][D].
struct Chunk { uint16_t *keys, *values; };

// A softmax under way over some positions: o (D) = Σ exp(s - max) v, sum = Σ exp(s - max).
struct Softmax { float max, sum, *o; };

// The same functions, compiled once for each instruction set.
struct Operators {
    const char* name;
    // y = or += W x for `count` tiles: tile, tile + stride, … Their rows come to y, y + next, …, those
    // of the next token y_step further on. x is as wide as W or narrower; what is missing counts as
    // zero. If `spread` is given, to it in the same way √Σ (scale * |x|)² over the groups of a row: how
    // far it moves if its codes do. (One token, no mins.)
    void (*matmul)(const Matrix& w, int tile, int stride, int count, const Acts& x, int tokens,
                   float* y, int64_t next, int64_t y_step, bool add, float* spread);
    // y = x / sqrt(mean(x²) + eps) * weight; n values.
    void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
    // Store n values as token `token` of `out`; what is missing to out.cols becomes zero.
    void (*quantize)(const float* x, int n, const Acts& out, int token);
    // y = silu(gate) * up; n a multiple of 16.
    void (*swiglu)(const float* gate, const float* up, int n, float* y);
    // The greatest y + times * spread of the 16 rows of a tile.
    float (*reach)(const float* y, const float* spread, float times);
    // Put the key and value of one position into its chunk, D values each; D a multiple of 16.
    void (*store)(const Chunk& chunk, int at, int D, const float* k, const float* v);
    // Let the softmaxes of `queries` (queries, D), already scaled, take in the first `here` positions.
    void (*attend)(const Chunk& chunk, int here, int D, const float* q, int queries, Softmax* state);
};

struct Layer {
    const float* attention_norm;
    Linear qkv;             // rows of Q, then K, then V
    Linear o;
    const float* ffn_norm;
    Linear gate_up;         // even tiles of gate, odd ones, even tiles of up, odd ones
    Linear down;
};

struct Model {
    int32_t num_layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context;
    float eps;
    const float* turns;     // (context, head_dim): cosines of each position's angles, then sines
    const Layer* layers;
    const float* norm;
    Linear embedding;       // rows are looked up; may be the head itself
    Linear head;
};

// What a step is made of: products with what prepares their input, the head with the embedding;
// `kWaiting` is at barriers, for whoever is not yet there.
enum Part { kQkv, kAttention, kO, kGateUp, kDown, kHead, kWaiting, kParts };

struct State {              // of an engine, for Python to read; it may lower `length`
    int32_t length;         // positions in the cache
    int64_t team_steps, solo_steps;
    int64_t spent[kParts];  // nanoseconds of the caller's own thread, since the engine was made
};

// fp16 has 5 bits of exponent and 10 of fraction. Shifted into a float's place, the exponent is 112
// too small, which a multiplication puts right, for subnormal numbers too.
inline float from_half(uint16_t h) {
    const uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    return h & 0x8000 ? -value : value;
}
