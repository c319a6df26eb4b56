// The few AVX-512 instructions that operators.cpp uses, spelled out lane by lane after Intel's intrinsics
// guide, so that its AVX-512 path can be tested on a processor without them.
#pragma once
#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef long long __m256i __attribute__((vector_size(32)));

inline __m256i _mm256_loadu_si256(const __m256i* p) { __m256i v; std::memcpy(&v, p, 32); return v; }
inline void _mm256_storeu_si256(__m256i* p, __m256i v) { std::memcpy(p, &v, 32); }

inline __m512 _mm512_cvtph_ps(__m256i v) {
    _Float16 half[16];
    std::memcpy(half, &v, 32);
    __m512 out;
    for (int i = 0; i < 16; i++) out[i] = half[i];
    return out;
}
inline __m256i _mm512_cvtps_ph(__m512 v, int) {
    _Float16 half[16];
    for (int i = 0; i < 16; i++) half[i] = (_Float16)v[i];
    __m256i out;
    std::memcpy(&out, half, 32);
    return out;
}
inline __m512i _mm512_set1_epi32(int x) {
    int lanes[16];
    for (int& lane : lanes) lane = x;
    __m512i out;
    std::memcpy(&out, lanes, 64);
    return out;
}
inline __m512 _mm512_cvtepi32_ps(__m512i v) {
    int lanes[16];
    std::memcpy(lanes, &v, 64);
    __m512 out;
    for (int i = 0; i < 16; i++) out[i] = (float)lanes[i];
    return out;
}
// Each 32-bit lane: acc + the four products of unsigned bytes of a and signed bytes of b.
inline __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i a, __m512i b) {
    int lanes[16];
    uint8_t x[64];
    int8_t y[64];
    std::memcpy(lanes, &acc, 64), std::memcpy(x, &a, 64), std::memcpy(y, &b, 64);
    for (int i = 0; i < 64; i++) lanes[i / 4] += x[i] * y[i];
    std::memcpy(&acc, lanes, 64);
    return acc;
}
