/* Small U-Nets of every op for images, in every mode and precision: what a plan fuses, aliases and reuses must
 * not change a bit; under the sanitizers no op may touch what is not its own. */
#include <stdlib.h>
#include <string.h>

#include "nn/net.h"
#include "test.h"

typedef struct builder {
    dsb_net *net;
    int count;
} builder;

/* Appends an op of the kind, with inputs a and b (-1: one input), and returns its value. */
static int
put(builder *b, dsb_op_spec spec, int first, int second)
{
    char name[16] = "op00";
    int value = -1;

    name[2] = (char)('0' + b->count / 10);
    name[3] = (char)('0' + b->count++ % 10);
    spec.name = name;
    spec.inputs[0] = first;
    spec.inputs[1] = second;
    spec.n_inputs = second < 0 ? 1 : 2;
    CHECK(dsb_net_add(b->net, &spec, &value) == DSB_OK);
    return value;
}

static int
conv(builder *b, int x, int width, int kernel, int stride, bool up)
{
    return put(
        b,
        (dsb_op_spec){.kind = "conv", .width = width, .kernel = kernel, .stride = stride, .up = up},
        x, -1);
}

static int
norm(builder *b, int x, int scale_shift, int groups)
{
    return put(b, (dsb_op_spec){.kind = "group_norm", .groups = groups, .silu = true}, x,
               scale_shift);
}

static int
plain(builder *b, const char *kind, int first, int second)
{
    return put(b, (dsb_op_spec){.kind = kind, .rate = 0.3f}, first, second);
}

/* h + conv(dropout?(norm(conv(norm(h)) + e))), or scaled and shifted by e in the second norm. */
static int
res_block(builder *b, int h, int c_in, int c_out, int e, bool scales)
{
    int v = put(b, (dsb_op_spec){.kind = "linear", .width = scales ? 2 * c_out : c_out}, e, -1);
    int z = conv(b, norm(b, h, -1, 4), c_out, 3, 1, false), skip = h;

    if (!scales) {
        z = plain(b, "add", z, v);
    }
    z = norm(b, z, scales ? v : -1, 2);
    if (scales) {
        z = plain(b, "dropout", z, -1);
    }
    if (c_in != c_out) {
        skip = conv(b, h, c_out, 1, 1, false);
    }
    return plain(b, "add", skip, conv(b, z, c_out, 3, 1, false));
}

static int
attend(builder *b, int h, int c)
{
    int qkv = conv(b, norm(b, h, -1, 4), 3 * c, 1, 1, false);
    int a = put(b, (dsb_op_spec){.kind = "attention", .heads = 2}, qkv, -1);

    return plain(b, "add", h, conv(b, a, c, 1, 1, false));
}

/* Two levels of `c` channels on images of `channels` x 6 x 4. */
static dsb_net *
build(int channels, int c, bool scales, bool plain_sampling)
{
    builder b = {.count = 0};
    int x, t, e, h, first, second;

    CHECK(dsb_net_create(&b.net) == DSB_OK);
    CHECK(dsb_net_input(b.net, "x", channels * 24, &x) == DSB_OK);
    CHECK(dsb_net_input(b.net, "t", 1, &t) == DSB_OK);
    e = put(&b, (dsb_op_spec){.kind = "embed", .width = 8}, t, -1);
    e = plain(&b, "silu", put(&b, (dsb_op_spec){.kind = "linear", .width = 16}, e, -1), -1);
    h = put(&b, (dsb_op_spec){.kind = "image", .h = 6, .w = 4}, x, -1);
    first = h = conv(&b, h, c, 3, 1, false);
    second = h = res_block(&b, h, c, c, e, scales);
    h = plain_sampling ? plain(&b, "pool", h, -1) : conv(&b, h, c, 3, 2, false);
    h = attend(&b, res_block(&b, h, c, 2 * c, e, scales), 2 * c);
    h = plain_sampling ? plain(&b, "upsample", h, -1) : conv(&b, h, 2 * c, 3, 1, true);
    h = res_block(&b, plain(&b, "concat", h, second), 3 * c, c, e, scales);
    h = plain(&b, "silu", plain(&b, "concat", h, first), -1);
    h = conv(&b, norm(&b, h, -1, 1), channels, 3, 1, false);
    h = put(&b, (dsb_op_spec){.kind = "flatten"}, h, -1);
    CHECK(dsb_net_finish(b.net, h) == DSB_OK);
    return b.net;
}

static void
compare_plans(const dsb_net *net)
{
    for (int precision = 0; precision < DSB_PRECISIONS; precision++) {
        for (int mode = DSB_INFER; mode <= DSB_VJP; mode++) {
            dsb_plan_request request = {(dsb_mode)mode, 3, false, (dsb_precision)precision};
            size_t n = (size_t)(request.rows * dsb_net_dim(net) * 2 + net->plane);
            float *a, *b;

            if (dsb_cpu_backend()->conv[precision].forward == NULL) {
                continue;
            }
            a = calloc(n, sizeof *a);
            b = calloc(n, sizeof *b);
            CHECK(test_run_pass(net, &request, a) == DSB_OK);
            request.keep = true;
            CHECK(test_run_pass(net, &request, b) == DSB_OK);
            CHECK(memcmp(a, b, n * sizeof *a) == 0);
            for (size_t i = 0; i < n; i++) {
                CHECK(a[i] - a[i] == 0.0f);
            }
            free(a);
            free(b);
        }
    }
}

void
test_image_nets(void)
{
    static const int widths[] = {4, 16, 20};

    for (int i = 0; i < 12; i++) {
        dsb_net *net = build(1 + i % 3, widths[i % 3], i / 3 % 2, i / 6);

        compare_plans(net);
        dsb_net_destroy(net);
    }
}
