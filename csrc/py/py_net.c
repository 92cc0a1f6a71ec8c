#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/core.h"

#include "base/memory.h"
#include "nn/exec.h"

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

static int
add_op(PyObject *module, dsb_net *net, PyObject *dict, int *value)
{
    dsb_op_spec spec = {.kind = get_string(dict, "op", NULL)};
    const char *style;
    double width, slope, zero;
    dsb_status status;

    if (spec.kind == NULL || (spec.name = get_string(dict, "name", NULL)) == NULL ||
        get_number(dict, "width", 0.0, &width) < 0 || get_number(dict, "slope", 0.01, &slope) < 0 ||
        get_number(dict, "zero", 0.0, &zero) < 0) {
        return -1;
    }
    if (!(width >= 0.0 &&
          width <= (double)INT32_MAX)) { /* what fits an int; the core says the rest */
        PyErr_Format(PyExc_ValueError, "op '%s': width must be a whole number from 1", spec.name);
        return -1;
    }
    spec.width = (int)width;
    if (strcmp(spec.kind, "input") == 0) {
        status = dsb_net_input(net, spec.name, strcmp(spec.name, "t") == 0 ? 1 : spec.width, value);
    } else {
        style = get_string(dict, "style", "sin_cos");
        if (style == NULL || get_inputs(net, dict, &spec) < 0) {
            return -1;
        }
        if (strcmp(style, "sin_cos") != 0 && strcmp(style, "cos_sin") != 0) {
            PyErr_Format(PyExc_ValueError, "embed '%s': style must be sin_cos or cos_sin, got '%s'",
                         spec.name, style);
            return -1;
        }
        spec.embedding = strcmp(style, "cos_sin") == 0 ? DSB_EMBED_COS_SIN : DSB_EMBED_SIN_COS;
        spec.slope = (float)slope;
        spec.zero = zero != 0.0;
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

/* ---- running ---- */

typedef struct net_call {
    const dsb_net *net;
    dsb_mode mode;
    bool keep;
    int rows; /* of a chunk */
    int64_t n;
    dsb_tensor theta, x, t, dy;
    float *y, *grad, *dx; /* host results; grad and dx may be NULL */
} net_call;

static void
run_chunk(const net_call *call, dsb_exec *exec, const dsb_op_weights *weights, int64_t first,
          int rows)
{
    const dsb_backend *be = exec->be;
    int dim = dsb_net_dim(call->net), out = call->net->values[call->net->output].width;
    dsb_slot x = exec->inputs[DSB_PORT_X], t = exec->inputs[DSB_PORT_T];

    be->copy(NULL, rows, dim, dsb_float_slot((const float *)call->x.data + first * dim, dim), 0, x);
    if (t.data != NULL) {
        be->upload(t.data, (const float *)call->t.data + first,
                   sizeof(float) * (size_t)(t.ld == 0 ? 1 : rows));
    }
    dsb_exec_forward(exec, weights, rows);
    be->copy(NULL, rows, out, exec->output, 0, dsb_float_slot(call->y + first * out, out));
    if (call->mode == DSB_INFER || call->dy.data == NULL) {
        return;
    }
    be->copy(NULL, rows, out, dsb_float_slot((const float *)call->dy.data + first * out, out), 0,
             exec->d_output);
    dsb_exec_backward(exec, weights, rows, call->grad, first > 0);
    if (call->dx != NULL) {
        be->copy(NULL, rows, dim, exec->d_x, 0, dsb_float_slot(call->dx + first * dim, dim));
    }
}

static dsb_status
run_call(const net_call *call)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_plan *plan = NULL;
    dsb_exec *exec = NULL;
    dsb_weights weights = {.net = NULL};
    dsb_status status = dsb_plan_create(call->net, call->mode, call->rows, call->keep, &plan);

    if (status == DSB_OK) {
        status = dsb_exec_create(plan, be, &exec);
    }
    if (status == DSB_OK) {
        status = dsb_weights_init(&weights, call->net, be, call->mode != DSB_INFER);
    }
    if (status == DSB_OK) {
        dsb_weights_pack(&weights, call->theta.data, 1);
        for (int64_t first = 0; first < call->n; first += call->rows) {
            int64_t left = call->n - first;

            run_chunk(call, exec, &weights.view, first, left < call->rows ? (int)left : call->rows);
        }
    }
    dsb_weights_clear(&weights);
    dsb_exec_destroy(exec);
    dsb_plan_destroy(plan);
    return status;
}

/* Shared times need one row of the time branch only; see DSB_INFER. */
static bool
one_time(const net_call *call)
{
    const float *t = call->t.data;

    for (int64_t i = 1; i < call->n; i++) {
        if (t[i] != t[0]) {
            return false;
        }
    }
    return true;
}

/* forward, gradient and vjp: arguments (theta, x, t[, dy], *, rows, keep). */
static PyObject *
net_run(PyObject *object, PyObject *args, PyObject *kwargs, dsb_mode mode)
{
    static char *with_dy[] = {"", "", "", "", "rows", "keep", NULL};
    static char *without[] = {"", "", "", "rows", NULL};
    PyObject *module = PyType_GetModule(Py_TYPE(object)), *theta, *x, *t, *dy = NULL, *y,
             *second = NULL;
    const dsb_net *net = ((dsb_py_net *)object)->net;
    net_call call = {.net = net, .mode = mode, .rows = 64};
    int64_t dim = dsb_net_dim(net), out = net->values[net->output].width;
    int keep = 0;
    dsb_status status;

    if (!(mode == DSB_INFER ? PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$i", without, &theta,
                                                          &x, &t, &call.rows)
                            : PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$ip", with_dy, &theta,
                                                          &x, &t, &dy, &call.rows, &keep))) {
        return NULL;
    }
    if (dsb_py_view(module, theta, "theta", DSB_FLOAT32, 1, (int64_t[]){net->plane}, &call.theta) <
            0 ||
        dsb_py_view(module, x, "x", DSB_FLOAT32, 2, (int64_t[]){-1, dim}, &call.x) < 0) {
        return NULL;
    }
    call.n = call.x.shape[0];
    call.keep = keep;
    if (dsb_py_view(module, t, "t", DSB_FLOAT32, 1, (int64_t[]){call.n}, &call.t) < 0 ||
        (dy != NULL &&
         dsb_py_view(module, dy, "dy", DSB_FLOAT32, 2, (int64_t[]){call.n, out}, &call.dy) < 0)) {
        return NULL;
    }
    if (mode == DSB_INFER && !one_time(&call)) {
        call.mode = DSB_VJP;
    }
    y = dsb_py_array(DSB_FLOAT32, 2, (int64_t[]){call.n, out}, &call.y);
    if (y != NULL && mode == DSB_TRAIN) {
        second = dsb_py_array(DSB_FLOAT32, 1, (int64_t[]){net->plane}, &call.grad);
    } else if (y != NULL && mode == DSB_VJP) {
        second = dsb_py_array(DSB_FLOAT32, 2, (int64_t[]){call.n, dim}, &call.dx);
    }
    if (y == NULL || (mode != DSB_INFER && second == NULL)) {
        Py_XDECREF(y);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = run_call(&call);
    Py_END_ALLOW_THREADS
    if (status != DSB_OK) {
        Py_DECREF(y);
        Py_XDECREF(second);
        return dsb_py_raise(module, status);
    }
    return second != NULL ? Py_BuildValue("NN", y, second) : y;
}

static PyObject *
net_forward(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_INFER);
}

static PyObject *
net_gradient(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_TRAIN);
}

static PyObject *
net_vjp(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_VJP);
}

static PyObject *
net_plan(PyObject *object, PyObject *args)
{
    static const char *const names[] = {"infer", "train", "vjp"};
    const dsb_net *net = ((dsb_py_net *)object)->net;
    PyObject *module = PyType_GetModule(Py_TYPE(object)), *list;
    const char *name;
    int rows, keep = 0, mode = 0;
    Py_ssize_t bytes;
    dsb_plan *plan;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "si|p", &name, &rows, &keep)) {
        return NULL;
    }
    while (mode < 3 && strcmp(names[mode], name) != 0) {
        mode++;
    }
    if (mode == 3) {
        PyErr_Format(PyExc_ValueError, "mode must be infer, train or vjp, got '%s'", name);
        return NULL;
    }
    status = dsb_plan_create(net, (dsb_mode)mode, rows, keep, &plan);
    if (status != DSB_OK) {
        return dsb_py_raise(module, status);
    }
    list = PyList_New(plan->n_buffers);
    for (int i = 0; list != NULL && i < plan->n_buffers; i++) {
        const dsb_buffer *b = &plan->buffers[i];
        char label[DSB_MAX_NAME + 4];
        PyObject *item;

        snprintf(label, sizeof label, "%s%s", b->gradient ? "d " : "", net->values[b->value].name);
        item = Py_BuildValue("(snnii)", label, (Py_ssize_t)b->offset, (Py_ssize_t)b->bytes,
                             b->first, b->last);
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, item);
        }
    }
    bytes = (Py_ssize_t)plan->bytes;
    dsb_plan_destroy(plan);
    return list == NULL ? NULL : Py_BuildValue("{s:n,s:N}", "bytes", bytes, "buffers", list);
}

static PyMethodDef net_methods[] = {
    {"initial", net_initial, METH_VARARGS, "initial(seed, draw=0): plane of initial weights."},
    {"forward", (PyCFunction)(void (*)(void))net_forward, METH_VARARGS | METH_KEYWORDS,
     "forward(theta, x, t, *, rows=64): the net's output."},
    {"gradient", (PyCFunction)(void (*)(void))net_gradient, METH_VARARGS | METH_KEYWORDS,
     "gradient(theta, x, t, dy, *, rows=64, keep=False): output, and gradient plane of sum(y dy)."},
    {"vjp", (PyCFunction)(void (*)(void))net_vjp, METH_VARARGS | METH_KEYWORDS,
     "vjp(theta, x, t, dy, *, rows=64, keep=False): output, and gradient of sum(y dy) to x."},
    {"plan", net_plan, METH_VARARGS, "plan(mode, rows, keep=False): memory of a pass."},
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
