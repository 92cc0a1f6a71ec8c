/* Bridge.sample and Bridge.drift. */
#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/bridge_object.h"
#include "py/config.h"

/* After the core has answered: the filled array, or the exception. */
static PyObject *
finish(dsb_py_bridge *self, dsb_py_watch *watch, dsb_status status, PyObject *array)
{
    dsb_py_unwatch(watch);
    dsb_py_unlock(self);
    if (status != DSB_OK) {
        Py_DECREF(array);
        return dsb_py_raise(dsb_py_module_of(self), status);
    }
    return array;
}

PyObject *
dsb_py_sample(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"", "", "n", "x", "steps", "final_noise", "paths", NULL};
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyObject *module = dsb_py_module_of(self), *x = NULL, *steps = NULL, *array;
    const char *name;
    unsigned long long seed;
    long long n = 0;
    int final_noise = 0, paths = 0, direction;
    int64_t dim = self->bridge->schedule.n > 0 ? dsb_net_dim(self->bridge->net) : 0;
    int64_t states = self->bridge->schedule.n + 1;
    dsb_sample_request request = {.n = 0};
    dsb_tensor start, grid = {.data = NULL};
    dsb_py_watch watch;
    dsb_status status;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sK|$LOOpp", names, &name, &seed, &n, &x, &steps,
                                     &final_noise, &paths)) {
        return NULL;
    }
    direction = dsb_py_direction(name);
    if (direction < 0) {
        return NULL;
    }
    request.n = n;
    if (dsb_py_given(x)) {
        if (dsb_py_view(module, x, "x", DSB_FLOAT32, 2, (int64_t[]){-1, dim}, &start) < 0) {
            return NULL;
        }
        request.x = start.data;
        request.n = start.shape[0];
    }
    if (dsb_py_given(steps)) {
        if (dsb_py_view(module, steps, "steps", DSB_FLOAT64, 1, (int64_t[]){-1}, &grid) < 0) {
            return NULL;
        }
        states = grid.shape[0] + 1;
    }
    if (request.n < 1 || states > DSB_MAX_STEPS + 1) {
        PyErr_Format(PyExc_ValueError,
                     "expected at least one row and at most %d steps, got %lld and %lld",
                     DSB_MAX_STEPS, (long long)request.n, (long long)states - 1);
        return NULL;
    }
    request.seed = seed;
    request.final_noise = final_noise;
    request.paths = paths;
    array = paths ? dsb_py_array(DSB_FLOAT32, 3, (int64_t[]){request.n, states, dim}, &request.out)
                  : dsb_py_array(DSB_FLOAT32, 2, (int64_t[]){request.n, dim}, &request.out);
    if (array == NULL) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    status = dsb_bridge_sample(self->bridge, (dsb_direction)direction, (int)states - 1, grid.data,
                               &request, dsb_py_watch_signals(&watch));
    return finish(self, &watch, status, array);
}

PyObject *
dsb_py_drift(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyObject *module = dsb_py_module_of(self), *x, *t, *array;
    const char *name;
    int direction;
    int64_t dim = dsb_net_dim(self->bridge->net);
    dsb_tensor states, times;
    float *out;
    dsb_py_watch watch;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "sOO", &name, &x, &t)) {
        return NULL;
    }
    direction = dsb_py_direction(name);
    if (direction < 0 ||
        dsb_py_view(module, x, "x", DSB_FLOAT32, 2, (int64_t[]){-1, dim}, &states) < 0 ||
        dsb_py_view(module, t, "t", DSB_FLOAT32, 1, &states.shape[0], &times) < 0) {
        return NULL;
    }
    array = dsb_py_array(DSB_FLOAT32, 2, states.shape, &out);
    if (array == NULL) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    status = dsb_bridge_drift(self->bridge, (dsb_direction)direction, states.shape[0], states.data,
                              times.data, out, dsb_py_watch_signals(&watch));
    return finish(self, &watch, status, array);
}
