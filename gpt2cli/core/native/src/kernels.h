/* What is compiled once for each instruction set: the arithmetic of a forward pass on small pieces. */
#ifndef GPT2_KERNELS_H
#define GPT2_KERNELS_H

#include <stddef.h>

#include "gpt2.h"

#define BLOCK 256     /* products that are summed in one go; the sums are then added, block after block */
#define ROW_BLOCK 192 /* rows of a piece of a product */
#define TILE_ROWS 6
#define QUERY_ROWS 24 /* queries of a piece of attention */
#define WIDE_ROWS 12  /* more rows than this share one conversion to fp32 of keys, values, and weights that lie apart */
#define GROUPS_AT_ONCE 4 /* of int8 and int4, which several passes share while they are in the nearest cache */
#define MOST_GROUPS 64   /* that one pass goes through in one go */

#define Q8_GROUP_BYTES (GROUP * PANEL + 2 * PANEL)
#define Q4_GROUP_BYTES (GROUP * PANEL / 2 + 2 * PANEL)

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline size_t bytes_of(int type) { return type == GPT2_F32 ? 4 : type == GPT2_I8 ? 1 : 2; }

/* Activations rounded to 8 bits, group by group of 64 inputs. */
typedef struct {
    int8_t *values;  /* [rows, inputs rounded up to 64] */
    float *scales;   /* [rows, groups] */
    int32_t *sums;   /* [rows, groups] the sums of the values */
} quantised;

/* The keys and values of one head: keys in blocks of 64 positions, [width, 64] each; values [position, padded
 * width], the padding being zeros. In I8 each key and each value has a scale, at its position. */
typedef struct {
    const void *keys, *values;
    const float *key_scales, *value_scales;
} head_cache;

/* Memory of one thread. */
typedef struct {
    float *tile;    /* [ROW_BLOCK, PANEL] */
    float *part;    /* [ROW_BLOCK, PANEL] */
    int8_t *inputs; /* [ROW_BLOCK, GROUPS_AT_ONCE * GROUP] in 16 bits, or one row of MOST_GROUPS */
    float *block;   /* [BLOCK, PANEL], or [PANEL * PANEL] bytes per group of int4 */
    float *scores;  /* [QUERY_ROWS, positions rounded up to 64] */
    float *context; /* [QUERY_ROWS, head width rounded up to 16] */
} scratch;

typedef struct {
    const char *name;
    /* tile[r, 0..63] = sum over inputs of x[r, i] * w[i, 64 * panel + c]; x: [rows, inputs] with ``stride`` */
    void (*multiply)(const gpt2_matrix *w, int panel, const float *x, size_t stride, const quantised *q, int row,
                     int rows, scratch *s);
    /* y = (x - mean) / sqrt(variance + epsilon) * weight + bias, of one row; the padding of y is zeros */
    void (*normalise)(const float *x, int width, const float *weight, const float *bias, float epsilon, float *y);
    /* One row of ``width`` values to 8 bits; what stands behind them up to the next multiple of 64 is zeros. The scale
     * of a group with a value that is infinite or no number is no number. */
    void (*quantise)(const float *x, int width, int8_t *values, float *scales, int32_t *sums);
    /* x = activation(x + bias), 64 values */
    void (*activate)(int activation, float *x, const float *bias);
    /* context[r] = softmax(scale * q[r] keys) values, query r at ``position`` + r; q: [rows, width] with stride */
    void (*attend)(int cache_type, head_cache cache, const float *q, size_t stride, int rows, int position, int width,
                   float scale, size_t score_stride, scratch *s);
    /* A row of a table in any type, as fp32, added to y where ``add``. */
    void (*widen)(int type, const void *row, int width, float *y, int add);
    /* n values to fp16, those that do not fit to the nearest that does */
    void (*narrow)(const float *x, void *y, int n);
    /* 64 values to 8 bits; their scale */
    float (*narrow_head)(const float *x, int8_t *y);
} kernels;

#if defined(__x86_64__) || defined(_M_X64)
extern const kernels gpt2_kernels_avx512, gpt2_kernels_avx2, gpt2_kernels_avx2vnni;
#elif defined(__aarch64__)
extern const kernels gpt2_kernels_neon;
#endif
extern const kernels gpt2_kernels_portable;

#endif
