/* Functions of the module that know exact answers, in py_exact.c. With the GIL. */
#ifndef DSB_PY_EXACT_H
#define DSB_PY_EXACT_H

#include "py/core.h"

extern PyMethodDef dsb_py_exact_methods[];

#endif
