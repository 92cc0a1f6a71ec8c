#include "base/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* One job at a time. The gate is one word: a worker enters a job by compare-and-swap, the caller
 * closes it once no task is left, so that it waits for those inside only, never for one asleep.
 *   bits 63..32 number of the job, 31 open, 29..20 seats, 19..10 seats taken, 9..0 workers inside
 */
#define GATE_OPEN ((uint64_t)1 << 31)
#define GATE_SEAT ((uint64_t)1 << 10)
#define GATE_INSIDE ((uint64_t)1)

#define SPIN_NANOSECONDS 80000 /* a training step hands out its next job within this time */

static struct {
    /* What the job is: written by the caller while the gate is closed and nobody is inside. */
    dsb_task run;
    void *context;
    int64_t n;
    _Alignas(64) _Atomic int64_t next; /* the first task that nobody has claimed */
    _Alignas(64) _Atomic uint64_t gate;
    _Atomic uint32_t bell;     /* number of the last job; sleeping workers wait for it to change */
    _Atomic int sleepers;      /* workers that wait for the bell, or are about to */
    _Atomic uint32_t awaiting; /* 1 while the caller sleeps until the last worker has left */
    _Alignas(64) _Atomic bool busy; /* a caller holds the pool, and with it all of the following */
    int workers;                    /* threads made so far */
    uint32_t job;
    bool refused; /* the system would not make another thread */
} pool;

static _Atomic int threads_set; /* 0: one for each processor granted */
static _Atomic bool try_again;  /* ask the system again, after set_threads */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int processors;

static void
pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static int64_t
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void
futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void
futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* More threads than processors: whoever spins keeps another from working. */
static bool
may_spin(void)
{
    return dsb_pool_threads() <= processors;
}

static void
work(dsb_task run, void *context, int64_t n, int worker)
{
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);

        if (task >= n) {
            break;
        }
        run(context, task, worker);
    }
}

static int
field(uint64_t gate, int shift)
{
    return (int)(gate >> shift & 1023);
}

/* Takes a seat in a job other than `done`; returns the worker's index in it, or 0. */
static int
enter(uint32_t done, uint32_t *job)
{
    uint64_t gate = atomic_load_explicit(&pool.gate, memory_order_acquire);

    while ((gate & GATE_OPEN) && (uint32_t)(gate >> 32) != done &&
           field(gate, 10) < field(gate, 20)) {
        if (atomic_compare_exchange_weak_explicit(&pool.gate, &gate, gate + GATE_SEAT + GATE_INSIDE,
                                                  memory_order_acquire, memory_order_acquire)) {
            *job = (uint32_t)(gate >> 32);
            return field(gate, 10) + 1;
        }
    }
    return 0;
}

static void
leave(void)
{
    uint64_t before = atomic_fetch_sub(&pool.gate, GATE_INSIDE);

    if (field(before, 0) == 1 && !(before & GATE_OPEN) && atomic_exchange(&pool.awaiting, 0) == 1) {
        futex_wake(&pool.awaiting, 1);
    }
}

/* Waits for a job: awake for a short while, then asleep. */
static int
await_job(uint32_t done, uint32_t *job)
{
    for (;;) {
        int64_t until = may_spin() ? now() + SPIN_NANOSECONDS : 0;
        uint32_t rung;
        int worker;

        do {
            for (int i = 0; i < 32; i++) {
                worker = enter(done, job);
                if (worker != 0) {
                    return worker;
                }
                pause_briefly();
            }
        } while (now() < until);
        /* First counted as a sleeper, then a last look: a caller rings after it has opened the gate
         * and before it counts the sleepers, so that one of the two sees the other. */
        rung = atomic_load(&pool.bell);
        atomic_fetch_add(&pool.sleepers, 1);
        worker = enter(done, job);
        if (worker == 0) {
            futex_wait(&pool.bell, rung);
        }
        atomic_fetch_sub(&pool.sleepers, 1);
        if (worker != 0) {
            return worker;
        }
    }
}

static void *
worker_main(void *unused)
{
    uint32_t done = 0;

    (void)unused;
    for (;;) {
        int worker = await_job(done, &done);

        work(pool.run, pool.context, pool.n, worker);
        leave();
    }
    return NULL;
}

static int
count_processors(void)
{
    cpu_set_t set;
    long n;

    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        n = CPU_COUNT(&set);
    } else {
        n = sysconf(_SC_NPROCESSORS_ONLN);
    }
    return n < 1 ? 1 : n > DSB_MAX_THREADS ? DSB_MAX_THREADS : (int)n;
}

/* A child of fork() has the memory of the pool and none of its threads. */
static void
forget_workers(void)
{
    pool.workers = 0;
    pool.refused = false;
    pool.job = 0;
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.bell, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.awaiting, 0);
    atomic_store(&pool.busy, false);
}

static void
initialise(void)
{
    processors = count_processors();
    pthread_atfork(NULL, NULL, forget_workers);
}

/* Makes workers until there are `wanted`, or as many as the system grants. They block all signals:
 * those are for the threads of whoever uses the library. */
static void
hire(int wanted)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, old;

    if (atomic_exchange(&try_again, false)) {
        pool.refused = false;
    }
    if (pool.workers >= wanted || pool.refused || pthread_attr_init(&attributes) != 0) {
        return;
    }
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.workers < wanted && !pool.refused) {
        if (pthread_create(&thread, &attributes, worker_main, NULL) == 0) {
            pool.workers++;
        } else {
            pool.refused = true;
        }
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attributes);
}

/* Opens the gate for `seats` workers and wakes as many as are not awake anyway. */
static void
open_gate(int seats)
{
    int awake;

    pool.job = pool.job + 1 == 0 ? 1 : pool.job + 1;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    atomic_store(&pool.gate, (uint64_t)pool.job << 32 | GATE_OPEN | (uint64_t)seats << 20);
    atomic_store(&pool.bell, pool.job);
    awake = pool.workers - atomic_load(&pool.sleepers);
    if (awake < seats) {
        futex_wake(&pool.bell, seats - (awake > 0 ? awake : 0));
    }
}

static void
close_gate(void)
{
    uint64_t gate = atomic_fetch_and(&pool.gate, ~GATE_OPEN);
    int64_t until;

    if (field(gate, 0) == 0) {
        return;
    }
    until = may_spin() ? now() + SPIN_NANOSECONDS : 0;
    do {
        for (int i = 0; i < 32; i++) {
            if (field(atomic_load_explicit(&pool.gate, memory_order_acquire), 0) == 0) {
                return;
            }
            pause_briefly();
        }
    } while (now() < until);
    for (;;) {
        atomic_store(&pool.awaiting, 1);
        if (field(atomic_load(&pool.gate), 0) == 0) {
            atomic_store(&pool.awaiting, 0);
            return;
        }
        futex_wait(&pool.awaiting, 1);
    }
}

static void
run_alone(int64_t n, dsb_task run, void *context)
{
    for (int64_t task = 0; task < n; task++) {
        run(context, task, 0);
    }
}

void
dsb_pool_run(int max_workers, int64_t n, dsb_task run, void *context)
{
    int wanted = dsb_pool_threads();

    if (wanted > max_workers) {
        wanted = max_workers;
    }
    if (wanted > n) {
        wanted = (int)n;
    }
    if (wanted <= 1 || atomic_exchange_explicit(&pool.busy, true, memory_order_acquire)) {
        run_alone(n, run, context);
        return;
    }
    hire(wanted - 1);
    if (wanted - 1 > pool.workers) {
        wanted = pool.workers + 1;
    }
    if (wanted <= 1) {
        atomic_store_explicit(&pool.busy, false, memory_order_release);
        run_alone(n, run, context);
        return;
    }
    pool.run = run;
    pool.context = context;
    pool.n = n;
    open_gate(wanted - 1);
    work(run, context, n, 0);
    close_gate();
    atomic_store_explicit(&pool.busy, false, memory_order_release);
}

int
dsb_pool_threads(void)
{
    int set = atomic_load_explicit(&threads_set, memory_order_relaxed);

    pthread_once(&once, initialise);
    return set > 0 ? set : processors;
}

dsb_status
dsb_pool_set_threads(int threads)
{
    DSB_REQUIRE(threads >= 1 && threads <= DSB_MAX_THREADS,
                "the number of threads must be 1 to %d, not %d", DSB_MAX_THREADS, threads);
    atomic_store(&threads_set, threads);
    atomic_store(&try_again, true);
    return DSB_OK;
}
