/* A stand-in: one product, summed over 16 lanes in a fixed order. */
#include <math.h>

#include "standin.h"

#define PASTE(a, b) a##b
#define NAMED(a, b) PASTE(a, b)
#define TEXT_OF(a) #a
#define TEXT(a) TEXT_OF(a)

static float dot(const float *a, const float *b, int n) {
    float sum[16] = {0};
    for (int i = 0; i < n; i++) sum[i % 16] = fmaf(a[i], b[i], sum[i % 16]);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) sum[i] += sum[i + step];
    return sum[0];
}

const gpt2_kernels NAMED(gpt2_kernels_, GPT2_ISA) = {TEXT(GPT2_ISA), dot};
