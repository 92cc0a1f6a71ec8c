#include "nn/op.h"

#include <stdio.h>
#include <string.h>

static const dsb_op_kind *const kinds[] = {
    &dsb_op_linear,     &dsb_op_leaky_relu, &dsb_op_silu,     &dsb_op_add,     &dsb_op_concat,
    &dsb_op_embed,      &dsb_op_lookup,     &dsb_op_image,    &dsb_op_flatten, &dsb_op_conv,
    &dsb_op_group_norm, &dsb_op_attention,  &dsb_op_upsample, &dsb_op_pool,    &dsb_op_dropout,
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
dsb_op_names(char *text, size_t size)
{
    text[0] = '\0';
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t used = strlen(text);

        snprintf(text + used, size - used, "%s%s", i > 0 ? ", " : "", kinds[i]->name);
    }
    return text;
}

dsb_status
dsb_op_wants_image(const dsb_net *net, const dsb_op *op, int i, const char *name)
{
    DSB_REQUIRE(dsb_op_input(net, op, i)->image, "%s '%s': its input %d must be an image",
                op->kind->name, name, i);
    return DSB_OK;
}

void
dsb_op_clear_padding(const dsb_op_run *run, int64_t lines, int n, dsb_slot y)
{
    if (n % DSB_PANEL != 0) {
        run->be->zero(run->stream, lines, (int)dsb_pitch(n) - n, dsb_slot_from(y, n));
    }
}

void
dsb_op_copy(const dsb_op_run *run, int64_t lines, int n, dsb_slot x, int beta, dsb_slot y)
{
    run->be->copy(run->stream, lines, n, x, beta, y);
    if (!beta) {
        dsb_op_clear_padding(run, lines, n, y);
    }
}
