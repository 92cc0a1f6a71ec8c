#include "base/memory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static _Atomic int64_t fail_countdown;
static _Atomic int64_t live_blocks;

static size_t
round_up(size_t bytes)
{
    return bytes == 0 ? DSB_ALIGN : (bytes + DSB_ALIGN - 1) / DSB_ALIGN * DSB_ALIGN;
}

dsb_status
dsb_alloc(size_t bytes, void *out)
{
    void *block = NULL;

    memcpy(out, &block, sizeof block);
    if (atomic_load(&fail_countdown) > 0 && atomic_fetch_sub(&fail_countdown, 1) == 1) {
        return DSB_FAIL(DSB_ERR_MEMORY, "out of memory (a planned failure of a test)");
    }
    if (bytes > SIZE_MAX / 2) {
        return DSB_FAIL(DSB_ERR_MEMORY, "out of memory: %zu bytes cannot be addressed", bytes);
    }
    block = aligned_alloc(DSB_ALIGN, round_up(bytes));
    if (block == NULL) {
        return DSB_FAIL(DSB_ERR_MEMORY, "out of memory: %.1f MiB were asked for",
                        (double)bytes / (1 << 20));
    }
    memset(block, 0, round_up(bytes));
    memcpy(out, &block, sizeof block);
    atomic_fetch_add(&live_blocks, 1);
    return DSB_OK;
}

void
dsb_free(void *block)
{
    if (block != NULL) {
        atomic_fetch_sub(&live_blocks, 1);
        free(block);
    }
}

void
dsb_alloc_fail_at(int64_t n)
{
    atomic_store(&fail_countdown, n);
}

int64_t
dsb_alloc_live(void)
{
    return atomic_load(&live_blocks);
}

/* The number in a one-line file such as those of the control groups; SIZE_MAX for "max" or no file. */
static size_t
read_number(const char *path)
{
    FILE *file = fopen(path, "r");
    unsigned long long value;
    int found;

    if (file == NULL) {
        return SIZE_MAX;
    }
    found = fscanf(file, "%llu", &value);
    fclose(file);
    return found == 1 ? (size_t)value : SIZE_MAX;
}

static size_t
read_meminfo(const char *key)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    size_t value = SIZE_MAX;
    unsigned long long kib;

    if (file == NULL) {
        return SIZE_MAX;
    }
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0 &&
            sscanf(line + strlen(key), ": %llu", &kib) == 1) {
            value = (size_t)kib * 1024;
            break;
        }
    }
    fclose(file);
    return value;
}

static size_t
subtract(size_t limit, size_t used)
{
    if (limit == SIZE_MAX || used == SIZE_MAX) {
        return limit;
    }
    return limit > used ? limit - used : 0;
}

static size_t
address_space_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long long pages = 0;

    if (file == NULL) {
        return 0;
    }
    if (fscanf(file, "%llu", &pages) != 1) {
        pages = 0;
    }
    fclose(file);
    return (size_t)pages *
           4096; /* statm's first number: the address space, which RLIMIT_AS counts */
}

size_t
dsb_memory_available(void)
{
    size_t available = read_meminfo("MemAvailable");
    size_t group = subtract(read_number("/sys/fs/cgroup/memory.max"),
                            read_number("/sys/fs/cgroup/memory.current"));
    struct rlimit limit;

    if (group < available) {
        available = group;
    }
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        size_t space = subtract((size_t)limit.rlim_cur, address_space_bytes());

        if (space < available) {
            available = space;
        }
    }
    return available;
}
