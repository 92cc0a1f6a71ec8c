/* pair_sum, sliced: what dsb.metrics computes over many points. */
#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "base/chunks.h"
#include "exact/pair_sums.h"
#include "exact/sliced.h"
#include "py/bridge_object.h"

/* Views points [n, dim], n >= 1, dim >= 1; `dim` < 0 takes any and is set. */
static int
view_points(PyObject *module, PyObject *object, const char *name, int64_t *dim, dsb_tensor *view)
{
    if (dsb_py_view(module, object, name, DSB_FLOAT32, 2, (int64_t[]){-1, *dim}, view) < 0) {
        return -1;
    }
    if (view->shape[0] < 1 || view->shape[1] < 1 || view->shape[0] > INT32_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected 1 .. 2^31 - 1 rows and a column, got %lld x %lld", name,
                     (long long)view->shape[0], (long long)view->shape[1]);
        return -1;
    }
    *dim = view->shape[1];
    return 0;
}

/* Runs all tasks without the GIL, looking for Ctrl-C. */
static dsb_status
run(const dsb_backend *be, int workers, int64_t tasks, dsb_task task, void *job)
{
    dsb_py_watch signals;
    dsb_watch watch = {.tick = dsb_py_watch_signals(&signals)};
    dsb_status status = dsb_run_chunks(be->parallel, workers, tasks, task, job, &watch);

    dsb_py_unwatch(&signals);
    return status;
}

static PyObject *
module_pair_sum(PyObject *module, PyObject *args)
{
    const dsb_backend *be = dsb_cpu_backend();
    PyObject *x, *y;
    double scale, total = 0.0;
    int gaussian;
    int64_t dim = -1;
    dsb_tensor rows, columns = {.data = NULL};
    dsb_pairs job;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "OOpd", &x, &y, &gaussian, &scale) ||
        view_points(module, x, "x", &dim, &rows) < 0 ||
        (y != Py_None && view_points(module, y, "y", &dim, &columns) < 0)) {
        return NULL;
    }
    status =
        dsb_pairs_init(&job, be, gaussian ? DSB_PAIR_GAUSSIAN : DSB_PAIR_DISTANCE, (float)scale,
                       rows.shape[0], rows.data, columns.shape[0], columns.data, dim);
    if (status == DSB_OK) {
        status = run(be, be->workers(), dsb_pairs_tasks(&job), dsb_pairs_task, &job);
        total = dsb_pairs_total(&job);
        dsb_pairs_clear(&job);
    }
    return status != DSB_OK ? dsb_py_raise(module, status) : PyFloat_FromDouble(total);
}

static PyObject *
module_sliced(PyObject *module, PyObject *args)
{
    const dsb_backend *be = dsb_cpu_backend();
    PyObject *x, *y, *u, *array;
    int power, workers = be->workers();
    int64_t dim = -1;
    dsb_tensor a, b, directions;
    double *out;
    dsb_sliced job;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "OOOi", &x, &y, &u, &power) ||
        view_points(module, x, "x", &dim, &a) < 0 || view_points(module, y, "y", &dim, &b) < 0 ||
        view_points(module, u, "directions", &dim, &directions) < 0) {
        return NULL;
    }
    if (power != 1 && power != 2) {
        return PyErr_Format(PyExc_ValueError, "p: expected 1 or 2, got %d", power);
    }
    array = dsb_py_array(DSB_FLOAT64, 1, directions.shape, &out);
    if (array == NULL) {
        return NULL;
    }
    status = dsb_sliced_init(&job, be, workers, power, a.shape[0], a.data, b.shape[0], b.data, dim,
                             directions.shape[0], directions.data, out);
    if (status == DSB_OK) {
        status = run(be, workers, dsb_sliced_tasks(&job), dsb_sliced_task, &job);
        dsb_sliced_clear(&job);
    }
    if (status != DSB_OK) {
        Py_DECREF(array);
        return dsb_py_raise(module, status);
    }
    return array;
}

PyMethodDef dsb_py_metrics_methods[] = {
    {"pair_sum", module_pair_sum, METH_VARARGS,
     "pair_sum(x, y, gaussian, scale): sum over all pairs of |x_i - y_j| or exp(-scale |.|^2)."},
    {"sliced", module_sliced, METH_VARARGS,
     "sliced(x, y, directions, p): W_p^p along each direction, float64."},
    {NULL, NULL, 0, NULL},
};
