/* The gradient of a convolution's weights on tiles: dw[o][tap][i] = sum over places of dy[o] x[i], shifted.
 *
 * Places are what is summed over, so they run along the rows of the first factor, dy turned, and in pairs
 * along those of the second, x. A tap's shift may be odd: the pairs are kept from even places on and from
 * odd ones on, so that every shift is a whole number of rows. Up to six sums (of neighbouring taps, then
 * channels) share a tile of dy. The images go through in strips of places; the sums of a strip start from dw
 * and return to it. Between the tile instructions the next strip is read, paired and turned.
 */
#include "cpu/conv_tile.h"

enum {
    SUMS = 6,       /* that share a tile of dy */
    SUMS_PARTS = 5, /* with two parts, dy takes two registers */
    STRIP = 1024,   /* places, where they take no more than */
    STRIP_BYTES = 2048 * 1024,
    RUN = 4, /* pairs that are made, or groups of channels that are read, at a time */
};

typedef struct gradient {
    space space;
    reader x, dy; /* before any place is read */
    int parts, kernel_taps, c_in, c_out;
    int taps[4], planes; /* of each plane of dy */
    tap tap[4][9];
    int64_t strip, lines;      /* places of a strip, and lines of x for them */
    int kinds;                 /* of pairs: from even places on and, for 3x3, from odd ones on */
    int64_t pairs;             /* rows of a kind, for 16 channels */
    int64_t n_x, n_dy;         /* numbers in the lines */
    int64_t n_pairs, n_turned; /* numbers in the operands */
    int blocks_in, blocks_out; /* of 16 channels */
    uint16_t *lines_x, *lines_dy;
} gradient;

/* ---- operands ---- */

/* What makes a strip's operands, piece by piece: x and dy are read into lines; then the lines of x become
 * pairs [plane, part][16 channels][even, odd][pair][16][2], and those of dy
 * turned tiles [plane, part][16 channels][32 places][16 channels][32]. */
typedef struct maker {
    const gradient *g;
    reader x, dy;
    uint16_t *pairs, *turned;
    int64_t next_pairs, next_turned; /* pieces made */
} maker;

/* The first row of 16 channels' pairs. */
DSB_INLINE int64_t
pairs_at(const gradient *g, int64_t slab, int block, int odd)
{
    return ((slab * g->blocks_in + block) * g->kinds + odd) * g->pairs * TILE_HALVES;
}

DSB_INLINE int64_t
turned_at(const gradient *g, int64_t slab, int block, int64_t chunk)
{
    return ((slab * g->blocks_out + block) * (g->strip / TILE_HALVES) + chunk) * TILE_NUMBERS;
}

/* RUN pairs of 16 channels. The last odd pair takes a line behind the buffer; no tap reaches it. */
static __attribute__((noinline)) void
make_pairs(maker *m)
{
    const gradient *g = m->g;
    int64_t runs = g->pairs / RUN, run = m->next_pairs % runs, slab = m->next_pairs / runs;
    int64_t wide = g->x.wide;
    int block = (int)(slab % g->blocks_in);
    const uint16_t *line;
    uint16_t *even, *odd;

    slab /= g->blocks_in;
    line = g->lines_x + (slab * g->lines + run * RUN * 2) * wide + block * TILE_COLUMNS;
    even = m->pairs + pairs_at(g, slab, block, 0) + run * RUN * TILE_HALVES;
    odd = m->pairs + pairs_at(g, slab, block, 1) + run * RUN * TILE_HALVES;
    for (int c = 0; c < TILE_COLUMNS; c += DSB_VL) {
        vi first = (vi)vf_load_bf16(line + c);

        DSB_UNROLL
        for (int i = 0; i < RUN; i++) {
            vi second = (vi)vf_load_bf16(line + (2 * i + 1) * wide + c);
            vi third = (vi)vf_load_bf16(line + (2 * i + 2) * wide + c);

            vf_store((float *)even + i * TILE_COLUMNS + c, vf_pairs(first, second));
            if (g->kinds == 2) {
                vf_store((float *)odd + i * TILE_COLUMNS + c, vf_pairs(second, third));
            }
            first = third;
        }
    }
    m->next_pairs++;
}

/* A tile of 16 channels by 32 places: pairs of places first, then their 16 x 16 transpose. */
static __attribute__((noinline)) void
make_turned(maker *m)
{
    const gradient *g = m->g;
    int64_t chunks = g->strip / TILE_HALVES;
    int64_t chunk = m->next_turned % chunks, slab = m->next_turned / chunks;
    int block = (int)(slab % g->blocks_out);
    const uint16_t *line;
    float pairs[TILE_FLOATS], *to;

    slab /= g->blocks_out;
    line =
        g->lines_dy + (slab * g->strip + chunk * TILE_HALVES) * g->dy.wide + block * TILE_COLUMNS;
    to = (float *)(m->turned + turned_at(g, slab, block, chunk));
    for (int i = 0; i < TILE_ROWS; i++, line += 2 * g->dy.wide) {
        pair_row(line, line + g->dy.wide, pairs + i * TILE_COLUMNS);
    }
    for (int p = 0; p < TILE_ROWS; p += DSB_VL) {
        for (int c = 0; c < TILE_COLUMNS; c += 4) {
            vf_transpose_four(pairs + p * TILE_COLUMNS + c, TILE_COLUMNS, to + c * TILE_COLUMNS + p,
                              TILE_COLUMNS);
        }
    }
    m->next_turned++;
}

DSB_INLINE int64_t
pieces_of_pairs(const gradient *g)
{
    return g->pairs / RUN * g->x.planes * g->parts * g->blocks_in;
}

DSB_INLINE int64_t
pieces_of_turned(const gradient *g)
{
    return g->strip / TILE_HALVES * g->dy.planes * g->parts * g->blocks_out;
}

/* Up to n pieces of what is not made yet. */
static __attribute__((noinline)) void
make_some(maker *m, int64_t n)
{
    while (n > 0) {
        int64_t some = 1;

        if (m->x.left > 0) {
            some = n < RUN ? n : RUN;
            read_some(&m->x, some);
        } else if (m->dy.left > 0) {
            some = n < RUN ? n : RUN;
            read_some(&m->dy, some);
        } else if (m->next_pairs < pieces_of_pairs(m->g)) {
            make_pairs(m);
        } else if (m->next_turned < pieces_of_turned(m->g)) {
            make_turned(m);
        } else {
            return;
        }
        n -= some;
    }
}

/* Sets out to make the operands of the strip from place `first` on; returns the number of pieces. What the
 * strip before has read of x is moved to the front of the lines. */
static int64_t
make_start(maker *m, const gradient *g, int64_t first, uint16_t *operands)
{
    int64_t old = first > 0 ? g->lines - g->strip : 0, wide = g->x.wide;

    *m = (maker){.g = g, .x = g->x, .dy = g->dy, .pairs = operands};
    m->turned = operands + g->n_pairs;
    for (int64_t i = 0; i < (int64_t)g->x.planes * g->parts; i++) {
        uint16_t *slab = g->lines_x + i * g->lines * wide;

        memmove(slab, slab + g->strip * wide, (size_t)(old * wide) * sizeof *slab);
    }
    reader_start(&m->x, first - g->space.halo + old, g->lines - old, g->lines_x + old * wide,
                 g->lines);
    reader_start(&m->dy, first, g->strip, g->lines_dy, g->strip);
    return reader_pieces(&g->x, g->lines - old) + reader_pieces(&g->dy, g->strip) +
           pieces_of_pairs(g) + pieces_of_turned(g);
}

/* ---- sums ---- */

/* A tile of dw: where its factor and its sum lie. */
typedef struct sum {
    const uint16_t *b;
    float *to; /* dw, or, at the last channels, `edge` */
    float *dw;
    int64_t stride; /* bytes from row to row of `to` */
    int rows, columns;
    bool fresh, whole; /* it starts from zero; it lies in dw as it is */
    float edge[TILE_FLOATS];
} sum;

/* Of one plane of dy and 16 of its channels: sum number e, in the order of blocks of x, then taps. */
static void
sum_start(const gradient *g, const uint16_t *pairs, int plane, int block, int e, bool fresh,
          float *dw, sum *s)
{
    const tap *at = &g->tap[plane][e % g->taps[plane]];
    int o = block * TILE_COLUMNS, in = e / g->taps[plane], i = in * TILE_COLUMNS;
    int64_t line = g->space.halo + at->shift;

    s->b =
        pairs + pairs_at(g, (int64_t)at->plane * g->parts, in, line & 1) + line / 2 * TILE_HALVES;
    s->dw = dw + ((int64_t)o * g->kernel_taps + at->weight) * g->c_in + i;
    s->rows = g->c_out - o < TILE_ROWS ? g->c_out - o : TILE_ROWS;
    s->columns = g->c_in - i < TILE_COLUMNS ? g->c_in - i : TILE_COLUMNS;
    s->whole = s->rows == TILE_ROWS && s->columns == TILE_COLUMNS;
    s->fresh = fresh;
    s->to = s->whole ? s->dw : s->edge;
    s->stride = s->whole ? (int64_t)g->kernel_taps * g->c_in * (int64_t)sizeof *dw : TILE_BYTES;
}

static void
sum_finish(const gradient *g, const sum *s)
{
    if (s->whole) {
        return;
    }
    for (int r = 0; r < s->rows; r++) {
        float *to = s->dw + (int64_t)r * g->kernel_taps * g->c_in;

        for (int c = 0; c < s->columns; c++) {
            to[c] = s->edge[r * TILE_COLUMNS + c] + (s->fresh ? 0.0f : to[c]);
        }
    }
}

/* n sums over `chunks` of 32 places; `rest` is from part to part of a factor. With two parts,
 * dy1 x2 + dy1 x1 + dy2 x1. */
DSB_INLINE void
sum_pass(tiles *t, int parts, int n, const gradient *g, const uint16_t *turned, int64_t chunks,
         const sum *s, maker *m, pace *pieces)
{
    int64_t rest_a = turned_at(g, 1, 0, 0), rest_b = pairs_at(g, 1, 0, 0), now;

    tile_fence();
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        if (s[i].whole && !s[i].fresh) {
            tile_load(t, i, s[i].to, s[i].stride);
        } else {
            tile_zero(t, i);
        }
    }
    for (int64_t k = 0; k < chunks * TILE_NUMBERS; k += TILE_NUMBERS) {
        tile_load(t, 6, turned + k, TILE_BYTES);
        if (parts == 2) {
            tile_load(t, 5, turned + rest_a + k, TILE_BYTES);
        }
        DSB_UNROLL
        for (int i = 0; i < n && parts == 2; i++) {
            tile_load(t, 7, s[i].b + rest_b + k, TILE_BYTES);
            tile_dot(t, i, 6, 7);
        }
        DSB_UNROLL
        for (int i = 0; i < n; i++) {
            tile_load(t, 7, s[i].b + k, TILE_BYTES);
            tile_dot(t, i, 6, 7);
            if (parts == 2) {
                tile_dot(t, i, 5, 7);
            }
        }
        now = pace_next(pieces, RUN);
        if (now > 0) {
            make_some(m, now);
        }
    }
    DSB_UNROLL
    for (int i = 0; i < n; i++) {
        tile_store(t, i, s[i].to, s[i].stride);
    }
}

static void
sum_pass_as(tiles *t, int n, const gradient *g, const uint16_t *turned, int64_t chunks,
            const sum *s, maker *m, pace *pieces)
{
    switch (n * 2 + g->parts - 1) {
    case 2:
        sum_pass(t, 1, 1, g, turned, chunks, s, m, pieces);
        break;
    case 3:
        sum_pass(t, 2, 1, g, turned, chunks, s, m, pieces);
        break;
    case 4:
        sum_pass(t, 1, 2, g, turned, chunks, s, m, pieces);
        break;
    case 5:
        sum_pass(t, 2, 2, g, turned, chunks, s, m, pieces);
        break;
    case 6:
        sum_pass(t, 1, 3, g, turned, chunks, s, m, pieces);
        break;
    case 7:
        sum_pass(t, 2, 3, g, turned, chunks, s, m, pieces);
        break;
    case 8:
        sum_pass(t, 1, 4, g, turned, chunks, s, m, pieces);
        break;
    case 9:
        sum_pass(t, 2, 4, g, turned, chunks, s, m, pieces);
        break;
    case 10:
        sum_pass(t, 1, 5, g, turned, chunks, s, m, pieces);
        break;
    case 11:
        sum_pass(t, 2, 5, g, turned, chunks, s, m, pieces);
        break;
    default:
        sum_pass(t, 1, SUMS, g, turned, chunks, s, m, pieces);
    }
}

/* Everything that one strip adds to dw; m makes the next strip meanwhile, in `pieces`. */
static void
sum_strip(tiles *t, const gradient *g, int64_t places, const uint16_t *operands, bool fresh,
          float *dw, maker *m, int64_t pieces)
{
    const uint16_t *turned = operands + g->n_pairs;
    int most = g->parts == 2 ? SUMS_PARTS : SUMS;
    int64_t chunks = (places + TILE_HALVES - 1) / TILE_HALVES, passes = 0;
    pace each;
    sum s[SUMS];

    for (int plane = 0; plane < g->planes; plane++) {
        passes += (g->taps[plane] * g->blocks_in + most - 1) / most * g->blocks_out;
    }
    each = pace_of(pieces, passes * chunks);
    for (int plane = 0; plane < g->planes; plane++) {
        int sums = g->taps[plane] * g->blocks_in;

        for (int block = 0; block < g->blocks_out; block++) {
            const uint16_t *a = turned + turned_at(g, (int64_t)plane * g->parts, block, 0);

            for (int e = 0; e < sums; e += most) {
                int n = sums - e < most ? sums - e : most;

                for (int i = 0; i < n; i++) {
                    sum_start(g, operands, plane, block, e + i, fresh && plane == 0, dw, &s[i]);
                }
                sum_pass_as(t, n, g, a, chunks, s, m, &each);
                for (int i = 0; i < n; i++) {
                    sum_finish(g, &s[i]);
                }
            }
        }
    }
    make_some(m, INT64_MAX);
}

/* ---- the pass ---- */

static void
gradient_start(gradient *g, const dsb_conv *conv, int rows, reader x, reader dy)
{
    *g = (gradient){.space = space_of(conv, rows), .x = x, .dy = dy, .parts = x.parts};
    g->x.space = g->dy.space = &g->space;
    g->kernel_taps = conv->kernel * conv->kernel;
    g->kinds = conv->kernel == 3 ? 2 : 1;
    g->c_in = conv->c_in;
    g->c_out = conv->c_out;
    g->planes = dy.planes;
    g->blocks_in = (int)round_up(conv->c_in, TILE_COLUMNS) / TILE_COLUMNS;
    g->blocks_out = (int)round_up(conv->c_out, TILE_COLUMNS) / TILE_COLUMNS;
    for (int i = 0; i < g->planes; i++) {
        tap all[MAX_TAPS];

        g->taps[i] = list_taps(&g->space, conv, false, false, i, all);
        memcpy(g->tap[i], all, sizeof g->tap[i]);
    }
}

/* Sizes for a strip of so many places; returns the bytes of scratch. */
static size_t
gradient_size(gradient *g, int64_t strip)
{
    g->strip = strip;
    g->lines = round_up(strip + 2 * g->space.halo + 2, 2 * RUN);
    g->pairs = g->lines / 2;
    g->n_x = reader_numbers(&g->x, g->lines);
    g->n_dy = reader_numbers(&g->dy, strip);
    g->n_pairs = pairs_at(g, (int64_t)g->x.planes * g->parts, 0, 0);
    g->n_turned = turned_at(g, (int64_t)g->dy.planes * g->parts, 0, 0);
    return (size_t)(g->n_x + g->n_dy + 2 * (g->n_pairs + g->n_turned)) * sizeof(uint16_t);
}

/* The longest strip that is neither too many places nor too many bytes. */
static size_t
gradient_fit(gradient *g)
{
    int64_t strip = round_up(g->space.places < STRIP ? g->space.places : STRIP, TILE_HALVES);
    size_t bytes = gradient_size(g, strip);

    while (strip > TILE_HALVES && bytes > STRIP_BYTES) {
        strip -= TILE_HALVES;
        bytes = gradient_size(g, strip);
    }
    return bytes;
}

size_t
DSB_KERNEL(dsb_conv_tile_weight_bytes)(int parts, const dsb_conv *conv, int rows)
{
    gradient g;

    gradient_start(&g, conv, rows, reader_of_input(conv, parts, (dsb_slot){0}, NULL),
                   reader_of_output(conv, parts, (dsb_slot){0}));
    return gradient_fit(&g);
}

/* `width` vectors of db from channel i on: an image's sum, then that of the images. */
DSB_INLINE void
bias_strip(int half, int width, int rows, int pixels, int c, int i, dsb_slot dy, int beta,
           float *db)
{
    vf all[4], image[4];

    for (int v = 0; v < width; v++) {
        all[v] = beta ? vf_load_part(db + i + v * DSB_VL, c - i - v * DSB_VL) : (vf){0};
    }
    for (int64_t r = 0; r < rows; r++) {
        memset(image, 0, sizeof image);
        for (int64_t line = r * pixels; line < (r + 1) * pixels; line++) {
            DSB_UNROLL
            for (int v = 0; v < width; v++) {
                image[v] += vf_load_as(half, dy.data, line * dy.ld + i + v * DSB_VL);
            }
        }
        for (int v = 0; v < width; v++) {
            all[v] += image[v];
        }
    }
    for (int v = 0; v < width; v++) {
        vf_store_part(db + i + v * DSB_VL, all[v], c - i - v * DSB_VL);
    }
}

/* db = sum of dy over rows and pixels (+ db), of dy as it is given. */
static void
bias_gradient(int rows, int pixels, int c, dsb_slot dy, int beta, float *db)
{
    int half = dy.dtype == DSB_BFLOAT16, i = 0;

    for (; i + 4 * DSB_VL <= dsb_pitch(c); i += 4 * DSB_VL) {
        if (half) {
            bias_strip(1, 4, rows, pixels, c, i, dy, beta, db);
        } else {
            bias_strip(0, 4, rows, pixels, c, i, dy, beta, db);
        }
    }
    for (; i < c; i += DSB_VL) {
        bias_strip(half, 1, rows, pixels, c, i, dy, beta, db);
    }
}

void
DSB_KERNEL(dsb_conv_tile_weight)(int parts, const dsb_conv *conv, int rows, dsb_slot x,
                                 const dsb_affine *affine, dsb_slot dy, int beta, float *dw,
                                 float *db, void *scratch)
{
    gradient g;
    maker m;
    tiles t;
    uint16_t *operands[2];
    int turn = 0;

    gradient_start(&g, conv, rows, reader_of_input(conv, parts, x, affine),
                   reader_of_output(conv, parts, dy));
    gradient_fit(&g);
    g.lines_x = scratch;
    g.lines_dy = g.lines_x + g.n_x;
    operands[0] = g.lines_dy + g.n_dy;
    operands[1] = operands[0] + g.n_pairs + g.n_turned;
    make_start(&m, &g, 0, operands[0]);
    make_some(&m, INT64_MAX);
    tiles_open(&t);
    for (int64_t first = 0; first < g.space.places; first += g.strip, turn ^= 1) {
        int64_t left = g.space.places - first, pieces = 0;

        if (left > g.strip) {
            pieces = make_start(&m, &g, first + g.strip, operands[!turn]);
        }
        sum_strip(&t, &g, left < g.strip ? left : g.strip, operands[turn], !beta && first == 0, dw,
                  &m, pieces);
    }
    tiles_close(&t);
    if (db != NULL) {
        bias_gradient(rows, dsb_conv_out(conv, conv->h) * dsb_conv_out(conv, conv->w), conv->c_out,
                      dy, beta, db);
    }
}
