#include "base/memory.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

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

/* The first number behind `key` in a file of "key value" lines (an empty key: the file's first word);
 * SIZE_MAX where there is none, or it says "max". */
static size_t
read_number(const char *path, const char *key)
{
    FILE *file = fopen(path, "r");
    char line[256];
    unsigned long long value;
    size_t found = SIZE_MAX;

    while (file != NULL && found == SIZE_MAX && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, strlen(key)) == 0 &&
            sscanf(line + strlen(key), "%llu", &value) == 1) {
            found = (size_t)value;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return found;
}

static size_t
subtract(size_t limit, size_t used)
{
    return limit == SIZE_MAX || used == SIZE_MAX ? limit : limit > used ? limit - used : 0;
}

/* What a control group leaves: its limit less what is used and could not be dropped at need, which the
 * page cache (counted as used) could. */
static size_t
group_left(const char *folder, const char *limit, const char *used, const char *inactive,
           const char *active)
{
    char path[512];
    size_t bound, taken, cache = 0, part;

    snprintf(path, sizeof path, "%s/%s", folder, limit);
    bound = read_number(path, "");
    snprintf(path, sizeof path, "%s/%s", folder, used);
    taken = read_number(path, "");
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    part = read_number(path, inactive);
    cache += part == SIZE_MAX ? 0 : part;
    part = read_number(path, active);
    cache += part == SIZE_MAX ? 0 : part;
    return subtract(bound, subtract(taken, cache));
}

/* The smallest of the limits on the way from this process' control group to the root, version 2 or 1. */
static size_t
groups_left(void)
{
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[384], folder[448], *path, *slash;
    size_t left = SIZE_MAX;

    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        bool second = strncmp(line, "0::", 3) == 0;

        if (!second && strstr(line, ":memory:") == NULL) {
            continue;
        }
        path = strrchr(line, ':') + 1;
        path[strcspn(path, "\n")] = '\0';
        for (;;) {
            size_t here;

            snprintf(folder, sizeof folder, "/sys/fs/cgroup%s%s", second ? "" : "/memory", path);
            here = second ? group_left(folder, "memory.max", "memory.current", "inactive_file",
                                       "active_file")
                          : group_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                       "total_inactive_file", "total_active_file");
            left = here < left ? here : left;
            slash = strrchr(path, '/');
            if (slash == NULL) {
                break;
            }
            *slash = '\0';
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return left;
}

size_t
dsb_memory_available(void)
{
    size_t available = read_number("/proc/meminfo", "MemAvailable:");
    size_t group = groups_left(), pages = read_number("/proc/self/statm", "");
    struct rlimit limit;

    if (available != SIZE_MAX) {
        available *= 1024; /* KiB */
    }
    if (group < available) {
        available = group;
    }
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
        size_t space = pages == SIZE_MAX ? 0 : pages * (size_t)sysconf(_SC_PAGESIZE);
        size_t left = subtract((size_t)limit.rlim_cur, space);

        if (left < available) {
            available = left;
        }
    }
    return available;
}
