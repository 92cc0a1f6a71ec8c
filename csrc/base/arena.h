/* Arena: carves addresses out of one block that somebody else allocated.
 *
 * Purpose: a plan knows every size in advance, so a step allocates nothing; under AddressSanitizer the
 * gaps between the pieces are poisoned, because it cannot see inside a block by itself.
 * Ownership: the block stays its owner's. Threads: one arena belongs to one worker.
 */
#ifndef DSB_BASE_ARENA_H
#define DSB_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define DSB_GAP 64 /* bytes left (and poisoned) behind every piece */

/* Bytes that a piece of `bytes` takes, its gap included. A multiple of DSB_ALIGN. */
size_t dsb_piece_bytes(size_t bytes);

/* Poisons the whole block, then opens [offset, offset + bytes) for use; no-ops without the sanitizer. */
void dsb_arena_close(void *block, size_t bytes);
void dsb_arena_open(void *address, size_t bytes);

#endif
