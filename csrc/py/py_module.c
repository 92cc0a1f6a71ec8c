#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#include "py/core.h"

#include <numpy/arrayobject.h>
#include <stdlib.h>

#include "backend.h"
#include "base/memory.h"
#include "base/philox.h"
#include "cpu/cpu.h"
#include "py/run.h"

PyObject *
dsb_py_raise(PyObject *module, dsb_status status)
{
    const dsb_module_state *state = module != NULL ? PyModule_GetState(module) : NULL;
    PyObject *type = PyExc_RuntimeError;

    switch (status) {
    case DSB_OK:
    case DSB_ERR_STATE:
        break;
    case DSB_ERR_VALUE:
        type = PyExc_ValueError;
        break;
    case DSB_ERR_TYPE:
        type = PyExc_TypeError;
        break;
    case DSB_ERR_MEMORY:
        type = PyExc_MemoryError;
        break;
    case DSB_ERR_NUMERIC:
        type = PyExc_FloatingPointError;
        break;
    case DSB_ERR_DEVICE:
        type = state != NULL ? state->device_error : PyExc_RuntimeError;
        break;
    case DSB_ERR_INTERRUPTED: /* whoever interrupted has set it */
        return NULL;
    }
    PyErr_SetString(type, dsb_last_message());
    return NULL;
}

int
dsb_py_set_number(PyObject *dict, const char *key, int64_t value)
{
    PyObject *number = PyLong_FromLongLong(value);
    int result = number == NULL ? -1 : PyDict_SetItemString(dict, key, number);

    Py_XDECREF(number);
    return result;
}

static PyObject *
module_isa(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyUnicode_FromString(dsb_cpu_backend()->isa);
}

static PyObject *
module_isas(PyObject *module, PyObject *unused)
{
    const char *names[DSB_MAX_ISAS];
    int n = dsb_cpu_isas(names);
    PyObject *list = PyList_New(n);

    (void)module;
    (void)unused;
    for (int i = 0; list != NULL && i < n; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);

        if (name == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SetItem(list, i, name);
        }
    }
    return list;
}

static PyObject *
module_precisions(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return dsb_py_precisions();
}

static PyObject *
module_compiler(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
#ifdef __clang__
    return PyUnicode_FromString("clang " __clang_version__);
#else
    return PyUnicode_FromString("gcc " __VERSION__);
#endif
}

static PyObject *
module_get_num_threads(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromLong(dsb_pool_threads());
}

static PyObject *
module_set_num_threads(PyObject *module, PyObject *argument)
{
    long threads = PyLong_AsLong(argument);
    dsb_status status;

    if (threads == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (threads > INT_MAX || threads < INT_MIN) {
        threads = 0;
    }
    Py_BEGIN_ALLOW_THREADS
    status = dsb_pool_set_threads((int)threads);
    Py_END_ALLOW_THREADS
    if (status != DSB_OK) {
        return dsb_py_raise(module, status);
    }
    Py_RETURN_NONE;
}

static PyObject *
module_memory_available(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromSize_t(dsb_memory_available());
}

static PyObject *
module_live_blocks(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromLongLong(dsb_alloc_live());
}

static PyObject *
module_fail_allocation(PyObject *module, PyObject *argument)
{
    long long n = PyLong_AsLongLong(argument);

    (void)module;
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    dsb_alloc_fail_at(n);
    Py_RETURN_NONE;
}

/* Parses (seed, stream, step, sample, rows, dim) and makes the array [rows, dim]. */
static PyObject *
draw_arguments(PyObject *args, dsb_draw *at, int64_t shape[2], float **out)
{
    unsigned long long seed;
    unsigned int stream, step, sample;
    long long rows, dim;

    if (!PyArg_ParseTuple(args, "KIIILL", &seed, &stream, &step, &sample, &rows, &dim)) {
        return NULL;
    }
    if (rows < 0 || dim < 1 || rows > INT32_MAX || dim > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "expected rows >= 0 and dim >= 1, got %lld and %lld", rows,
                     dim);
        return NULL;
    }
    *at = (dsb_draw){seed, stream, step, sample};
    shape[0] = rows;
    shape[1] = dim;
    return dsb_py_array(DSB_FLOAT32, 2, shape, out);
}

static PyObject *
module_normals(PyObject *module, PyObject *args)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_draw at;
    int64_t shape[2], pitch;
    float *out, *row;
    PyObject *array = draw_arguments(args, &at, shape, &out);
    dsb_status status;

    if (array == NULL) {
        return NULL;
    }
    pitch = dsb_pitch(shape[1]);
    status = dsb_alloc(sizeof(float) * 64 * (size_t)pitch, &row);
    if (status != DSB_OK) {
        Py_DECREF(array);
        return dsb_py_raise(module, status);
    }
    Py_BEGIN_ALLOW_THREADS
    for (int64_t r = 0; r < shape[0]; r += 64, at.sample += 64) {
        int rows = shape[0] - r < 64 ? (int)(shape[0] - r) : 64;

        be->normals(NULL, &at, rows, (int)shape[1], row, pitch);
        be->copy(NULL, rows, (int)shape[1], dsb_float_slot(row, pitch), 0,
                 dsb_float_slot(out + r * shape[1], shape[1]));
    }
    Py_END_ALLOW_THREADS
    dsb_free(row);
    return array;
}

static PyObject *
module_uniforms(PyObject *module, PyObject *args)
{
    dsb_draw at;
    int64_t shape[2];
    float *out;
    PyObject *array = draw_arguments(args, &at, shape, &out);
    uint32_t bits[4] = {0, 0, 0, 0};

    (void)module;
    if (array == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (int64_t r = 0; r < shape[0]; r++) {
        for (int64_t c = 0; c < shape[1]; c++) {
            if (c % 4 == 0) {
                dsb_philox(at.seed, at.stream, at.step, at.sample + (uint32_t)r, (uint32_t)(c / 4),
                           bits);
            }
            out[r * shape[1] + c] = dsb_uniform(bits[c % 4]);
        }
    }
    Py_END_ALLOW_THREADS
    return array;
}

static PyObject *
module_permutation(PyObject *module, PyObject *args)
{
    unsigned long long seed;
    unsigned int stream, step;
    long long n;
    dsb_permutation permutation;
    int64_t *out, shape[1];
    PyObject *array;

    (void)module;
    if (!PyArg_ParseTuple(args, "KIIL", &seed, &stream, &step, &n)) {
        return NULL;
    }
    if (n < 1 || n > (int64_t)1 << 40) {
        PyErr_Format(PyExc_ValueError, "n must lie in 1 .. 2^40, got %lld", n);
        return NULL;
    }
    shape[0] = n;
    array = dsb_py_array(DSB_INT64, 1, shape, &out);
    if (array == NULL) {
        return NULL;
    }
    dsb_permutation_init(&permutation, (uint64_t)n, seed, stream, step);
    for (int64_t i = 0; i < n; i++) {
        out[i] = (int64_t)dsb_permute(&permutation, (uint64_t)i);
    }
    return array;
}

static PyMethodDef module_methods[] = {
    {"isa", module_isa, METH_NOARGS, "The CPU instruction set in use."},
    {"isas", module_isas, METH_NOARGS, "The instruction sets that this machine offers."},
    {"precisions", module_precisions, METH_NOARGS, "Precisions that the instruction set has."},
    {"compiler", module_compiler, METH_NOARGS, "The compiler that built the core."},
    {"get_num_threads", module_get_num_threads, METH_NOARGS, "Threads in use."},
    {"set_num_threads", module_set_num_threads, METH_O, "Sets the number of threads, 1 .. 256."},
    {"memory_available", module_memory_available, METH_NOARGS,
     "Bytes this process may still take."},
    {"live_blocks", module_live_blocks, METH_NOARGS, "Blocks of the core not yet freed (tests)."},
    {"fail_allocation", module_fail_allocation, METH_O,
     "The n-th allocation from now fails (tests)."},
    {"normals", module_normals, METH_VARARGS,
     "normals(seed, stream, step, sample, rows, dim): Philox normals, float32 [rows, dim]."},
    {"uniforms", module_uniforms, METH_VARARGS,
     "uniforms(seed, stream, step, sample, rows, dim): Philox uniforms in (0, 1), float32 [rows, "
     "dim]."},
    {"permutation", module_permutation, METH_VARARGS,
     "permutation(seed, stream, step, n): Philox permutation of 0 .. n - 1, int64."},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    dsb_module_state *state = PyModule_GetState(module);
    const char *isa = getenv("DSB_ISA");
    dsb_status status;

    import_array1(-1);
    if (PyModule_AddFunctions(module, dsb_py_exact_methods) < 0 ||
        PyModule_AddFunctions(module, dsb_py_metrics_methods) < 0) {
        return -1;
    }
    status = dsb_cpu_select(isa != NULL && isa[0] != '\0' ? isa : NULL);
    if (status != DSB_OK) {
        PyErr_Format(PyExc_ValueError, "DSB_ISA: %s", dsb_last_message());
        return -1;
    }
    state->device_error = PyErr_NewExceptionWithDoc(
        "dsb.DeviceError",
        "A device refused: absent, lost, or without a capability that was asked for.",
        PyExc_RuntimeError, NULL);
    if (state->device_error == NULL ||
        PyModule_AddObjectRef(module, "DeviceError", state->device_error) < 0) {
        return -1;
    }
    state->net_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &dsb_net_spec, NULL);
    if (state->net_type == NULL || PyModule_AddType(module, state->net_type) < 0) {
        return -1;
    }
    state->bridge_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &dsb_bridge_spec, NULL);
    if (state->bridge_type == NULL || PyModule_AddType(module, state->bridge_type) < 0) {
        return -1;
    }
    return 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    dsb_module_state *state = PyModule_GetState(module);

    Py_VISIT(state->device_error);
    Py_VISIT(state->net_type);
    Py_VISIT(state->bridge_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    dsb_module_state *state = PyModule_GetState(module);

    Py_CLEAR(state->device_error);
    Py_CLEAR(state->net_type);
    Py_CLEAR(state->bridge_type);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dsb._core",
    .m_doc = "The C core of dsb: tensors, nets, samplers and the training loop.",
    .m_size = sizeof(dsb_module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&module_def);
}
