/* Convolutions on tiles, of bfloat16 operands or of their three products: forward, and gradient of the input.
 * conv_tile_pack.c packs the weights, conv_tile_weight.c has their gradient.
 *
 * A block of results is 32 places by 32 channels in four accumulators; for each tap and 32 channels of the
 * operand two tiles of places meet two tiles of weights. Between the tile instructions, which leave the
 * vector units idle, the block before is stored and the next strip of the image is read. An element's sum
 * runs over taps and channels in one order, wherever it lies: a row's bits do not depend on the rows beside it.
 */
#include "cpu/conv_tile.h"

enum {
    BLOCK = 32, /* places, and channels, of a block */
    BLOCK_FLOATS = BLOCK * BLOCK,
    STRIP = 512, /* places read at a time, where they take no more than */
    STRIP_BYTES = 640 * 1024,
    LINES = 8, /* of a block, and pieces of the next strip, that are worth a call */
    PIECES = 4,
};

/* ---- products: forward, and gradient of the input ---- */

/* y = (sum over taps of x W) + bias + row + add. `planes` are those of y; the reader has those of x. */
typedef struct product {
    space space;
    reader reader;
    int parts;
    const uint16_t *packed;
    int weights;               /* of the packed kernel */
    int h, w, c, step, planes; /* of y */
    int taps_in[4];            /* to each plane of y */
    tap taps[4][MAX_TAPS];
    dsb_slot y, add, row;
    const float *bias; /* in scratch, zeros behind it; or NULL */
    int64_t strip;     /* places in a strip */
} product;

/* The storing of a block. */
typedef struct finisher {
    const product *product;
    const float *sums; /* [BLOCK places][BLOCK] */
    place at;
    int left, plane;
    int first, width; /* channels: 16 or 32 from `first` on */
    int row;          /* that `base` is for */
    vf base[BLOCK / DSB_VL];
    vi mask[BLOCK / DSB_VL];
} finisher;

/* What all pixels of a row get: bias + row. */
static void
finish_base(finisher *f)
{
    const product *p = f->product;

    f->row = f->at.row;
    for (int c = 0; c < f->width; c += DSB_VL) {
        vf v = p->bias != NULL ? vf_load(p->bias + f->first + c) : (vf){0};

        if (p->row.data != NULL) {
            v += vf_load((const float *)p->row.data + f->row * p->row.ld + f->first + c);
        }
        f->base[c / DSB_VL] = v;
    }
}

static void
finish_start(finisher *f, const product *p, const float *sums, int64_t at, int plane, int first)
{
    f->product = p;
    f->sums = sums;
    f->at = place_of(&p->space, at);
    f->left = BLOCK;
    f->plane = plane;
    f->first = first;
    f->width = p->c - first > TILE_COLUMNS ? BLOCK : TILE_COLUMNS;
    for (int c = 0; c < f->width; c += DSB_VL) {
        f->mask[c / DSB_VL] = vi_first(p->c - first - c);
    }
    finish_base(f);
}

/* n places next to one another, whose pixels are p->step apart from `line` on. */
DSB_INLINE void
finish_lines(const finisher *f, int half, int width, int64_t line, int n)
{
    const product *p = f->product;
    const float *sums = f->sums;
    bool add = p->add.data != NULL, add_half = p->add.dtype == DSB_BFLOAT16;
    vf base[BLOCK / DSB_VL];
    vi mask[BLOCK / DSB_VL];

    memcpy(base, f->base, sizeof base);
    memcpy(mask, f->mask, sizeof mask);
    for (; n > 0; n--, line += p->step, sums += BLOCK) {
        int64_t i = line * p->y.ld + f->first, j = line * p->add.ld + f->first;

        DSB_UNROLL
        for (int c = 0; c < width; c += DSB_VL) {
            vf v = vf_load(sums + c) + base[c / DSB_VL];

            if (add) {
                v += vf_load_as(add_half, p->add.data, j + c);
            }
            v = (vf)((vi)v & mask[c / DSB_VL]);
            if (half) {
                half_store((uint16_t *)p->y.data + i + c, v);
            } else {
                vf_store((float *)p->y.data + i + c, v);
            }
        }
    }
}

static void
finish_lines_as(finisher *f, int64_t line, int n)
{
    bool half = f->product->y.dtype == DSB_BFLOAT16;

    if (f->at.row != f->row) {
        finish_base(f);
    }
    if (half && f->width == BLOCK) {
        finish_lines(f, 1, BLOCK, line, n);
    } else if (half) {
        finish_lines(f, 1, TILE_COLUMNS, line, n);
    } else if (f->width == BLOCK) {
        finish_lines(f, 0, BLOCK, line, n);
    } else {
        finish_lines(f, 0, TILE_COLUMNS, line, n);
    }
}

/* Stores up to n places of the block, by the parts of grid rows that they are. */
static __attribute__((noinline)) void
finish_some(finisher *f, int n)
{
    const product *p = f->product;

    n = n < f->left ? n : f->left;
    f->left -= n;
    while (n > 0) {
        int64_t line = place_line(&p->space, &f->at, p->step, f->plane, p->h, p->w);
        int run = p->space.pitch - f->at.x < n ? p->space.pitch - f->at.x : n;
        int inside = (p->w - f->plane % 2 + p->step - 1) / p->step - f->at.x;

        if (line >= 0) {
            finish_lines_as(f, line, run < inside ? run : inside);
        }
        f->sums += (int64_t)run * BLOCK;
        n -= run;
        place_skip(&p->space, &f->at, run);
    }
}

/* What is done between tile instructions. */
typedef struct hidden {
    finisher *finish;
    reader *reader;
    pace lines, pieces;
} hidden;

DSB_INLINE void
hidden_work(hidden *h)
{
    int64_t lines = pace_next(&h->lines, LINES), pieces = pace_next(&h->pieces, PIECES);

    if (lines > 0) {
        finish_some(h->finish, (int)lines);
    }
    if (pieces > 0) {
        read_some(h->reader, pieces);
    }
}

/* 32 places times 16 or 32 columns of weights, one tap and 32 channels. */
DSB_INLINE void
dot_step(tiles *t, int columns, const uint16_t *w)
{
    tile_load(t, 6, w, TILE_BYTES);
    tile_dot(t, 0, 4, 6);
    tile_dot(t, 1, 5, 6);
    if (columns == 2) {
        tile_load(t, 7, w + TILE_NUMBERS, TILE_BYTES);
        tile_dot(t, 2, 4, 7);
        tile_dot(t, 3, 5, 7);
    }
}

/* With two parts, x1 w2 + x1 w1 + x2 w1: each tile of x is loaded once, and those of w1 stay for x2. */
DSB_INLINE void
multiply_block(tiles *t, int parts, int columns, const product *p, int plane, const uint16_t *x,
               const uint16_t *packed, float *sums, hidden *h)
{
    const reader *r = &p->reader;
    int blocks = r->wide / TILE_HALVES;
    int64_t line = (int64_t)r->wide * (int64_t)sizeof *x, second = (int64_t)TILE_ROWS * r->wide;
    int64_t size = (int64_t)parts * columns * TILE_NUMBERS;

    tile_fence();
    tile_zero(t, 0);
    tile_zero(t, 1);
    tile_zero(t, 2);
    tile_zero(t, 3);
    for (int i = 0; i < p->taps_in[plane]; i++) {
        const tap *at = &p->taps[plane][i];
        const uint16_t *a = x + at->plane * parts * r->part + at->shift * r->wide;
        const uint16_t *w = packed + at->weight * blocks * size;

        for (int c = 0; c < blocks; c++, a += TILE_HALVES, w += size) {
            tile_load(t, 4, a, line);
            tile_load(t, 5, a + second, line);
            dot_step(t, columns, w);
            if (parts == 2) {
                dot_step(t, columns, w + columns * TILE_NUMBERS);
                tile_load(t, 4, a + r->part, line);
                tile_load(t, 5, a + r->part + second, line);
                tile_dot(t, 0, 4, 6);
                tile_dot(t, 1, 5, 6);
                if (columns == 2) {
                    tile_dot(t, 2, 4, 7);
                    tile_dot(t, 3, 5, 7);
                }
            }
            hidden_work(h);
        }
    }
    tile_store(t, 0, sums, BLOCK * sizeof *sums);
    tile_store(t, 1, sums + TILE_ROWS * BLOCK, BLOCK * sizeof *sums);
    if (columns == 2) {
        tile_store(t, 2, sums + TILE_COLUMNS, BLOCK * sizeof *sums);
        tile_store(t, 3, sums + TILE_ROWS * BLOCK + TILE_COLUMNS, BLOCK * sizeof *sums);
    }
}

/* One block, and what of the block before is not stored yet. */
static void
block_of(tiles *t, const product *p, int plane, int first, const uint16_t *x, float *sums,
         hidden *h)
{
    int64_t size = (int64_t)p->weights * p->parts * p->reader.wide * TILE_COLUMNS;
    const uint16_t *w = p->packed + first / TILE_COLUMNS * size;
    bool wide = p->c - first > TILE_COLUMNS;

    if (p->parts == 1 && wide) {
        multiply_block(t, 1, 2, p, plane, x, w, sums, h);
    } else if (p->parts == 1) {
        multiply_block(t, 1, 1, p, plane, x, w, sums, h);
    } else if (wide) {
        multiply_block(t, 2, 2, p, plane, x, w, sums, h);
    } else {
        multiply_block(t, 2, 1, p, plane, x, w, sums, h);
    }
    finish_some(h->finish, BLOCK);
}

/* All blocks of the strip from place `first` on, whose line is x. The last block's sums are left to `finish`,
 * in one of the two blocks of `sums`. */
static void
multiply_strip(tiles *t, const product *p, int64_t first, const uint16_t *x, float *sums,
               reader *next, finisher *finish)
{
    int64_t places = p->space.places - first < p->strip ? p->space.places - first : p->strip;
    int64_t steps = 0, pieces = reader_pieces(next, next->left);
    int inputs = p->reader.wide / TILE_HALVES;
    hidden h = {.finish = finish, .reader = next};

    for (int plane = 0; plane < p->planes; plane++) {
        steps += p->taps_in[plane] * inputs;
    }
    steps *= (places + BLOCK - 1) / BLOCK * ((p->c + BLOCK - 1) / BLOCK);
    h.pieces = pace_of(pieces, steps);
    for (int plane = 0; plane < p->planes; plane++) {
        h.lines = pace_of(BLOCK, p->taps_in[plane] * inputs);
        for (int64_t at = 0; at < places; at += BLOCK) {
            for (int c = 0; c < p->c; c += BLOCK) {
                float *block = sums + (finish->sums < sums + BLOCK_FLOATS ? BLOCK_FLOATS : 0);

                block_of(t, p, plane, c, x + at * p->reader.wide, block, &h);
                finish_start(finish, p, block, first + at, plane, c);
            }
        }
    }
    read_some(next, INT64_MAX);
}

/* The strip from place `first` on, behind the one in `from`: what both see is copied, and the reader set to
 * the rest. */
static void
next_strip(const product *p, int64_t first, const uint16_t *from, uint16_t *to, reader *next)
{
    int64_t both = 2 * p->space.halo, wide = p->reader.wide, part = (p->strip + both) * wide;

    if (first >= p->space.places) {
        return; /* and the reader has nothing left */
    }
    for (int i = 0; i < next->planes * p->parts; i++) {
        memcpy(to + i * part, from + i * part + p->strip * wide,
               (size_t)(both * wide) * sizeof *to);
    }
    reader_start(next, first + p->space.halo, p->strip, to + both * wide, p->strip + both);
}

static void
multiply_images(product *p, void *scratch)
{
    int64_t halo = p->space.halo, lines = p->strip + 2 * halo;
    int64_t numbers = reader_numbers(&p->reader, lines);
    uint16_t *buffers[2] = {scratch, (uint16_t *)scratch + numbers};
    float *sums = (float *)(buffers[1] + numbers), *bias = sums + 2 * BLOCK_FLOATS;
    finisher finish = {.sums = sums};
    reader next = p->reader;
    tiles t;
    int turn = 0;

    if (p->bias != NULL) {
        for (int64_t c = 0; c < dsb_pitch(p->c); c += DSB_VL) {
            vf_store(bias + c, vf_load_part(p->bias + c, p->c - c));
        }
        p->bias = bias;
    }
    tiles_open(&t);
    reader_start(&next, -halo, lines, buffers[0], lines);
    p->reader.part = next.part;
    read_some(&next, INT64_MAX);
    for (int64_t first = 0; first < p->space.places; first += p->strip, turn ^= 1) {
        next_strip(p, first + p->strip, buffers[turn], buffers[!turn], &next);
        multiply_strip(&t, p, first, buffers[turn] + halo * p->reader.wide, sums, &next, &finish);
    }
    finish_some(&finish, BLOCK);
    tiles_close(&t);
}

/* ---- the passes ---- */

static void
product_start(product *p, const dsb_conv *conv, int rows, bool transposed, reader r)
{
    int64_t bytes = reader_numbers(&r, 1) * (int64_t)sizeof(uint16_t);

    p->space = space_of(conv, rows);
    p->parts = r.parts;
    p->reader = r;
    p->reader.space = &p->space;
    p->weights = packed_edge(conv) * packed_edge(conv);
    p->h = transposed ? conv->h : dsb_conv_out(conv, conv->h);
    p->w = transposed ? conv->w : dsb_conv_out(conv, conv->w);
    p->c = transposed ? conv->c_in : conv->c_out;
    p->step = transposed ? conv->stride : conv->up;
    p->planes = p->step * p->step;
    for (int i = 0; i < p->planes; i++) {
        p->taps_in[i] = list_taps(&p->space, conv, true, transposed, i, p->taps[i]);
    }
    p->strip = round_up(p->space.places < STRIP ? p->space.places : STRIP, BLOCK);
    while (p->strip > BLOCK && (p->strip + 2 * p->space.halo) * bytes > STRIP_BYTES) {
        p->strip -= BLOCK;
    }
}

static size_t
product_bytes(const product *p)
{
    int64_t lines = p->strip + 2 * p->space.halo;

    return 2 * (size_t)reader_numbers(&p->reader, lines) * sizeof(uint16_t) +
           (size_t)(2 * BLOCK_FLOATS + dsb_pitch(p->c)) * sizeof(float);
}

static size_t
scratch_bytes_in(int parts, const dsb_conv *conv, int rows, bool backward)
{
    product p = {.packed = NULL};
    size_t bytes, weight;

    if (!backward) {
        product_start(&p, conv, rows, false, reader_of_input(conv, parts, (dsb_slot){0}, NULL));
        return product_bytes(&p);
    }
    product_start(&p, conv, rows, true, reader_of_output(conv, parts, (dsb_slot){0}));
    bytes = product_bytes(&p);
    weight = DSB_KERNEL(dsb_conv_tile_weight_bytes)(parts, conv, rows);
    return bytes > weight ? bytes : weight;
}

static void
forward_in(int parts, const dsb_conv *conv, int rows, dsb_slot x, const dsb_affine *affine,
           const void *packed, const dsb_epilogue *epilogue, dsb_slot y, void *scratch)
{
    product p = {.packed = packed, .y = y};

    product_start(&p, conv, rows, false, reader_of_input(conv, parts, x, affine));
    p.add = epilogue->residual;
    p.row = epilogue->row;
    p.bias = epilogue->bias;
    multiply_images(&p, scratch);
}

/* dx[q] = sum over the output pixels p and taps n that meet q (see line_taps) of W[n]^T dy[p]. */
static void
backward_input_in(int parts, const dsb_conv *conv, int rows, dsb_slot dy, const void *packed,
                  int beta, dsb_slot dx, void *scratch)
{
    product p = {.packed = packed, .y = dx};

    product_start(&p, conv, rows, true, reader_of_output(conv, parts, dy));
    if (beta) {
        p.add = dx;
    }
    multiply_images(&p, scratch);
}

/* The table's entries, for one part (bf16) and for two (bf16x3). */
#define PASSES(name, parts)                                                                        \
    static size_t packed_bytes_##name(const dsb_conv *conv, bool transposed)                       \
    {                                                                                              \
        return DSB_KERNEL(dsb_conv_tile_packed_bytes)(parts, conv, transposed);                    \
    }                                                                                              \
    static void pack_##name(dsb_stream *stream, const dsb_conv *conv, bool transposed,             \
                            const float *w, void *packed)                                          \
    {                                                                                              \
        (void)stream;                                                                              \
        DSB_KERNEL(dsb_conv_tile_pack)(parts, conv, transposed, w, packed);                        \
    }                                                                                              \
    static size_t scratch_bytes_##name(const dsb_conv *conv, int rows, bool backward)              \
    {                                                                                              \
        return scratch_bytes_in(parts, conv, rows, backward);                                      \
    }                                                                                              \
    static void forward_##name(dsb_stream *stream, const dsb_conv *conv, int rows, dsb_slot x,     \
                               const dsb_affine *affine, const void *packed,                       \
                               const dsb_epilogue *epilogue, dsb_slot y, void *scratch)            \
    {                                                                                              \
        (void)stream;                                                                              \
        forward_in(parts, conv, rows, x, affine, packed, epilogue, y, scratch);                    \
    }                                                                                              \
    static void backward_input_##name(dsb_stream *stream, const dsb_conv *conv, int rows,          \
                                      dsb_slot dy, const void *packed, int beta, dsb_slot dx,      \
                                      void *scratch)                                               \
    {                                                                                              \
        (void)stream;                                                                              \
        backward_input_in(parts, conv, rows, dy, packed, beta, dx, scratch);                       \
    }                                                                                              \
    static void backward_weight_##name(dsb_stream *stream, const dsb_conv *conv, int rows,         \
                                       dsb_slot x, const dsb_affine *affine, dsb_slot dy,          \
                                       int beta, float *dw, float *db, void *scratch)              \
    {                                                                                              \
        (void)stream;                                                                              \
        DSB_KERNEL(dsb_conv_tile_weight)(parts, conv, rows, x, affine, dy, beta, dw, db, scratch); \
    }                                                                                              \
    static const dsb_conv_passes passes_##name = {packed_bytes_##name,   pack_##name,              \
                                                  scratch_bytes_##name,  forward_##name,           \
                                                  backward_input_##name, backward_weight_##name};

PASSES(bf16, 1)
PASSES(bf16x3, 2)

void
DSB_KERNEL(dsb_cpu_conv_tile)(dsb_backend *table)
{
    table->conv[DSB_PRECISION_BF16] = passes_bf16;
    table->conv[DSB_PRECISION_BF16X3] = passes_bf16x3;
}
