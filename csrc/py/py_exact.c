/* Entropic transport between samples: Sinkhorn's iteration, and what is read off a plan. */
#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/core.h"

#include "base/memory.h"
#include "exact/conditional.h"
#include "exact/sinkhorn.h"
#include "py/bridge_object.h"

/* A copy of the potential that the core may write to. */
static PyObject *
copied(const dsb_tensor *from, double **data)
{
    PyObject *array = dsb_py_array(DSB_FLOAT64, 1, from->shape, data);

    if (array != NULL) {
        memcpy(*data, from->data, sizeof **data * (size_t)from->shape[0]);
    }
    return array;
}

/* The first n of a vector of the core. */
static PyObject *
part(const double *from, int64_t n)
{
    double *data;
    PyObject *array = dsb_py_array(DSB_FLOAT64, 1, &n, &data);

    if (array != NULL) {
        memcpy(data, from, sizeof *data * (size_t)n);
    }
    return array;
}

/* Views (x, y, a, b, f, g), the two ends side by side; 0 or -1. */
static int
view_samples(PyObject *module, PyObject **given, dsb_tensor *points, dsb_tensor *weight,
             dsb_tensor *potential)
{
    static const char *const labels[] = {"x", "y", "a", "b", "f", "g"};

    for (int e = 0; e < DSB_SIDES; e++) {
        int64_t shape[2] = {-1, e == 0 ? -1 : points[0].shape[1]};

        if (dsb_py_view(module, given[e], labels[e], DSB_FLOAT32, 2, shape, &points[e]) < 0 ||
            dsb_py_view(module, given[2 + e], labels[2 + e], DSB_FLOAT64, 1, points[e].shape,
                        &weight[e]) < 0 ||
            dsb_py_view(module, given[4 + e], labels[4 + e], DSB_FLOAT64, 1, points[e].shape,
                        &potential[e]) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
exact_sinkhorn(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "", "", "", "", "", "first", "tolerance", "most", "keep", NULL};
    PyObject *given[6], *out[2] = {NULL, NULL}, *every = NULL, *result = NULL;
    dsb_tensor points[2], weight[2], potential[2];
    const char *first = "target";
    long long most = 1000;
    int keep = 0;
    double *scratch = NULL;
    dsb_sinkhorn s = {.tolerance = 0.0};
    dsb_py_watch watch;
    dsb_status status;
    size_t rows;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOd|$sdLp", names, &given[0], &given[1],
                                     &given[2], &given[3], &given[4], &given[5], &s.variance,
                                     &first, &s.tolerance, &most, &keep)) {
        return NULL;
    }
    if (view_samples(module, given, points, weight, potential) < 0) {
        return NULL;
    }
    if (most < 0 || most > INT32_MAX || (strcmp(first, "source") != 0 && strcmp(first, "target"))) {
        PyErr_SetString(PyExc_ValueError, "most must be a number of steps, first an end");
        return NULL;
    }
    rows =
        (size_t)(points[0].shape[0] > points[1].shape[0] ? points[0].shape[0] : points[1].shape[0]);
    s.dim = (int)points[0].shape[1];
    s.first = strcmp(first, "source") == 0 ? DSB_SOURCE : DSB_TARGET;
    s.most = most;
    status = dsb_alloc(sizeof *scratch * (rows + 2 * ((size_t)most + 1)), &scratch);
    if (status != DSB_OK) {
        return dsb_py_raise(module, status);
    }
    s.masses = scratch;
    s.errors = s.masses + rows;
    s.seconds = s.errors + most + 1;
    for (int e = 0; e < DSB_SIDES; e++) {
        s.end[e] = (dsb_sample){points[e].shape[0], points[e].data, weight[e].data, NULL};
        out[e] = copied(&potential[e], &s.end[e].potential);
    }
    every = dsb_py_array(DSB_FLOAT64, 2, (int64_t[]){keep ? most : 0, (int64_t)rows}, &s.every);
    if (!keep) {
        s.every = NULL;
    }
    if (out[0] != NULL && out[1] != NULL && every != NULL) {
        dsb_tick tick = dsb_py_watch_signals(&watch);

        status = dsb_sinkhorn_run(dsb_cpu_backend(), &s, tick);
        dsb_py_unwatch(&watch);
        if (status != DSB_OK) {
            dsb_py_raise(module, status);
        } else {
            PyObject *errors = part(s.errors, s.done + 1), *seconds = part(s.seconds, s.done + 1);
            PyObject *masses = part(s.masses, s.end[s.loose].n);

            if (errors != NULL && seconds != NULL && masses != NULL) {
                result = Py_BuildValue("OOOOOsO", out[0], out[1], errors, seconds, masses,
                                       s.loose == DSB_SOURCE ? "source" : "target", every);
            }
            Py_XDECREF(errors);
            Py_XDECREF(seconds);
            Py_XDECREF(masses);
        }
    }
    Py_XDECREF(out[0]);
    Py_XDECREF(out[1]);
    Py_XDECREF(every);
    dsb_free(scratch);
    return result;
}

/* Views (z, y, psi); 0 or -1. */
static int
view_columns(PyObject *module, PyObject *z, PyObject *y, PyObject *psi, dsb_tensor *rows,
             dsb_columns *columns)
{
    dsb_tensor points, heights;

    if (dsb_py_view(module, z, "z", DSB_FLOAT32, 2, (int64_t[]){-1, -1}, rows) < 0 ||
        dsb_py_view(module, y, "y", DSB_FLOAT32, 2, (int64_t[]){-1, rows->shape[1]}, &points) < 0 ||
        dsb_py_view(module, psi, "psi", DSB_FLOAT64, 1, points.shape, &heights) < 0) {
        return -1;
    }
    columns->n = points.shape[0];
    columns->dim = (int)points.shape[1];
    columns->points = points.data;
    columns->psi = heights.data;
    return 0;
}

static PyObject *
exact_mean(PyObject *module, PyObject *args)
{
    PyObject *z, *y, *psi, *given, *log_sum, *mean, *result = NULL;
    dsb_columns columns = {.n = 0};
    dsb_tensor rows, values;
    double *sums, *means;
    dsb_py_watch watch;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "OOOdO", &z, &y, &psi, &columns.variance, &given) ||
        view_columns(module, z, y, psi, &rows, &columns) < 0 ||
        dsb_py_view(module, given, "values", DSB_FLOAT32, 2, (int64_t[]){columns.n, -1}, &values) <
            0) {
        return NULL;
    }
    log_sum = dsb_py_array(DSB_FLOAT64, 1, rows.shape, &sums);
    mean = dsb_py_array(DSB_FLOAT64, 2, (int64_t[]){rows.shape[0], values.shape[1]}, &means);
    if (log_sum != NULL && mean != NULL) {
        dsb_tick tick = dsb_py_watch_signals(&watch);

        status = dsb_conditional_mean(dsb_cpu_backend(), &columns, rows.shape[0], rows.data,
                                      (int)values.shape[1], values.data, sums, means, tick);
        dsb_py_unwatch(&watch);
        result = status != DSB_OK ? dsb_py_raise(module, status) : PyTuple_Pack(2, log_sum, mean);
    }
    Py_XDECREF(log_sum);
    Py_XDECREF(mean);
    return result;
}

static PyObject *
exact_pick(PyObject *module, PyObject *args)
{
    PyObject *z, *y, *psi, *given, *array;
    dsb_columns columns = {.n = 0};
    dsb_tensor rows, uniform;
    int64_t *picked;
    dsb_py_watch watch;
    dsb_status status;
    dsb_tick tick;

    if (!PyArg_ParseTuple(args, "OOOdO", &z, &y, &psi, &columns.variance, &given) ||
        view_columns(module, z, y, psi, &rows, &columns) < 0 ||
        dsb_py_view(module, given, "uniform", DSB_FLOAT64, 1, rows.shape, &uniform) < 0) {
        return NULL;
    }
    array = dsb_py_array(DSB_INT64, 1, rows.shape, &picked);
    if (array == NULL) {
        return NULL;
    }
    tick = dsb_py_watch_signals(&watch);
    status = dsb_conditional_pick(dsb_cpu_backend(), &columns, rows.shape[0], rows.data,
                                  uniform.data, picked, tick);
    dsb_py_unwatch(&watch);
    if (status != DSB_OK) {
        Py_DECREF(array);
        return dsb_py_raise(module, status);
    }
    return array;
}

PyMethodDef dsb_py_exact_methods[] = {
    {"sinkhorn", (PyCFunction)(void (*)(void))exact_sinkhorn, METH_VARARGS | METH_KEYWORDS,
     "sinkhorn(x, y, a, b, f, g, variance, *, first, tolerance, most, keep): half steps at one "
     "variance."},
    {"conditional_mean", exact_mean, METH_VARARGS,
     "conditional_mean(z, y, psi, variance, values): (log normaliser, mean of values) of each "
     "row."},
    {"conditional_pick", exact_pick, METH_VARARGS,
     "conditional_pick(z, y, psi, variance, uniform): a column for each row."},
    {NULL, NULL, 0, NULL},
};
