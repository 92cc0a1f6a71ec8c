/* Register tiles of products: as many sums as the registers hold.
 *
 * Purpose: the size of a tile of rows against panels of columns, which linear layers and attention share. A
 * number of a row is broadcast for all vectors of the tile, a vector serves all of its rows.
 * Ownership and threads: constants, no state. Included by csrc/cpu/<family>.c only.
 */
#ifndef DSB_CPU_REGISTERS_H
#define DSB_CPU_REGISTERS_H

#include "backend.h"
#include "cpu/vector.h"

enum {
    PV = DSB_PANEL / DSB_VL, /* vectors in a panel */
#if DSB_VL == 16
    TILE = 8,   /* rows of a tile */
    PANELS = 2, /* panels of a tile */
#elif DSB_VL == 8
    TILE = 6,
    PANELS = 1,
#elif defined(__aarch64__)
    TILE = 5,
    PANELS = 1,
#else
    TILE = 3,
    PANELS = 1,
#endif
    WIDTH = PANELS * PV, /* vectors of a full tile */
};

#endif
