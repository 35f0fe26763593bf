/* Which of the compiled instruction sets this processor and system run. */
#include "gpt2.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

int32_t gpt2_abi(void) { return GPT2_ABI; }

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>

/* What the operating system saves of the registers when it switches threads. */
static uint64_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

const char *gpt2_instruction_sets(void) {
    static const char *const names[] = {"portable", "avx2 portable", "avx2vnni avx2 portable",
                                        "avx512 avx2 portable", "avx512 avx2vnni avx2 portable"};
    uint32_t a, b, c, d, b7 = 0, c7 = 0, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return names[0];
    int osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1, avx = c >> 28 & 1;
    if (!osxsave || !avx || (saved_state() & 6) != 6) return names[0];
    if (__get_cpuid_count(7, 0, &a, &b7, &c7, &d) && a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    int avx2 = (b7 >> 5 & 1) && fma && f16c;
    /* avx512f, dq, bw, vl and vnni, and all registers saved */
    int avx512 = avx2 && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1) && (c7 >> 11 & 1) &&
                 (saved_state() & 0xE6) == 0xE6;
    int vnni = avx2 && (a71 >> 4 & 1);
    return names[!avx2 ? 0 : 1 + vnni + 2 * avx512];
}
#elif defined(__aarch64__)
const char *gpt2_instruction_sets(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & (1 << 20) ? "neon portable" : "portable"; /* HWCAP_ASIMDDP */
#else
    return "neon portable"; /* every Apple and Windows machine has dot products */
#endif
}
#else
const char *gpt2_instruction_sets(void) { return "portable"; }
#endif
