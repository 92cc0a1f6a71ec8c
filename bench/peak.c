/* The machine's arithmetic ceiling: independent chains of multiply-adds that stay in registers.
 *
 * `peak UNIT THREADS MILLISECONDS` prints 10^9 floating-point operations a second, all threads together.
 * UNIT is `fma` (float32 products of the widest vectors), `bf16` (vdpbf16ps) or `amx` (products of tiles).
 * Compile for the instruction set in question, with -ffp-contract=fast; a unit that it has not, or that the
 * machine has not, ends the program with status 2.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

/* 12 chains hide 6 cycles of 2 units and fit the registers of AVX2; vdpbf16ps takes a little longer. */
enum { CHAINS = 12, LONG_CHAINS = 16, ROUNDS = 100000, MAX_THREADS = 64 };

typedef float vector __attribute__((vector_size(4 * LANES)));

typedef struct unit {
    const char *name;
    double operations; /* of a run */
    int (*ready)(void);
    float (*run)(float factor, float offset);
} unit;

typedef struct job {
    const unit *unit;
    pthread_barrier_t *start;
    double seconds; /* to work for, then those worked for */
    double operations;
    volatile float factor, offset, sink; /* volatile: every round is to be computed */
} job;

static int
always(void)
{
    return 1;
}

static float
run_fma(float factor, float offset)
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

#if defined(__AVX512BF16__)

static int
has_bf16(void)
{
    return __builtin_cpu_supports("avx512bf16");
}

static float
run_bf16(float factor, float offset)
{
    __m512 a[LONG_CHAINS];
    __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(factor), _mm512_set1_ps(factor));
    __m512bh y = _mm512_cvtne2ps_pbh(_mm512_set1_ps(offset), _mm512_set1_ps(offset));

#pragma GCC unroll 16
    for (int i = 0; i < LONG_CHAINS; i++) {
        a[i] = _mm512_set1_ps((float)i);
    }
    for (int k = 0; k < ROUNDS; k++) {
#pragma GCC unroll 16
        for (int i = 0; i < LONG_CHAINS; i++) {
            a[i] = _mm512_dpbf16_ps(a[i], x, y);
        }
    }
#pragma GCC unroll 16
    for (int i = 1; i < LONG_CHAINS; i++) {
        a[0] = _mm512_add_ps(a[0], a[i]);
    }
    return _mm512_reduce_add_ps(a[0]);
}

#endif

#if defined(__AMX_BF16__)

enum { TILES = 8, TILE_ROWS = 16, TILE_ROUNDS = 20000, PRODUCTS = 6 };

/* Linux gives the tiles' state to a process that asks for it. */
static int
has_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Six sums, tiles 0 to 5, of the product of tiles 6 and 7: more than its latency is products long. */
static float
run_amx(float factor, float offset)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    _Alignas(64) uint16_t operand[2][TILE_ROWS][32];
    _Alignas(64) float sum[TILE_ROWS][16];
    float values[2] = {factor, offset};

    for (int i = 0; i < TILES; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = TILE_ROWS;
    }
    for (int i = 0; i < 2 * TILE_ROWS * 32; i++) {
        uint32_t bits;

        memcpy(&bits, &values[i / (TILE_ROWS * 32)], sizeof bits);
        operand[i / (TILE_ROWS * 32)][i / 32 % TILE_ROWS][i % 32] = (uint16_t)(bits >> 16);
    }
    _tile_loadconfig(&shape);
    _tile_loadd(6, operand[0], 64);
    _tile_loadd(7, operand[1], 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int k = 0; k < TILE_ROUNDS; k++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_stored(5, sum, 64);
    _tile_release();
    return sum[0][0];
}

#endif

static const unit units[] = {
    {"fma", ROUNDS * (2.0 * LANES * CHAINS), always, run_fma},
#if defined(__AVX512BF16__)
    {"bf16", ROUNDS * (4.0 * LANES * LONG_CHAINS), has_bf16, run_bf16},
#endif
#if defined(__AMX_BF16__)
    {"amx", TILE_ROUNDS * (2.0 * 16 * 16 * 32 * PRODUCTS), has_amx, run_amx},
#endif
};

static void *
work(void *context)
{
    job *j = context;
    double start, limit = j->seconds;

    j->sink = j->unit->run(j->factor, j->offset); /* until the processor has its frequency */
    pthread_barrier_wait(j->start);
    start = dsb_seconds();
    do {
        j->sink = j->unit->run(j->factor, j->offset);
        j->operations += j->unit->operations;
        j->seconds = dsb_seconds() - start;
    } while (j->seconds < limit);
    return NULL;
}

static const unit *
find_unit(const char *name)
{
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(units[i].name, name) == 0 && units[i].ready()) {
            return &units[i];
        }
    }
    return NULL;
}

int
main(int argc, char **argv)
{
    const unit *found = argc > 1 ? find_unit(argv[1]) : NULL;
    int threads = argc > 2 ? atoi(argv[2]) : 1;
    double seconds = (argc > 3 ? atof(argv[3]) : 100.0) * 1e-3, rate = 0.0;
    pthread_t ids[MAX_THREADS];
    pthread_barrier_t start;
    job jobs[MAX_THREADS];

    if (argc < 2 || threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: peak UNIT THREADS MILLISECONDS, 1 to %d threads\n", MAX_THREADS);
        return 1;
    }
    if (found == NULL) {
        return 2;
    }
    pthread_barrier_init(&start, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        jobs[i] = (job){found, &start, .seconds = seconds, .factor = 0.999f, .offset = 1e-3f};
        if (pthread_create(&ids[i], NULL, work, &jobs[i]) != 0) {
            fprintf(stderr, "peak: no thread\n");
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
