/* Threads that work through a program: operations one after the other, each cut into pieces.
 *
 * Whoever finishes the last piece of an operation opens the next one, so that no thread waits for a certain
 * other one. A piece computes into memory of its thread, and then commits: of two threads that computed the same
 * piece one is let through to write. So a thread that finds nothing left to do takes over the pieces of threads
 * that the system has put to sleep, and a core that another program holds slows the others and does not stop
 * them. Both compute the same bits.
 */
#ifndef GPT2_POOL_H
#define GPT2_POOL_H

#include <stdint.h>

#define MAX_PIECES 32768

typedef struct pool pool;

typedef struct {
    /* How many pieces operation ``serial`` has. */
    int (*pieces)(void *context, uint64_t serial);
    /* Compute a piece in the memory of ``thread``; nothing that others see is written. Between the call and what
     * it reads the operation may have been finished by others: where `pool_is_open` denies, it returns at once. */
    void (*compute)(void *context, uint64_t serial, int piece, int thread);
    /* Write what `compute` has left in the memory of ``thread``. */
    void (*write)(void *context, uint64_t serial, int piece, int thread);
} program;

/* Threads besides the caller's are started at the first `pool_run`, of this process or of one that was forked off it.
 * NULL without memory. */
pool *pool_new(int threads, const program *work, void *context);
void pool_free(pool *p);
/* Run the operations from ``first`` to before ``end``; ``first`` is where the last run ended (at first 1). */
void pool_run(pool *p, uint64_t first, uint64_t end);
int pool_is_open(const pool *p, uint64_t serial);

#endif
