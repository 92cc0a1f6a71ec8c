/* Between channels and the groups that they belong to.
 *
 * Purpose: numbers of channels first .. first + n - 1 from those of their groups, and sums back. Where the
 * channels are whole groups of a usual size, that size is a constant and the loops have no divisions.
 * Ownership and threads: pure functions, no state. Included by csrc/cpu/norm.c only.
 */
#ifndef DSB_CPU_GROUPS_H
#define DSB_CPU_GROUPS_H

#include "backend.h"
#include "cpu/vector.h"

DSB_INLINE void
spread_groups(int size, int first, int n, const float *of_group, float *to)
{
    for (int g = 0; g < n / size; g++) {
        for (int k = 0; k < size; k++) {
            to[g * size + k] = of_group[first / size + g];
        }
    }
}

/* to[i] = the number of the group that channel first + i belongs to, and zeros up to the pitch of n. */
static void
spread(int size, int first, int n, const float *of_group, float *to)
{
    switch (size) {
    case 2:
        spread_groups(2, first, n, of_group, to);
        break;
    case 4:
        spread_groups(4, first, n, of_group, to);
        break;
    case 8:
        spread_groups(8, first, n, of_group, to);
        break;
    case 16:
        spread_groups(16, first, n, of_group, to);
        break;
    default:
        for (int i = 0; i < n; i++) {
            to[i] = of_group[(first + i) / size];
        }
        break;
    }
    for (int i = n; i < (int)dsb_pitch(n); i++) {
        to[i] = 0.0f;
    }
}

DSB_INLINE void
gather_groups(int size, int first, int n, const float *of_channel, float *to)
{
    for (int g = 0; g < n / size; g++) {
        float sum = 0.0f;

        for (int k = 0; k < size; k++) {
            sum += of_channel[g * size + k];
        }
        to[first / size + g] += sum;
    }
}

/* Adds the numbers of the channels to those of their groups. */
static void
gather(int size, int first, int n, const float *of_channel, float *to)
{
    switch (size) {
    case 2:
        gather_groups(2, first, n, of_channel, to);
        break;
    case 4:
        gather_groups(4, first, n, of_channel, to);
        break;
    case 8:
        gather_groups(8, first, n, of_channel, to);
        break;
    case 16:
        gather_groups(16, first, n, of_channel, to);
        break;
    default:
        for (int i = 0; i < n; i++) {
            to[(first + i) / size] += of_channel[i];
        }
        break;
    }
}

#endif
