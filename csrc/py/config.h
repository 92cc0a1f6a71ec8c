/* What a Bridge is told by Python, understood: keyword arguments to a dsb_bridge_config.
 *
 * Purpose: checks types, names and shapes; values are checked by the core. Ownership: the configuration
 * borrows from the arguments, whose arrays the caller keeps alive. Threads: with the GIL.
 */
#ifndef DSB_PY_CONFIG_H
#define DSB_PY_CONFIG_H

#include "bridge/trainer.h"
#include "py/core.h"

/* One end as it was given: rows with value * scale + shift, or a Gaussian. */
typedef struct dsb_py_end {
    PyObject *rows, *mean, *factor;
    double scale, shift, deviation;
} dsb_py_end;

/* What the constructor was given, before it is understood. */
typedef struct dsb_py_arguments {
    PyObject *net, *reference_mean, *steps;
    dsb_py_end source, prior;
    double reference_precision;
    const char *convention, *output, *objective, *first_coupling, *precision, *covariance;
    int closed_form, antithetic, cosine;
    double beta1, beta2, epsilon, ema;
    long long cache_bytes;
    unsigned long long seed;
} dsb_py_arguments;

/* Fills both from the constructor's arguments. 0, or -1 with an exception. */
int dsb_py_configure(PyObject *module, PyObject *args, PyObject *kwargs, dsb_py_arguments *a,
                     dsb_bridge_config *config);

/* Index of `name` among the strings of `choices` (NULL at the end), or -1 with a ValueError. */
int dsb_py_choose(const char *name, const char *argument, const char *const *choices);

/* Neither absent nor None. */
int dsb_py_given(PyObject *object);

#endif
