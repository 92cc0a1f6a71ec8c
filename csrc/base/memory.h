/* Memory: the one place that asks the operating system for it.
 *
 * Purpose: 64-byte aligned, zeroed blocks; a count of what is live; a way for tests to make the N-th
 * request fail; and what the machine has left, so that running out is foreseen and not met.
 * Ownership: who allocates frees. Threads: every function may be called from any thread.
 */
#ifndef DSB_BASE_MEMORY_H
#define DSB_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define DSB_ALIGN 64 /* bytes: one cache line, and the widest vector */

/* Zeroed block of at least `bytes` (one line when 0) into *out. Fails with DSB_ERR_MEMORY. */
dsb_status dsb_alloc(size_t bytes, void *out) DSB_MUST_CHECK;
void dsb_free(void *block);

/* Tests: the n-th request from now (1 = the next) fails; 0 switches it off. */
void dsb_alloc_fail_at(int64_t n);
/* Blocks allocated and not yet freed. */
int64_t dsb_alloc_live(void);

/* Bytes that this process may still take: the smallest of what is free, its control group and its limits. */
size_t dsb_memory_available(void);

#endif
