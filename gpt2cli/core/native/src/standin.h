/* A stand-in for the engine's sources, so that the build has something to build. */
#ifndef GPT2_STANDIN_H
#define GPT2_STANDIN_H

#if defined(_WIN32)
#define GPT2_API __declspec(dllexport)
#else
#define GPT2_API __attribute__((visibility("default")))
#endif

typedef struct {
    const char *name;
    float (*dot)(const float *a, const float *b, int n);
} gpt2_kernels;

extern const gpt2_kernels gpt2_kernels_portable;
#ifdef __x86_64__
extern const gpt2_kernels gpt2_kernels_avx2;
#endif
#ifdef __x86_64__
extern const gpt2_kernels gpt2_kernels_avx2vnni;
#endif
#ifdef __x86_64__
extern const gpt2_kernels gpt2_kernels_avx512;
#endif
#ifdef __aarch64__
extern const gpt2_kernels gpt2_kernels_neon;
#endif

#endif
