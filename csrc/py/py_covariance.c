/* Bridge.get_covariance and Bridge.set_covariance. */
#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/bridge_object.h"

/* Shape of a direction's covariances, [n], [n, dim] or [n, dim, dim]; returns its rank, 0 where none are
 * estimated. */
static int
shape_of(const dsb_bridge *bridge, int64_t shape[3])
{
    static const int ranks[] = {[DSB_COVARIANCE_REFERENCE] = 0,
                                [DSB_COVARIANCE_SCALAR] = 1,
                                [DSB_COVARIANCE_DIAGONAL] = 2,
                                [DSB_COVARIANCE_FULL] = 3};

    shape[0] = bridge->schedule.n;
    shape[1] = shape[2] = dsb_net_dim(bridge->net);
    return ranks[bridge->config.covariance.kind];
}

PyObject *
dsb_py_get_covariance(PyObject *object, PyObject *argument)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    const char *name = PyUnicode_Check(argument) ? PyUnicode_AsUTF8AndSize(argument, NULL) : "";
    int direction = name != NULL ? dsb_py_direction(name) : -1, rank;
    const dsb_noise *noise;
    int64_t shape[3], raised = 0;
    PyObject *array;
    double *values;
    bool known;

    if (direction < 0) {
        return NULL;
    }
    rank = shape_of(self->bridge, shape);
    if (rank == 0) {
        return Py_BuildValue("Oi", Py_None, 0);
    }
    array = dsb_py_array(DSB_FLOAT64, rank, shape, &values);
    if (array == NULL || dsb_py_lock(self) < 0) {
        Py_XDECREF(array);
        return NULL;
    }
    noise = &self->bridge->noise[direction];
    known = noise->values != NULL;
    if (known) {
        int64_t size = dsb_covariance_size(noise->kind, noise->dim);

        memcpy(values, noise->values, sizeof *values * (size_t)(noise->n * size));
        raised = noise->raised;
    }
    dsb_py_unlock(self);
    if (!known) {
        Py_DECREF(array);
        array = Py_NewRef(Py_None);
    }
    return Py_BuildValue("NL", array, (long long)raised);
}

PyObject *
dsb_py_set_covariance(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyObject *module = dsb_py_module_of(self), *values;
    const char *name;
    long long raised;
    int64_t shape[3];
    int direction, rank = shape_of(self->bridge, shape);
    dsb_tensor view = {.data = NULL};
    dsb_status status;

    if (!PyArg_ParseTuple(args, "sOL", &name, &values, &raised) ||
        (direction = dsb_py_direction(name)) < 0) {
        return NULL;
    }
    if (values != Py_None && rank == 0) {
        PyErr_SetString(PyExc_ValueError, "values: the noise of this bridge is the reference's");
        return NULL;
    }
    if (values != Py_None &&
        dsb_py_view(module, values, "values", DSB_FLOAT64, rank, shape, &view) < 0) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    status = dsb_bridge_set_covariance(self->bridge, (dsb_direction)direction, view.data, raised);
    dsb_py_unlock(self);
    if (status != DSB_OK) {
        return dsb_py_raise(module, status);
    }
    Py_RETURN_NONE;
}
