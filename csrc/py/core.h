/* The border with Python: module state, conversion of arrays, statuses to exceptions.
 *
 * Purpose: the only folder that includes Python.h. C is strict (exact dtype, rank, shape), the Python
 * layer converts. Ownership: a Python object owns one C handle and references to what it borrows.
 * Threads: the GIL is released around every long call; each object has a lock of its own.
 */
#ifndef DSB_PY_CORE_H
#define DSB_PY_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "base/tensor.h"
#include "nn/net.h"

typedef struct dsb_module_state {
    PyTypeObject *net_type, *bridge_type;
    PyObject *device_error;
} dsb_module_state;

typedef struct dsb_py_net {
    PyObject_HEAD dsb_net *net;
} dsb_py_net;

extern PyType_Spec dsb_net_spec, dsb_bridge_spec;
/* Functions of the module, in py_exact.c and py_metrics.c. */
extern PyMethodDef dsb_py_exact_methods[], dsb_py_metrics_methods[];

/* Sets the exception that belongs to a failed status; returns NULL. */
PyObject *dsb_py_raise(PyObject *module, dsb_status status);

/* Views `object`, which must be a NumPy array with this dtype, rank and shape in C order (-1: any size).
 * The view lives as long as the object. Returns 0, or -1 with an exception. */
int dsb_py_view(PyObject *module, PyObject *object, const char *name, dsb_dtype dtype, int rank,
                const int64_t *shape, dsb_tensor *view);
/* The same for any dtype that the core knows. */
int dsb_py_view_any(PyObject *object, const char *name, dsb_tensor *view);

/* A new array of zeros, and its data. */
PyObject *dsb_py_array(dsb_dtype dtype, int rank, const int64_t *shape, void *data);

/* Adds number `value` to dict under `key`; 0 or -1. */
int dsb_py_set_number(PyObject *dict, const char *key, int64_t value);

#endif
