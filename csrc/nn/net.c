#include "nn/net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "nn/op.h"

#define MAX_WIDTH 65536      /* of a vector that ops compute, or channels */
#define MAX_VECTOR (1 << 22) /* of one that holds an image: x, cond, what flatten makes */
#define MAX_IMAGE (1 << 26)  /* numbers in an image */
#define MAX_OPS 4096

static const char *const port_names[DSB_PORTS] = {"x", "t", "cond", "label"};

dsb_status
dsb_net_create(dsb_net **out)
{
    dsb_net *net;

    *out = NULL;
    DSB_TRY(dsb_alloc(sizeof *net, &net));
    net->output = -1;
    for (int i = 0; i < DSB_PORTS; i++) {
        net->ports[i] = -1;
    }
    *out = net;
    return DSB_OK;
}

void
dsb_net_destroy(dsb_net *net)
{
    if (net != NULL) {
        dsb_free(net->values);
        dsb_free(net->ops);
        dsb_free(net->params);
        dsb_free(net);
    }
}

/* Makes room for one more element of `size` bytes behind `n`: lists grow by doubling from 8. */
static dsb_status
grow(void *list, int n, size_t size)
{
    void *old, *bigger;

    memcpy(&old, list, sizeof old);
    if (old != NULL && (n < 8 || (n & (n - 1)) != 0)) {
        return DSB_OK;
    }
    DSB_TRY(dsb_alloc(size * (size_t)(n < 8 ? 8 : 2 * n), &bigger));
    if (old != NULL) {
        memcpy(bigger, old, size * (size_t)n);
        dsb_free(old);
    }
    memcpy(list, &bigger, sizeof bigger);
    return DSB_OK;
}

static dsb_status
add_value(dsb_net *net, const char *name, dsb_shape shape, int op, int *value)
{
    DSB_REQUIRE(name != NULL && name[0] != '\0', "a value of a net needs a name");
    DSB_REQUIRE(strlen(name) < DSB_MAX_NAME - 8, "the name '%.80s...' is longer than %d characters",
                name, DSB_MAX_NAME - 9);
    DSB_REQUIRE(dsb_net_value(net, name) < 0, "the name '%s' is taken", name);
    DSB_TRY(grow(&net->values, net->n_values, sizeof *net->values));
    *value = net->n_values;
    net->values[*value] = (dsb_value){.shape = shape, .op = op};
    snprintf(net->values[*value].name, DSB_MAX_NAME, "%s", name);
    net->n_values++;
    return DSB_OK;
}

dsb_status
dsb_net_input(dsb_net *net, const char *name, int width, int *value)
{
    int port = 0;

    while (port < DSB_PORTS && strcmp(name, port_names[port]) != 0) {
        port++;
    }
    DSB_REQUIRE(port < DSB_PORTS, "a net's inputs are called x, t, cond and label, not '%s'", name);
    DSB_REQUIRE(width >= 1 && width <= MAX_VECTOR, "input '%s': width must lie in 1 .. %d, got %d",
                name, MAX_VECTOR, width);
    DSB_REQUIRE(port != DSB_PORT_T || width == 1, "input 't' is one number a row, got width %d",
                width);
    DSB_REQUIRE(port != DSB_PORT_LABEL || width == 1,
                "input 'label' is one whole number a row, got width %d", width);
    DSB_TRY(add_value(net, name, (dsb_shape){width, 1, 1, false}, -1, value));
    net->ports[port] = *value;
    net->values[*value].from_x = port == DSB_PORT_X;
    return DSB_OK;
}

static dsb_status
check_inputs(const dsb_net *net, const dsb_op_kind *kind, const dsb_op_spec *spec)
{
    DSB_REQUIRE(spec->n_inputs >= kind->min_inputs && spec->n_inputs <= kind->max_inputs,
                "%s '%s' takes %d to %d inputs, got %d", kind->name, spec->name, kind->min_inputs,
                kind->max_inputs, spec->n_inputs);
    for (int i = 0; i < spec->n_inputs; i++) {
        DSB_REQUIRE(spec->inputs[i] >= 0 && spec->inputs[i] < net->n_values,
                    "%s '%s': input %d names no earlier value", kind->name, spec->name, i);
        DSB_REQUIRE(spec->inputs[i] != net->ports[DSB_PORT_T] || kind == &dsb_op_embed,
                    "%s '%s': t can only be read through embed", kind->name, spec->name);
        DSB_REQUIRE(spec->inputs[i] != net->ports[DSB_PORT_LABEL] || kind == &dsb_op_lookup,
                    "%s '%s': label can only be read through lookup", kind->name, spec->name);
    }
    return DSB_OK;
}

dsb_status
dsb_net_param(dsb_net *net, const char *prefix, const char *suffix, int rank, const int64_t *shape,
              dsb_init init, int fan_in, int *param)
{
    dsb_param p = {.rank = rank, .size = 1, .offset = net->plane, .init = init, .fan_in = fan_in};

    DSB_TRY(grow(&net->params, net->n_params, sizeof *net->params));
    snprintf(p.name, sizeof p.name, "%s.%s", prefix, suffix);
    for (int i = 0; i < rank; i++) {
        p.shape[i] = shape[i];
        p.size *= shape[i];
    }
    *param = net->n_params;
    net->params[net->n_params++] = p;
    net->plane += dsb_pitch(p.size);
    net->n_parameters += p.size;
    return DSB_OK;
}

static dsb_status
check_shape(const dsb_op_kind *kind, const char *name, const dsb_shape *shape)
{
    int most = kind == &dsb_op_flatten ? MAX_VECTOR : MAX_WIDTH;

    DSB_REQUIRE(shape->width >= 1 && shape->width <= most,
                "%s '%s': width must lie in 1 .. %d, got %d", kind->name, name, most, shape->width);
    DSB_REQUIRE(shape->h >= 1 && shape->w >= 1 &&
                    (int64_t)shape->h * shape->w * shape->width <= MAX_IMAGE,
                "%s '%s': an image of %d x %d pixels with %d channels is more than %d numbers",
                kind->name, name, shape->h, shape->w, shape->width, MAX_IMAGE);
    return DSB_OK;
}

/* Enters the finished op and what its result depends on. */
static void
enter(dsb_net *net, dsb_op *op)
{
    dsb_value *result = &net->values[op->output];

    op->spec.kind = op->spec.name = NULL;
    op->number = op->kind == &dsb_op_dropout ? net->n_dropouts++ : 0;
    result->from_param = op->params[0] >= 0;
    for (int i = 0; i < op->spec.n_inputs; i++) {
        dsb_value *input = &net->values[op->spec.inputs[i]];

        input->consumers++;
        result->from_x |= input->from_x;
        result->from_param |= input->from_param;
    }
    net->ops[net->n_ops++] = *op;
}

dsb_status
dsb_net_add(dsb_net *net, const dsb_op_spec *spec, int *value)
{
    const dsb_op_kind *kind = dsb_op_find(spec->kind);
    dsb_op op = {.kind = kind, .spec = *spec, .shape = {0, 1, 1, false}, .params = {-1, -1}};
    int n_params = net->n_params;
    int64_t plane = net->plane, n_parameters = net->n_parameters;
    char names[256];
    dsb_status status;

    DSB_REQUIRE(kind != NULL, "unknown op '%s'; there are %s", spec->kind,
                dsb_op_names(names, sizeof names));
    DSB_REQUIRE(net->n_ops < MAX_OPS, "a net has at most %d ops", MAX_OPS);
    DSB_TRY(check_inputs(net, kind, spec));
    DSB_TRY(grow(&net->ops, net->n_ops, sizeof *net->ops));
    status = kind->build(net, &op, spec->name);
    if (status == DSB_OK) {
        status = check_shape(kind, spec->name, &op.shape);
    }
    if (status == DSB_OK) {
        status = add_value(net, spec->name, op.shape, net->n_ops, &op.output);
    }
    if (status != DSB_OK) {
        net->n_params = n_params;
        net->plane = plane;
        net->n_parameters = n_parameters;
        return status;
    }
    enter(net, &op);
    *value = op.output;
    return DSB_OK;
}

dsb_status
dsb_net_finish(dsb_net *net, int output)
{
    int x = net->ports[DSB_PORT_X];

    DSB_REQUIRE(x >= 0, "a net needs an input 'x'");
    DSB_REQUIRE(output >= 0 && output < net->n_values && net->values[output].op >= 0,
                "the output of a net must be the result of one of its ops");
    DSB_REQUIRE(net->values[output].consumers == 0,
                "the output '%s' of a net is read by another op", net->values[output].name);
    DSB_REQUIRE(net->values[output].from_x && net->values[output].from_param,
                "the output '%s' of a net must depend on x and on parameters",
                net->values[output].name);
    DSB_REQUIRE(!net->values[output].shape.image,
                "the output '%s' of a net must be a vector: flatten the image",
                net->values[output].name);
    net->output = output;
    return DSB_OK;
}

int
dsb_net_value(const dsb_net *net, const char *name)
{
    for (int i = 0; i < net->n_values; i++) {
        if (strcmp(net->values[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

int
dsb_net_dim(const dsb_net *net)
{
    return net->values[net->ports[DSB_PORT_X]].shape.width;
}

static void
init_param(const dsb_param *p, int number, uint64_t seed, uint32_t stream, float *values)
{
    float bound = p->init == DSB_INIT_UNIFORM ? (float)(1.0 / sqrt((double)p->fan_in)) : 0.0f;
    float four[4] = {0};

    for (int64_t j = 0; j < p->size; j++) {
        if (p->init == DSB_INIT_UNIFORM || p->init == DSB_INIT_NORMAL) {
            if (j % 4 == 0) {
                uint32_t bits[4];

                dsb_philox(seed, stream, (uint32_t)number, (uint32_t)(j / 4),
                           (uint32_t)(j / 4 >> 32), bits);
                for (int k = 0; k < 4; k++) {
                    four[k] = (2.0f * dsb_uniform(bits[k]) - 1.0f) * bound;
                }
                if (p->init == DSB_INIT_NORMAL) {
                    dsb_box_muller(bits[0], bits[1], &four[0], &four[1]);
                    dsb_box_muller(bits[2], bits[3], &four[2], &four[3]);
                }
            }
            values[j] = four[j % 4];
        } else {
            values[j] = p->init == DSB_INIT_ONE ? 1.0f : 0.0f;
        }
    }
}

void
dsb_net_init(const dsb_net *net, uint64_t seed, uint32_t draw, float *plane)
{
    memset(plane, 0, sizeof *plane * (size_t)net->plane);
    for (int i = 0; i < net->n_params; i++) {
        init_param(&net->params[i], i, seed, dsb_stream_word(DSB_STREAM_INIT, draw),
                   plane + net->params[i].offset);
    }
}
