// Operators of the decode step. This file is compiled once for each instruction set: the few lines
// that differ come first, everything after them is the same code.
#include "layout.h"

#include <cmath>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// ---- What an instruction set brings: how many lanes, and four operations ------------------------
#if defined(__AVX512VNNI__)
#define ISA avx512
constexpr int W = 16;
#elif defined(__AVX2__)
#define ISA avx2
constexpr int W = 8;
#else
#define ISA plain
constexpr int W = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint8_t Bytes __attribute__((vector_size(4 * W)));  // 4 codes of each of W rows

template <class V> inline V load(const void* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
inline void save(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

#if defined(__AVX512VNNI__)
inline Floats load_half(const void* p) {
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void save_half(uint16_t* p, Floats v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, 0));
}
// Each lane: acc + Σ codes[4] * x[4]. One instruction.
inline Ints dot(Ints acc, Bytes codes, const int8_t* x) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes,
                                     _mm512_set1_epi32(load<int32_t>(x)));
}
inline Floats total(Ints acc) { return (Floats)_mm512_cvtepi32_ps((__m512i)acc); }
#elif defined(__AVX2__)
inline Floats load_half(const void* p) {
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline void save_half(uint16_t* p, Floats v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
}
// Each lane is two 16-bit sums here. A code is at most 15 and |x| at most 127, so that one call adds
// 2 * 15 * 127 = 3,810 at most, and the eight calls of a group 30,480: under 32,767.
inline Ints dot(Ints acc, Bytes codes, const int8_t* x) {
    __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(load<int32_t>(x)));
    pairs = _mm256_add_epi16((__m256i)acc, pairs);
    asm("" : "+x"(pairs));  // *subtle*: else gcc multiplies everything first, and spills registers
    return (Ints)pairs;
}
inline Floats total(Ints acc) {
    return (Floats)_mm256_cvtepi32_ps(_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1)));
}
#else
inline uint16_t to_half(float value) {  // to nearest, ties to even; beyond 65,504 infinity
    uint32_t bits = load<uint32_t>(&value), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (bits < 0x38800000) {  // subnormal: let the addition round
        float small = load<float>(&bits) + 0.5f;
        return sign | (load<uint32_t>(&small) - 0x3f000000);
    }
    return sign | ((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}
inline Floats load_half(const void* p) {
    const uint16_t* h = (const uint16_t*)p;
    return Floats{from_half(h[0]), from_half(h[1]), from_half(h[2]), from_half(h[3])};
}
inline void save_half(uint16_t* p, Floats v) { for (int i = 0; i < W; i++) p[i] = to_half(v[i]); }
inline Ints dot(Ints acc, Bytes codes, const int8_t* x) {
    for (int r = 0; r < W; r++)
        for (int j = 0; j < 4; j++) acc[r] += codes[4 * r + j] * x[j];
    return acc;
}
inline Floats total(Ints acc) { return __builtin_convertvector(acc, Floats); }
#endif

// ---- The same for all -----------------------------------------------------------------------------
inline Floats all(float x) { return x - Floats{}; }
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
template <int N, class Op> inline float fold(const float* a, Op op) {  // by halves: a short chain
    if constexpr (N == 2) return op(a[0], a[1]);
    else {
        typedef float Half __attribute__((vector_size(2 * N)));
        Half low, high;
        std::memcpy(&low, a, sizeof low), std::memcpy(&high, a + N / 2, sizeof high);
        low = op(low, high);
        return fold<N / 2>((float*)&low, op);
    }
}
inline float sum(Floats v) { return fold<W>((float*)&v, [](auto a, auto b) { return a + b; }); }
inline float top(Floats v) { return fold<W>((float*)&v, [](auto a, auto b) { return a > b ? a : b; }); }
inline Floats root(Floats v) { for (int i = 0; i < W; i++) v[i] = std::sqrt(v[i]); return v; }

constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number

// exp(x) = 2^n e^r with n = round(x / ln 2) and |r| <= 0.35: the series up to r^6 is good to 1e-7.
// Below -87 the result is that of -87, 1.6e-38; above 88 that of 88.
inline Floats exp(Floats x) {
    x = max(x, all(-87.f)), x = x < 88.f ? x : all(88.f);
    Floats shifted = x * 1.44269504f + kMagic, n = shifted - kMagic;
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
    Floats p = ((r / 720.f + 1.f / 120) * r + 1.f / 24) * r + 1.f / 6;
    p = ((p * r + 0.5f) * r + 1.f) * r + 1.f;
    return (Floats)((Ints)p + ((Ints)shifted << 23));
}

constexpr int kAhead = 3072;  // bytes, ten groups: what a tile reads next is fetched already. Processors
// with AVX-512 do so by themselves for blocks of whole cache lines, which are those with minima.
constexpr int kTogether = W == 16 ? 8 : 4;  // tokens of a prompt: as many sums as there are registers for

enum Kind { kMins, kRatio, kSpread };

// TILES tiles, `stride` apart, times TOKENS tokens. Decoding takes four tiles at once, not for the
// arithmetic but for the memory: far apart they are four streams, and with one stream a core cannot
// ask for enough. A prompt takes several tokens at once: codes are loaded and split once for all.
template <int TILES, int TOKENS, Kind KIND>
void tiles(const Matrix& w, int64_t tile, int64_t stride, const Acts& x, float* y, int64_t next,
           int64_t y_step, bool add, float* spread) {
    // A tile is kRows / W vectors. Several tokens take one after the other, to fit the registers.
    constexpr int P = TOKENS > 1 ? 1 : kRows / W;
    const int64_t groups = x.cols / kGroup, blocks = w.cols / kGroup / w.groups;
    for (int first = 0; first < kRows; first += P * W) {
        Floats acc[TILES][P][TOKENS] = {}, squares[TILES][P] = {};
        const uint8_t *codes[TILES], *scales[TILES];
        for (int t = 0; t < TILES; t++) {
            codes[t] = w.codes + (tile + t * stride) * blocks * w.code_step + 4 * first;
            scales[t] = w.scales + (tile + t * stride) * blocks * w.scale_step + 2 * first;
        }
        for (int64_t g = 0, inside = 0; g < groups; g++) {
            const bool ends = ++inside == w.groups;  // the block, and so its scales
            for (int t = 0; t < TILES; t++) {
                if (TOKENS == 1 && (W < 16 || KIND != kMins))  // to the second-level cache
                    for (int i = 0; i < 320; i += 64) __builtin_prefetch(codes[t] + kAhead + i, 0, 2);
                Ints s[P][TOKENS] = {};
                for (int v = 0; v < 4; v++)
                    for (int p = 0; p < P; p++) {
                        Bytes c = load<Bytes>(codes[t] + 64 * v + 4 * W * p), low = c & 15, high = c >> 4;
                        for (int m = 0; m < TOKENS; m++) {
                            const int8_t* q = x.q + m * x.cols + g * kGroup + 4 * v;
                            s[p][m] = dot(dot(s[p][m], low, q), high, q + 16);
                        }
                    }
                for (int p = 0; p < P; p++) {
                    Floats scale = load_half(scales[t] + 2 * W * p);
                    if (KIND == kSpread) squares[t][p] += scale * scale * x.energy[g];
                    for (int m = 0; m < TOKENS; m++) {
                        float xs = x.scale[m * groups + g], sum = x.sum[m * groups + g];
                        Floats& a = acc[t][p][m];
                        if (KIND == kMins)
                            a += load_half(scales[t] + 2 * (kRows + W * p)) * sum, a += scale * (w.factor * xs) * total(s[p][m]);
                        else
                            a += scale * (total(s[p][m]) * (w.factor * xs) + w.ratio * sum);
                    }
                }
                codes[t] += ends ? w.code_step - 256 * (w.groups - 1) : 256;
                if (ends) scales[t] += w.scale_step;
            }
            if (ends) inside = 0;
        }
        for (int m = 0; m < TOKENS; m++)
            for (int t = 0; t < TILES; t++)
                for (int p = 0; p < P; p++) {
                    float* to = y + m * y_step + t * next + first + p * W;
                    save(to, add ? acc[t][p][m] + load<Floats>(to) : acc[t][p][m]);
                    if (KIND == kSpread) save(spread + t * next + first + p * W, root(squares[t][p]));
                }
    }
}

template <int TILES, int TOKENS> auto kernel_for(const Matrix& w, bool spread) {
    return w.mins ? tiles<TILES, TOKENS, kMins>
           : spread ? tiles<TILES, TOKENS, kSpread> : tiles<TILES, TOKENS, kRatio>;
}

void matmul(const Matrix& w, int tile, int stride, int count, const Acts& x, int tokens, float* y,
            int64_t next, int64_t y_step, bool add, float* spread) {
    const int groups = x.cols / kGroup;
    for (int m = 0, taken; m < tokens; m += taken) {
        taken = tokens - m >= kTogether ? kTogether : 1;
        const int together = taken == 1 && count == 4 ? 4 : 1;
        const auto kernel = together == 4 ? kernel_for<4, 1>(w, spread)
                            : taken > 1   ? kernel_for<1, kTogether>(w, spread) : kernel_for<1, 1>(w, spread);
        const Acts rest{x.q + (int64_t)m * x.cols, x.scale + (int64_t)m * groups,
                        x.sum + (int64_t)m * groups, x.cols, x.energy};
        for (int t = 0; t < count; t += together)
            kernel(w, tile + t * stride, stride, rest, y + m * y_step + t * next, next, y_step, add,
                   spread + t * next);
    }
}

void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
    Floats squares = {};
    int i = 0;
    for (; i + W <= n; i += W) { Floats v = load<Floats>(x + i); squares += v * v; }
    float mean = sum(squares);
    for (; i < n; i++) mean += x[i] * x[i];
    const float scale = 1 / std::sqrt(mean / n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

void quantize(const float* x, int n, const Acts& out, int token) {
    const int groups = out.cols / kGroup;
    for (int g = 0; g < groups; g++) {
        const int here = n - g * kGroup;
        float padded[kGroup] = {};
        const float* v = x + g * kGroup;
        if (here < kGroup) v = (const float*)std::memcpy(padded, v, here > 0 ? 4 * here : 0);
        Floats most = {}, sums = {};
        for (int i = 0; i < kGroup; i += W) {
            Floats part = load<Floats>(v + i);
            most = max(most, max(part, -part));
        }
        const float largest = top(most), inverse = largest > 1e-30f ? 127 / largest : 0;  // else inf
        int32_t whole[kGroup];  // q in the lowest bits
        for (int i = 0; i < kGroup; i += W) {
            Floats shifted = load<Floats>(v + i) * inverse + kMagic;
            std::memcpy(whole + i, &shifted, sizeof shifted), sums += shifted - kMagic;
        }
        int8_t* q = out.q + (int64_t)token * out.cols + g * kGroup;
        for (int i = 0; i < kGroup; i++) q[i] = (int8_t)whole[i];
        out.scale[token * groups + g] = largest / 127;
        out.sum[token * groups + g] = sum(sums) * (largest / 127);
    }
}

void swiglu(const float* gate, const float* up, int n, float* y) {
    for (int i = 0; i < n; i += W) {
        Floats g = load<Floats>(gate + i);
        save(y + i, g / (1.f + exp(-g)) * load<Floats>(up + i));
    }
}

float reach(const float* y, const float* spread, float times) {
    Floats most = all(-INFINITY);
    for (int i = 0; i < kRows; i += W)
        most = max(most, load<Floats>(y + i) + load<Floats>(spread + i) * times);
    return top(most);
}

void store(const Chunk& chunk, int at, int D, const float* k, const float* v) {
    uint16_t* block = chunk.keys + at / 16 * D * 16 + at % 16;
    for (int d = 0; d < D; d += W) {
        uint16_t half[W];
        save_half(half, load<Floats>(k + d));
        for (int i = 0; i < W; i++) block[(d + i) * 16] = half[i];
        save_half(chunk.values + at * D + d, load<Floats>(v + d));
    }
}

// R queries share every key and value that is loaded: that is what grouped heads save.
template <int R>
void attend(const Chunk& chunk, int here, int D, const float* q, Softmax* state) {
    constexpr int P = 16 / W;
    const int filled = (here + 15) / 16 * 16;
    float p[R][kChunk], kept[R];
    for (int at = 0; at < filled; at += 16) {
        const uint16_t *keys = chunk.keys + at * D, *values = chunk.values + at * D;
        for (int i = 0; i < 16 * D; i += 32) __builtin_prefetch(values + i, 0, 2);  // wanted soon
        Floats s[R][P] = {};
        for (int d = 0; d < D; d++) {
            for (int i = 0; i < P; i++) {
                Floats k = load_half(keys + d * 16 + i * W);
                for (int r = 0; r < R; r++) s[r][i] += k * q[r * D + d];
            }
        }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < P; i++) save(p[r] + at + i * W, s[r][i]);
    }
    for (int r = 0; r < R; r++) {
        for (int i = here; i < filled; i++) p[r][i] = -INFINITY;  // not there yet: counts 1e-38
        Floats most = all(state[r].max), sums = {};
        for (int i = 0; i < filled; i += W) most = max(most, load<Floats>(p[r] + i));
        const float highest = top(most);
        for (int i = 0; i < filled; i += W) {
            Floats e = exp(load<Floats>(p[r] + i) - highest);
            save(p[r] + i, e), sums += e;
        }
        kept[r] = std::exp(state[r].max - highest);
        state[r].sum = state[r].sum * kept[r] + sum(sums);
        state[r].max = highest;
    }
    for (int d = 0; d < D; d += 16) {
        const uint16_t* values = chunk.values + d;
        Floats o[R][P];
        for (int r = 0; r < R; r++)
            for (int i = 0; i < P; i++) o[r][i] = load<Floats>(state[r].o + d + i * W) * kept[r];
        for (int at = 0; at < here; at++)
            for (int i = 0; i < P; i++) {
                Floats v = load_half(values + at * D + i * W);
                for (int r = 0; r < R; r++) o[r][i] += v * p[r][at];
            }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < P; i++) save(state[r].o + d + i * W, o[r][i]);
    }
}

void attend(const Chunk& chunk, int here, int D, const float* q, int queries, Softmax* state) {
    for (int r = 0, taken; r < queries; r += taken) {
        taken = queries - r >= 3 ? 3 : 1;
        (taken == 3 ? attend<3> : attend<1>)(chunk, here, D, q + (int64_t)r * D, state + r);
    }
}

}  // namespace

#define NAME_OF(isa) #isa
#define NAME(isa) NAME_OF(isa)
#define TABLE_OF(isa) operators_##isa
#define TABLE(isa) TABLE_OF(isa)
extern "C" const Operators TABLE(ISA) = {NAME(ISA), matmul, rms_norm, quantize, swiglu, reach, store, attend};
