#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/run.h"

#include "base/memory.h"
#include "base/philox.h"
#include "nn/exec.h"

static const char *const precision_names[DSB_PRECISIONS] = {"float32", "bf16x3", "bf16"};

int
dsb_py_precision(const char *name, dsb_precision *precision)
{
    PyObject *list;

    for (int i = 0; i < DSB_PRECISIONS; i++) {
        if (strcmp(precision_names[i], name) == 0 && dsb_cpu_backend()->conv[i].forward != NULL) {
            *precision = (dsb_precision)i;
            return 0;
        }
    }
    list = dsb_py_precisions();
    if (list != NULL) {
        PyErr_Format(PyExc_ValueError,
                     "precision: expected one of %R with instruction set %s, got '%s'", list,
                     dsb_cpu_backend()->isa, name);
        Py_DECREF(list);
    }
    return -1;
}

PyObject *
dsb_py_precisions(void)
{
    PyObject *list = PyList_New(0);

    for (int i = 0; list != NULL && i < DSB_PRECISIONS; i++) {
        if (dsb_cpu_backend()->conv[i].forward != NULL) {
            PyObject *name = PyUnicode_FromString(precision_names[i]);

            if (name == NULL || PyList_Append(list, name) < 0) {
                Py_CLEAR(list);
            }
            Py_XDECREF(name);
        }
    }
    return list;
}

/* One call of forward, gradient or vjp. */
typedef struct net_call {
    const dsb_net *net;
    dsb_plan_request plan; /* rows: of a chunk */
    int64_t n;
    uint64_t seed;
    dsb_tensor theta, inputs[DSB_PORTS], dy; /* data NULL: not there */
    float *y, *grad, *dx;                    /* host results; grad and dx may be NULL */
} net_call;

static void
load_input(const net_call *call, dsb_exec *exec, dsb_net_port port, int64_t first, int rows)
{
    dsb_slot slot = exec->inputs[port];
    const float *from = call->inputs[port].data;

    if (slot.data == NULL) {
        return;
    }
    if (port == DSB_PORT_T || port == DSB_PORT_LABEL) {
        size_t count = slot.ld == 0 ? 1 : (size_t)rows;

        exec->be->upload(slot.data, from + first, sizeof(float) * count);
    } else {
        int width = call->net->values[call->net->ports[port]].shape.width;

        exec->be->copy(NULL, rows, width, dsb_float_slot(from + first * width, width), 0, slot);
    }
}

static void
run_chunk(const net_call *call, dsb_exec *exec, const dsb_op_weights *weights, int64_t first,
          int rows)
{
    const dsb_backend *be = exec->be;
    int dim = dsb_net_dim(call->net), out = call->net->values[call->net->output].shape.width;

    for (int port = 0; port < DSB_PORTS; port++) {
        load_input(call, exec, (dsb_net_port)port, first, rows);
    }
    exec->draw = (dsb_draw){call->seed, dsb_stream_word(DSB_STREAM_DROPOUT, 0), 0, (uint32_t)first};
    dsb_exec_forward(exec, weights, rows);
    be->copy(NULL, rows, out, exec->output, 0, dsb_float_slot(call->y + first * out, out));
    if (call->plan.mode == DSB_INFER || call->dy.data == NULL) {
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
    dsb_status status = dsb_plan_create(call->net, be, &call->plan, &plan);

    if (status == DSB_OK) {
        status = dsb_exec_create(plan, be, &exec);
    }
    if (status == DSB_OK) {
        status = dsb_weights_init(&weights, call->net, be, call->plan.precision,
                                  call->plan.mode != DSB_INFER);
    }
    if (status == DSB_OK) {
        dsb_weights_pack(&weights, call->theta.data, 1);
        for (int64_t first = 0; first < call->n; first += call->plan.rows) {
            int64_t left = call->n - first;

            run_chunk(call, exec, &weights.view, first,
                      left < call->plan.rows ? (int)left : call->plan.rows);
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
    const float *t = call->inputs[DSB_PORT_T].data;

    for (int64_t i = 1; i < call->n; i++) {
        if (t[i] != t[0]) {
            return false;
        }
    }
    return true;
}

/* Labels are looked up without a further check. */
static int
check_labels(const net_call *call)
{
    const float *label = call->inputs[DSB_PORT_LABEL].data;

    for (int i = 0; i < call->net->n_ops; i++) {
        const dsb_op *op = &call->net->ops[i];

        for (int64_t r = 0; r < call->n && op->kind == &dsb_op_lookup; r++) {
            int classes = op->spec.classes;

            if (!(label[r] >= 0.0f && label[r] < (float)classes &&
                  label[r] == (float)(int)label[r])) {
                PyErr_Format(PyExc_ValueError,
                             "label: expected whole numbers in 0 .. %d, row %lld holds another",
                             classes - 1, (long long)r);
                return -1;
            }
        }
    }
    return 0;
}

typedef struct net_arguments {
    PyObject *theta, *x, *t, *dy, *cond, *label;
    const char *precision;
    int keep;
    unsigned long long seed;
} net_arguments;

static int
parse(PyObject *args, PyObject *kwargs, net_arguments *a, net_call *call)
{
    static char *forward[] = {"", "", "", "rows", "cond", "label", "precision", NULL};
    static char *gradient[] = {"",     "",      "",          "",     "rows", "keep",
                               "cond", "label", "precision", "seed", NULL};
    static char *vjp[] = {"", "", "", "", "rows", "keep", "cond", "label", "precision", NULL};
    int *rows = &call->plan.rows;

    switch (call->plan.mode) {
    case DSB_INFER:
        return PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$iOOs", forward, &a->theta, &a->x,
                                           &a->t, rows, &a->cond, &a->label, &a->precision);
    case DSB_TRAIN:
        return PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$ipOOsK", gradient, &a->theta, &a->x,
                                           &a->t, &a->dy, rows, &a->keep, &a->cond, &a->label,
                                           &a->precision, &a->seed);
    default:
        return PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$ipOOs", vjp, &a->theta, &a->x,
                                           &a->t, &a->dy, rows, &a->keep, &a->cond, &a->label,
                                           &a->precision);
    }
}

/* An input that the net has must be given, one that it has not must not. */
static int
view_extra(PyObject *module, net_call *call, dsb_net_port port, const char *name, PyObject *given)
{
    int value = call->net->ports[port];
    bool there = given != NULL && given != Py_None;

    if (there != (value >= 0)) {
        PyErr_Format(PyExc_ValueError,
                     value >= 0 ? "%s: this net needs it" : "%s: no input of this net", name);
        return -1;
    }
    if (!there) {
        return 0;
    }
    return dsb_py_view(
        module, given, name, DSB_FLOAT32, port == DSB_PORT_LABEL ? 1 : 2,
        (int64_t[]){call->n, port == DSB_PORT_LABEL ? 1 : call->net->values[value].shape.width},
        &call->inputs[port]);
}

static int
understand(PyObject *module, const net_arguments *a, net_call *call)
{
    const dsb_net *net = call->net;
    int64_t dim = dsb_net_dim(net), out = net->values[net->output].shape.width;

    if (dsb_py_precision(a->precision, &call->plan.precision) < 0 ||
        dsb_py_view(module, a->theta, "theta", DSB_FLOAT32, 1, (int64_t[]){net->plane},
                    &call->theta) < 0 ||
        dsb_py_view(module, a->x, "x", DSB_FLOAT32, 2, (int64_t[]){-1, dim},
                    &call->inputs[DSB_PORT_X]) < 0) {
        return -1;
    }
    call->n = call->inputs[DSB_PORT_X].shape[0];
    call->plan.keep = a->keep;
    call->seed = a->seed;
    if (dsb_py_view(module, a->t, "t", DSB_FLOAT32, 1, (int64_t[]){call->n},
                    &call->inputs[DSB_PORT_T]) < 0 ||
        view_extra(module, call, DSB_PORT_COND, "cond", a->cond) < 0 ||
        view_extra(module, call, DSB_PORT_LABEL, "label", a->label) < 0 || check_labels(call) < 0) {
        return -1;
    }
    return a->dy == NULL ? 0
                         : dsb_py_view(module, a->dy, "dy", DSB_FLOAT32, 2,
                                       (int64_t[]){call->n, out}, &call->dy);
}

static PyObject *
net_run(PyObject *object, PyObject *args, PyObject *kwargs, dsb_mode mode)
{
    PyObject *module = PyType_GetModule(Py_TYPE(object)), *y, *second = NULL;
    const dsb_net *net = ((dsb_py_net *)object)->net;
    net_arguments a = {.precision = "float32"};
    net_call call = {.net = net, .plan = {.mode = mode, .rows = 64}};
    dsb_status status;

    if (!parse(args, kwargs, &a, &call) || understand(module, &a, &call) < 0) {
        return NULL;
    }
    if (mode == DSB_INFER && !one_time(&call)) {
        call.plan.mode = DSB_VJP;
    }
    y = dsb_py_array(DSB_FLOAT32, 2, (int64_t[]){call.n, net->values[net->output].shape.width},
                     &call.y);
    if (y != NULL && mode == DSB_TRAIN) {
        second = dsb_py_array(DSB_FLOAT32, 1, (int64_t[]){net->plane}, &call.grad);
    } else if (y != NULL && mode == DSB_VJP) {
        second = dsb_py_array(DSB_FLOAT32, 2, (int64_t[]){call.n, dsb_net_dim(net)}, &call.dx);
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

PyObject *
dsb_py_net_forward(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_INFER);
}

PyObject *
dsb_py_net_gradient(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_TRAIN);
}

PyObject *
dsb_py_net_vjp(PyObject *object, PyObject *args, PyObject *kwargs)
{
    return net_run(object, args, kwargs, DSB_VJP);
}

static PyObject *
list_buffers(const dsb_plan *plan)
{
    static const char *const prefixes[] = {"", "d ", "saved ", "scratch "};
    PyObject *list = PyList_New(plan->n_buffers);

    for (int i = 0; list != NULL && i < plan->n_buffers; i++) {
        const dsb_buffer *b = &plan->buffers[i];
        char label[DSB_MAX_NAME + 16];
        PyObject *item;

        snprintf(label, sizeof label, "%s%s", prefixes[b->use], plan->net->values[b->value].name);
        item = Py_BuildValue("(snnii)", label, (Py_ssize_t)b->offset, (Py_ssize_t)b->bytes,
                             b->first, b->last);
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, item);
        }
    }
    return list;
}

PyObject *
dsb_py_net_plan(PyObject *object, PyObject *args)
{
    static const char *const names[] = {"infer", "train", "vjp"};
    const dsb_net *net = ((dsb_py_net *)object)->net;
    PyObject *module = PyType_GetModule(Py_TYPE(object)), *list;
    const char *name, *precision = "float32";
    int keep = 0, mode = 0;
    dsb_plan_request request = {.rows = 0};
    Py_ssize_t bytes;
    dsb_plan *plan;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "si|ps", &name, &request.rows, &keep, &precision) ||
        dsb_py_precision(precision, &request.precision) < 0) {
        return NULL;
    }
    while (mode < 3 && strcmp(names[mode], name) != 0) {
        mode++;
    }
    if (mode == 3) {
        PyErr_Format(PyExc_ValueError, "mode must be infer, train or vjp, got '%s'", name);
        return NULL;
    }
    request.mode = (dsb_mode)mode;
    request.keep = keep;
    status = dsb_plan_create(net, dsb_cpu_backend(), &request, &plan);
    if (status != DSB_OK) {
        return dsb_py_raise(module, status);
    }
    list = list_buffers(plan);
    bytes = (Py_ssize_t)plan->bytes;
    dsb_plan_destroy(plan);
    return list == NULL ? NULL : Py_BuildValue("{s:n,s:N}", "bytes", bytes, "buffers", list);
}
