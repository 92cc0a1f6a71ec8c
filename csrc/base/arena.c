#include "base/arena.h"

#include "base/memory.h"

#if defined(__SANITIZE_ADDRESS__)
#define DSB_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DSB_ASAN 1
#endif
#endif

#ifdef DSB_ASAN
#include <sanitizer/asan_interface.h>
#endif

size_t
dsb_piece_bytes(size_t bytes)
{
    return (bytes + DSB_ALIGN - 1) / DSB_ALIGN * DSB_ALIGN + DSB_GAP;
}

void
dsb_arena_close(void *block, size_t bytes)
{
#ifdef DSB_ASAN
    __asan_poison_memory_region(block, bytes);
#else
    (void)block;
    (void)bytes;
#endif
}

void
dsb_arena_open(void *address, size_t bytes)
{
#ifdef DSB_ASAN
    __asan_unpoison_memory_region(address, bytes);
#else
    (void)address;
    (void)bytes;
#endif
}
