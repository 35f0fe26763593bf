/* The arithmetic, written once over the sixteen lanes of simd.h and compiled for each instruction set.
 *
 * The order of every sum is fixed, so that the bits are the same however rows are batched or shared out:
 *  - a product sums x[i] * w[i] by fused multiply-add over i in ascending order, `BLOCK` terms from zero, and
 *    then adds these sums in ascending order; each output has a lane of its own;
 *  - in int8 and int4 the sum of a group is an exact integer, and the groups are added in ascending order;
 *  - attention is two such products, over the width of a head and over positions from 0; where keys and values
 *    are kept in 8 bits, a score is multiplied by its key's scale after the first, and a probability by its
 *    value's scale before the second;
 *  - a sum over a row (norms, softmax) runs over 16 lanes in ascending order, which are added as a fixed tree.
 */
#include "kernels.h"

#include "simd.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

/* Weights and keys come from main memory, one after the other: asked for some way ahead, a core gets half as much
 * again of them in a second as its own prefetching brings. */
#define AHEAD_BYTES 6144
#define AHEAD_INPUTS 24
/* Where one tile does not reach over all rows and columns, several passes read the same weights: so many bytes of a
 * panel at a time, which stay in the nearest cache together with those that follow. Each pass asks for its share of
 * what follows, so that memory is busy during all of them. (If the first pass waits for memory, and memory for the
 * others, 4 rows take 1.8 times as long, and if what follows is brought into the second cache only, 1.3 times.) */
#define NEAR_BYTES 8192
INLINE void ask_for(const void *p) { __builtin_prefetch(p, 0, 2); }
INLINE void ask_near(const void *p) { __builtin_prefetch(p, 0, 3); }

typedef vf (*load_function)(const void *);
INLINE vf load_f32(const void *p) { return v_load((const float *)p); }

/* The sum of a block may be interrupted: it is then kept in `part`, and goes on from there. */
enum { STARTS = 1, ENDS = 2, FIRST_BLOCK = 4, ASKS_NEAR = 8 };
#define TILE_ARGUMENTS                                                                                        \
    int type, int flags, float *c, size_t c_stride, float *part, const float *x, size_t x_stride,             \
        const char *w, size_t w_stride, int n, const char *ask, int asks_not
#define TILE_VALUES flags, c, c_stride, part, x, x_stride, w, w_stride, n, ask, asks_not

/* c[r, 16 j] = (+=) sum of x[r, i] * w[i, 16 j] over i < n <= BLOCK, for r < R rows and j < C vectors. A row of
 * weights after the other is asked for, from `ask` on, whenever i has none of the bits `asks_not`. */
INLINE void tile_body(const int R, const int C, load_function load, size_t element, int flags, float *c,
                      size_t c_stride, float *part, const float *x, size_t x_stride, const char *w, size_t w_stride,
                      int n, const char *ask, int asks_not) {
    vf sum[TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sum[r][j] = flags & STARTS ? v_set1(0) : v_load(part + r * PANEL + 16 * j);
    for (int i = 0; i < n; i++, w += w_stride) {
        vf weight[4];
        if (ask && !(i & asks_not)) {
            for (size_t line = 0; line < PANEL * element; line += 64)
                flags & ASKS_NEAR ? ask_near(ask + line) : ask_for(ask + line);
            ask += w_stride;
        }
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) weight[j] = load(w + 16 * element * (size_t)j);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vf wide = v_set1(x[(size_t)r * x_stride + (size_t)i]);
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) sum[r][j] = v_fma(wide, weight[j], sum[r][j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) {
            float *at = flags & ENDS ? c + (size_t)r * c_stride + 16 * j : part + r * PANEL + 16 * j;
            v_store(at, (flags & (ENDS | FIRST_BLOCK)) == ENDS ? v_add(v_load(at), sum[r][j]) : sum[r][j]);
        }
}

#define TILE(R, C)                                                                                            \
    switch (type) {                                                                                           \
    case GPT2_F32: tile_body(R, C, load_f32, 4, TILE_VALUES); break;                                          \
    case GPT2_F16: tile_body(R, C, v_load_f16, 2, TILE_VALUES); break;                                        \
    case GPT2_I8: tile_body(R, C, v_load_i8, 1, TILE_VALUES); break;                                          \
    default: tile_body(R, C, v_load_bf16, 2, TILE_VALUES);                                                    \
    }
#define TILES(R)                                                                                              \
    static void wide_tile_##R(TILE_ARGUMENTS) { TILE(R, TILE_COLUMNS(R)) }                                    \
    static void narrow_tile_##R(TILE_ARGUMENTS) { TILE(R, 1) }
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)

typedef void (*tile_function)(TILE_ARGUMENTS);
static const tile_function WIDE_TILES[TILE_ROWS + 1] = {0,           wide_tile_1, wide_tile_2, wide_tile_3,
                                                        wide_tile_4, wide_tile_5, wide_tile_6};
static const tile_function NARROW_TILES[TILE_ROWS + 1] = {0,             narrow_tile_1, narrow_tile_2, narrow_tile_3,
                                                          narrow_tile_4, narrow_tile_5, narrow_tile_6};

/* The rows of the next tile: one of a single row takes as long as one of two. */
static int tile_rows(int rows) { return rows == TILE_ROWS + 1 ? TILE_ROWS - 1 : rows < TILE_ROWS ? rows : TILE_ROWS; }

/* `tile_body` for any number of rows, and columns in vectors of 16. `ahead`: so many bytes ahead weights are asked
 * for where one pass reads them; 0 if they are in a cache. */
static void multiply_block(int rows, int vectors, int type, float *c, size_t c_stride, int first, float *part,
                           const float *x, size_t x_stride, const char *w, size_t w_stride, int n, size_t ahead) {
    size_t element = bytes_of(type);
    int passes = 0, asks_not = 0;
    for (int r = 0, tall; r < rows; r += tall) {
        tall = tile_rows(rows - r);
        passes += (vectors + TILE_COLUMNS(tall) - 1) / TILE_COLUMNS(tall);
    }
    while (2 * asks_not + 2 <= passes) asks_not = 2 * asks_not + 1;
    int at_once = passes > 1 && ahead ? NEAR_BYTES / (PANEL * (int)element) : n;
    /* Rows that lie apart fall on the same places of the nearest cache, and push each other out. */
    int nearest = passes > 1 && w_stride == PANEL * element ? ASKS_NEAR : 0;
    for (int i = 0; i < n; i += at_once) {
        int some = n - i < at_once ? n - i : at_once, pass = 0;
        int flags = (i == 0 ? STARTS : 0) | (i + some == n ? ENDS : 0) | (first ? FIRST_BLOCK : 0) | nearest;
        const char *here = w + (size_t)i * w_stride;
        for (int r = 0, tall; r < rows; r += tall) {
            tall = tile_rows(rows - r);
            for (int j = 0, wide; j < vectors; j += wide, pass++) {
                wide = vectors - j >= TILE_COLUMNS(tall) ? TILE_COLUMNS(tall) : 1;
                tile_function tile = wide > 1 ? WIDE_TILES[tall] : NARROW_TILES[tall];
                const char *ask = here + (passes > 1 ? (size_t)(some + some * pass / passes) * w_stride : ahead);
                tile(type, flags, c + (size_t)r * c_stride + 16 * j, c_stride, part + r * PANEL + 16 * j,
                     x + (size_t)r * x_stride + i, x_stride, here + 16 * element * (size_t)j, w_stride, some,
                     ahead ? ask : 0, asks_not);
            }
        }
    }
}

static float widened(int type, const void *p) {
    float x, lane[LANES];
    char bytes[2 * LANES] = {0};
    if (type == GPT2_F32) {
        memcpy(&x, p, 4);
        return x;
    }
    memcpy(bytes, p, 2);
    v_store(lane, type == GPT2_F16 ? v_load_f16(bytes) : v_load_bf16(bytes));
    return lane[0];
}

static void load_any(int type, const void *p, float *y) {
    switch (type) {
    case GPT2_F32: v_store(y, load_f32(p)); break;
    case GPT2_F16: v_store(y, v_load_f16(p)); break;
    case GPT2_I8: v_store(y, v_load_i8(p)); break;
    default: v_store(y, v_load_bf16(p));
    }
}

/* Inputs i..i+n of four outputs of a matrix [out, in], of which some may not be there, into four columns of a block. */
static void widen_four(const gpt2_matrix *w, int output, int present, int i, int n, float *block) {
    size_t element = bytes_of(w->type), stride = (size_t)w->in * element;
    const char *row = (const char *)w->data + (size_t)output * stride + (size_t)i * element;
    int k = 0;
    /* The next block of these outputs; after the last one, the first of those in the next panel. */
    size_t here = (size_t)i * element, size = (size_t)n * element;
    const char *next = i + n < w->in ? row + size : row - here + PANEL * stride;
    for (; present >= 4 && k + LANES <= n; k += LANES) {
        float lanes[4 * LANES];
        for (size_t c = 0; c < 4; c++) ask_for(next + c * stride + (size_t)k * element);
        const float *from = (const float *)row + k;
        size_t from_stride = (size_t)w->in;
        if (w->type != GPT2_F32) {
            for (size_t c = 0; c < 4; c++) load_any(w->type, row + c * stride + (size_t)k * element, lanes + c * LANES);
            from = lanes, from_stride = LANES;
        }
        for (int part = 0; part < LANES; part += 4)
            transpose4(from + part, from_stride, block + (k + part) * PANEL, PANEL);
    }
    for (; k < n; k++)
        for (int c = 0; c < 4; c++)
            block[k * PANEL + c] = c < present ? widened(w->type, row + (size_t)c * stride + (size_t)k * element) : 0;
}

/* Inputs i..i+n of a panel as fp32, [n, PANEL]; columns that the matrix does not have are zeros. */
static void widen_block(const gpt2_matrix *w, int panel, int i, int n, float *block) {
    size_t element = bytes_of(w->type);
    int columns = w->out - panel * PANEL < PANEL ? w->out - panel * PANEL : PANEL;
    const char *data = w->data;
    if (w->layout == GPT2_PANELS) {
        data += ((size_t)panel * (size_t)w->in + (size_t)i) * PANEL * element;
        for (int k = 0; k < n * PANEL / LANES; k++) load_any(w->type, data + (size_t)k * LANES * element, block + k * LANES);
    } else if (w->layout == GPT2_INPUTS) {
        for (int k = 0; k < n; k++, block += PANEL) {
            const char *row = data + ((size_t)(i + k) * (size_t)w->out + (size_t)panel * PANEL) * element;
            int c = 0;
            for (; c + LANES <= columns; c += LANES) load_any(w->type, row + (size_t)c * element, block + c);
            for (; c < columns; c++) block[c] = widened(w->type, row + (size_t)c * element);
            for (; c < PANEL; c++) block[c] = 0;
        }
    } else {
        for (int c = 0; c < PANEL; c += 4) widen_four(w, panel * PANEL + c, columns - c, i, n, block + c);
    }
}

static void multiply_floats(const gpt2_matrix *w, int panel, const float *x, size_t stride, int rows, scratch *s) {
    int whole = (panel + 1) * PANEL <= w->out;
    int direct = w->layout == GPT2_PANELS || (w->layout == GPT2_INPUTS && whole);
    size_t element = bytes_of(w->type), w_stride = (w->layout == GPT2_PANELS ? PANEL : (size_t)w->out) * element;
    const char *data = w->data;
    data += (w->layout == GPT2_PANELS ? (size_t)panel * (size_t)w->in : (size_t)panel) * PANEL * element;
    if (w->layout == GPT2_PANELS ? rows > WIDE_PANEL_ROWS && w->type != GPT2_F32 : rows > WIDE_ROWS) direct = 0;
    for (int i = 0; i < w->in; i += BLOCK) {
        int n = w->in - i < BLOCK ? w->in - i : BLOCK;
        if (direct) {
            multiply_block(rows, PANEL / LANES, w->type, s->tile, PANEL, i == 0, s->part, x + i, stride,
                           data + (size_t)i * w_stride, w_stride, n,
                           w->layout == GPT2_PANELS ? AHEAD_BYTES : AHEAD_INPUTS * w_stride);
        } else {
            widen_block(w, panel, i, n, s->block);
            multiply_block(rows, PANEL / LANES, GPT2_F32, s->tile, PANEL, i == 0, s->part, x + i, stride,
                           (char *)s->block, 4 * PANEL, n, 0);
        }
    }
}

/* Four inputs of all outputs of a panel lie together, in int4 eight: so many of these are gone through in one go. */
#define STRETCH 8

/* Groups of 64 inputs for R rows and C vectors of outputs: c += sx * sw * (sum of x * w), group after group. From `ask`
 * on, `share` bytes are asked for in each stretch. */
INLINE void dot_body(const int R, const int C, const int four_bits, const int offset, float *c, const uint8_t *w,
                     const char *scales, size_t group_bytes, const int8_t *x, size_t x_stride, const float *sx,
                     const int32_t *sums, size_t groups, int n, int first, const uint8_t *ask, int share) {
    vf sum[DOT_ROWS][4];
    const int eight = offset == 128, x_bytes = eight ? QUAD_BYTES : 4, steps = GROUP / 4 / (four_bits ? 2 : 1);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) sum[r][j] = first ? v_set1(0) : v_load(c + r * PANEL + 16 * j);
    for (int g = 0; g < n; g++, w += group_bytes, scales += group_bytes, x += GROUP / 4 * x_bytes) {
        vi dot[DOT_ROWS][4];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) dot[r][j] = i_start(offset, sums[(size_t)r * groups + (size_t)g]);
        for (int some = 0; some < steps; some += STRETCH, ask += share) {
            for (int line = 0; line < share; line += 64)
                C == PANEL / LANES ? ask_for(ask + line) : ask_near(ask + line);
#pragma GCC unroll 1
            for (int k = some; k < some + STRETCH; k++) {
                vi byte[4];
#pragma GCC unroll 4
                for (int j = 0; j < C; j++) byte[j] = i_load(w + 4 * PANEL * k + 64 * j);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    const int8_t *quad = x + (size_t)r * x_stride + x_bytes * k;
#pragma GCC unroll 4
                    for (int j = 0; j < C; j++)
                        if (four_bits) /* a byte holds inputs of quads k and k + 8 */
                            dot[r][j] = i_dot4(i_dot4(dot[r][j], i_low(byte[j]), quad), i_high(byte[j]),
                                               quad + GROUP / 2);
                        else
                            dot[r][j] = eight ? i_dot8(dot[r][j], byte[j], quad) : i_dot4(dot[r][j], byte[j], quad);
                }
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) {
            vf scale = v_load_bf16(scales + 32 * j);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                vf both = v_mul(v_set1(sx[(size_t)r * groups + (size_t)g]), scale);
                sum[r][j] = v_fma(i_float(dot[r][j]), both, sum[r][j]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) v_store(c + r * PANEL + 16 * j, sum[r][j]);
}

enum { EIGHT, FOUR, FOUR_UNPACKED };
#define DOT_ARGUMENTS                                                                                         \
    int kind, float *c, const uint8_t *w, const char *scales, size_t group_bytes, const int8_t *x,            \
        size_t x_stride, const float *sx, const int32_t *sums, size_t groups, int n, int first,               \
        const uint8_t *ask, int share
#define DOT_VALUES c, w, scales, group_bytes, x, x_stride, sx, sums, groups, n, first, ask, share
#define DOT(R)                                                                                                \
    static void dot_##R(DOT_ARGUMENTS) {                                                                      \
        if (kind == EIGHT)                                                                                    \
            dot_body(R, DOT_COLUMNS(R), 0, 128, DOT_VALUES);                                                  \
        else if (kind == FOUR)                                                                                \
            dot_body(R, DOT_COLUMNS(R), 1, 8, DOT_VALUES);                                                    \
        else                                                                                                  \
            dot_body(R, DOT_COLUMNS(R), 0, 8, DOT_VALUES);                                                    \
    }
DOT(1)
#if DOT_ROWS > 1
DOT(2)
#else
#define dot_2 dot_1
#endif
#if DOT_ROWS > 2
DOT(3)
#else
#define dot_3 dot_2
#endif
typedef void (*dot_function)(DOT_ARGUMENTS);
static const dot_function DOTS[] = {0, dot_1, dot_2, dot_3};

static void multiply_integers(const gpt2_matrix *w, int panel, const quantised *q, int row, int rows, scratch *s) {
    size_t inputs = round_up((size_t)w->in, GROUP), groups = inputs / GROUP;
    size_t group_bytes = w->type == GPT2_Q8 ? Q8_GROUP_BYTES : Q4_GROUP_BYTES;
    const uint8_t *data = (const uint8_t *)w->data + (size_t)panel * groups * group_bytes;
    int passes = 0;
    for (int r = 0, some; r < rows; r += some) {
        some = rows - r < DOT_ROWS ? rows - r : DOT_ROWS;
        passes += PANEL / LANES / DOT_COLUMNS(some);
    }
    int share = (int)round_up((size_t)(STRETCH * 4 * PANEL / passes), 64);
    size_t at_once = passes > 1 ? GROUPS_AT_ONCE : MOST_GROUPS;
    for (size_t g = 0; g < groups; g += at_once) {
        int n = (int)(groups - g < at_once ? groups - g : at_once), pass = 0;
        int kind = w->type == GPT2_Q8 ? EIGHT : FOUR;
        const uint8_t *here = data + g * group_bytes, *values = here;
        const char *scales = (const char *)values + group_bytes - 2 * PANEL;
        size_t step = group_bytes;
        if (kind == FOUR && rows > DOT_ROWS) { /* unpacked once for all rows, in the same layout as 8 bits */
            uint8_t *wide = (uint8_t *)s->block;
            for (int k = 0; k < n; k++) {
                const uint8_t *from = values + (size_t)k * group_bytes;
                uint8_t *to = wide + (size_t)k * Q8_GROUP_BYTES;
                for (int v = 0; v < GROUP * PANEL / 2 / 64; v++) {
                    vi pair = i_load(from + 64 * v);
                    i_store(to + 64 * v, i_low(pair));
                    i_store(to + GROUP * PANEL / 2 + 64 * v, i_high(pair));
                }
                memcpy(to + GROUP * PANEL, from + GROUP * PANEL / 2, 2 * PANEL);
            }
            kind = FOUR_UNPACKED, values = wide, step = Q8_GROUP_BYTES;
            scales = (const char *)wide + GROUP * PANEL;
        }
        const int8_t *x = q->values + (size_t)row * inputs + g * GROUP;
        size_t x_stride = inputs;
#if QUAD_BYTES > 4
        if (kind == EIGHT) {
            x_stride = at_once * GROUP / 4 * QUAD_BYTES;
            for (int r = 0; r < rows; r++)
                for (int k = 0; k < n * GROUP; k += 32)
                    i_widen(x + (size_t)r * inputs + k, s->inputs + (size_t)r * x_stride + k / 4 * QUAD_BYTES);
            x = s->inputs;
        }
#endif
        for (int r = 0, some; r < rows; r += some) {
            some = rows - r < DOT_ROWS ? rows - r : DOT_ROWS;
            size_t at = (size_t)(row + r);
            for (int j = 0; j < PANEL / LANES; j += DOT_COLUMNS(some), pass++) {
                int ahead = passes > 1 ? n * (int)group_bytes * (passes + pass) / passes : AHEAD_BYTES;
                DOTS[some](kind, s->tile + (size_t)r * PANEL + 16 * j, values + 64 * j, scales + 32 * j, step,
                           x + (size_t)r * x_stride, x_stride, q->scales + at * groups + g,
                           q->sums + at * groups + g, groups, n, g == 0, here + ahead, share);
            }
        }
    }
}

static void multiply(const gpt2_matrix *w, int panel, const float *x, size_t stride, const quantised *q, int row,
                     int rows, scratch *s) {
    if (w->type == GPT2_Q8 || w->type == GPT2_Q4)
        multiply_integers(w, panel, q, row, rows, s);
    else
        multiply_floats(w, panel, x + (size_t)row * stride, stride, rows, s);
}

static void normalise(const float *x, int width, const float *weight, const float *bias, float epsilon, float *y) {
    vf total = v_set1(0), squares = v_set1(0);
    for (int i = 0; i < width; i += LANES) total = v_add(total, v_first(v_load(x + i), width - i));
    vf mean = v_set1(v_sum(total) / (float)width);
    for (int i = 0; i < width; i += LANES) {
        vf centred = v_first(v_sub(v_load(x + i), mean), width - i);
        squares = v_fma(centred, centred, squares);
    }
    vf scale = v_set1(1.0f / sqrtf(v_sum(squares) / (float)width + epsilon));
    int i = 0;
    for (; i < width; i += LANES) {
        vf centred = v_mul(v_sub(v_load(x + i), mean), scale);
        v_store(y + i, v_first(v_fma(centred, v_load(weight + i), v_load(bias + i)), width - i));
    }
    for (; i % PANEL; i += LANES) v_store(y + i, v_set1(0));
}

static void quantise(const float *x, int width, int8_t *values, float *scales, int32_t *sums) {
    for (int g = 0; g * GROUP < width; g++) {
        const float *part = x + g * GROUP;
        vf most = v_set1(0), zeros = v_set1(0);
        for (int i = 0; i < GROUP; i += LANES) {
            vf value = v_first(v_load(part + i), width - g * GROUP - i);
            most = v_max(v_max(value, v_sub(v_set1(0), value)), most);
            zeros = v_fma(value, v_set1(0), zeros);
        }
        float largest = v_most(most), zero = v_sum(zeros);
        /* Below this the reciprocal is no number. */
        float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i += LANES) {
            vf value = v_mul(v_first(v_load(part + i), width - g * GROUP - i), v_set1(inverse));
            v_store_i8(values + g * GROUP + i, v_min(v_max(value, v_set1(-127)), v_set1(127)));
        }
        for (int i = 0; i < GROUP; i++) sum += values[g * GROUP + i];
        /* Where a value is infinite or no number, 0 times it is no number, and so the scale. */
        scales[g] = zero != 0 ? zero : inverse > 0 ? largest / 127.0f : 0.0f;
        sums[g] = sum;
    }
}

/* e^x: Cody and Waite's reduction, then a polynomial of Cephes; 2 units in the last place. */
INLINE vf v_exp(vf x) {
    x = v_min(v_max(x, v_set1(-87.0f)), v_set1(88.0f));
    vf shifted = v_fma(x, v_set1(1.44269504088896341f), v_set1(12582912.0f));
    vf n = v_sub(shifted, v_set1(12582912.0f));
    vf r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set1(1.0f));
    return v_scale2(p, shifted);
}

INLINE vf v_abs(vf x) { return v_max(x, v_sub(v_set1(0), x)); }

INLINE vf v_tanh(vf x) { /* near 0 a polynomial of Cephes, elsewhere 1 - 2 / (e^2x + 1) */
    vf square = v_mul(x, x), size = v_abs(x);
    vf p = v_set1(-5.70498872745e-3f);
    p = v_fma(p, square, v_set1(2.06390887954e-2f));
    p = v_fma(p, square, v_set1(-5.37397155531e-2f));
    p = v_fma(p, square, v_set1(1.33314422036e-1f));
    p = v_fma(p, square, v_set1(-3.33332819422e-1f));
    vf near = v_fma(v_mul(p, square), x, x);
    vf far = v_sub(v_set1(1), v_div(v_set1(2), v_add(v_exp(v_add(x, x)), v_set1(1))));
    return v_where_greater(size, v_set1(0.625f), far, near);
}

/* The error function: up to 1 x times a polynomial of Cephes in x^2; above, 1 - t e^(P(t) - x^2) with
 * t = 1 / (1 + x / 2) (Numerical Recipes, erfcc: relative error below 1.2e-7). */
INLINE vf v_erf(vf x) {
    vf square = v_mul(x, x), size = v_abs(x);
    vf p = v_set1(7.853861353153693e-5f);
    p = v_fma(p, square, v_set1(-8.010193625184903e-4f));
    p = v_fma(p, square, v_set1(5.188327685732524e-3f));
    p = v_fma(p, square, v_set1(-2.685381193529856e-2f));
    p = v_fma(p, square, v_set1(1.128358514861418e-1f));
    p = v_fma(p, square, v_set1(-3.761262582423300e-1f));
    p = v_fma(p, square, v_set1(1.128379165726710f));
    vf near = v_mul(p, x);
    static const float coefficient[10] = {0.17087277f, -0.82215223f, 1.48851587f,  -1.13520398f, 0.27886807f,
                                          -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f,  -1.26551223f};
    vf t = v_div(v_set1(1), v_fma(size, v_set1(0.5f), v_set1(1)));
    vf q = v_set1(coefficient[0]);
    for (int i = 1; i < 10; i++) q = v_fma(q, t, v_set1(coefficient[i]));
    vf rest = v_mul(t, v_exp(v_sub(q, square)));
    vf far = v_sub(v_set1(1), rest);
    far = v_where_greater(v_set1(0), x, v_sub(v_set1(0), far), far);
    return v_where_greater(size, v_set1(1), far, near);
}

INLINE vf v_sigmoid(vf x) { return v_div(v_set1(1), v_add(v_set1(1), v_exp(v_sub(v_set1(0), x)))); }

INLINE vf activated(int activation, vf x) {
    switch (activation) {
    case GPT2_GELU_NEW: { /* x (1 + tanh z) / 2 = x sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3) */
        vf twice = v_mul(x, v_fma(v_mul(x, x), v_set1(0.0713548162726f), v_set1(1.59576912161f)));
        return v_mul(x, v_sigmoid(twice));
    }
    case GPT2_GELU:
        return v_mul(v_mul(x, v_set1(0.5f)), v_add(v_set1(1), v_erf(v_mul(x, v_set1(0.70710678118f)))));
    case GPT2_RELU: return v_max(x, v_set1(0));
    case GPT2_SILU: return v_mul(x, v_sigmoid(x));
    default: return v_tanh(x);
    }
}

static void activate(int activation, float *x, const float *bias) {
    for (int i = 0; i < PANEL; i += LANES)
        v_store(x + i, activated(activation, v_add(v_load(x + i), v_load(bias + i))));
}

/* The softmax of scale * scores[0..n], not yet divided by the sum, which is returned; zeros up to a multiple of 64. */
static float softmax(float *scores, int n, float scale) {
    vf most = v_set1(-INFINITY), total = v_set1(0), factor = v_set1(scale);
    int whole = n / LANES * LANES, end = (int)round_up((size_t)n, PANEL);
    for (int i = 0; i < whole; i += LANES) {
        vf score = v_mul(v_load(scores + i), factor);
        v_store(scores + i, score);
        most = v_max(score, most);
    }
    float largest = v_most(most);
    for (int i = whole; i < n; i++) {
        scores[i] *= scale;
        largest = scores[i] > largest ? scores[i] : largest;
    }
    for (int i = 0; i < end; i += LANES) {
        vf p = v_set1(0);
        if (i < n) p = v_first(v_exp(v_sub(v_load(scores + i), v_set1(largest))), n - i);
        v_store(scores + i, p);
        total = v_add(total, p);
    }
    return v_sum(total);
}

/* x[i] *= scales[i] for i < n, and up to the next multiple of 16, where there is memory and scales are finite. */
static void scale_each(float *x, const float *scales, int n) {
    for (int i = 0; i < n; i += LANES) v_store(x + i, v_mul(v_load(x + i), v_load(scales + i)));
}

/* The same for probabilities; those that are next to nothing become 0, for below the normal numbers processors
 * are slow. */
static void scale_probabilities(float *x, const float *scales, int n) {
    for (int i = 0; i < n; i += LANES) {
        vf p = v_mul(v_load(x + i), v_load(scales + i));
        v_store(x + i, v_where_greater(p, v_set1(1e-30f), p, v_set1(0)));
    }
}

static void attend(int cache_type, head_cache cache, const float *q, size_t stride, int rows, int position, int width,
                   float scale, size_t score_stride, scratch *s) {
    size_t element = bytes_of(cache_type), padded = round_up((size_t)width, LANES);
    int seen = position + rows, type = cache_type;
    const char *keys = cache.keys, *values = cache.values;
    for (int at = 0; at < seen; at += PANEL, keys += (size_t)width * PANEL * element)
        for (int i = 0; i < width; i += BLOCK) {
            int n = width - i < BLOCK ? width - i : BLOCK;
            const char *block = keys + (size_t)i * PANEL * element;
            type = cache_type;
            if (rows > WIDE_ROWS && cache_type != GPT2_F32) {
                for (int k = 0; k < n * PANEL / LANES; k++)
                    load_any(cache_type, block + (size_t)k * LANES * element, s->block + k * LANES);
                block = (char *)s->block, type = GPT2_F32;
            }
            /* Queries before this block of positions do not look at it. */
            int skipped = at > position ? (at - position) / TILE_ROWS * TILE_ROWS : 0;
            multiply_block(rows - skipped, PANEL / LANES, type, s->scores + (size_t)skipped * score_stride + at,
                           score_stride, i == 0, s->part, q + (size_t)skipped * stride + i, stride, block,
                           PANEL * bytes_of(type), n, type == cache_type ? AHEAD_BYTES : 0);
        }
    float sums[QUERY_ROWS];
    for (int r = 0; r < rows; r++) {
        float *row = s->scores + (size_t)r * score_stride;
        if (cache_type == GPT2_I8) scale_each(row, cache.key_scales, position + r + 1);
        sums[r] = softmax(row, position + r + 1, scale);
        if (cache_type == GPT2_I8) scale_probabilities(row, cache.value_scales, position + r + 1);
        for (size_t i = round_up((size_t)(position + r + 1), PANEL); i < round_up((size_t)seen, PANEL); i += LANES)
            v_store(row + i, v_set1(0));
    }
    for (int at = 0; at < seen; at += BLOCK)
        for (size_t column = 0; column < padded; column += PANEL) {
            size_t vectors = (padded - column < PANEL ? padded - column : PANEL) / LANES, w_stride = padded * element;
            int n = seen - at < BLOCK ? seen - at : BLOCK;
            const char *block = values + ((size_t)at * padded + column) * element;
            type = cache_type;
            if (rows > WIDE_ROWS && cache_type != GPT2_F32) {
                for (int k = 0; k < n; k++)
                    for (size_t j = 0; j < vectors; j++)
                        load_any(cache_type, block + (size_t)k * w_stride + j * LANES * element,
                                 s->block + ((size_t)k * vectors + j) * LANES);
                block = (char *)s->block, type = GPT2_F32, w_stride = vectors * LANES * 4;
            }
            multiply_block(rows, (int)vectors, type, s->context + column, padded, at == 0, s->part, s->scores + at,
                           score_stride, block, w_stride, n, type == cache_type ? AHEAD_BYTES : 0);
        }
    for (int r = 0; r < rows; r++)
        for (size_t i = 0; i < padded; i += LANES) {
            float *at = s->context + (size_t)r * padded + i;
            v_store(at, v_div(v_load(at), v_set1(sums[r])));
        }
}

static void widen(int type, const void *row, int width, float *y, int add) {
    size_t element = bytes_of(type);
    int i = 0;
    for (; i < width; i++) {
        if (i + LANES <= width) {
            float lane[LANES];
            load_any(type, (const char *)row + (size_t)i * element, lane);
            v_store(y + i, add ? v_add(v_load(y + i), v_load(lane)) : v_load(lane));
            i += LANES - 1;
        } else {
            float value = widened(type, (const char *)row + (size_t)i * element);
            y[i] = add ? y[i] + value : value;
        }
    }
    for (; i % PANEL; i++) y[i] = 0;
}

/* What does not fit becomes the largest that does: an infinite value would reach rows before it, as 0 times it. */
static void narrow(const float *x, void *y, int n) {
    for (int i = 0; i < n; i += LANES) {
        float lane[LANES] = {0};
        char half[2 * LANES];
        int some = n - i < LANES ? n - i : LANES;
        memcpy(lane, x + i, sizeof(float) * (size_t)some);
        v_store_f16(half, v_min(v_set1(65504), v_max(v_set1(-65504), v_load(lane))));
        memcpy((char *)y + 2 * i, half, 2 * (size_t)some);
    }
}

static float narrow_head(const float *x, int8_t *y) {
    vf value[PANEL / LANES], most = v_set1(0);
    for (int i = 0; i < PANEL / LANES; i++) {
        /* As in `narrow`. */
        value[i] = v_min(v_set1(65504), v_max(v_set1(-65504), v_load(x + i * LANES)));
        most = v_max(v_abs(value[i]), most);
    }
    float largest = v_most(most), inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    for (int i = 0; i < PANEL / LANES; i++) {
        vf scaled = v_mul(value[i], v_set1(inverse));
        v_store_i8(y + i * LANES, v_min(v_max(scaled, v_set1(-127)), v_set1(127)));
    }
    return inverse > 0 ? largest / 127.0f : 0.0f;
}

const kernels JOIN(gpt2_kernels_, GPT2_ISA) = {
    TEXT(GPT2_ISA), multiply, normalise, quantise, activate, attend, widen, narrow, narrow_head,
};
