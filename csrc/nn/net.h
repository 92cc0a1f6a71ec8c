/* A net is a straight list of ops, built once.
 *
 * Purpose: the description that plans, checkpoints and Python share. Values are vectors or images, one a
 * row, named by the op that makes them; parameters lie one behind the other in a plane of floats, each on a 64-byte
 * line, so that theta, gradient, Adam's moments and the moving average have one layout.
 * Ownership: the net owns its lists and no parameter. Threads: immutable once finished.
 *
 *     dsb_net *net;
 *     dsb_net_create(&net);
 *     dsb_net_input(net, "x", 2, &x);
 *     dsb_net_add(net, &(dsb_op_spec){.kind = "linear", .name = "out", .inputs = {x}, .n_inputs = 1,
 *                                     .width = 2}, &y);
 *     dsb_net_finish(net, y);
 */
#ifndef DSB_NN_NET_H
#define DSB_NN_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"

#define DSB_MAX_INPUTS 4
#define DSB_MAX_NAME 96

/* The inputs a net may have. t is one number a row; the others are rows. */
typedef enum dsb_net_port {
    DSB_PORT_X,
    DSB_PORT_T,
    DSB_PORT_COND,
    DSB_PORT_LABEL,
    DSB_PORTS
} dsb_net_port;

/* What a row of a value is: a vector of `width` numbers, or an image of h w pixels of `width` channels. */
typedef struct dsb_shape {
    int width;
    int h, w; /* 1, 1 for a vector */
    bool image;
} dsb_shape;

typedef struct dsb_value {
    char name[DSB_MAX_NAME];
    dsb_shape shape;
    int op;                  /* the op that makes it; -1: an input */
    int consumers;           /* how many op inputs read it */
    bool from_x, from_param; /* what it depends on */
} dsb_value;

typedef enum dsb_init {
    DSB_INIT_ZERO,
    DSB_INIT_ONE,
    DSB_INIT_UNIFORM, /* on +-1/sqrt(fan_in) */
    DSB_INIT_NORMAL,  /* N(0, 1) */
} dsb_init;

typedef struct dsb_param {
    char name[DSB_MAX_NAME];
    int rank;
    int64_t shape[DSB_MAX_RANK];
    int64_t size;   /* elements */
    int64_t offset; /* of the first in the plane, a multiple of 16 floats */
    dsb_init init;
    int fan_in;
} dsb_param;

/* Everything that any op can be told; an op reads what concerns it. */
typedef struct dsb_op_spec {
    const char *kind;
    const char *name; /* prefix of the parameters' names, and the value's name */
    int inputs[DSB_MAX_INPUTS];
    int n_inputs;
    int width;               /* of the result, where the kind does not imply it */
    float slope;             /* leaky_relu */
    dsb_embedding embedding; /* embed */
    bool zero;               /* linear, conv: starts at zero */
    int h, w;                /* image: its size */
    int kernel, stride;      /* conv: 1 or 3, 1 or 2 */
    bool up;                 /* conv: nearest up-sampling first */
    int groups;              /* group_norm */
    bool silu;               /* group_norm: SiLU behind it */
    int heads;               /* attention */
    float rate;              /* dropout */
    int classes;             /* lookup */
} dsb_op_spec;

struct dsb_op_kind;

typedef struct dsb_op {
    const struct dsb_op_kind *kind;
    dsb_op_spec spec; /* its strings are not kept: kind and name are NULL here */
    dsb_shape shape;  /* of its result */
    int output;       /* value */
    int params[2];    /* -1: none */
    int number;       /* dropout: which one in the net */
} dsb_op;

typedef struct dsb_net {
    dsb_value *values;
    dsb_op *ops;
    dsb_param *params;
    int n_values, n_ops, n_params;
    int ports[DSB_PORTS]; /* value of each input, -1: absent */
    int output;           /* value; -1 until finished */
    int64_t plane;        /* floats in a plane, gaps included */
    int64_t n_parameters; /* gaps not included */
    int n_dropouts;
} dsb_net;

dsb_status dsb_net_create(dsb_net **out) DSB_MUST_CHECK;
void dsb_net_destroy(dsb_net *net);

/* Declares the input `name` ("x", "t", "cond", "label"). */
dsb_status dsb_net_input(dsb_net *net, const char *name, int width, int *value) DSB_MUST_CHECK;
/* Appends an op. Fails, with nothing changed, on an unknown kind, a bad input or a bad width. */
dsb_status dsb_net_add(dsb_net *net, const dsb_op_spec *spec, int *value) DSB_MUST_CHECK;
/* Declares the output; x and output must have the same width. */
dsb_status dsb_net_finish(dsb_net *net, int output) DSB_MUST_CHECK;

/* The value called `name`, or -1. */
int dsb_net_value(const dsb_net *net, const char *name);
/* Width of x and of the output. */
int dsb_net_dim(const dsb_net *net);

/* Initial values of PyTorch's layers, drawn from (seed, init stream of `draw`): the same bits anywhere.
 * `plane` is host memory of net->plane floats. */
void dsb_net_init(const dsb_net *net, uint64_t seed, uint32_t draw, float *plane);

#endif
