/* Standard normals. Compiled without contraction: every instruction set draws the same bits.
 *
 * A lane is a quad of numbers (one Philox draw), and lanes are counted through rows and columns
 * alike, so that many short rows fill the vectors as well as one long row. The loops over lanes are
 * plain ones that compilers turn into vectors.
 */
#include "cpu/cpu.h"

#include "base/philox.h"
#include "cpu/vector.h"

enum { LANES = 64 };

typedef struct block {
    uint32_t sample[LANES], element[LANES]; /* the counter's last two words */
    uint32_t bits[4][LANES];
    float z[4][LANES];
} block;

/* Which quads: `count` of them from number `first`, `quads` to a row. */
static void
number_lanes(block *k, const dsb_draw *at, int64_t first, int quads)
{
    uint32_t row = (uint32_t)(first / quads), quad = (uint32_t)(first % quads);

    if (quads == 1) {
        for (uint32_t j = 0; j < LANES; j++) {
            k->sample[j] = at->sample + row + j;
            k->element[j] = 0;
        }
        return;
    }
    if (quad + LANES <= (uint32_t)quads) {
        for (uint32_t j = 0; j < LANES; j++) {
            k->sample[j] = at->sample + row;
            k->element[j] = quad + j;
        }
        return;
    }
    for (int j = 0; j < LANES; j++) {
        k->sample[j] = at->sample + row;
        k->element[j] = quad;
        quad++;
        if (quad == (uint32_t)quads) {
            quad = 0;
            row++;
        }
    }
}

static void
draw_bits(block *k, const dsb_draw *at)
{
    uint64_t seed = at->seed;
    uint32_t stream = at->stream, step = at->step;

    for (int j = 0; j < LANES; j++) {
        uint32_t out[4];

        dsb_philox(seed, stream, step, k->sample[j], k->element[j], out);
        k->bits[0][j] = out[0];
        k->bits[1][j] = out[1];
        k->bits[2][j] = out[2];
        k->bits[3][j] = out[3];
    }
}

static void
shape_pair(const uint32_t *a, const uint32_t *b, float *z0, float *z1)
{
    for (int j = 0; j < LANES; j++) {
        dsb_box_muller(a[j], b[j], &z0[j], &z1[j]);
    }
}

/* Whole quads that follow one another in a row. */
static void
store_run(const block *k, float *out)
{
    for (int j = 0; j < LANES; j++) {
        out[4 * j] = k->z[0][j];
        out[4 * j + 1] = k->z[1][j];
        out[4 * j + 2] = k->z[2][j];
        out[4 * j + 3] = k->z[3][j];
    }
}

/* Quads one at a time; `width` columns of a row are written, those from `dim` on with zeros. */
static void
store_lanes(const block *k, int64_t first, int count, int quads, int dim, int64_t width, float *out,
            int64_t ld)
{
    float *row = out + first / quads * ld;
    int quad = (int)(first % quads);

    for (int j = 0; j < count; j++) {
        int left = dim - 4 * quad;

        row[4 * quad] = k->z[0][j];
        if (left >= 4) {
            row[4 * quad + 1] = k->z[1][j];
            row[4 * quad + 2] = k->z[2][j];
            row[4 * quad + 3] = k->z[3][j];
        } else {
            for (int i = 1; i < left; i++) {
                row[4 * quad + i] = k->z[i][j];
            }
        }
        quad++;
        if (quad == quads) {
            for (int64_t c = dim; c < width; c++) {
                row[c] = 0.0f;
            }
            quad = 0;
            row += ld;
        }
    }
}

/* Rows of at most four numbers: a quad is a row, and with its padding some whole vectors. */
static void
store_short(const block *k, int64_t first, int count, int dim, float *out, int64_t ld)
{
    float *row = out + first * ld;

    for (int j = 0; j < count; j++) {
        v4f v = {k->z[0][j], dim > 1 ? k->z[1][j] : 0.0f, dim > 2 ? k->z[2][j] : 0.0f,
                 dim > 3 ? k->z[3][j] : 0.0f};

        *(v4f_loose *)row = v;
        DSB_UNROLL
        for (int c = 4; c < DSB_PANEL; c += 4) {
            *(v4f_loose *)(row + c) = (v4f){0};
        }
        row += ld;
    }
}

/* out[r, :] = normals, the padding zero as far as there is one. */
static void
normals(dsb_stream *stream, const dsb_draw *at, int rows, int dim, float *out, int64_t ld)
{
    int quads = (dim + 3) / 4;
    int64_t total = (int64_t)rows * quads, width = dsb_pitch(dim) < ld ? dsb_pitch(dim) : ld;
    block k;

    (void)stream;
    for (int64_t first = 0; first < total; first += LANES) {
        int count = total - first < LANES ? (int)(total - first) : LANES;
        int64_t quad = first % quads;

        number_lanes(&k, at, first, quads);
        draw_bits(&k, at);
        shape_pair(k.bits[0], k.bits[1], k.z[0], k.z[1]);
        if (dim > 2) {
            shape_pair(k.bits[2], k.bits[3], k.z[2], k.z[3]);
        }
        if (count == LANES && quad + LANES < quads) {
            store_run(&k, out + first / quads * ld + 4 * quad);
        } else if (quads == 1 && width == DSB_PANEL) {
            store_short(&k, first, count, dim, out, ld);
        } else {
            store_lanes(&k, first, count, quads, dim, width, out, ld);
        }
    }
}

void
DSB_KERNEL(dsb_cpu_noise)(dsb_backend *table)
{
    table->normals = normals;
}
