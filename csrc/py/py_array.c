#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/core.h"

#include <numpy/arrayobject.h>

static int
numpy_type(dsb_dtype dtype)
{
    static const int types[] = {[DSB_FLOAT32] = NPY_FLOAT32,
                                [DSB_UINT8] = NPY_UINT8,
                                [DSB_INT64] = NPY_INT64,
                                [DSB_FLOAT64] = NPY_FLOAT64};

    return types[dtype];
}

int
dsb_py_view_any(PyObject *object, const char *name, dsb_tensor *view)
{
    PyArrayObject *array = (PyArrayObject *)object;
    int dtype = -1;

    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a NumPy array, got %R", name, Py_TYPE(object));
        return -1;
    }
    for (int i = DSB_FLOAT32; i <= DSB_FLOAT64; i++) {
        if (PyArray_TYPE(array) == numpy_type((dsb_dtype)i)) {
            dtype = i;
        }
    }
    if (dtype < 0 || !PyArray_ISBEHAVED_RO(array)) {
        PyErr_Format(PyExc_TypeError,
                     "%s: expected an aligned float32 array in native byte order, got %R", name,
                     (PyObject *)PyArray_DESCR(array));
        return -1;
    }
    if (PyArray_NDIM(array) > DSB_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "%s: expected at most %d axes, got %d", name, DSB_MAX_RANK,
                     PyArray_NDIM(array));
        return -1;
    }
    *view = (dsb_tensor){.data = PyArray_DATA(array),
                         .dtype = (dsb_dtype)dtype,
                         .device = DSB_CPU,
                         .rank = PyArray_NDIM(array)};
    for (int i = 0; i < view->rank; i++) {
        view->shape[i] = PyArray_DIM(array, i);
        view->strides[i] = PyArray_STRIDE(array, i) / dsb_dtype_bytes(view->dtype);
    }
    return 0;
}

int
dsb_py_view(PyObject *module, PyObject *object, const char *name, dsb_dtype dtype, int rank,
            const int64_t *shape, dsb_tensor *view)
{
    dsb_status status;

    if (dsb_py_view_any(object, name, view) < 0) {
        return -1;
    }
    status = dsb_tensor_require(view, name, dtype, rank, shape);
    if (status != DSB_OK) {
        dsb_py_raise(module, status);
        return -1;
    }
    return 0;
}

PyObject *
dsb_py_array(dsb_dtype dtype, int rank, const int64_t *shape, void *data)
{
    npy_intp dims[DSB_MAX_RANK];
    PyObject *array;
    void *address;

    for (int i = 0; i < rank; i++) {
        dims[i] = (npy_intp)shape[i];
    }
    array = PyArray_ZEROS(rank, dims, numpy_type(dtype), 0);
    if (array != NULL) {
        address = PyArray_DATA((PyArrayObject *)array);
        memcpy(data, &address, sizeof address);
    }
    return array;
}
