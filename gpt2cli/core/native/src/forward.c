/* The forward pass as a program of operations, each cut into pieces that any thread may compute (pool.h).
 *
 * GPT-2, for each layer: x += c_proj(attention(c_attn(ln_1(x)))); x += mlp_proj(activation(mlp_fc(ln_2(x)))); at
 * last the logits are head(ln_f(x)). Where weights are int8 or int4, what goes into a product is first rounded to
 * 8 bits, row by row.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
/* Large memory is mapped, and taken from the system as it is written to; a sanitizer watches only what malloc gives. */
#if !defined(_WIN32) && !defined(__SANITIZE_ADDRESS__)
#define MAPPED
#include <sys/mman.h>
#endif

#include "kernels.h"
#include "pool.h"

#define MAX_SLOTS 8192
#define SPARE_ROWS 32
#define ROWS_AT_ONCE 8 /* the most rows of a piece that embeds, normalises or rounds */

enum { EMBED, GATHER, NORMALISE, ROUND, MULTIPLY, ATTEND };
enum { TO_CACHE, TO_RESIDUAL, TO_ACTIVATION, TO_LOGITS };

typedef struct {
    int32_t kind, pieces, rows, rows_at_once, layer;
    int32_t panels, panels_at_once, target; /* of MULTIPLY */
    const gpt2_matrix *matrix;
    const float *x, *weight, *bias;
    float *y;
    size_t x_stride, y_stride;
} operation;

typedef struct { int32_t row, count; } query_tile; /* rows that follow each other in one slot */
typedef struct { int32_t slot, position; } place;
typedef struct { char *memory; int used; } slot;

typedef struct {
    operation now; /* what `compute` worked on, for `write` */
    int valid;
    scratch memory;
} worker;

struct gpt2 {
    gpt2_model model;
    gpt2_layer *layer;
    const kernels *kernels;
    pool *pool;
    int threads, spare;
    worker *workers;
    operation *ring;
    uint64_t ring_mask, serial, writing;
    /* Rows: [MAX_TOKENS + SPARE_ROWS, width rounded up to 64] */
    float *x, *gathered, *normal, *q, *context, *inner;
    size_t width, inner_width;
    quantised rounded;
    int32_t tokens[MAX_TOKENS], wanted[MAX_TOKENS];
    place places[MAX_TOKENS + SPARE_ROWS], *asked; /* of all tokens; of those whose logits are wanted */
    query_tile tiles[MAX_TOKENS], asked_tiles[MAX_TOKENS];
    int32_t tile_count, asked_tile_count;
    size_t head_width, padded_head, keys_size, values_size, head_size, slot_size;
    slot slots[MAX_SLOTS];
};

/* ---------------------------------------------------------------- slots: keys and values */

static char *reserve(size_t size) { /* zeros */
#if defined(MAPPED)
    void *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? 0 : memory;
#else
    return calloc(1, size);
#endif
}

static void release(char *memory, size_t size) {
#if defined(MAPPED)
    if (memory) munmap(memory, size);
#else
    (void)size, free(memory);
#endif
}

/* A head's keys stand before its values, and in I8 the scales of both behind them. */
static head_cache cache_of(const gpt2 *g, int slot_number, int layer, int head) {
    size_t number = (size_t)layer * (size_t)g->model.heads + (size_t)head;
    char *keys = g->slots[slot_number].memory + number * g->head_size;
    const float *scales = (const float *)(keys + g->keys_size + g->values_size);
    return (head_cache){keys, keys + g->keys_size, scales, scales + round_up((size_t)g->model.positions, PANEL)};
}

int32_t gpt2_new_slot(gpt2 *g) {
    for (int n = 0; n < MAX_SLOTS; n++) {
        slot *s = &g->slots[n];
        if (s->used) continue;
        if (!s->memory && !(s->memory = reserve(g->slot_size))) return -1;
        s->used = 1;
        return n;
    }
    return -1;
}

/* The memory stays mapped, for a thread that was put to sleep may still read it; its pages go back. */
void gpt2_free_slot(gpt2 *g, int32_t number) {
    g->slots[number].used = 0;
#if defined(MAPPED) && defined(__linux__)
    madvise(g->slots[number].memory, g->slot_size, MADV_DONTNEED);
#endif
}

void gpt2_copy_slot(gpt2 *g, int32_t from, int32_t to, int32_t tokens) {
    size_t element = bytes_of(g->model.cache_type);
    size_t keys = round_up((size_t)tokens, PANEL) * g->head_width * element;
    size_t values = (size_t)tokens * g->padded_head * element;
    for (int layer = 0; layer < g->model.layers; layer++)
        for (int head = 0; head < g->model.heads; head++) {
            head_cache a = cache_of(g, from, layer, head), b = cache_of(g, to, layer, head);
            memcpy((char *)b.keys, a.keys, keys);
            memcpy((char *)b.values, a.values, values);
            if (g->model.cache_type != GPT2_I8) continue;
            memcpy((float *)b.key_scales, a.key_scales, sizeof(float) * (size_t)tokens);
            memcpy((float *)b.value_scales, a.value_scales, sizeof(float) * (size_t)tokens);
        }
}

/* Columns of a row of c_attn's output: the query is kept, the key and the value go into the slot. */
static void store_attention(gpt2 *g, int layer, int row, int column, const float *from, int n) {
    int width = g->model.width, each = (int)g->head_width;
    place at = g->places[row];
    while (n > 0) {
        int section = column / width, within = column % width, head = within / each, d = within % each;
        int run = each - d < n ? each - d : n;
        if (section == 0) {
            memcpy(g->q + (size_t)row * g->width + within, from, sizeof(float) * (size_t)run);
        } else {
            head_cache cache = cache_of(g, at.slot, layer, head);
            int type = g->model.cache_type;
            uint16_t half[PANEL];
            int8_t byte[PANEL];
            if (type == GPT2_F16) {
                g->kernels->narrow(from, half, run);
            } else if (type == GPT2_I8) { /* a head is a panel: all of it is here */
                float *scales = (float *)(section == 1 ? cache.key_scales : cache.value_scales);
                scales[at.position] = g->kernels->narrow_head(from, byte);
            }
            if (section == 1) {
                size_t block = (size_t)(at.position / PANEL) * g->head_width * PANEL, offset = (size_t)(at.position % PANEL);
                for (int i = 0; i < run; i++) {
                    size_t to = block + (size_t)(d + i) * PANEL + offset;
                    if (type == GPT2_F16) ((uint16_t *)cache.keys)[to] = half[i];
                    else if (type == GPT2_I8) ((int8_t *)cache.keys)[to] = byte[i];
                    else ((float *)cache.keys)[to] = from[i];
                }
            } else {
                size_t to = (size_t)at.position * g->padded_head + (size_t)d;
                if (type == GPT2_F16) memcpy((uint16_t *)cache.values + to, half, 2 * (size_t)run);
                else if (type == GPT2_I8) memcpy((int8_t *)cache.values + to, byte, (size_t)run);
                else memcpy((float *)cache.values + to, from, sizeof(float) * (size_t)run);
            }
        }
        column += run, from += run, n -= run;
    }
}

/* ---------------------------------------------------------------- pieces */

static int pieces_of(void *context, uint64_t serial) {
    gpt2 *g = context;
    return g->ring[serial & g->ring_mask].pieces;
}

typedef struct { int row, rows, panel, panels; } product_piece;

static product_piece product_part(const operation *o, int piece) {
    int across = (o->panels + o->panels_at_once - 1) / o->panels_at_once;
    product_piece p = {piece / across * o->rows_at_once, o->rows_at_once, piece % across * o->panels_at_once,
                       o->panels_at_once};
    if (p.rows > o->rows - p.row) p.rows = o->rows - p.row;
    if (p.panels > o->panels - p.panel) p.panels = o->panels - p.panel;
    return p;
}

/* A piece of ATTEND is a tile of queries and some heads. */
static void attend_part(const operation *o, int heads, int piece, int *tile, int *head, int *end) {
    int across = (heads + o->panels_at_once - 1) / o->panels_at_once;
    *tile = piece / across, *head = piece % across * o->panels_at_once;
    *end = *head + o->panels_at_once < heads ? *head + o->panels_at_once : heads;
}

static int some_rows(const operation *o, int piece) {
    int left = o->rows - piece * o->rows_at_once;
    return left < o->rows_at_once ? left : o->rows_at_once;
}

static void compute(void *context, uint64_t serial, int piece, int thread) {
    gpt2 *g = context;
    worker *w = &g->workers[thread];
    w->now = g->ring[serial & g->ring_mask];
    w->valid = pool_is_open(g->pool, serial);
    if (!w->valid) return;
    const operation *o = &w->now;
    if (o->kind == MULTIPLY) {
        product_piece p = product_part(o, piece);
        scratch memory = w->memory;
        for (int n = 0; n < p.panels; n++, memory.tile += (size_t)p.rows * PANEL)
            g->kernels->multiply(o->matrix, p.panel + n, o->x, o->x_stride, &g->rounded, p.row, p.rows, &memory);
    } else if (o->kind == ATTEND) {
        int tile, head, end;
        attend_part(o, g->model.heads, piece, &tile, &head, &end);
        int last = o->target;
        query_tile t = (last ? g->asked_tiles : g->tiles)[tile];
        place at = (last ? g->asked : g->places)[t.row];
        if (at.position + t.count > g->model.positions || t.count > QUERY_ROWS) return;
        scratch memory = w->memory;
        for (; head < end; head++, memory.context += QUERY_ROWS * g->padded_head) {
            int row = last ? g->wanted[t.row] : t.row;
            g->kernels->attend(g->model.cache_type, cache_of(g, at.slot, o->layer, head),
                               g->q + (size_t)row * g->width + (size_t)head * g->head_width, g->width, t.count,
                               at.position, (int)g->head_width, g->layer[o->layer].attention_scale,
                               round_up((size_t)g->model.positions, PANEL), &memory);
        }
    }
}

static void write_product(gpt2 *g, const operation *o, int piece, const float *tile) {
    product_piece p = product_part(o, piece);
    float padded[PANEL];
    for (int panel = p.panel; panel < p.panel + p.panels; panel++)
        for (int r = p.row; r < p.row + p.rows; r++, tile += PANEL) {
            const float *bias = o->bias ? o->bias + (size_t)panel * PANEL : 0;
            float *y = o->y + (size_t)r * o->y_stride + (size_t)panel * PANEL;
            int columns = o->matrix->out - panel * PANEL < PANEL ? o->matrix->out - panel * PANEL : PANEL;
            if (o->target == TO_LOGITS) {
                memcpy(y, tile, sizeof(float) * (size_t)columns);
            } else if (o->target == TO_ACTIVATION) {
                memcpy(y, tile, sizeof padded);
                g->kernels->activate(g->model.activation, y, bias);
            } else if (o->target == TO_RESIDUAL) {
                for (int c = 0; c < PANEL; c++) y[c] = y[c] + (tile[c] + bias[c]);
            } else {
                for (int c = 0; c < PANEL; c++) padded[c] = tile[c] + bias[c];
                store_attention(g, o->layer, r, panel * PANEL, padded, columns);
            }
        }
}

static void round_row(gpt2 *g, int row, const float *x, int width) {
    size_t inputs = round_up((size_t)width, GROUP), groups = inputs / GROUP;
    size_t r = (size_t)row;
    g->kernels->quantise(x, width, g->rounded.values + r * inputs, g->rounded.scales + r * groups,
                         g->rounded.sums + r * groups);
}

static void write_row(gpt2 *g, const operation *o, int row) {
    size_t r = (size_t)row;
    const gpt2_model *m = &g->model;
    const float *x = o->x ? o->x + r * o->x_stride : 0;
    float *y = o->y ? o->y + r * o->y_stride : 0;
    if (o->kind == EMBED) {
        const char *token = m->wte, *position = m->wpe;
        token += (size_t)g->tokens[row] * (size_t)m->width * bytes_of(m->wte_type);
        position += (size_t)g->places[row].position * (size_t)m->width * bytes_of(m->wpe_type);
        g->kernels->widen(m->wte_type, token, m->width, y, 0);
        g->kernels->widen(m->wpe_type, position, m->width, y, 1);
    } else if (o->kind == GATHER) {
        memcpy(y, o->x + (size_t)g->wanted[row] * o->x_stride, sizeof(float) * o->x_stride);
    } else if (o->kind == NORMALISE) {
        g->kernels->normalise(x, m->width, o->weight, o->bias, m->epsilon, y);
        if (o->target) round_row(g, row, y, m->width);
    } else {
        round_row(g, row, x, o->matrix->in);
    }
}

/* Small operations on rows are done here, and not ahead: they take less time than a copy is worth. */
static void write(void *context, uint64_t serial, int piece, int thread) {
    gpt2 *g = context;
    worker *w = &g->workers[thread];
    const operation *o = &w->now;
    (void)serial;
    if (o->kind == MULTIPLY) {
        write_product(g, o, piece, w->memory.tile);
    } else if (o->kind == ATTEND) {
        int tile, head, end;
        attend_part(o, g->model.heads, piece, &tile, &head, &end);
        query_tile t = (o->target ? g->asked_tiles : g->tiles)[tile];
        const float *from = w->memory.context;
        for (; head < end; head++, from += QUERY_ROWS * g->padded_head)
            for (int r = 0; r < t.count; r++)
                memcpy(g->context + (size_t)(t.row + r) * g->width + (size_t)head * g->head_width,
                       from + (size_t)r * g->padded_head, sizeof(float) * g->head_width);
    } else {
        int rows = some_rows(o, piece);
        for (int r = 0; r < rows; r++) write_row(g, o, piece * o->rows_at_once + r);
    }
}

/* ---------------------------------------------------------------- the program of one pass */

static int divide_up(int n, int by) { return (n + by - 1) / by; }

static void add(gpt2 *g, operation o) { g->ring[g->writing++ & g->ring_mask] = o; }

static void add_rows(gpt2 *g, operation o) {
    int fair = divide_up(o.rows, 2 * g->threads);
    o.rows_at_once = fair < 1 ? 1 : fair < ROWS_AT_ONCE ? fair : ROWS_AT_ONCE;
    o.pieces = divide_up(o.rows, o.rows_at_once);
    add(g, o);
}

static int integers(const gpt2_matrix *m) { return m->type == GPT2_Q8 || m->type == GPT2_Q4; }

static void add_product(gpt2 *g, int layer, int rows, const gpt2_matrix *matrix, const float *x, size_t x_stride,
                        float *y, size_t y_stride, int target) {
    operation o = {.kind = MULTIPLY, .rows = rows, .layer = layer, .panels = divide_up(matrix->out, PANEL),
                   .target = target, .matrix = matrix, .x = x, .bias = matrix->bias, .y = y, .x_stride = x_stride,
                   .y_stride = y_stride};
    if (!rows) return;
    int blocks = divide_up(rows, ROW_BLOCK);
    o.rows_at_once = (int)round_up((size_t)divide_up(rows, blocks), blocks > 1 ? TILE_ROWS : 1);
    /* Some pieces for each thread, none so small that handing them out counts. Of the largest matrix there are
     * 300,000 / 64 panels in 6 blocks of rows: fewer than MAX_PIECES. */
    size_t bytes = (size_t)gpt2_panels_size(matrix->type, matrix->in, PANEL);
    int enough = (int)((96 << 10) / (bytes * (size_t)o.rows_at_once + 1)) + 1;
    int most = ROW_BLOCK / o.rows_at_once, fair = o.panels / (3 * g->threads);
    o.panels_at_once = enough < most ? enough : most;
    if (o.panels_at_once > fair) o.panels_at_once = fair;
    if (o.panels_at_once < 1) o.panels_at_once = 1;
    o.pieces = divide_up(o.panels, o.panels_at_once) * divide_up(rows, o.rows_at_once);
    add(g, o);
}

static void add_norm(gpt2 *g, int rows, const float *x, const float *weight, const float *bias, const gpt2_matrix *next) {
    add_rows(g, (operation){.kind = NORMALISE, .rows = rows, .x = x, .weight = weight, .bias = bias, .y = g->normal,
                            .x_stride = g->width, .y_stride = g->width, .target = integers(next)});
}

static void add_rounding(gpt2 *g, int rows, const float *x, size_t stride, const gpt2_matrix *next) {
    if (integers(next))
        add_rows(g, (operation){.kind = ROUND, .rows = rows, .x = x, .x_stride = stride, .matrix = next});
}

static void add_attention(gpt2 *g, int layer, int tiles, int last) {
    operation o = {.kind = ATTEND, .layer = layer, .target = last, .panels_at_once = 1};
    while (tiles && divide_up(g->model.heads, o.panels_at_once) * tiles > MAX_PIECES) o.panels_at_once *= 2;
    o.pieces = tiles * divide_up(g->model.heads, o.panels_at_once);
    add(g, o);
}

static void add_layer(gpt2 *g, int number, int n, int wanted) {
    const gpt2_layer *layer = &g->layer[number];
    int last = number == g->model.layers - 1;
    float *x = g->x;
    add_norm(g, n, x, layer->ln_1_weight, layer->ln_1_bias, &layer->c_attn);
    add_product(g, number, n, &layer->c_attn, g->normal, g->width, g->q, g->width, TO_CACHE);
    if (last) { /* from here on only the rows count whose logits are wanted */
        n = wanted, x = g->gathered;
        add_rows(g, (operation){.kind = GATHER, .rows = n, .x = g->x, .y = x, .x_stride = g->width, .y_stride = g->width});
    }
    add_attention(g, number, last ? g->asked_tile_count : g->tile_count, last);
    add_rounding(g, n, g->context, g->width, &layer->c_proj);
    add_product(g, number, n, &layer->c_proj, g->context, g->width, x, g->width, TO_RESIDUAL);
    add_norm(g, n, x, layer->ln_2_weight, layer->ln_2_bias, &layer->mlp_fc);
    add_product(g, number, n, &layer->mlp_fc, g->normal, g->width, g->inner, g->inner_width, TO_ACTIVATION);
    add_rounding(g, n, g->inner, g->inner_width, &layer->mlp_proj);
    add_product(g, number, n, &layer->mlp_proj, g->inner, g->inner_width, x, g->width, TO_RESIDUAL);
}

/* Rows that follow each other in a slot, and so in the batch, in tiles whose rows share keys in the nearest cache. */
static int cut_tiles(const place *places, int n, query_tile *tiles) {
    int count = 0;
    for (int row = 0; row < n;) {
        int run = 1;
        while (row + run < n && places[row + run].slot == places[row].slot &&
               places[row + run].position == places[row].position + run)
            run++;
        for (int at = 0; at < run; at += QUERY_ROWS)
            tiles[count++] = (query_tile){row + at, run - at < QUERY_ROWS ? run - at : QUERY_ROWS};
        row += run;
    }
    return count;
}

void gpt2_forward(gpt2 *g, int32_t n, const int32_t *tokens, const int32_t *slots, const int32_t *positions,
                  int32_t wanted_count, const int32_t *wanted, float *logits) {
    memcpy(g->tokens, tokens, sizeof(int32_t) * (size_t)n);
    memcpy(g->wanted, wanted, sizeof(int32_t) * (size_t)wanted_count);
    for (int i = 0; i < n; i++) g->places[i] = (place){slots[i], positions[i]};
    for (int i = 0; i < wanted_count; i++) g->asked[i] = g->places[wanted[i]];
    g->tile_count = cut_tiles(g->places, n, g->tiles);
    g->asked_tile_count = cut_tiles(g->asked, wanted_count, g->asked_tiles);
    g->writing = g->serial;
    add_rows(g, (operation){.kind = EMBED, .rows = n, .y = g->x, .y_stride = g->width});
    for (int layer = 0; layer < g->model.layers; layer++) add_layer(g, layer, n, wanted_count);
    add_norm(g, wanted_count, g->gathered, g->model.ln_f_weight, g->model.ln_f_bias, &g->model.head);
    add_product(g, 0, wanted_count, &g->model.head, g->normal, g->width, logits, (size_t)g->model.vocab, TO_LOGITS);
    uint64_t first = g->serial;
    g->serial = g->writing;
    pool_run(g->pool, first, g->serial);
}

/* ---------------------------------------------------------------- opening and closing */

static const kernels *find_kernels(const char *name) {
    static const kernels *const all[] = {
#if defined(__x86_64__) || defined(_M_X64)
        &gpt2_kernels_avx512, &gpt2_kernels_avx2vnni, &gpt2_kernels_avx2,
#elif defined(__aarch64__)
        &gpt2_kernels_neon,
#endif
        &gpt2_kernels_portable,
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(all[i]->name, name)) return all[i];
    return 0;
}

static void *rows_of(size_t width, size_t element) { return reserve((MAX_TOKENS + SPARE_ROWS) * width * element); }

static int open_memory(gpt2 *g) {
    const gpt2_model *m = &g->model;
    size_t inner = g->inner_width, groups = (inner > g->width ? inner : g->width) / GROUP;
    size_t operations = 16;
    while (operations < 2 * (12 * (size_t)m->layers + 8)) operations *= 2;
    g->ring_mask = operations - 1;
    g->ring = calloc(operations, sizeof *g->ring);
    g->asked = calloc(MAX_TOKENS + SPARE_ROWS, sizeof *g->asked);
    g->x = rows_of(g->width, 4), g->gathered = rows_of(g->width, 4), g->normal = rows_of(g->width, 4);
    g->q = rows_of(g->width, 4), g->context = rows_of(g->width, 4), g->inner = rows_of(inner, 4);
    g->rounded.values = rows_of(groups * GROUP, 1);
    g->rounded.scales = rows_of(groups, 4), g->rounded.sums = rows_of(groups, 4);
    g->workers = calloc((size_t)g->threads, sizeof *g->workers);
    if (!g->ring || !g->asked || !g->x || !g->gathered || !g->normal || !g->q || !g->context || !g->inner ||
        !g->rounded.values || !g->rounded.scales || !g->rounded.sums || !g->workers)
        return 0;
    for (int thread = 0; thread < g->threads; thread++) {
        scratch *s = &g->workers[thread].memory;
        s->tile = (float *)reserve(sizeof(float) * ROW_BLOCK * PANEL);
        s->part = (float *)reserve(sizeof(float) * ROW_BLOCK * PANEL);
        s->inputs = (int8_t *)reserve(2 * ROW_BLOCK * GROUPS_AT_ONCE * GROUP);
        s->block = (float *)reserve(sizeof(float) * BLOCK * PANEL);
        s->scores = (float *)reserve(sizeof(float) * QUERY_ROWS * round_up((size_t)m->positions, PANEL));
        s->context = (float *)reserve(sizeof(float) * QUERY_ROWS * g->padded_head * (size_t)m->heads);
        if (!s->tile || !s->part || !s->inputs || !s->block || !s->scores || !s->context) return 0;
    }
    return 1;
}

gpt2 *gpt2_open(const gpt2_model *model, int32_t threads, const char *name) {
    if (model->abi != GPT2_ABI || model->size != (int32_t)sizeof *model || model->layer_size != (int32_t)sizeof(gpt2_layer))
        return 0;
    if (model->cache_type == GPT2_I8 && model->width != PANEL * model->heads) return 0;
    static const program work = {pieces_of, compute, write};
    gpt2 *g = (gpt2 *)calloc(1, sizeof *g);
    if (!g) return 0;
    g->model = *model, g->threads = threads, g->serial = 1;
    g->kernels = find_kernels(name);
    g->layer = calloc((size_t)model->layers, sizeof *g->layer);
    if (g->layer) memcpy(g->layer, model->layer, (size_t)model->layers * sizeof *g->layer);
    size_t element = bytes_of(model->cache_type), blocks = round_up((size_t)model->positions, PANEL);
    g->width = round_up((size_t)model->width, PANEL), g->inner_width = round_up((size_t)model->inner, PANEL);
    g->head_width = (size_t)(model->width / model->heads), g->padded_head = round_up(g->head_width, 16);
    g->keys_size = blocks * g->head_width * element;
    g->values_size = blocks * g->padded_head * element;
    g->head_size = g->keys_size + g->values_size + (model->cache_type == GPT2_I8 ? 2 * blocks * sizeof(float) : 0);
    g->slot_size = (size_t)model->layers * (size_t)model->heads * g->head_size;
    if (g->kernels && g->layer && open_memory(g)) g->pool = pool_new(threads, &work, g);
    if (g->pool) return g;
    gpt2_close(g);
    return 0;
}

void gpt2_close(gpt2 *g) {
    if (g->pool) pool_free(g->pool);
    size_t rows = MAX_TOKENS + SPARE_ROWS, inner = g->inner_width;
    size_t groups = (inner > g->width ? inner : g->width) / GROUP;
    float *wide[] = {g->x, g->gathered, g->normal, g->q, g->context};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) release((char *)wide[i], rows * g->width * 4);
    release((char *)g->inner, rows * inner * 4);
    release((char *)g->rounded.values, rows * groups * GROUP);
    release((char *)g->rounded.scales, rows * groups * 4), release((char *)g->rounded.sums, rows * groups * 4);
    for (int thread = 0; g->workers && thread < g->threads; thread++) {
        scratch *s = &g->workers[thread].memory;
        release((char *)s->tile, sizeof(float) * ROW_BLOCK * PANEL);
        release((char *)s->part, sizeof(float) * ROW_BLOCK * PANEL);
        release((char *)s->inputs, 2 * ROW_BLOCK * GROUPS_AT_ONCE * GROUP);
        release((char *)s->block, sizeof(float) * BLOCK * PANEL);
        release((char *)s->scores, sizeof(float) * QUERY_ROWS * round_up((size_t)g->model.positions, PANEL));
        release((char *)s->context, sizeof(float) * QUERY_ROWS * g->padded_head * (size_t)g->model.heads);
    }
    for (int n = 0; n < MAX_SLOTS; n++) release(g->slots[n].memory, g->slot_size);
    free(g->workers), free(g->ring), free(g->asked), free(g->layer), free(g);
}
