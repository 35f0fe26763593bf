#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#if defined(_WIN32)
#include <windows.h>
typedef HANDLE thread_handle;
typedef SRWLOCK lock_type;
typedef CONDITION_VARIABLE signal_type;
#define lock_init(l) InitializeSRWLock(l)
#define lock_take(l) AcquireSRWLockExclusive(l)
#define lock_drop(l) ReleaseSRWLockExclusive(l)
#define signal_init(s) InitializeConditionVariable(s)
#define signal_wait(s, l) SleepConditionVariableSRW(s, l, INFINITE, 0)
#define signal_all(s) WakeAllConditionVariable(s)
#define give_way() SwitchToThread()
static double seconds(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now), QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart / (double)frequency.QuadPart;
}
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>
typedef pthread_t thread_handle;
typedef pthread_mutex_t lock_type;
typedef pthread_cond_t signal_type;
#define lock_init(l) pthread_mutex_init(l, 0)
#define lock_take(l) pthread_mutex_lock(l)
#define lock_drop(l) pthread_mutex_unlock(l)
#define signal_init(s) pthread_cond_init(s, 0)
#define signal_wait(s, l) pthread_cond_wait(s, l)
#define signal_all(s) pthread_cond_broadcast(s)
#define give_way() sched_yield()
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* A ticket is the operation's serial number and the next piece of it that nobody has taken. */
#define PIECE_BITS 20
#define PIECE_MASK ((1u << PIECE_BITS) - 1)

/* How long another thread's piece is waited for: some times what the fastest piece of the operation took, for all are
 * of about one size; and this long where none has ended yet. */
#define TAKE_OVER_S 40e-6
#define TAKE_OVER_TIMES 4
#define TAKE_OVER_UNKNOWN_S 1e-3
#define SPIN_S 300e-6 /* how long a thread without work stays awake */

struct pool {
    _Alignas(64) atomic_uint_least64_t ticket;
    _Alignas(64) atomic_uint_least64_t done;  /* committed pieces of the operation that is open */
    _Alignas(64) atomic_uint_least64_t end;   /* the serial number before which there is work */
    _Alignas(64) atomic_uint_least32_t fastest; /* nanoseconds, of a piece of the operation that is open; 0 unknown */
    _Alignas(64) atomic_int sleepers, stop;
    const program *work;
    void *context;
    int threads, started;
#if !defined(_WIN32)
    pid_t process; /* in which they were started */
#endif
    lock_type lock;
    signal_type wake;
    thread_handle *handles;
    struct seat { struct pool *pool; int thread; } *seats;
    atomic_uint_least64_t committed[MAX_PIECES]; /* the last serial number that the piece was committed for */
};

int pool_is_open(const pool *p, uint64_t serial) {
    return atomic_load((atomic_uint_least64_t *)&p->ticket) >> PIECE_BITS == serial;
}

/* Open the first operation from ``serial`` on that has pieces; where there is none, the run has ended. */
static void open_next(pool *p, uint64_t serial, uint64_t end) {
    while (serial < end && p->work->pieces(p->context, serial) == 0) serial++;
    atomic_store(&p->done, 0);
    atomic_store(&p->fastest, 0);
    atomic_store(&p->ticket, serial << PIECE_BITS);
}

static void note_time(pool *p, double took) {
    uint_least32_t now = (uint_least32_t)(took * 1e9) + 1, before = atomic_load(&p->fastest);
    if (!before || now < before) atomic_store(&p->fastest, now); /* of two at once either will do */
}

static double patience(pool *p) {
    uint_least32_t fastest = atomic_load(&p->fastest);
    return fastest ? TAKE_OVER_S + TAKE_OVER_TIMES * 1e-9 * (double)fastest : TAKE_OVER_UNKNOWN_S;
}

static void run_piece(pool *p, uint64_t serial, int piece, int pieces, int thread) {
    double started = seconds();
    p->work->compute(p->context, serial, piece, thread);
    uint_least64_t before = atomic_load(&p->committed[piece]);
    /* Only an operation that is still open has a piece that was not committed for it, or for a later one. */
    if (before >= serial || !atomic_compare_exchange_strong(&p->committed[piece], &before, serial)) return;
    note_time(p, seconds() - started);
    p->work->write(p->context, serial, piece, thread);
    if (atomic_fetch_add(&p->done, 1) + 1 == (uint64_t)pieces) open_next(p, serial + 1, atomic_load(&p->end));
}

static void work_until_end(pool *p, int thread) {
    double waiting_since = 0;
    int turns = 0, taken_over = 0;
    for (;;) {
        uint64_t ticket = atomic_load(&p->ticket), serial = ticket >> PIECE_BITS;
        int next = (int)(ticket & PIECE_MASK);
        if (serial >= atomic_load(&p->end)) return;
        int pieces = p->work->pieces(p->context, serial);
        if (next < pieces) {
            if (atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1)) {
                run_piece(p, serial, next, pieces, thread);
                waiting_since = 0, taken_over = 0;
            }
            continue;
        }
        relax();
        if (++turns % 64) continue;
        double now = seconds();
        if (waiting_since == 0) {
            waiting_since = now;
        } else if (now - waiting_since > patience(p)) {
            for (int piece = 0; piece < pieces && atomic_load(&p->ticket) == ticket; piece++)
                if (atomic_load(&p->committed[piece]) < serial) run_piece(p, serial, piece, pieces, thread);
            /* What is left now is being written by a thread that sleeps in the middle of it: very rare. */
            if (++taken_over > 4) give_way();
            waiting_since = 0;
        }
    }
}

#if defined(_WIN32)
static DWORD WINAPI thread_main(void *argument) {
#else
static void *thread_main(void *argument) {
#endif
    struct seat *seat = argument;
    pool *p = seat->pool;
    double idle_since = 0;
    int turns = 0;
    while (!atomic_load(&p->stop)) {
        if ((atomic_load(&p->ticket) >> PIECE_BITS) < atomic_load(&p->end)) {
            work_until_end(p, seat->thread);
            idle_since = 0;
            continue;
        }
        relax();
        if (++turns % 64) continue;
        double now = seconds();
        if (idle_since == 0) idle_since = now;
        if (now - idle_since < SPIN_S) continue;
        lock_take(&p->lock);
        atomic_fetch_add(&p->sleepers, 1);
        while (!atomic_load(&p->stop) && (atomic_load(&p->ticket) >> PIECE_BITS) >= atomic_load(&p->end))
            signal_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleepers, 1);
        lock_drop(&p->lock);
        idle_since = 0;
    }
    return 0;
}

/* A process that was forked off has the pool, and none of its threads, which may have held the lock. */
static void forget_lost_threads(pool *p) {
#if !defined(_WIN32)
    if (!p->started || p->process == getpid()) return;
    p->started = 0;
    atomic_store(&p->sleepers, 0);
    lock_init(&p->lock), signal_init(&p->wake);
#else
    (void)p;
#endif
}

static void start_threads(pool *p) {
    p->started = 1;
#if !defined(_WIN32)
    p->process = getpid();
    /* Signals are for the thread that runs Python. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
    for (; p->started < p->threads; p->started++) {
        struct seat *seat = &p->seats[p->started];
        *seat = (struct seat){p, p->started};
#if defined(_WIN32)
        p->handles[p->started] = CreateThread(0, 0, thread_main, seat, 0, 0);
        if (!p->handles[p->started]) break;
#else
        if (pthread_create(&p->handles[p->started], 0, thread_main, seat)) break;
#endif
    }
#if !defined(_WIN32)
    pthread_sigmask(SIG_SETMASK, &before, 0);
#endif
}

pool *pool_new(int threads, const program *work, void *context) {
    pool *p = calloc(1, sizeof *p);
    if (!p) return 0;
    p->handles = calloc((size_t)threads, sizeof *p->handles);
    p->seats = calloc((size_t)threads, sizeof *p->seats);
    if (!p->handles || !p->seats) {
        free(p->handles), free(p->seats), free(p);
        return 0;
    }
    p->threads = threads, p->work = work, p->context = context;
    atomic_store(&p->ticket, (uint64_t)1 << PIECE_BITS);
    atomic_store(&p->end, 1);
    lock_init(&p->lock), signal_init(&p->wake);
    return p;
}

void pool_run(pool *p, uint64_t first, uint64_t end) {
    forget_lost_threads(p);
    if (!p->started) start_threads(p);
    open_next(p, first, end); /* nobody looks before the end has moved */
    atomic_store(&p->end, end);
    if (atomic_load(&p->sleepers)) {
        lock_take(&p->lock);
        signal_all(&p->wake);
        lock_drop(&p->lock);
    }
    work_until_end(p, 0);
}

void pool_free(pool *p) {
    forget_lost_threads(p);
    lock_take(&p->lock);
    atomic_store(&p->stop, 1);
    signal_all(&p->wake);
    lock_drop(&p->lock);
    for (int thread = 1; thread < p->started; thread++) {
#if defined(_WIN32)
        WaitForSingleObject(p->handles[thread], INFINITE), CloseHandle(p->handles[thread]);
#else
        pthread_join(p->handles[thread], 0);
#endif
    }
    free(p->handles), free(p->seats), free(p);
}
