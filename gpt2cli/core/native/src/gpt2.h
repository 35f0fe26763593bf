/* The library's interface: what `library.py` declares again for ctypes. Everything that is passed was checked
 * in Python; the library trusts nothing but the sizes of these structs, which `gpt2_open` is given. */
#ifndef GPT2_H
#define GPT2_H

#include <stdint.h>

#if defined(_WIN32)
#define GPT2_API __declspec(dllexport)
#else
#define GPT2_API __attribute__((visibility("default")))
#endif

#define GPT2_ABI 2
#define PANEL 64      /* outputs that a matrix keeps together */
#define GROUP 64      /* inputs that share a scale in int8 and int4 */
#define MAX_TOKENS 1024 /* of one forward pass */

enum gpt2_type { GPT2_F32, GPT2_F16, GPT2_BF16, GPT2_Q8, GPT2_Q4, GPT2_I8 };

/* How a matrix [in, out] lies in memory.
 * PANELS: 64 outputs after the other; within a panel, for each input, 64 values of F32, F16 or BF16. In Q8 and
 * Q4, for each group of 64 inputs, `GROUP_BYTES`: values, then 64 scales in BF16 (see convert.c).
 * INPUTS: [in, out] row by row, as GPT-2's Conv1D lies in a checkpoint. OUTPUTS: [out, in], as embeddings do. */
enum gpt2_layout { GPT2_PANELS, GPT2_INPUTS, GPT2_OUTPUTS };

enum gpt2_activation { GPT2_GELU_NEW, GPT2_GELU, GPT2_RELU, GPT2_SILU, GPT2_TANH };

typedef struct {
    const void *data;
    const float *bias; /* [out, rounded up to 64], zeros at the end; NULL for none */
    int32_t type, layout, in, out;
} gpt2_matrix;

typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias; /* [width, rounded up to 64], zeros at the end */
    gpt2_matrix c_attn, c_proj, mlp_fc, mlp_proj;
    float attention_scale;
    float reserved;
} gpt2_layer;

typedef struct {
    int32_t abi, size; /* GPT2_ABI, sizeof(gpt2_model) */
    int32_t layer_size, vocab, positions, width, layers, heads, inner, activation;
    int32_t cache_type;           /* of keys and values: F32 or F16; I8 only with heads of 64 */
    int32_t wte_type, wpe_type;   /* F32, F16 or BF16 */
    float epsilon;
    const void *wte, *wpe;        /* [vocab, width], [positions, width] */
    const float *ln_f_weight, *ln_f_bias;
    const gpt2_layer *layer;      /* [layers] */
    gpt2_matrix head;
} gpt2_model;

typedef struct gpt2 gpt2;

GPT2_API int32_t gpt2_abi(void);
/* The names of the instruction sets that this processor runs, best first, separated by spaces. */
GPT2_API const char *gpt2_instruction_sets(void);
/* NULL where memory does not suffice or the struct is of another version. ``name`` is one of the above. */
GPT2_API gpt2 *gpt2_open(const gpt2_model *model, int32_t threads, const char *name);
GPT2_API void gpt2_close(gpt2 *engine);
/* A slot with room for ``positions`` tokens, taken from the system as they are written; -1 without memory. */
GPT2_API int32_t gpt2_new_slot(gpt2 *engine);
GPT2_API void gpt2_free_slot(gpt2 *engine, int32_t slot);
GPT2_API void gpt2_copy_slot(gpt2 *engine, int32_t from, int32_t to, int32_t tokens);
/* One forward pass over n <= MAX_TOKENS tokens; ``logits`` [wanted_count, vocab]. */
GPT2_API void gpt2_forward(gpt2 *engine, int32_t n, const int32_t *tokens, const int32_t *slots,
                           const int32_t *positions, int32_t wanted_count, const int32_t *wanted, float *logits);

/* Conversion (convert.c): bytes of a matrix in panels of ``type``, and writing panels first <= p < last of it.
 * ``source`` is [in, out] (INPUTS) or [out, in] (OUTPUTS) of F32, F16 or BF16. */
GPT2_API int64_t gpt2_panels_size(int32_t type, int32_t in, int32_t out);
GPT2_API void gpt2_convert(int32_t type, int32_t in, int32_t out, int32_t source_type, int32_t source_layout,
                           const void *source, int32_t first, int32_t last, void *target);
/* 1 if all n values are finite; ``largest`` is the largest magnitude. */
GPT2_API int32_t gpt2_finite(int32_t type, int64_t n, const void *values, float *largest);

#endif
