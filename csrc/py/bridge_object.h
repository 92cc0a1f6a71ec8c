/* The Python object Bridge, shared by the files that make its type.
 *
 * Purpose: one C handle, one lock, what the handle borrows; and how a long call looks for Ctrl-C.
 * Ownership: the object owns the handle and its references. Threads: the lock is held around every use of
 * the handle; whoever waits for it does so without the GIL.
 */
#ifndef DSB_PY_BRIDGE_OBJECT_H
#define DSB_PY_BRIDGE_OBJECT_H

#include <stdatomic.h>

#include "base/clock.h"
#include "bridge/trainer.h"
#include "py/core.h"

#define DSB_TICK_SECONDS 0.05 /* how often a long call looks for Ctrl-C */

typedef struct dsb_py_bridge {
    PyObject_HEAD dsb_bridge *bridge;
    PyThread_type_lock lock;
    _Atomic unsigned long owner;    /* the thread that holds it; 0: none */
    PyObject *net, *source, *prior; /* what the bridge borrows */
} dsb_py_bridge;

/* 0, or -1 with an exception: a signal handler called the object in the middle of one of its own calls. */
int dsb_py_lock(dsb_py_bridge *self);
void dsb_py_unlock(dsb_py_bridge *self);

/* Looks for signals while the GIL is released; `saved` is the thread state to come back to. */
typedef struct dsb_py_watch {
    PyThreadState *saved;
    double next;
} dsb_py_watch;

/* Releases the GIL and gives the tick to hand to the core; dsb_py_unwatch takes the GIL back. */
dsb_tick dsb_py_watch_signals(dsb_py_watch *watch);
void dsb_py_unwatch(dsb_py_watch *watch);

/* The module of an object's type; the number of a direction, or -1 with a ValueError. */
PyObject *dsb_py_module_of(dsb_py_bridge *self);
int dsb_py_direction(const char *name);

/* The covariances of steps, in py_covariance.c. */
PyObject *dsb_py_get_covariance(PyObject *object, PyObject *argument);
PyObject *dsb_py_set_covariance(PyObject *object, PyObject *args);

/* Methods that answer, in py_answers.c. */
PyObject *dsb_py_sample(PyObject *object, PyObject *args, PyObject *kwargs);
PyObject *dsb_py_drift(PyObject *object, PyObject *args);

#endif
