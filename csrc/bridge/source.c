#include "bridge/source.h"

#include <assert.h>

#include "base/philox.h"

#define BLOCK 64

dsb_status
dsb_source_rows(dsb_source *source, const dsb_backend *be, const dsb_rows *rows)
{
    *source = (dsb_source){.be = be, .dim = rows->dim, .rows = *rows};
    DSB_REQUIRE(rows->n >= 1 && rows->n <= UINT32_MAX,
                "a data set has 1 to 2^32 - 1 rows, got %lld", (long long)rows->n);
    return DSB_OK;
}

size_t
dsb_source_bytes(int64_t dim, bool factor)
{
    int64_t pitch = dsb_pitch(dim);

    return sizeof(float) * (size_t)(pitch + (factor ? pitch * pitch + dim * dim : 0));
}

dsb_status
dsb_source_gaussian(dsb_source *source, const dsb_backend *be, int64_t dim, const float *mean,
                    float deviation, const float *factor)
{
    float *plain;

    *source = (dsb_source){.be = be, .dim = dim, .gaussian = true, .deviation = deviation};
    DSB_TRY(be->alloc(sizeof(float) * (size_t)dsb_pitch(dim), &source->mean));
    be->upload(source->mean, mean, sizeof(float) * (size_t)dim);
    if (factor == NULL) {
        return DSB_OK;
    }
    DSB_TRY(be->alloc(sizeof(float) * (size_t)(dsb_pitch(dim) * dsb_pitch(dim)), &source->factor));
    DSB_TRY(be->alloc(sizeof(float) * (size_t)(dim * dim), &plain));
    be->upload(plain, factor, sizeof(float) * (size_t)(dim * dim));
    be->linear_pack(NULL, (int)dim, (int)dim, plain, source->factor);
    be->free(plain);
    return DSB_OK;
}

void
dsb_source_clear(dsb_source *source)
{
    if (source->be != NULL) {
        source->be->free(source->mean);
        source->be->free(source->factor);
    }
    *source = (dsb_source){.be = NULL};
}

static void
draw_rows(const dsb_source *source, const dsb_starts *starts, int64_t first, int rows, float *x,
          int64_t ldx, uint32_t *ids)
{
    int64_t n = source->rows.n, epoch = -1, wanted[BLOCK];
    dsb_permutation order;

    assert(rows <= BLOCK);
    for (int r = 0; r < rows; r++) {
        int64_t i = first + r;

        if (i / n != epoch) {
            epoch = i / n;
            dsb_permutation_init(&order, (uint64_t)n, starts->seed, starts->order_stream,
                                 (uint32_t)epoch);
        }
        wanted[r] = (int64_t)dsb_permute(&order, (uint64_t)(i % n));
        ids[r] = (uint32_t)wanted[r];
    }
    source->be->gather_rows(NULL, &source->rows, rows, wanted, x, ldx);
}

static void
draw_gaussian(const dsb_source *source, const dsb_starts *starts, int64_t first, int rows, float *x,
              int64_t ldx, float *z, int64_t ldz, uint32_t *ids)
{
    dsb_draw at = {starts->seed, starts->normal_stream, 0, (uint32_t)first};
    int dim = (int)source->dim;

    source->be->normals(NULL, &at, rows, dim, z, ldz);
    if (source->factor != NULL) {
        source->be->linear_forward(NULL, rows, dim, dim, z, ldz, source->factor, source->mean,
                                   DSB_IDENTITY, 0.0f, NULL, 0, x, ldx);
    } else {
        source->be->combine(NULL, rows, dim, source->deviation, z, ldz, 0.0f, NULL, 0, 1.0f,
                            source->mean, x, ldx);
    }
    for (int r = 0; r < rows; r++) {
        ids[r] = (uint32_t)(first + r);
    }
}

void
dsb_source_draw(const dsb_source *source, const dsb_starts *starts, int64_t first, int rows,
                float *x, int64_t ldx, float *z, int64_t ldz, uint32_t *ids)
{
    for (int r = 0; r < rows; r += BLOCK) {
        int part = rows - r < BLOCK ? rows - r : BLOCK;

        if (source->gaussian) {
            draw_gaussian(source, starts, first + r, part, x + r * ldx, ldx, z + r * ldz, ldz,
                          ids + r);
        } else {
            draw_rows(source, starts, first + r, part, x + r * ldx, ldx, ids + r);
        }
    }
}
