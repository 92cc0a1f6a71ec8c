#define PY_ARRAY_UNIQUE_SYMBOL dsb_numpy_api
#define NO_IMPORT_ARRAY
#include "py/config.h"

#include "py/run.h"

int
dsb_py_choose(const char *name, const char *argument, const char *const *choices)
{
    PyObject *list;

    for (int i = 0; choices[i] != NULL; i++) {
        if (strcmp(choices[i], name) == 0) {
            return i;
        }
    }
    list = PyList_New(0);
    for (int i = 0; list != NULL && choices[i] != NULL; i++) {
        PyObject *choice = PyUnicode_FromString(choices[i]);

        if (choice == NULL || PyList_Append(list, choice) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(choice);
    }
    if (list != NULL) {
        PyErr_Format(PyExc_ValueError, "%s: expected one of %R, got '%s'", argument, list, name);
        Py_DECREF(list);
    }
    return -1;
}

int
dsb_py_given(PyObject *object)
{
    return object != NULL && object != Py_None;
}

static int
get_end(PyObject *module, const char *name, const dsb_py_end *given, int64_t dim, dsb_end *end)
{
    dsb_tensor view;

    if (dsb_py_given(given->rows)) {
        if (dsb_py_view_any(given->rows, name, &view) < 0) {
            return -1;
        }
        if (view.dtype != DSB_FLOAT32 && view.dtype != DSB_UINT8) {
            PyErr_Format(PyExc_TypeError, "%s: expected dtype float32 or uint8, got %s", name,
                         dsb_dtype_name(view.dtype));
            return -1;
        }
        if (dsb_py_view(module, given->rows, name, view.dtype, 2, (int64_t[]){-1, dim}, &view) <
            0) {
            return -1;
        }
        end->rows = (dsb_rows){view.data, view.dtype,          view.shape[0],
                               dim,       (float)given->scale, (float)given->shift};
        return 0;
    }
    if (!dsb_py_given(given->mean)) {
        PyErr_Format(PyExc_ValueError, "%s: expected rows of data, or %s_mean", name, name);
        return -1;
    }
    if (dsb_py_view(module, given->mean, name, DSB_FLOAT32, 1, (int64_t[]){dim}, &view) < 0) {
        return -1;
    }
    end->mean = view.data;
    end->deviation = (float)given->deviation;
    if (dsb_py_given(given->factor)) {
        if (dsb_py_view(module, given->factor, name, DSB_FLOAT32, 2, (int64_t[]){dim, dim}, &view) <
            0) {
            return -1;
        }
        end->factor = view.data;
    }
    return 0;
}

static int
parse_arguments(PyObject *args, PyObject *kwargs, dsb_py_arguments *a, dsb_bridge_config *c)
{
    static char *names[] = {"",
                            "source",
                            "source_scale",
                            "source_shift",
                            "source_mean",
                            "source_factor",
                            "source_deviation",
                            "prior",
                            "prior_scale",
                            "prior_shift",
                            "prior_mean",
                            "prior_factor",
                            "prior_deviation",
                            "reference_mean",
                            "reference_precision",
                            "steps",
                            "convention",
                            "output",
                            "objective",
                            "first_coupling",
                            "closed_form",
                            "antithetic",
                            "batch",
                            "microbatch",
                            "lanes",
                            "refresh",
                            "reuse",
                            "cache_bytes",
                            "learning_rate",
                            "cosine",
                            "beta1",
                            "beta2",
                            "epsilon",
                            "clip",
                            "ema",
                            "seed",
                            "precision",
                            "covariance",
                            "covariance_paths",
                            NULL};

    return PyArg_ParseTupleAndKeywords(
        args, kwargs, "O|$OddOOdOddOOdOdOssssppiiiiiLdpdddddKssi", names, &a->net, &a->source.rows,
        &a->source.scale, &a->source.shift, &a->source.mean, &a->source.factor,
        &a->source.deviation, &a->prior.rows, &a->prior.scale, &a->prior.shift, &a->prior.mean,
        &a->prior.factor, &a->prior.deviation, &a->reference_mean, &a->reference_precision,
        &a->steps, &a->convention, &a->output, &a->objective, &a->first_coupling, &a->closed_form,
        &a->antithetic, &c->batch, &c->microbatch, &c->lanes, &c->refresh, &c->reuse,
        &a->cache_bytes, &c->rate.rate, &a->cosine, &a->beta1, &a->beta2, &a->epsilon,
        &c->rate.clip, &a->ema, &a->seed, &a->precision, &a->covariance, &c->covariance.paths);
}

static int
understand(PyObject *module, dsb_py_arguments *a, dsb_bridge_config *c)
{
    static const char *const conventions[] = {"grid", "official", NULL};
    static const char *const outputs[] = {"mean", "step", "drift", NULL};
    static const char *const couplings[] = {"reference", "independent", "pairs", NULL};
    static const char *const covariances[] = {"reference", "scalar", "diagonal", "full", NULL};
    const dsb_module_state *state = PyModule_GetState(module);
    int convention = dsb_py_choose(a->convention, "convention", conventions), output = -1;
    int coupling = dsb_py_choose(a->first_coupling, "first_coupling", couplings);
    int covariance = dsb_py_choose(a->covariance, "covariance", covariances);
    int64_t dim;
    dsb_tensor view;

    if (convention < 0 || coupling < 0 || covariance < 0 ||
        (output = dsb_py_choose(a->output, "output", outputs)) < 0 ||
        dsb_py_precision(a->precision, &c->precision) < 0) {
        return -1;
    }
    if (!PyObject_TypeCheck(a->net, state->net_type)) {
        PyErr_Format(PyExc_TypeError, "net: expected a dsb._core.Net, got %R", Py_TYPE(a->net));
        return -1;
    }
    c->net = ((dsb_py_net *)a->net)->net;
    dim = dsb_net_dim(c->net);
    if (!dsb_py_given(a->reference_mean) || !dsb_py_given(a->steps)) {
        PyErr_SetString(PyExc_TypeError, "reference_mean and steps are required");
        return -1;
    }
    if (get_end(module, "source", &a->source, dim, &c->source) < 0 ||
        get_end(module, "prior", &a->prior, dim, &c->prior) < 0 ||
        dsb_py_view(module, a->reference_mean, "reference_mean", DSB_FLOAT32, 1, (int64_t[]){dim},
                    &view) < 0) {
        return -1;
    }
    c->reference_mean = view.data;
    if (dsb_py_view(module, a->steps, "steps", DSB_FLOAT64, 1, (int64_t[]){-1}, &view) < 0) {
        return -1;
    }
    c->n = view.shape[0] > DSB_MAX_STEPS ? DSB_MAX_STEPS + 1 : (int)view.shape[0];
    c->g = view.data;
    c->reference_precision = a->reference_precision;
    c->convention = (dsb_convention)convention;
    c->output = (dsb_output)output;
    c->objective = a->objective;
    c->first_coupling = (dsb_coupling)coupling;
    c->closed_form = a->closed_form;
    c->antithetic = a->antithetic;
    c->cache_bytes = a->cache_bytes;
    c->covariance.kind = (dsb_covariance)covariance;
    c->rate.cosine = a->cosine;
    c->rate.fresh_average = convention != DSB_OFFICIAL;
    c->adam = (dsb_adam){(float)a->beta1, (float)a->beta2, (float)a->epsilon, (float)a->ema};
    c->seed = a->seed;
    return 0;
}

int
dsb_py_configure(PyObject *module, PyObject *args, PyObject *kwargs, dsb_py_arguments *a,
                 dsb_bridge_config *config)
{
    *a = (dsb_py_arguments){.source = {.scale = 1.0, .deviation = 1.0},
                            .prior = {.scale = 1.0, .deviation = 1.0},
                            .convention = "grid",
                            .output = "drift",
                            .objective = "dsb",
                            .first_coupling = "reference",
                            .precision = "float32",
                            .covariance = "reference",
                            .closed_form = 1,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .epsilon = 1e-8};
    *config = (dsb_bridge_config){.batch = 512,
                                  .refresh = 100,
                                  .reuse = 1,
                                  .rate = {.rate = 1e-3},
                                  .covariance = {.paths = 4096}};
    return parse_arguments(args, kwargs, a, config) ? understand(module, a, config) : -1;
}
