#include "cpu/cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/memory.h"
#include "base/pool.h"

typedef struct variant {
    const char *name;
    bool (*available)(void);
    void (*fill)(dsb_backend *table);
} variant;

#define DSB_FILL(isa)                          \
    static void fill_##isa(dsb_backend *table) \
    {                                          \
        dsb_cpu_gemm_##isa(table);             \
        dsb_cpu_elementwise_##isa(table);      \
        dsb_cpu_noise_##isa(table);            \
        dsb_cpu_simulate_##isa(table);         \
        dsb_cpu_optimise_##isa(table);         \
        dsb_cpu_conv_##isa(table);             \
        dsb_cpu_conv_weight_##isa(table);      \
        dsb_cpu_norm_##isa(table);             \
        dsb_cpu_attention_##isa(table);        \
        dsb_cpu_image_##isa(table);            \
        dsb_cpu_pairs_##isa(table);            \
        dsb_cpu_transport_##isa(table);        \
    }

#if defined(__x86_64__)

/* __builtin_cpu_supports also asks whether the operating system saves the wide registers. */
static bool
has_v2(void)
{
    return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1") &&
           __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
}

static bool
has_v3(void)
{
    unsigned a, b, c = 0, d, extended = 0;

    if (!has_v2() || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
        return false;
    }
    /* f16c, movbe and lzcnt: not every compiler's __builtin_cpu_supports knows their names. */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid(0x80000001u, &a, &b, &extended, &d)) {
        return false;
    }
    return (c & 1u << 29) && (c & 1u << 22) && (extended & 1u << 5);
}

static bool
has_v4(void)
{
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

DSB_FILL(v2)
DSB_FILL(v3)
DSB_FILL(v4)

/* Zen 4 and 5. Intel has the instruction too, where it is slower than float32 products. */
static bool
has_v4bf16(void)
{
    return has_v4() && __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512bf16");
}

static void
fill_v4bf16(dsb_backend *table)
{
    fill_v4(table);
    dsb_cpu_conv_v4bf16(table);
    dsb_cpu_conv_weight_v4bf16(table);
}

/* Which registers the operating system saves. */
static uint64_t
saved_state(void)
{
    uint32_t low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Tiles are 8 KiB of registers for each thread: Linux gives them to a process that asks, once. Where it
 * refuses (an old kernel, a sandbox), the machine counts as one without. */
static bool
may_use_tiles(void)
{
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, the state's number */

    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

static bool
has_amx(void)
{
    const unsigned tiles = 1u << 24, tiles_bf16 = 1u << 22, vectors_bf16 = 1u << 5;
    const uint64_t state = 3u << 17; /* tile configuration and data */
    unsigned a, b, c, d = 0, more = 0;

    if (!has_v4() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) ||
        !__get_cpuid_count(7, 1, &more, &b, &c, &a)) {
        return false;
    }
    return (d & tiles) && (d & tiles_bf16) && (more & vectors_bf16) &&
           (saved_state() & state) == state && may_use_tiles();
}

static void
fill_amx(dsb_backend *table)
{
    fill_v4(table);
    dsb_cpu_conv_tile_amx(table);
}

/* Tile kernels for tests on machines without tiles: never chosen unless named. */
static void
fill_twin(dsb_backend *table)
{
    fill_v2(table);
    dsb_cpu_conv_tile_twin(table);
}

/* Best first; "tiles-in-c" only by name. The one before it is what the package is built for: it is taken
 * without asking. */
static const variant variants[] = {
    {"x86-64-v4+amx-bf16", has_amx, fill_amx},
    {"x86-64-v4+avx512bf16", has_v4bf16, fill_v4bf16},
    {"x86-64-v4", has_v4, fill_v4},
    {"x86-64-v3", has_v3, fill_v3},
    {"x86-64-v2", has_v2, fill_v2},
    {"tiles-in-c", has_v2, fill_twin},
};

#else

static bool
has_aarch64(void)
{
    return true;
}

DSB_FILL(aarch64)

static void
fill_twin(dsb_backend *table)
{
    fill_aarch64(table);
    dsb_cpu_conv_tile_twin(table);
}

static const variant variants[] = {
    {"aarch64", has_aarch64, fill_aarch64},
    {"tiles-in-c", has_aarch64, fill_twin},
};

#endif

enum { VARIANTS = sizeof variants / sizeof variants[0] };

static dsb_backend tables[VARIANTS];
static bool offered[VARIANTS];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic(const dsb_backend *) current;

static void
transfer(void *to, const void *from, size_t bytes)
{
    if (bytes > 0) {
        memcpy(to, from, bytes);
    }
}

static int
find(const char *isa)
{
    for (int i = 0; i < VARIANTS; i++) {
        if (offered[i] && (isa == NULL || strcmp(isa, variants[i].name) == 0)) {
            return i;
        }
    }
    return -1;
}

static void
initialise(void)
{
    int best, chosen;

    for (int i = 0; i < VARIANTS; i++) {
        dsb_backend *table = &tables[i];

        table->name = "cpu";
        table->isa = variants[i].name;
        table->device = DSB_CPU;
        table->alloc = dsb_alloc;
        table->free = dsb_free;
        table->upload = transfer;
        table->download = transfer;
        table->workers = dsb_pool_threads;
        table->parallel = dsb_pool_run;
        variants[i].fill(table);
        offered[i] = variants[i].available();
    }
    best = find(NULL);
    chosen = find(getenv("DSB_ISA"));
    if (best < 0) {
        best = VARIANTS - 2;
    }
    atomic_store(&current, &tables[chosen < 0 ? best : chosen]);
}

const dsb_backend *
dsb_cpu_backend(void)
{
    const dsb_backend *table = atomic_load_explicit(&current, memory_order_acquire);

    if (table == NULL) {
        pthread_once(&once, initialise);
        table = atomic_load_explicit(&current, memory_order_acquire);
    }
    return table;
}

int
dsb_cpu_isas(const char *names[DSB_MAX_ISAS])
{
    int n = 0;

    pthread_once(&once, initialise);
    for (int i = 0; i < VARIANTS; i++) {
        if (offered[i]) {
            names[n++] = variants[i].name;
        }
    }
    return n;
}

dsb_status
dsb_cpu_select(const char *isa)
{
    const char *names[DSB_MAX_ISAS];
    char list[256] = "";
    int found, n;

    pthread_once(&once, initialise);
    found = find(isa);
    if (found >= 0) {
        atomic_store(&current, &tables[found]);
        return DSB_OK;
    }
    n = dsb_cpu_isas(names);
    for (int i = 0; i < n; i++) {
        size_t used = strlen(list);

        snprintf(list + used, sizeof list - used, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    return DSB_FAIL(DSB_ERR_VALUE,
                    "instruction set \"%s\" is not to be had here: this machine offers %s",
                    isa != NULL ? isa : "best", n > 0 ? list : "none that dsb has kernels for");
}
