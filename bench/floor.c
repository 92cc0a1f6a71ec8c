/* What entropic transport costs at least: the multiply-adds and the exponential of each pair, nothing else.
 *
 * `floor THREADS MILLISECONDS DIM` prints the picoseconds that a pair takes, all threads together. Rows of four
 * meet columns that stay in the nearest cache, <x, y> + height goes through the kernels' own exponential
 * (cpu/vector.h), the sum is float32. Compile for the instruction set in question, with -ffp-contract=fast.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "cpu/vector.h"

enum { ROWS = 4, COLUMNS = 512, DIMS = 64, MAX_THREADS = 64 };

typedef struct job {
    pthread_barrier_t *start;
    int dim;
    double seconds; /* to work for, then those worked for */
    double pairs;
    float x[DIMS * ROWS], columns[(DIMS + 1) * COLUMNS];
    volatile float sink;
} job;

DSB_INLINE float
rows_against_columns(int dim, const job *j)
{
    vf total[ROWS] = {{0}};

    for (int c = 0; c < COLUMNS; c += DSB_VL) {
        vf e[ROWS];

        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            e[r] = vf_load(j->columns + c);
        }
        for (int k = 0; k < dim; k++) {
            vf y = vf_load(j->columns + (k + 1) * COLUMNS + c);

            DSB_UNROLL
            for (int r = 0; r < ROWS; r++) {
                e[r] = vf_fma(y, vf_splat(j->x[k * ROWS + r]), e[r]);
            }
        }
        vf_exp_negative_many(ROWS, e, e);
        DSB_UNROLL
        for (int r = 0; r < ROWS; r++) {
            total[r] += e[r];
        }
    }
    return vf_sum(total[0]) + vf_sum(total[1]) + vf_sum(total[2]) + vf_sum(total[3]);
}

static float
once(const job *j)
{
    switch (j->dim) {
    case 1:
        return rows_against_columns(1, j);
    case 2:
        return rows_against_columns(2, j);
    case 3:
        return rows_against_columns(3, j);
    default:
        return rows_against_columns(j->dim, j);
    }
}

static void *
work(void *argument)
{
    job *j = argument;
    double limit = j->seconds, start;

    pthread_barrier_wait(j->start);
    start = dsb_seconds();
    do {
        for (int i = 0; i < 100; i++) {
            j->x[0] = j->sink * 1e-30f; /* so that no round is left out */
            j->sink = once(j);
        }
        j->pairs += 100.0 * ROWS * COLUMNS;
        j->seconds = dsb_seconds() - start;
    } while (j->seconds < limit);
    return NULL;
}

int
main(int argc, char **argv)
{
    static job jobs[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    pthread_barrier_t start;
    int n = argc == 4 ? atoi(argv[1]) : 0, dim = argc == 4 ? atoi(argv[3]) : 0;
    double rate = 0.0;

    if (n < 1 || n > MAX_THREADS || dim < 1 || dim > DIMS) {
        fprintf(stderr, "floor THREADS MILLISECONDS DIM\n");
        return 1;
    }
    pthread_barrier_init(&start, NULL, (unsigned)n);
    for (int t = 0; t < n; t++) {
        jobs[t].start = &start;
        jobs[t].dim = dim;
        jobs[t].seconds = 1e-3 * atof(argv[2]);
        for (int i = 0; i < (DIMS + 1) * COLUMNS; i++) {
            jobs[t].columns[i] = -(float)(i % 97) / 97.0f / (float)dim;
        }
        for (int i = 0; i < DIMS * ROWS; i++) {
            jobs[t].x[i] = (float)(i % 13) / 13.0f;
        }
    }
    for (int t = 1; t < n; t++) {
        pthread_create(&threads[t], NULL, work, &jobs[t]);
    }
    work(&jobs[0]);
    for (int t = 1; t < n; t++) {
        pthread_join(threads[t], NULL);
    }
    for (int t = 0; t < n; t++) {
        rate += jobs[t].pairs / jobs[t].seconds;
    }
    printf("%.4f\n", 1e12 / rate);
    return 0;
}
