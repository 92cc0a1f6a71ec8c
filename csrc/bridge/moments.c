#include "bridge/moments.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/symmetric.h"

#define BLOCK 64 /* rows that are summed in float32 */
#define PANEL 32 /* rows or columns of a matrix that one task takes */

static int64_t
panels(const dsb_moments *m)
{
    return (m->dim + PANEL - 1) / PANEL;
}

static int
columns_of(const dsb_moments *m, int64_t panel)
{
    int64_t left = m->dim - panel * PANEL;

    return (int)(left < PANEL ? left : PANEL);
}

/* ---- memory ---- */

/* Numbers of a matrix, or of a diagonal. */
static int64_t
moment_size(dsb_covariance kind, int64_t dim)
{
    return kind == DSB_COVARIANCE_FULL ? dim * dim : dsb_pitch(dim);
}

static size_t
sum_bytes(dsb_covariance kind, int64_t dim, int workers)
{
    return kind == DSB_COVARIANCE_FULL ? sizeof(float) * (size_t)(workers * PANEL * dim)
                                       : sizeof(double) * (size_t)dsb_pitch(dim);
}

size_t
dsb_moments_bytes(dsb_covariance kind, int64_t dim, int workers)
{
    return 5 * sizeof(double) * (size_t)moment_size(kind, dim) + 2 * sum_bytes(kind, dim, workers);
}

dsb_status
dsb_moments_init(dsb_moments *moments, const dsb_backend *be, dsb_covariance kind, int rows,
                 int64_t dim, bool both, int workers)
{
    int64_t size = moment_size(kind, dim);
    size_t bytes = sum_bytes(kind, dim, workers);
    dsb_status status;

    *moments = (dsb_moments){.be = be,
                             .kind = kind,
                             .dim = dim,
                             .ld = dsb_pitch(dim),
                             .rows = rows,
                             .workers = workers,
                             .both = both};
    DSB_TRY(dsb_alloc(5 * sizeof(double) * (size_t)size, &moments->xx));
    moments->yx = moments->xx + size;
    moments->yy = moments->yx + size;
    moments->factor = moments->yy + size;
    moments->moved = moments->factor + size;
    status = be->alloc(bytes, &moments->sums);
    if (status == DSB_OK) {
        status = dsb_alloc(bytes, &moments->host);
    }
    if (status != DSB_OK) {
        dsb_moments_clear(moments);
    }
    return status;
}

void
dsb_moments_clear(dsb_moments *moments)
{
    if (moments->be != NULL) {
        moments->be->free(moments->sums);
    }
    dsb_free(moments->host);
    dsb_free(moments->xx);
    *moments = (dsb_moments){.be = NULL};
}

/* ---- sums ---- */

/* One of the products x^T x, y^T x and y^T y. */
typedef struct product {
    const dsb_moments *moments;
    const float *left, *right;
    double *out;
} product;

/* PANEL rows of left^T right. */
static void
sum_panel(void *context, int64_t panel, int worker)
{
    const product *p = context;
    const dsb_moments *m = p->moments;
    int dim = (int)m->dim, many = columns_of(m, panel);
    float *sums = (float *)m->sums + worker * PANEL * dim,
          *host = (float *)m->host + worker * PANEL * dim;
    double *out = p->out + panel * PANEL * dim;

    memset(out, 0, sizeof *out * (size_t)(many * dim));
    for (int64_t first = 0; first < m->rows; first += BLOCK) {
        int rows = m->rows - first < BLOCK ? (int)(m->rows - first) : BLOCK;

        m->be->linear_backward_weight(NULL, rows, dim, many, p->right + first * m->ld, m->ld,
                                      p->left + first * m->ld + panel * PANEL, m->ld, 0, sums,
                                      NULL);
        m->be->download(host, sums, sizeof *host * (size_t)(many * dim));
        for (int i = 0; i < many * dim; i++) {
            out[i] += (double)host[i];
        }
    }
}

/* Columns of a panel of the diagonal. */
static void
sum_diagonal(void *context, int64_t panel, int worker)
{
    const product *p = context;
    const dsb_moments *m = p->moments;
    int64_t column = panel * PANEL;

    (void)worker;
    m->be->sum_products(NULL, m->rows, columns_of(m, panel), p->left + column, m->ld,
                        p->right + column, m->ld, (double *)m->sums + column);
}

/* out = left^T right / rows, or its diagonal. */
static dsb_status
take_product(const dsb_moments *m, const float *left, const float *right, double *out,
             dsb_watch *watch, bool *finite)
{
    product p = {m, left, right, out};
    bool full = m->kind == DSB_COVARIANCE_FULL;
    size_t bytes = sum_bytes(m->kind, m->dim, m->workers);
    int64_t numbers = full ? m->dim * m->dim : m->dim;
    double total = 0.0;

    if (!full) {
        memset(m->host, 0, bytes);
        m->be->upload(m->sums, m->host, bytes);
    }
    DSB_TRY(dsb_run_chunks(m->be->parallel, m->workers, panels(m), full ? sum_panel : sum_diagonal,
                           &p, watch));
    if (!full) {
        m->be->download(out, m->sums, bytes);
    }
    for (int64_t i = 0; i < numbers; i++) {
        out[i] /= m->rows;
        total += out[i]; /* NaN or infinity stays that */
    }
    *finite = *finite && isfinite(total);
    return DSB_OK;
}

dsb_status
dsb_moments_take(dsb_moments *moments, const float *x, const float *y, dsb_watch *watch,
                 bool *finite)
{
    *finite = true;
    DSB_TRY(take_product(moments, x, x, moments->xx, watch, finite));
    if (moments->both) {
        DSB_TRY(take_product(moments, y, x, moments->yx, watch, finite));
        DSB_TRY(take_product(moments, y, y, moments->yy, watch, finite));
    }
    return DSB_OK;
}

/* ---- diagonals and scalars ---- */

static double
regressed(double xx, double yx, double yy, double known)
{
    double d = yy > 0.0 ? yx / yy : 0.0; /* 0: noise that rounding swallowed explains nothing */

    return xx + d * d * (known - yy);
}

static void
finish_diagonal(const dsb_moments *m, const double *known, double variance, double *out)
{
    for (int64_t i = 0; i < m->dim; i++) {
        double of_y = known != NULL ? known[i] : variance;

        out[i] = m->both ? regressed(m->xx[i], m->yx[i], m->yy[i], of_y) : m->xx[i] + variance;
    }
}

static void
finish_scalar(const dsb_moments *m, const double *known, double variance, double *out)
{
    double xx = 0.0, yx = 0.0, yy = 0.0, n = (double)m->dim;

    for (int64_t i = 0; i < m->dim; i++) {
        xx += m->xx[i];
        yx += m->yx[i];
        yy += m->yy[i];
    }
    *out = m->both ? regressed(xx / n, yx / n, yy / n, known != NULL ? *known : variance)
                   : xx / n + variance;
}

/* ---- matrices ---- */

/* y += factor x, part of a row */
static void
add_row(int64_t many, double factor, const double *x, double *y)
{
    for (int64_t c = 0; c < many; c++) {
        y[c] += factor * x[c];
    }
}

/* Columns of a panel: D^T = yy^{-1} yx in place of yx, and (Q - yy) D^T, where yy holds Q - yy by now. */
static void
regress_panel(void *context, int64_t panel, int worker)
{
    const dsb_moments *m = context;
    int64_t n = m->dim, first = panel * PANEL, many = columns_of(m, panel);

    (void)worker;
    dsb_cholesky_solve((int)n, m->factor, (int)many, m->yx + first);
    for (int64_t i = 0; i < n; i++) {
        double *row = m->moved + i * n + first;

        memset(row, 0, sizeof *row * (size_t)many);
        for (int64_t k = 0; k < n; k++) {
            add_row(many, m->yy[i * n + k], m->yx + k * n + first, row);
        }
    }
}

/* Columns of a panel: xx += D (Q - yy) D^T. */
static void
correct_panel(void *context, int64_t panel, int worker)
{
    const dsb_moments *m = context;
    int64_t n = m->dim, first = panel * PANEL, many = columns_of(m, panel);

    (void)worker;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < n; k++) {
            add_row(many, m->yx[k * n + i], m->moved + k * n + first, m->xx + i * n + first);
        }
    }
}

static dsb_status
finish_full(const dsb_moments *m, const double *known, double variance, dsb_watch *watch,
            double *out)
{
    int64_t n = m->dim;

    if (m->both && dsb_cholesky((int)n, m->yy, 0.0, m->factor)) {
        for (int64_t i = 0; i < n * n; i++) {
            double of_y = known != NULL ? known[i] : i % (n + 1) == 0 ? variance : 0.0;

            m->yy[i] = of_y - m->yy[i];
        }
        DSB_TRY(dsb_run_chunks(m->be->parallel, m->workers, panels(m), regress_panel, (void *)m,
                               watch));
        DSB_TRY(dsb_run_chunks(m->be->parallel, m->workers, panels(m), correct_panel, (void *)m,
                               watch));
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t c = 0; c <= i; c++) {
            out[i * n + c] = out[c * n + i] = 0.5 * (m->xx[i * n + c] + m->xx[c * n + i]);
        }
        out[i * (n + 1)] += m->both ? 0.0 : variance;
    }
    return DSB_OK;
}

dsb_status
dsb_moments_covariance(dsb_moments *moments, const double *known, double variance, dsb_watch *watch,
                       double *out)
{
    switch (moments->kind) {
    case DSB_COVARIANCE_FULL:
        return finish_full(moments, known, variance, watch, out);
    case DSB_COVARIANCE_DIAGONAL:
        finish_diagonal(moments, known, variance, out);
        return DSB_OK;
    default:
        finish_scalar(moments, known, variance, out);
        return DSB_OK;
    }
}
