#include "nn/op.h"

#include <string.h>

static const dsb_op_kind *const kinds[] = {
    &dsb_op_linear, &dsb_op_leaky_relu, &dsb_op_silu, &dsb_op_add, &dsb_op_concat, &dsb_op_embed,
};

const dsb_op_kind *
dsb_op_find(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kinds[i]->name, name) == 0) {
            return kinds[i];
        }
    }
    return NULL;
}

const char *
dsb_op_names(void)
{
    return "linear, leaky_relu, silu, add, concat, embed";
}
