#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/bridge_object.h"
#include "py/config.h"

/* ---- locks and Ctrl-C ---- */

int
dsb_py_lock(dsb_py_bridge *self)
{
    if (!PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        /* Waiting for itself would never end. */
        if (atomic_load(&self->owner) == PyThread_get_thread_ident()) {
            PyErr_SetString(
                PyExc_RuntimeError,
                "a signal handler called the bridge in the middle of its work; raise an "
                "exception there, and call the bridge once that call has ended");
            return -1;
        }
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock(self->lock, WAIT_LOCK);
        Py_END_ALLOW_THREADS
    }
    atomic_store(&self->owner, PyThread_get_thread_ident());
    return 0;
}

void
dsb_py_unlock(dsb_py_bridge *self)
{
    atomic_store(&self->owner, 0);
    PyThread_release_lock(self->lock);
}

static bool
signal_raised(void *context)
{
    dsb_py_watch *watch = context;
    int raised;

    if (dsb_seconds() < watch->next) {
        return false;
    }
    PyEval_RestoreThread(watch->saved);
    raised = PyErr_CheckSignals();
    watch->saved = PyEval_SaveThread();
    watch->next = dsb_seconds() + DSB_TICK_SECONDS;
    return raised != 0;
}

dsb_tick
dsb_py_watch_signals(dsb_py_watch *watch)
{
    watch->next = dsb_seconds() + DSB_TICK_SECONDS;
    watch->saved = PyEval_SaveThread();
    return (dsb_tick){signal_raised, watch};
}

void
dsb_py_unwatch(dsb_py_watch *watch)
{
    PyEval_RestoreThread(watch->saved);
}

PyObject *
dsb_py_module_of(dsb_py_bridge *self)
{
    return PyType_GetModule(Py_TYPE((PyObject *)self));
}

int
dsb_py_direction(const char *name)
{
    static const char *const directions[] = {"backward", "forward", NULL};

    return dsb_py_choose(name, "direction", directions);
}

/* ---- making ---- */

static PyObject *
bridge_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *module = PyType_GetModule(type);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    dsb_py_arguments a;
    dsb_bridge_config config;
    dsb_py_bridge *self;
    dsb_status status;

    if (dsb_py_configure(module, args, kwargs, &a, &config) < 0) {
        return NULL;
    }
    self = (dsb_py_bridge *)alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->lock = PyThread_allocate_lock();
    if (self->lock == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->net = Py_NewRef(a.net);
    self->source = a.source.rows != NULL ? Py_NewRef(a.source.rows) : NULL;
    self->prior = a.prior.rows != NULL ? Py_NewRef(a.prior.rows) : NULL;
    Py_BEGIN_ALLOW_THREADS
    status = dsb_bridge_create(&config, dsb_cpu_backend(), &self->bridge);
    Py_END_ALLOW_THREADS
    if (status != DSB_OK) {
        Py_DECREF(self);
        return dsb_py_raise(module, status);
    }
    return (PyObject *)self;
}

static int
bridge_traverse(PyObject *object, visitproc visit, void *arg)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;

    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->net);
    Py_VISIT(self->source);
    Py_VISIT(self->prior);
    return 0;
}

/* No tp_clear: the bridge reads what it refers to until it is gone, and nothing it refers to can refer
 * back to it except through an array's attributes, which plain arrays do not have. */
static void
bridge_dealloc(PyObject *object)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(object);
    dsb_bridge_destroy(self->bridge);
    if (self->lock != NULL) {
        PyThread_free_lock(self->lock);
    }
    Py_XDECREF(self->net);
    Py_XDECREF(self->source);
    Py_XDECREF(self->prior);
    release(object);
    Py_DECREF(type);
}

/* ---- training ---- */

static PyObject *
bridge_begin(PyObject *object, PyObject *argument)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    long long steps = PyLong_AsLongLong(argument);
    dsb_status status;

    if (steps == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    status = dsb_bridge_begin(self->bridge, steps);
    dsb_py_unlock(self);
    if (status != DSB_OK) {
        return dsb_py_raise(dsb_py_module_of(self), status);
    }
    Py_RETURN_NONE;
}

static PyObject *
bridge_run(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    long long steps;
    double seconds = 0.1;
    int64_t done;
    dsb_py_watch watch;
    dsb_status status;

    if (!PyArg_ParseTuple(args, "L|d", &steps, &seconds)) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    status = dsb_bridge_run(self->bridge, steps, seconds, dsb_py_watch_signals(&watch), &done);
    dsb_py_unwatch(&watch);
    dsb_py_unlock(self);
    return status != DSB_OK ? dsb_py_raise(dsb_py_module_of(self), status)
                            : PyLong_FromLongLong(done);
}

static PyObject *
bridge_log(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyObject *loss, *norm = NULL;
    float *l, *n;
    long long first = 0;
    int64_t rest;

    if (!PyArg_ParseTuple(args, "|L", &first)) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    first = first < 0 ? 0 : first > self->bridge->logged ? self->bridge->logged : first;
    rest = self->bridge->logged - first;
    loss = dsb_py_array(DSB_FLOAT32, 1, &rest, &l);
    if (loss != NULL) {
        norm = dsb_py_array(DSB_FLOAT32, 1, &rest, &n);
    }
    if (norm != NULL && rest > 0) {
        memcpy(l, self->bridge->loss + first, sizeof(float) * (size_t)rest);
        memcpy(n, self->bridge->norm + first, sizeof(float) * (size_t)rest);
    }
    dsb_py_unlock(self);
    if (norm == NULL) {
        Py_XDECREF(loss);
        return NULL;
    }
    return Py_BuildValue("NN", loss, norm);
}

/* ---- state ---- */

static PyObject *
bridge_trained(PyObject *object, PyObject *argument)
{
    const dsb_py_bridge *self = (dsb_py_bridge *)object;
    const char *name = PyUnicode_Check(argument) ? PyUnicode_AsUTF8AndSize(argument, NULL) : "";
    int direction = name != NULL ? dsb_py_direction(name) : -1;

    return direction < 0 ? NULL : PyBool_FromLong(self->bridge->learners[direction].trained);
}

static int
get_plane_of(dsb_py_bridge *self, const char *direction, const char *which, float **plane)
{
    static const char *const planes[] = {"theta", "m", "v", "ema", NULL};
    int d = dsb_py_direction(direction), p = d < 0 ? -1 : dsb_py_choose(which, "which", planes);

    if (p < 0) {
        return -1;
    }
    *plane = self->bridge->learners[d].planes[p];
    if (*plane == NULL) {
        PyErr_SetString(PyExc_ValueError, "which: no moving average is kept (ema = 0)");
        return -1;
    }
    return 0;
}

static PyObject *
bridge_get_plane(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    const char *direction, *which;
    float *plane, *out;
    PyObject *array;

    if (!PyArg_ParseTuple(args, "ss", &direction, &which) ||
        get_plane_of(self, direction, which, &plane) < 0) {
        return NULL;
    }
    array = dsb_py_array(DSB_FLOAT32, 1, &self->bridge->net->plane, &out);
    if (array != NULL) {
        if (dsb_py_lock(self) < 0) {
            Py_DECREF(array);
            return NULL;
        }
        self->bridge->be->download(out, plane, sizeof(float) * (size_t)self->bridge->net->plane);
        dsb_py_unlock(self);
    }
    return array;
}

static PyObject *
bridge_set_plane(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    const char *direction, *which;
    PyObject *array;
    float *plane;
    dsb_tensor view;

    if (!PyArg_ParseTuple(args, "ssO", &direction, &which, &array) ||
        get_plane_of(self, direction, which, &plane) < 0 ||
        dsb_py_view(dsb_py_module_of(self), array, "plane", DSB_FLOAT32, 1,
                    &self->bridge->net->plane, &view) < 0) {
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    self->bridge->be->upload(plane, view.data, sizeof(float) * (size_t)self->bridge->net->plane);
    dsb_bridge_planes_changed(self->bridge);
    dsb_py_unlock(self);
    Py_RETURN_NONE;
}

static PyObject *
bridge_get_position(PyObject *object, PyObject *unused)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    dsb_position p;

    (void)unused;
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    p = dsb_bridge_position(self->bridge);
    dsb_py_unlock(self);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:i,s:i}", "half_bridge", (long long)p.half_bridge,
                         "step", (long long)p.step, "steps", (long long)p.steps, "adam_backward",
                         (long long)p.adam_steps[DSB_BACKWARD], "adam_forward",
                         (long long)p.adam_steps[DSB_FORWARD], "trained_backward",
                         (int)p.trained[DSB_BACKWARD], "trained_forward",
                         (int)p.trained[DSB_FORWARD]);
}

static int
get_count(PyObject *dict, const char *key, int64_t *value)
{
    PyObject *item = PyDict_GetItemString(dict, key);

    if (item == NULL || !PyLong_Check(item)) {
        PyErr_Format(PyExc_ValueError, "position: expected an integer '%s'", key);
        return -1;
    }
    *value = PyLong_AsLongLong(item);
    return *value == -1 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *
bridge_set_position(PyObject *object, PyObject *args)
{
    dsb_py_bridge *self = (dsb_py_bridge *)object;
    PyObject *dict, *loss, *norm;
    dsb_tensor l, n;
    dsb_position p;
    int64_t trained[2];
    dsb_status status;

    if (!PyArg_ParseTuple(args, "O!OO", &PyDict_Type, &dict, &loss, &norm) ||
        get_count(dict, "half_bridge", &p.half_bridge) < 0 ||
        get_count(dict, "step", &p.step) < 0 || get_count(dict, "steps", &p.steps) < 0 ||
        get_count(dict, "adam_backward", &p.adam_steps[DSB_BACKWARD]) < 0 ||
        get_count(dict, "adam_forward", &p.adam_steps[DSB_FORWARD]) < 0 ||
        get_count(dict, "trained_backward", &trained[DSB_BACKWARD]) < 0 ||
        get_count(dict, "trained_forward", &trained[DSB_FORWARD]) < 0) {
        return NULL;
    }
    p.trained[0] = trained[0] != 0;
    p.trained[1] = trained[1] != 0;
    if (p.step < 0 ||
        dsb_py_view(dsb_py_module_of(self), loss, "loss", DSB_FLOAT32, 1, &p.step, &l) < 0 ||
        dsb_py_view(dsb_py_module_of(self), norm, "norm", DSB_FLOAT32, 1, &p.step, &n) < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "position: 'step' must not be negative");
        }
        return NULL;
    }
    if (dsb_py_lock(self) < 0) {
        return NULL;
    }
    status = dsb_bridge_set_position(self->bridge, &p, l.data, n.data);
    dsb_py_unlock(self);
    if (status != DSB_OK) {
        return dsb_py_raise(dsb_py_module_of(self), status);
    }
    Py_RETURN_NONE;
}

static PyObject *
bridge_memory(PyObject *object, PyObject *unused)
{
    dsb_memory m = dsb_bridge_memory(((dsb_py_bridge *)object)->bridge);

    (void)unused;
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n,s:n,s:n,s:n}", "planes", (Py_ssize_t)m.planes,
                         "gradients", (Py_ssize_t)m.gradients, "activations",
                         (Py_ssize_t)m.activations, "weights", (Py_ssize_t)m.weights, "cache",
                         (Py_ssize_t)m.cache, "ends", (Py_ssize_t)m.ends, "covariances",
                         (Py_ssize_t)m.covariances, "total", (Py_ssize_t)m.total);
}

/* ---- the type ---- */

enum {
    GET_MICROBATCH,
    GET_LANES,
    GET_REFRESH,
    GET_HALF_BRIDGE,
    GET_STEP,
    GET_STEPS,
    GET_SIMULATION,
    GET_TRAINING
};

static PyObject *
bridge_get(PyObject *object, void *closure)
{
    const dsb_bridge *bridge = ((dsb_py_bridge *)object)->bridge;
    const dsb_evaluations evaluations = dsb_bridge_evaluations(bridge);
    const int64_t values[] = {
        [GET_MICROBATCH] = bridge->config.microbatch,
        [GET_LANES] = bridge->config.lanes,
        [GET_REFRESH] = bridge->config.refresh,
        [GET_HALF_BRIDGE] = bridge->half_bridge,
        [GET_STEP] = bridge->step,
        [GET_STEPS] = bridge->n_steps,
        [GET_SIMULATION] = evaluations.simulation,
        [GET_TRAINING] = evaluations.training,
    };

    return PyLong_FromLongLong(values[(intptr_t)closure]);
}

static PyGetSetDef bridge_properties[] = {
    {"microbatch", bridge_get, NULL, "Rows of a microbatch.", (void *)GET_MICROBATCH},
    {"lanes", bridge_get, NULL, "Gradient lanes.", (void *)GET_LANES},
    {"refresh", bridge_get, NULL, "Gradient steps that a window of the cache serves.",
     (void *)GET_REFRESH},
    {"half_bridge", bridge_get, NULL, "Half-bridges finished.", (void *)GET_HALF_BRIDGE},
    {"step", bridge_get, NULL, "Steps done in the current half-bridge.", (void *)GET_STEP},
    {"steps", bridge_get, NULL, "Steps of the current half-bridge; 0: not begun.",
     (void *)GET_STEPS},
    {"simulation_evaluations", bridge_get, NULL, "Rows that a net simulated with.",
     (void *)GET_SIMULATION},
    {"training_evaluations", bridge_get, NULL, "Rows of gradient steps.", (void *)GET_TRAINING},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef bridge_methods[] = {
    {"begin", bridge_begin, METH_O, "begin(steps): starts the next half-bridge."},
    {"run", bridge_run, METH_VARARGS,
     "run(steps, seconds=0.1): gradient steps, or the estimate behind them; how many were done."},
    {"log", bridge_log, METH_VARARGS,
     "log(first=0): loss and gradient norm of the half-bridge's steps from `first` on."},
    {"trained", bridge_trained, METH_O, "trained(direction): whether its net has had a step."},
    {"memory", bridge_memory, METH_NOARGS, "Bytes by purpose."},
    {"get_plane", bridge_get_plane, METH_VARARGS, "get_plane(direction, which): a copy."},
    {"set_plane", bridge_set_plane, METH_VARARGS, "set_plane(direction, which, plane)."},
    {"get_position", bridge_get_position, METH_NOARGS, "Where training stands."},
    {"set_position", bridge_set_position, METH_VARARGS, "set_position(position, loss, norm)."},
    {"get_covariance", dsb_py_get_covariance, METH_O,
     "get_covariance(direction): (values or None, eigenvalues that were raised)."},
    {"set_covariance", dsb_py_set_covariance, METH_VARARGS,
     "set_covariance(direction, values or None, raised)."},
    {"sample", (PyCFunction)(void (*)(void))dsb_py_sample, METH_VARARGS | METH_KEYWORDS,
     "sample(direction, seed, *, n, x, steps, final_noise, paths)."},
    {"drift", dsb_py_drift, METH_VARARGS, "drift(direction, x, t)."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot bridge_slots[] = {
    {Py_tp_new, bridge_new},
    {Py_tp_dealloc, bridge_dealloc},
    {Py_tp_traverse, bridge_traverse},
    {Py_tp_methods, bridge_methods},
    {Py_tp_getset, bridge_properties},
    {Py_tp_doc, "Nets of both directions and the loop that trains them."},
    {0, NULL},
};

PyType_Spec dsb_bridge_spec = {
    .name = "dsb._core.Bridge",
    .basicsize = sizeof(dsb_py_bridge),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = bridge_slots,
};
