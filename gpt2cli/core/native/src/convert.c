/* Matrices in panels of 64 outputs (gpt2.h), made once and then mapped. The numbers do not depend on the machine. */
#include <math.h>
#include <string.h>

#include "kernels.h"

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static float of_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
    if (exponent == 31) return of_bits(sign | 0x7F800000 | fraction << 13);
    if (exponent) return of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    return sign ? -(float)fraction * 0x1p-24f : (float)fraction * 0x1p-24f;
}

static uint16_t to_f16(float x) { /* to nearest even */
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest >= 0x477FF000) return (uint16_t)(sign | 0x7C00);
    if (rest < 0x38800000) { /* a multiple of 2^-24; adding 0.5 leaves that in the lowest bits */
        return (uint16_t)(sign | (to_bits(of_bits(rest) + 0.5f) - 0x3F000000));
    }
    return (uint16_t)(sign | (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13);
}

static uint16_t to_bf16(float x) { /* to nearest even */
    uint32_t bits = to_bits(x);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static float value_at(int type, const void *source, size_t at) {
    uint16_t half;
    float x;
    if (type == GPT2_F32) {
        memcpy(&x, (const char *)source + 4 * at, 4);
        return x;
    }
    memcpy(&half, (const char *)source + 2 * at, 2);
    return type == GPT2_F16 ? of_f16(half) : of_bits((uint32_t)half << 16);
}

int64_t gpt2_panels_size(int32_t type, int32_t in, int32_t out) {
    int64_t panels = (out + PANEL - 1) / PANEL, groups = (in + GROUP - 1) / GROUP;
    if (type == GPT2_Q8) return panels * groups * Q8_GROUP_BYTES;
    if (type == GPT2_Q4) return panels * groups * Q4_GROUP_BYTES;
    return panels * PANEL * in * (int64_t)bytes_of(type);
}

/* Without their sign the bits of numbers are in the order of their magnitude, infinity and NaN last. */
int32_t gpt2_finite(int32_t type, int64_t n, const void *values, float *largest) {
    const char *from = values;
    if (type == GPT2_F32) {
        int32_t most = 0;
        for (int64_t i = 0; i < n; i++) {
            int32_t bits;
            memcpy(&bits, from + 4 * i, 4);
            bits &= 0x7FFFFFFF;
            most = bits > most ? bits : most;
        }
        *largest = of_bits((uint32_t)most);
        return most < 0x7F800000;
    }
    int16_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        int16_t bits;
        memcpy(&bits, from + 2 * i, 2);
        bits &= 0x7FFF;
        most = bits > most ? bits : most;
    }
    *largest = type == GPT2_F16 ? of_f16((uint16_t)most) : of_bits((uint32_t)most << 16);
    return most < (type == GPT2_F16 ? 0x7C00 : 0x7F80);
}

/* Round to nearest even; the magnitude is far below 2^22. */
static float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* 8 bits: w = q * scale, |q| <= 127; the scale is rounded up to bf16, so that the largest weight fits. */
static uint16_t quantise_8(const float *w, int n, float *q) {
    float most = 0;
    for (int i = 0; i < n; i++) most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
    uint32_t bits = to_bits(most / 127.0f);
    if (bits & 0xFFFF) bits += 0x10000;
    float scale = of_bits(bits & 0xFFFF0000);
    for (int i = 0; i < n; i++) {
        float value = scale > 0 ? nearest(w[i] / scale) : 0;
        q[i] = value > 127 ? 127 : value < -127 ? -127 : value;
    }
    return (uint16_t)(bits >> 16);
}

/* 4 bits: w = q * scale, -8 <= q <= 7. The sign of the scale gives the largest weight the eighth step; of some
 * scales below the one that holds it, the one with the smallest squared error is taken, the first of equals. Of
 * weights so large that every error is infinite, that is the first of all. */
static uint16_t quantise_4(const float *w, int n, float *q) {
    static const float shrink[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f};
    float most = 0, highest = -INFINITY, best = INFINITY;
    for (int i = 0; i < n; i++) {
        most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
        highest = w[i] > highest ? w[i] : highest;
    }
    float sign = highest >= most ? -1.0f : 1.0f, base = most > 1e-12f ? most : 1e-12f;
    uint16_t chosen = 0;
    for (size_t s = 0; s < sizeof shrink / sizeof *shrink; s++) {
        uint16_t half = to_bf16(sign * shrink[s] * base / 8.0f);
        float scale = of_bits((uint32_t)half << 16), error = 0, tried[GROUP];
        for (int i = 0; i < n; i++) {
            float value = nearest(w[i] / scale);
            tried[i] = value > 7 ? 7 : value < -8 ? -8 : value;
            float difference = tried[i] * scale - w[i];
            error += difference * difference;
        }
        if (error < best || s == 0) {
            best = error, chosen = half;
            memcpy(q, tried, sizeof(float) * (size_t)n);
        }
    }
    return chosen;
}

/* A group of a panel: w [64 inputs, 64 outputs] of which n inputs are there. */
static void write_group(int type, const float *w, int n, uint8_t *to) {
    uint8_t *scales = to + (type == GPT2_Q8 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES) - 2 * PANEL;
    memset(to, type == GPT2_Q8 ? 128 : 0x88, (size_t)(scales - to));
    for (int c = 0; c < PANEL; c++) {
        float column[GROUP], q[GROUP] = {0};
        for (int i = 0; i < n; i++) column[i] = w[i * PANEL + c];
        uint16_t scale = type == GPT2_Q8 ? quantise_8(column, n, q) : quantise_4(column, n, q);
        memcpy(scales + 2 * c, &scale, 2);
        for (int i = 0; i < n; i++) {
            int quad = i / 4, at = c * 4 + i % 4, value = (int)q[i];
            if (type == GPT2_Q8) {
                to[quad * PANEL * 4 + at] = (uint8_t)(value + 128);
            } else {
                uint8_t *byte = &to[quad % 8 * PANEL * 4 + at];
                *byte = (uint8_t)(quad < 8 ? (*byte & 0xF0) | (value + 8) : (*byte & 15) | (value + 8) << 4);
            }
        }
    }
}

void gpt2_convert(int32_t type, int32_t in, int32_t out, int32_t source_type, int32_t source_layout, const void *source,
                  int32_t first, int32_t last, void *target) {
    size_t group_bytes = type == GPT2_Q8 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES;
    uint8_t *to = target;
    for (int panel = first; panel < last; panel++)
        for (int i = 0; i < in; i += GROUP) {
            int n = in - i < GROUP ? in - i : GROUP, columns = out - panel * PANEL < PANEL ? out - panel * PANEL : PANEL;
            float w[GROUP * PANEL];
            for (int k = 0; k < n; k++)
                for (int c = 0; c < PANEL; c++) {
                    size_t row = (size_t)(i + k), column = (size_t)(panel * PANEL + c);
                    size_t at = source_layout == GPT2_INPUTS ? row * (size_t)out + column : column * (size_t)in + row;
                    w[k * PANEL + c] = c < columns ? value_at(source_type, source, at) : 0;
                }
            if (type == GPT2_Q8 || type == GPT2_Q4) {
                write_group(type, w, n, to);
                to += group_bytes;
            } else {
                for (int k = 0; k < n * PANEL; k++) {
                    uint16_t half = type == GPT2_F16 ? to_f16(w[k]) : to_bf16(w[k]);
                    memcpy(to + (size_t)k * bytes_of(type), type == GPT2_F32 ? (void *)&w[k] : (void *)&half, bytes_of(type));
                }
                to += (size_t)n * PANEL * bytes_of(type);
            }
        }
}
