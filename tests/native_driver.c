/* Runs models and steps from a file through the library, without Python: on another processor, which qemu plays,
 * and under the sanitizers. Every array has exactly the size that gpt2.h asks for, in memory of its own.
 *
 *   native_driver CASES INSTRUCTIONS THREADS
 *
 * prints the logits of every pass, as they lie in memory. `native_driver.py` writes the file: whole numbers are
 * int32 and all numbers little-endian.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpt2.h"

enum { NEW, FREE, COPY, PASS };

static FILE *file;

static void *memory(size_t size) {
    void *found = malloc(size ? size : 1);
    if (!found) exit(3);
    return found;
}

static void *bytes(size_t size) {
    void *found = memory(size);
    if (fread(found, 1, size, file) != size) exit(4);
    return found;
}

static int32_t whole(void) {
    int32_t number;
    if (fread(&number, 4, 1, file) != 1) exit(4);
    return number;
}

static int32_t *several(int32_t count) { return bytes(4 * (size_t)count); }

static size_t size_of(int32_t type) { return type == GPT2_F32 ? 4 : 2; }

static float *vector(int32_t length) { /* zeros behind it, up to a multiple of 64 */
    size_t padded = ((size_t)length + PANEL - 1) / PANEL * PANEL;
    float *found = memory(4 * padded);
    memset(found, 0, 4 * padded);
    if (fread(found, 4, (size_t)length, file) != (size_t)length) exit(4);
    return found;
}

/* In place, or converted to the type ``kept`` as Python's `pack` does it. */
static gpt2_matrix matrix(int has_bias) {
    int32_t type = whole(), layout = whole(), kept = whole(), in = whole(), out = whole();
    void *data = bytes((size_t)in * (size_t)out * size_of(type));
    if (kept >= 0) {
        void *packed = memory((size_t)gpt2_panels_size(kept, in, out));
        gpt2_convert(kept, in, out, type, layout, data, 0, (out + PANEL - 1) / PANEL, packed);
        free(data);
        data = packed, type = kept, layout = GPT2_PANELS;
    }
    return (gpt2_matrix){data, has_bias ? vector(out) : NULL, type, layout, in, out};
}

static void forget(gpt2_matrix m) { free((void *)m.data), free((void *)m.bias); }

static void read_layer(gpt2_layer *layer, int32_t width) {
    layer->ln_1_weight = vector(width), layer->ln_1_bias = vector(width);
    layer->ln_2_weight = vector(width), layer->ln_2_bias = vector(width);
    layer->c_attn = matrix(1), layer->c_proj = matrix(1), layer->mlp_fc = matrix(1), layer->mlp_proj = matrix(1);
    float *scale = bytes(4);
    layer->attention_scale = *scale;
    free(scale);
}

static void run_pass(gpt2 *engine, const int32_t *slot, int32_t vocab) {
    int32_t n = whole(), wanted_count = whole();
    int32_t *tokens = several(n), *slots = several(n), *positions = several(n), *wanted = several(wanted_count);
    for (int32_t i = 0; i < n; i++) slots[i] = slot[slots[i]];
    size_t size = 4 * (size_t)wanted_count * (size_t)vocab;
    float *logits = memory(size);
    gpt2_forward(engine, n, tokens, slots, positions, wanted_count, wanted, logits);
    fwrite(logits, 1, size, stdout);
    free(tokens), free(slots), free(positions), free(wanted), free(logits);
}

static void run_case(const char *instructions, int32_t threads) {
    gpt2_model model = {.abi = GPT2_ABI, .size = (int32_t)sizeof model, .layer_size = (int32_t)sizeof(gpt2_layer)};
    int32_t *n = several(10);
    model.vocab = n[0], model.positions = n[1], model.width = n[2], model.layers = n[3], model.heads = n[4];
    model.inner = n[5], model.activation = n[6], model.cache_type = n[7], model.wte_type = n[8], model.wpe_type = n[9];
    float *epsilon = bytes(4);
    model.epsilon = *epsilon;
    size_t width = (size_t)model.width;
    void *wte = bytes((size_t)model.vocab * width * size_of(model.wte_type));
    void *wpe = bytes((size_t)model.positions * width * size_of(model.wpe_type));
    float *ln_f_weight = vector(model.width), *ln_f_bias = vector(model.width);
    gpt2_layer *layers = memory((size_t)model.layers * sizeof *layers);
    for (int32_t i = 0; i < model.layers; i++) read_layer(&layers[i], model.width);
    model.wte = wte, model.wpe = wpe, model.ln_f_weight = ln_f_weight, model.ln_f_bias = ln_f_bias;
    model.layer = layers, model.head = matrix(0);

    gpt2 *engine = gpt2_open(&model, threads, instructions);
    if (!engine) exit(5);
    int32_t slot[64];
    for (int32_t steps = whole(); steps; steps--) {
        int32_t kind = whole();
        if (kind == NEW) {
            int32_t number = whole();
            slot[number] = gpt2_new_slot(engine);
        } else if (kind == FREE) {
            gpt2_free_slot(engine, slot[whole()]);
        } else if (kind == COPY) {
            int32_t from = whole(), to = whole();
            gpt2_copy_slot(engine, slot[from], slot[to], whole());
        } else {
            run_pass(engine, slot, model.vocab);
        }
    }
    gpt2_close(engine);

    for (int32_t i = 0; i < model.layers; i++) {
        gpt2_layer *l = &layers[i];
        free((void *)l->ln_1_weight), free((void *)l->ln_1_bias);
        free((void *)l->ln_2_weight), free((void *)l->ln_2_bias);
        forget(l->c_attn), forget(l->c_proj), forget(l->mlp_fc), forget(l->mlp_proj);
    }
    forget(model.head);
    free(n), free(epsilon), free(wte), free(wpe), free(ln_f_weight), free(ln_f_bias), free(layers);
}

int main(int count, char **arguments) {
    if (count != 4 || !(file = fopen(arguments[1], "rb"))) return 2;
    for (int32_t cases = whole(); cases; cases--) run_case(arguments[2], atoi(arguments[3]));
    fclose(file);
    return fflush(stdout) ? 6 : 0;
}
