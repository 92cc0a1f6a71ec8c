/* Running a Net from Python: its methods that compute, and precisions by name. With the GIL. */
#ifndef DSB_PY_RUN_H
#define DSB_PY_RUN_H

#include "py/core.h"

PyObject *dsb_py_net_forward(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *dsb_py_net_gradient(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *dsb_py_net_vjp(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *dsb_py_net_plan(PyObject *object, PyObject *args);

/* The precision of this name if the instruction set in use has it; -1 with a ValueError if not. */
int dsb_py_precision(const char *name, dsb_precision *precision);
/* Their names, a list. */
PyObject *dsb_py_precisions(void);

#endif
