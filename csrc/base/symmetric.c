#include "base/symmetric.h"

#include <math.h>
#include <string.h>

#define SWEEPS 60 /* of Jacobi's method, at most; it converges quadratically after a few */

/* y += factor x */
static void
add_scaled(int many, double factor, const double *x, double *y)
{
    for (int i = 0; i < many; i++) {
        y[i] += factor * x[i];
    }
}

static void
scale(int many, double factor, double *x)
{
    for (int i = 0; i < many; i++) {
        x[i] *= factor;
    }
}

bool
dsb_cholesky(int n, const double *a, double shift, double *l)
{
    /* The upper factor, row by row: all that is read and written lies in rows. */
    for (int64_t i = 0; i < n; i++) {
        memset(l + i * n, 0, sizeof *l * (size_t)i);
        memcpy(l + i * n + i, a + i * n + i, sizeof *l * (size_t)(n - i));
        l[i * n + i] -= shift;
    }
    for (int64_t k = 0; k < n; k++) {
        double *row = l + k * n, pivot = row[k];

        if (!(pivot > 0.0 && pivot < INFINITY)) {
            return false;
        }
        scale((int)(n - k), 1.0 / sqrt(pivot), row + k);
        for (int64_t i = k + 1; i < n; i++) {
            add_scaled((int)(n - i), -row[i], row + i, l + i * n + i);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t c = i + 1; c < n; c++) {
            l[c * n + i] = l[i * n + c];
            l[i * n + c] = 0.0;
        }
    }
    return true;
}

void
dsb_cholesky_solve(int n, const double *l, int many, double *x)
{
    for (int64_t i = 0; i < n; i++) { /* L, downwards */
        for (int64_t k = 0; k < i; k++) {
            add_scaled(many, -l[i * n + k], x + k * n, x + i * n);
        }
        scale(many, 1.0 / l[i * n + i], x + i * n);
    }
    for (int64_t i = n - 1; i >= 0; i--) { /* L^T, upwards */
        for (int64_t k = i + 1; k < n; k++) {
            add_scaled(many, -l[k * n + i], x + k * n, x + i * n);
        }
        scale(many, 1.0 / l[i * n + i], x + i * n);
    }
}

static void
rotate(int n, double c, double s, double *p, double *q)
{
    for (int i = 0; i < n; i++) {
        double a = p[i], b = q[i];

        p[i] = c * a - s * b;
        q[i] = s * a + c * b;
    }
}

/* Makes d[p][q] zero: D <- J^T D J, and the rows p and q of V likewise. The rows of D are turned as they
 * lie, and its columns are what the rows say. */
static void
annihilate(int64_t n, double *d, double *v, int64_t p, int64_t q)
{
    double *row_p = d + p * n, *row_q = d + q * n, pp = row_p[p], qq = row_q[q], pq = row_p[q];
    double theta = (qq - pp) / (2.0 * pq);
    double t = (theta < 0.0 ? -1.0 : 1.0) / (fabs(theta) + hypot(theta, 1.0));
    double c = 1.0 / hypot(t, 1.0), s = t * c;

    rotate((int)n, c, s, row_p, row_q);
    rotate((int)n, c, s, v + p * n, v + q * n);
    row_p[p] = pp - t * pq;
    row_q[q] = qq + t * pq;
    row_p[q] = row_q[p] = 0.0;
    for (int64_t r = 0; r < n; r++) {
        d[r * n + p] = row_p[r];
        d[r * n + q] = row_q[r];
    }
}

/* Cyclic Jacobi: the eigenvalues end on the diagonal of D, the vectors in the rows of V. False: stopped. */
static bool
diagonalise(int n, double *d, double *v, dsb_watch *watch, int worker)
{
    double norm = 0.0, small;
    bool turned = true;

    for (int64_t i = 0; i < (int64_t)n * n; i++) {
        norm += d[i] * d[i];
        v[i] = 0.0;
    }
    for (int64_t i = 0; i < n; i++) {
        v[i * n + i] = 1.0;
    }
    small = 1e-15 * sqrt(norm) / n; /* all that is left then moves an eigenvalue by 1e-15 |A| */
    for (int sweep = 0; turned && sweep < SWEEPS; sweep++) {
        turned = false;
        for (int64_t p = 0; p < n; p++) {
            if (dsb_watch_stopped(watch, worker)) {
                return false;
            }
            for (int64_t q = p + 1; q < n; q++) {
                if (fabs(d[p * n + q]) > small) {
                    annihilate(n, d, v, p, q);
                    turned = true;
                }
            }
        }
    }
    return true;
}

int
dsb_raise_eigenvalues(int n, double *a, double least, double *work, dsb_watch *watch, int worker)
{
    double *d = work, *v = work + (int64_t)n * n;
    int raised = 0;

    if (dsb_cholesky(n, a, least, work)) { /* the common case: nothing is below */
        return 0;
    }
    memcpy(d, a, sizeof *d * (size_t)n * (size_t)n);
    if (!diagonalise(n, d, v, watch, worker)) {
        return -1;
    }
    for (int64_t e = 0; e < n; e++) {
        double missing = least - d[e * n + e];
        const double *vector = v + e * n;

        if (!(missing > 0.0)) {
            continue;
        }
        raised++;
        for (int64_t i = 0; i < n; i++) {
            for (int64_t c = 0; c <= i; c++) { /* both halves get the same bits */
                a[i * n + c] += missing * vector[i] * vector[c];
                a[c * n + i] = a[i * n + c];
            }
        }
    }
    return raised;
}
