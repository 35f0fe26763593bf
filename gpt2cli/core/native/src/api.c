/* A stand-in: the products of each instruction set that was compiled and that this machine has. */
#include <stddef.h>

#include "standin.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <pthread.h>
#endif

static int has(int i) {
#if defined(__x86_64__)
    if (i == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (i == 3) return __builtin_cpu_supports("avx512vnni");
    return i == 0;
#else
    return i == 0 || i == 4;
#endif
}

static const gpt2_kernels *const all[] = {
    &gpt2_kernels_portable,
#ifdef __x86_64__
    &gpt2_kernels_avx2,
#else
    NULL,
#endif
#ifdef __x86_64__
    &gpt2_kernels_avx2vnni,
#else
    NULL,
#endif
#ifdef __x86_64__
    &gpt2_kernels_avx512,
#else
    NULL,
#endif
#ifdef __aarch64__
    &gpt2_kernels_neon,
#else
    NULL,
#endif
};

GPT2_API int gpt2_abi(void) { return 0; }
GPT2_API const char *gpt2_instruction_sets(void) { return "stand-in"; }

/* The i-th instruction set's name, NULL where it was not compiled. */
GPT2_API const char *gpt2_isa(int i) { return i < 5 && all[i] ? all[i]->name : NULL; }

/* Whether this machine can run the i-th. */
GPT2_API int gpt2_runs(int i) { return i < 5 && all[i] && has(i); }

typedef struct {
    const gpt2_kernels *kernels;
    const float *a, *b;
    float sum;
    int n;
} task;

#if defined(_WIN32)
static DWORD WINAPI work(void *argument) {
#else
static void *work(void *argument) {
#endif
    task *t = argument;
    t->sum = t->kernels->dot(t->a, t->b, t->n);
    return 0;
}

/* The product by the i-th, on a thread of its own. */
GPT2_API float gpt2_dot(int i, const float *a, const float *b, int n) {
    task t = {all[i], a, b, 0, n};
#if defined(_WIN32)
    HANDLE thread = CreateThread(NULL, 0, work, &t, 0, NULL);
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
#else
    pthread_t thread;
    pthread_create(&thread, NULL, work, &t);
    pthread_join(thread, NULL);
#endif
    return t.sum;
}
