#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/core.h"

#include <math.h>

#include "base/memory.h"
#include "nn/net.h"
#include "py/run.h"

/* ---- building ---- */

/* The string under `key`, or `missing` (NULL: required). Borrowed from the dict. */
static const char *
get_string(PyObject *dict, const char *key, const char *missing)
{
    PyObject *item = PyDict_GetItemString(dict, key);
    const char *text;

    if (item == NULL) {
        if (missing == NULL) {
            PyErr_Format(PyExc_ValueError, "an op of a net needs '%s', got %R", key, dict);
        }
        return missing;
    }
    text = PyUnicode_Check(item) ? PyUnicode_AsUTF8AndSize(item, NULL) : NULL;
    if (text == NULL) {
        PyErr_Format(PyExc_TypeError, "'%s' of an op must be a string, got %R", key, item);
    }
    return text;
}

static int
get_number(PyObject *dict, const char *key, double missing, double *value)
{
    PyObject *item = PyDict_GetItemString(dict, key);

    *value = missing;
    if (item == NULL) {
        return 0;
    }
    /* Plain numbers only: no code of the caller's runs while strings of the op are borrowed. */
    if (PyFloat_Check(item) || PyLong_Check(item)) {
        *value = PyFloat_AsDouble(item);
        return *value == -1.0 && PyErr_Occurred() ? -1 : 0;
    }
    PyErr_Format(PyExc_TypeError, "'%s' of an op must be a number, got %R", key, item);
    return -1;
}

static int
get_inputs(const dsb_net *net, PyObject *dict, dsb_op_spec *spec)
{
    PyObject *list = PyDict_GetItemString(dict, "inputs");

    if (list == NULL || !PyList_Check(list)) {
        PyErr_Format(PyExc_ValueError, "op '%s' needs a list 'inputs' of value names", spec->name);
        return -1;
    }
    if (PyList_Size(list) > DSB_MAX_INPUTS) {
        PyErr_Format(PyExc_ValueError, "op '%s' has %zd inputs; at most %d are possible",
                     spec->name, PyList_Size(list), DSB_MAX_INPUTS);
        return -1;
    }
    spec->n_inputs = (int)PyList_Size(list);
    for (int i = 0; i < spec->n_inputs; i++) {
        PyObject *item = PyList_GetItem(list, i);
        const char *name = PyUnicode_Check(item) ? PyUnicode_AsUTF8AndSize(item, NULL) : NULL;

        spec->inputs[i] = name != NULL ? dsb_net_value(net, name) : -1;
        if (spec->inputs[i] < 0) {
            PyErr_Format(PyExc_ValueError, "op '%s': input %R names no earlier value", spec->name,
                         item);
            return -1;
        }
    }
    return 0;
}

/* A whole number from 0 that an int holds; the core says the rest. */
static int
get_whole(PyObject *dict, const char *key, int missing, int *value)
{
    double number;

    if (get_number(dict, key, missing, &number) < 0) {
        return -1;
    }
    if (!(number >= 0.0 && number <= (double)INT32_MAX && number == floor(number))) {
        PyErr_Format(PyExc_ValueError, "'%s' of an op must be a whole number from 0, got %R", key,
                     PyDict_GetItemString(dict, key));
        return -1;
    }
    *value = (int)number;
    return 0;
}

static int
get_flag(PyObject *dict, const char *key, bool *value)
{
    double number;

    if (get_number(dict, key, 0.0, &number) < 0) {
        return -1;
    }
    *value = number != 0.0;
    return 0;
}

static int
get_float(PyObject *dict, const char *key, float missing, float *value)
{
    double number;

    if (get_number(dict, key, (double)missing, &number) < 0) {
        return -1;
    }
    *value = (float)number;
    return 0;
}

/* "size": [h, w] of an image. */
static int
get_size(PyObject *dict, dsb_op_spec *spec)
{
    PyObject *size = PyDict_GetItemString(dict, "size");
    long h, w;

    if (size == NULL) {
        return 0;
    }
    if (!PyList_Check(size) || PyList_Size(size) != 2 || !PyLong_Check(PyList_GetItem(size, 0)) ||
        !PyLong_Check(PyList_GetItem(size, 1))) {
        PyErr_Format(PyExc_TypeError, "'size' of an op must be a list [h, w], got %R", size);
        return -1;
    }
    h = PyLong_AsLong(PyList_GetItem(size, 0));
    w = PyLong_AsLong(PyList_GetItem(size, 1));
    if (PyErr_Occurred()) {
        return -1;
    }
    if (h < 1 || w < 1 || h > INT32_MAX || w > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "'size' of an op must be two numbers from 1, got %R", size);
        return -1;
    }
    spec->h = (int)h;
    spec->w = (int)w;
    return 0;
}

static int
get_style(PyObject *dict, dsb_op_spec *spec)
{
    const char *style = get_string(dict, "style", "sin_cos");

    if (style == NULL) {
        return -1;
    }
    if (strcmp(style, "sin_cos") != 0 && strcmp(style, "cos_sin") != 0) {
        PyErr_Format(PyExc_ValueError, "embed '%s': style must be sin_cos or cos_sin, got '%s'",
                     spec->name, style);
        return -1;
    }
    spec->embedding = strcmp(style, "cos_sin") == 0 ? DSB_EMBED_COS_SIN : DSB_EMBED_SIN_COS;
    return 0;
}

static int
add_op(PyObject *module, dsb_net *net, PyObject *dict, int *value)
{
    dsb_op_spec spec = {.kind = get_string(dict, "op", NULL)};
    dsb_status status;

    if (spec.kind == NULL || (spec.name = get_string(dict, "name", NULL)) == NULL ||
        get_whole(dict, "width", 0, &spec.width) < 0 ||
        get_float(dict, "slope", 0.01f, &spec.slope) < 0 ||
        get_flag(dict, "zero", &spec.zero) < 0 || get_size(dict, &spec) < 0 ||
        get_whole(dict, "kernel", 3, &spec.kernel) < 0 ||
        get_whole(dict, "stride", 1, &spec.stride) < 0 || get_flag(dict, "up", &spec.up) < 0 ||
        get_whole(dict, "groups", 32, &spec.groups) < 0 || get_flag(dict, "silu", &spec.silu) < 0 ||
        get_whole(dict, "heads", 1, &spec.heads) < 0 ||
        get_float(dict, "rate", 0.0f, &spec.rate) < 0 ||
        get_whole(dict, "classes", 0, &spec.classes) < 0) {
        return -1;
    }
    if (strcmp(spec.kind, "input") == 0) {
        bool number = strcmp(spec.name, "t") == 0 || strcmp(spec.name, "label") == 0;

        status = dsb_net_input(net, spec.name, number ? 1 : spec.width, value);
    } else {
        if (get_style(dict, &spec) < 0 || get_inputs(net, dict, &spec) < 0) {
            return -1;
        }
        status = dsb_net_add(net, &spec, value);
    }
    if (status != DSB_OK) {
        dsb_py_raise(module, status);
        return -1;
    }
    return 0;
}

static int
add_ops(PyObject *module, dsb_net *net, PyObject *list)
{
    int value = -1;
    dsb_status status;

    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        PyObject *dict = PyList_GetItem(list, i);

        if (!PyDict_Check(dict)) {
            PyErr_Format(PyExc_TypeError, "an op of a net is a dict, got %R", dict);
            return -1;
        }
        if (add_op(module, net, dict, &value) < 0) {
            return -1;
        }
    }
    status = dsb_net_finish(net, value);
    if (status != DSB_OK) {
        dsb_py_raise(module, status);
        return -1;
    }
    return 0;
}

static PyObject *
net_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *module = PyType_GetModule(type), *list;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    dsb_py_net *self;
    dsb_status status;

    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Net() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!", &PyList_Type, &list)) {
        return NULL;
    }
    self = (dsb_py_net *)alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    status = dsb_net_create(&self->net);
    if (status != DSB_OK) {
        dsb_py_raise(module, status);
    }
    if (status != DSB_OK || add_ops(module, self->net, list) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
net_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(object);
    dsb_net_destroy(((dsb_py_net *)object)->net);
    release(object);
    Py_DECREF(type);
}

static int
net_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* ---- facts ---- */

static PyObject *
net_dim(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLong(dsb_net_dim(((dsb_py_net *)object)->net));
}

static PyObject *
net_n_parameters(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLongLong(((dsb_py_net *)object)->net->n_parameters);
}

static PyObject *
net_plane(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromLongLong(((dsb_py_net *)object)->net->plane);
}

static PyObject *
net_parameters(PyObject *object, void *closure)
{
    const dsb_net *net = ((dsb_py_net *)object)->net;
    PyObject *list = PyList_New(net->n_params);

    (void)closure;
    for (int i = 0; list != NULL && i < net->n_params; i++) {
        const dsb_param *p = &net->params[i];
        PyObject *shape = PyTuple_New(p->rank), *item = NULL;

        for (int j = 0; shape != NULL && j < p->rank; j++) {
            PyObject *size = PyLong_FromLongLong(p->shape[j]);

            if (size == NULL) {
                Py_CLEAR(shape);
            } else {
                PyTuple_SetItem(shape, j, size);
            }
        }
        if (shape != NULL) {
            item = Py_BuildValue("{s:s,s:N,s:L}", "name", p->name, "shape", shape, "offset",
                                 (long long)p->offset);
        }
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, item);
        }
    }
    return list;
}

static PyObject *
net_initial(PyObject *object, PyObject *args)
{
    const dsb_net *net = ((dsb_py_net *)object)->net;
    unsigned long long seed;
    unsigned int draw = 0;
    int64_t shape[1] = {net->plane};
    float *plane;
    PyObject *array;

    if (!PyArg_ParseTuple(args, "K|I", &seed, &draw)) {
        return NULL;
    }
    array = dsb_py_array(DSB_FLOAT32, 1, shape, &plane);
    if (array != NULL) {
        dsb_net_init(net, seed, draw, plane);
    }
    return array;
}

static PyMethodDef net_methods[] = {
    {"initial", net_initial, METH_VARARGS, "initial(seed, draw=0): plane of initial weights."},
    {"forward", (PyCFunction)(void (*)(void))dsb_py_net_forward, METH_VARARGS | METH_KEYWORDS,
     "forward(theta, x, t, *, rows=64, cond=None, label=None, precision='float32'): output."},
    {"gradient", (PyCFunction)(void (*)(void))dsb_py_net_gradient, METH_VARARGS | METH_KEYWORDS,
     "gradient(theta, x, t, dy, *, rows=64, keep=False, cond=None, label=None, "
     "precision='float32', seed=0): output, and gradient plane of sum(y dy)."},
    {"vjp", (PyCFunction)(void (*)(void))dsb_py_net_vjp, METH_VARARGS | METH_KEYWORDS,
     "vjp(theta, x, t, dy, *, rows=64, keep=False, cond=None, label=None, precision='float32'): "
     "output, and gradient of sum(y dy) to x."},
    {"plan", dsb_py_net_plan, METH_VARARGS,
     "plan(mode, rows, keep=False, precision='float32'): memory of a pass."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef net_properties[] = {
    {"dim", net_dim, NULL, "Width of x.", NULL},
    {"n_parameters", net_n_parameters, NULL, "Number of parameters.", NULL},
    {"plane", net_plane, NULL, "Floats in a plane of parameters, gaps included.", NULL},
    {"parameters", net_parameters, NULL, "Name, shape and offset of each parameter.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot net_slots[] = {
    {Py_tp_new, net_new},
    {Py_tp_dealloc, net_dealloc},
    {Py_tp_traverse, net_traverse},
    {Py_tp_methods, net_methods},
    {Py_tp_getset, net_properties},
    {Py_tp_doc, "Net(ops): a list of ops."},
    {0, NULL},
};

PyType_Spec dsb_net_spec = {
    .name = "dsb._core.Net",
    .basicsize = sizeof(dsb_py_net),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = net_slots,
};
