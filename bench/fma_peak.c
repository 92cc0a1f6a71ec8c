/* The machine's arithmetic ceiling: independent chains of multiply-adds that stay in registers.
 *
 * `fma_peak THREADS MILLISECONDS` prints 10^9 floating-point operations a second, all threads together.
 * Compile for the instruction set in question, with -ffp-contract=fast.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

enum { CHAINS = 12, ROUNDS = 100000, MAX_THREADS = 64 }; /* 12 chains hide 6 cycles of 2 units */

typedef float vector __attribute__((vector_size(4 * LANES)));

typedef struct job {
    pthread_barrier_t *start;
    double seconds; /* to work for, then those worked for */
    double operations;
    volatile float factor, offset, sink; /* volatile: every round is to be computed */
} job;

static double
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float
run_rounds(float factor, float offset)
{
    vector a[CHAINS], x = factor - (vector){0}, y = offset - (vector){0}, sum = {0};

#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) {
        a[i] = (float)i - (vector){0};
    }
    for (int k = 0; k < ROUNDS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            a[i] = a[i] * x + y;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) {
        sum += a[i];
    }
    return sum[0] + sum[LANES - 1];
}

static void *
work(void *context)
{
    job *j = context;
    double start, limit = j->seconds;

    j->sink = run_rounds(j->factor, j->offset); /* until the processor has its frequency */
    pthread_barrier_wait(j->start);
    start = now();
    do {
        j->sink = run_rounds(j->factor, j->offset);
        j->operations += 2.0 * LANES * CHAINS * ROUNDS;
        j->seconds = now() - start;
    } while (j->seconds < limit);
    return NULL;
}

int
main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    double seconds = (argc > 2 ? atof(argv[2]) : 100.0) * 1e-3, rate = 0.0;
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t start;
    job jobs[MAX_THREADS];

    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: fma_peak THREADS MILLISECONDS, 1 to %d threads\n", MAX_THREADS);
        return 1;
    }
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        jobs[i] = (job){.start = &start, .seconds = seconds, .factor = 0.999f, .offset = 1e-3f};
        if (pthread_create(&ids[i], NULL, work, &jobs[i]) != 0) {
            fprintf(stderr, "fma_peak: no thread\n");
            return 1;
        }
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        rate += jobs[i].operations / jobs[i].seconds;
    }
    printf("%.3f\n", 1e-9 * rate);
    return 0;
}
