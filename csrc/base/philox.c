#include "base/philox.h"

#include <assert.h>

void
dsb_permutation_init(dsb_permutation *p, uint64_t n, uint64_t seed, uint32_t stream_word,
                     uint32_t step)
{
    int bits = 2;

    assert(n > 0 && n <= (uint64_t)1 << 62);
    while (((uint64_t)1 << bits) < n) {
        bits++;
    }
    p->n = n;
    p->low_bits = bits / 2;
    p->high_bits = bits - bits / 2;
    dsb_philox(seed, stream_word, step, 0, 0, p->keys);
    dsb_philox(seed, stream_word, step, 1, 0, p->keys + 4);
}

/* One pass of the unbalanced network: the two halves take turns, each masked to its own width. */
static uint64_t
scramble(const dsb_permutation *p, uint64_t i)
{
    uint32_t low_mask = (uint32_t)(((uint64_t)1 << p->low_bits) - 1);
    uint32_t high_mask = (uint32_t)(((uint64_t)1 << p->high_bits) - 1);
    uint32_t low = (uint32_t)i & low_mask, high = (uint32_t)(i >> p->low_bits);

    for (int round = 0; round < 8; round += 2) {
        low ^= dsb_mix(high, p->keys[round]) & low_mask;
        high ^= dsb_mix(low, p->keys[round + 1]) & high_mask;
    }
    return (uint64_t)high << p->low_bits | low;
}

uint64_t
dsb_permute(const dsb_permutation *p, uint64_t i)
{
    assert(i < p->n);
    do {
        i = scramble(p, i);
    } while (i >= p->n);
    return i;
}
