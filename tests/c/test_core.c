/* The C core without Python, for the sanitizers: odd shapes, every option of the trainer, interruption,
 * NaN, and every allocation failing in turn. Prints what failed and exits 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "bridge/trainer.h"
#include "test.h"

#define DIM 3
#define ROWS 70
#define STEPS 5

static int failures;

void
test_check(bool holds, const char *condition, const char *file, int line)
{
    if (!holds) {
        printf("%s:%d: failed: %s (last message: %s at %s)\n", file, line, condition,
               dsb_last_message(), dsb_last_place());
        failures++;
    }
}

int
test_failures(void)
{
    return failures;
}

/* ---- nets ---- */

static dsb_status
add(dsb_net *net, const char *kind, const char *name, int a, int b, int width, int *value)
{
    dsb_op_spec spec = {.kind = kind,
                        .name = name,
                        .inputs = {a, b},
                        .n_inputs = b < 0 ? 1 : 2,
                        .width = width,
                        .slope = 0.01f};

    return dsb_net_add(net, &spec, value);
}

/* Every op, both activations, a residual, widths on and off the vector's length, and a branch that
 * nobody reads. */
static dsb_status
build_ops(dsb_net *net, int dim)
{
    int x, t, e, h, a, b, c, s, y, unused;

    DSB_TRY(dsb_net_input(net, "x", dim, &x));
    DSB_TRY(dsb_net_input(net, "t", 1, &t));
    DSB_TRY(add(net, "embed", "e", t, -1, 16, &e));
    DSB_TRY(add(net, "linear", "te", e, -1, 16, &e));
    DSB_TRY(add(net, "linear", "in", x, -1, 32, &h));
    DSB_TRY(add(net, "silu", "h", h, -1, 0, &h));
    DSB_TRY(add(net, "concat", "cat", h, e, 0, &c));
    DSB_TRY(add(net, "linear", "l1", c, -1, 33, &a));
    DSB_TRY(add(net, "leaky_relu", "a1", a, -1, 0, &a));
    DSB_TRY(add(net, "linear", "l2", a, -1, 33, &b));
    DSB_TRY(add(net, "silu", "a2", b, -1, 0, &b));
    DSB_TRY(add(net, "add", "sum", a, b, 0, &s));
    DSB_TRY(add(net, "linear", "dead", s, -1, 5, &unused));
    DSB_TRY(add(net, "concat", "odd", s, x, 0, &s));
    DSB_TRY(add(net, "linear", "out", s, -1, dim, &y));
    return dsb_net_finish(net, y);
}

static dsb_status
build_net(int dim, dsb_net **out)
{
    dsb_status status = dsb_net_create(out);

    if (status == DSB_OK) {
        status = build_ops(*out, dim);
    }
    if (status != DSB_OK) {
        dsb_net_destroy(*out);
        *out = NULL;
    }
    return status;
}

/* One pass in the given memory layout; its results go behind one another into `result`. */
dsb_status
test_run_pass(const dsb_net *net, const dsb_plan_request *request, float *result)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_mode mode = request->mode;
    int dim = dsb_net_dim(net), rows = request->rows;
    dsb_plan *plan;
    dsb_exec *exec;
    dsb_weights weights;
    float *theta = malloc(sizeof *theta * (size_t)net->plane);

    dsb_net_init(net, 7, 0, theta);
    DSB_TRY(dsb_plan_create(net, be, request, &plan));
    DSB_TRY(dsb_exec_create(plan, be, &exec));
    DSB_TRY(dsb_weights_init(&weights, net, be, request->precision, mode != DSB_INFER));
    dsb_weights_pack(&weights, theta, 1);
    for (int r = 0; r < rows; r++) {
        dsb_slot x = exec->inputs[DSB_PORT_X], t = exec->inputs[DSB_PORT_T];

        for (int i = 0; i < dim; i++) {
            ((float *)x.data)[r * x.ld + i] = sinf((float)(r + 3 * i));
        }
        ((float *)t.data)[r * t.ld] = 17.5f;
    }
    dsb_exec_forward(exec, &weights.view, rows);
    be->copy(NULL, rows, dim, exec->output, 0, dsb_float_slot(result, dim));
    if (mode != DSB_INFER) {
        be->copy(NULL, rows, dim, exec->output, 0, exec->d_output);
        memset(result + rows * dim, 0, sizeof(float) * (size_t)net->plane);
        dsb_exec_backward(exec, &weights.view, rows, mode == DSB_TRAIN ? result + rows * dim : NULL,
                          0);
    }
    if (mode == DSB_VJP) {
        be->copy(NULL, rows, dim, exec->d_x, 0, dsb_float_slot(result + rows * dim, dim));
    }
    dsb_weights_clear(&weights);
    dsb_exec_destroy(exec);
    dsb_plan_destroy(plan);
    free(theta);
    return DSB_OK;
}

static void
test_plans(void)
{
    static const int dims[] = {1, 2, 3, 16, 17, 50}, sizes[] = {1, 3, 63, 64, 65};

    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        dsb_net *net = NULL;

        CHECK(build_net(dims[i], &net) == DSB_OK);
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++) {
            for (int mode = DSB_INFER; mode <= DSB_VJP; mode++) {
                size_t n = (size_t)(sizes[j] * dims[i] * 2 + net->plane);
                float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b);

                dsb_plan_request request = {(dsb_mode)mode, sizes[j], false, DSB_PRECISION_FLOAT32};

                CHECK(test_run_pass(net, &request, a) == DSB_OK);
                request.keep = true;
                CHECK(test_run_pass(net, &request, b) == DSB_OK);
                CHECK(memcmp(a, b, n * sizeof *a) == 0);
                free(a);
                free(b);
            }
        }
        dsb_net_destroy(net);
    }
}

/* ---- bridges ---- */

static float data[ROWS * DIM], mean[DIM], factor[DIM * DIM];
static double steps[STEPS] = {0.1, 0.2, 0.05, 0.2, 0.1};

static dsb_bridge_config
configure(const dsb_net *net)
{
    for (int i = 0; i < ROWS * DIM; i++) {
        data[i] = cosf((float)(i * i));
    }
    for (int i = 0; i < DIM; i++) {
        factor[i * (DIM + 1)] = 1.0f;
    }
    return (dsb_bridge_config){.net = net,
                               .source.rows = {data, DSB_FLOAT32, ROWS, DIM, 1.0f, 0.0f},
                               .prior = {.mean = mean, .factor = factor, .deviation = 0.5f},
                               .reference_mean = mean,
                               .reference_precision = 0.5,
                               .n = STEPS,
                               .g = steps,
                               .output = DSB_OUTPUT_DRIFT,
                               .objective = "dsb",
                               .closed_form = true,
                               .batch = 50,
                               .microbatch = 10,
                               .lanes = 4,
                               .refresh = 3,
                               .reuse = 1,
                               .rate = {.rate = 1e-3},
                               .adam = {0.9f, 0.999f, 1e-8f, 0.9f},
                               .seed = 5};
}

static bool
stop_at(void *context)
{
    int *left = context;

    return --*left == 0;
}

/* Three half-bridges of seven steps, stopping at the `stop`-th tick once, then a sample and paths. */
static dsb_status
train(dsb_bridge *bridge, int stop, float *sample)
{
    dsb_sample_request request = {.n = 5, .seed = 3, .paths = true, .out = sample};
    int64_t done;

    for (int h = 0; h < 3; h++) {
        DSB_TRY(dsb_bridge_begin(bridge, 7));
        while (bridge->n_steps > 0) {
            dsb_status status = dsb_bridge_run(bridge, 4, 1e9, (dsb_tick){stop_at, &stop}, &done);

            if (status != DSB_OK && status != DSB_ERR_INTERRUPTED) {
                return status;
            }
        }
    }
    return dsb_bridge_sample(bridge, DSB_BACKWARD, 0, NULL, &request, (dsb_tick){NULL, NULL});
}

static dsb_status
scenario(const char *objective, dsb_covariance kind, int stop, float *result)
{
    float x[2 * DIM] = {0.5f}, t[2] = {0.1f, 0.3f};
    dsb_bridge_config config;
    dsb_net *net = NULL;
    dsb_bridge *bridge = NULL;
    dsb_status status = build_net(DIM, &net);

    if (status == DSB_OK) {
        config = configure(net);
        config.covariance = (dsb_estimate){kind, 256};
        config.objective = objective;
        status = dsb_bridge_create(&config, dsb_cpu_backend(), &bridge);
    }
    if (status == DSB_OK) {
        status = train(bridge, stop, result);
    }
    if (status == DSB_OK) {
        status = dsb_bridge_drift(bridge, DSB_FORWARD, 2, x, t, result + 5 * (STEPS + 1) * DIM,
                                  (dsb_tick){NULL, NULL});
    }
    dsb_bridge_destroy(bridge);
    dsb_net_destroy(net);
    return status;
}

/* The official convention takes a new net for every half-bridge: wherever the first step is cut short, the
 * old one must still be there. */
static void
test_interrupted_renewal(void)
{
    dsb_net *net = NULL;
    bool cut = false;

    CHECK(build_net(DIM, &net) == DSB_OK);
    for (int stop = 1; stop <= 12; stop++) {
        dsb_bridge_config config = configure(net);
        dsb_bridge *bridge = NULL;
        int64_t done;
        int left = stop;
        size_t bytes = sizeof(float) * (size_t)net->plane;
        float *before = malloc(bytes);

        config.convention = DSB_OFFICIAL;
        CHECK(dsb_bridge_create(&config, dsb_cpu_backend(), &bridge) == DSB_OK);
        for (int h = 0; h < 2; h++) {
            CHECK(dsb_bridge_begin(bridge, 1) == DSB_OK);
            CHECK(dsb_bridge_run(bridge, 1, 1e9, (dsb_tick){NULL, NULL}, &done) == DSB_OK);
        }
        memcpy(before, bridge->learners[DSB_BACKWARD].planes[DSB_THETA], bytes);
        CHECK(dsb_bridge_begin(bridge, 3) == DSB_OK);
        CHECK(dsb_bridge_run(bridge, 3, 1e9, (dsb_tick){stop_at, &left}, &done) != DSB_ERR_NUMERIC);
        CHECK((bridge->step == 0 && bridge->n_steps > 0) ==
              (memcmp(before, bridge->learners[DSB_BACKWARD].planes[DSB_THETA], bytes) == 0));
        cut |= bridge->step == 0 && bridge->n_steps > 0;
        dsb_bridge_destroy(bridge);
        free(before);
    }
    CHECK(cut);
    dsb_net_destroy(net);
}

#define RESULT (5 * (STEPS + 1) * DIM + 2 * DIM)

/* In the middle of a step, of a simulation, of an estimate of covariances: nothing changes. */
static void
test_interruption(const char *objective)
{
    for (int kind = DSB_COVARIANCE_REFERENCE; kind <= DSB_COVARIANCE_FULL;
         kind += DSB_COVARIANCE_FULL) {
        float whole[RESULT] = {0}, pieces[RESULT] = {0};

        CHECK(scenario(objective, (dsb_covariance)kind, -1, whole) == DSB_OK);
        for (int stop = 1; stop < 30; stop += kind == DSB_COVARIANCE_REFERENCE ? 1 : 2) {
            int at = kind == DSB_COVARIANCE_REFERENCE ? stop : 12 * stop;

            CHECK(scenario(objective, (dsb_covariance)kind, at, pieces) == DSB_OK);
            CHECK(memcmp(whole, pieces, sizeof whole) == 0);
        }
        CHECK(isfinite(whole[0]) && whole[3] != whole[0]);
    }
}

/* Every allocation fails once: an error, no leak, no crash. */
static void
test_allocation(void)
{
    float result[RESULT];
    int64_t live = dsb_alloc_live();
    dsb_status status = DSB_ERR_MEMORY;
    int n = 0;

    while (status == DSB_ERR_MEMORY && n < 10000) {
        dsb_alloc_fail_at(++n);
        status = scenario("bridge", DSB_COVARIANCE_FULL, -1, result);
        dsb_alloc_fail_at(0);
        CHECK(status == DSB_ERR_MEMORY || status == DSB_OK);
        CHECK(dsb_alloc_live() == live);
    }
    CHECK(status == DSB_OK && n > 30);
    printf("%d allocations failed in turn\n", n - 1);
}

static bool
is_finite(const dsb_bridge *bridge)
{
    for (int d = 0; d < 2; d++) {
        for (int p = 0; p < DSB_PLANES; p++) {
            const float *plane = bridge->learners[d].planes[p];

            if (plane != NULL &&
                bridge->be->first_nonfinite(1, bridge->net->plane, dsb_float_slot(plane, 0)) >= 0) {
                return false;
            }
        }
    }
    return true;
}

static dsb_status
try_options(const dsb_net *net, dsb_bridge_config config)
{
    float result[RESULT];
    dsb_bridge *bridge;
    dsb_status status;

    config.net = net;
    status = dsb_bridge_create(&config, dsb_cpu_backend(), &bridge);
    if (status == DSB_OK) {
        status = train(bridge, -1, result);
        CHECK(is_finite(bridge)); /* whatever happened */
    }
    dsb_bridge_destroy(bridge);
    return status;
}

static void
test_options(void)
{
    dsb_net *net = NULL;

    CHECK(build_net(DIM, &net) == DSB_OK);
    for (int bits = 0; bits < 64; bits++) {
        dsb_bridge_config c = configure(net);

        c.closed_form = bits & 1;
        c.antithetic = bits & 2;
        c.objective = bits & 4 ? "simplified" : "dsb";
        c.output = (dsb_output)((bits >> 3) % 3);
        c.reuse = bits & 32 ? 3 : 1;
        c.rate = (dsb_rate){1e-3, bits & 1, bits & 8 ? 0.5 : 0.0, bits & 32};
        c.adam.ema = bits & 16 ? 0.99f : 0.0f;
        c.prior.factor = bits & 2 ? NULL : factor;
        c.covariance = (dsb_estimate){(dsb_covariance)((bits + bits / 4 + bits / 16) % 4), 256};
        CHECK(try_options(net, c) == DSB_OK);
    }
    for (int bits = 0; bits < 24; bits++) {
        dsb_bridge_config c = configure(net);

        c.objective = "bridge";
        c.first_coupling = (dsb_coupling)(bits % 3);
        c.antithetic = bits / 3 & 1;
        c.closed_form = bits / 3 & 2;
        c.reuse = bits / 3 & 4 ? 3 : 1;
        c.prior.rows = c.source.rows;
        c.covariance = (dsb_estimate){(dsb_covariance)(bits % 4), 256};
        CHECK(try_options(net, c) == DSB_OK);
        c.prior.rows.n--;
        CHECK(try_options(net, c) ==
              (c.first_coupling == DSB_COUPLING_PAIRS ? DSB_ERR_VALUE : DSB_OK));
        c.prior.rows.data = NULL;
        CHECK(try_options(net, c) ==
              (c.first_coupling == DSB_COUPLING_PAIRS ? DSB_ERR_VALUE : DSB_OK));
        c.convention = DSB_OFFICIAL;
        CHECK(try_options(net, c) == DSB_ERR_VALUE);
    }
    {
        dsb_bridge_config c = configure(net);

        data[4] = NAN;
        CHECK(try_options(net, c) == DSB_ERR_NUMERIC);
        CHECK(strstr(dsb_last_message(), "backward half-bridge of iteration 1") != NULL);
        c = configure(net);
        c.rate.rate = 1e30;
        CHECK(try_options(net, c) == DSB_ERR_VALUE);
        c = configure(net);
        c.rate.rate = 1e6; /* diverges: the step that would overflow is refused */
        CHECK(try_options(net, c) == DSB_ERR_NUMERIC);
        c = configure(net);
        c.batch = c.refresh = 1 << 24;
        c.lanes = c.microbatch = 0;
        CHECK(try_options(net, c) == DSB_ERR_VALUE);
        c = configure(net);
        c.covariance = (dsb_estimate){DSB_COVARIANCE_FULL, 255};
        CHECK(try_options(net, c) == DSB_ERR_VALUE);
        c = configure(net);
        c.lanes = 3;
        CHECK(try_options(net, c) == DSB_ERR_VALUE);
    }
    dsb_net_destroy(net);
}

/* ---- seats that later work takes ---- */

/* A net with all four inputs; the condition reaches the output. */
static void
test_named_inputs(void)
{
    const dsb_backend *be = dsb_cpu_backend();
    dsb_net *net = NULL;
    dsb_plan *plan = NULL;
    dsb_exec *exec = NULL;
    dsb_plan_request request = {DSB_INFER, 4, false, DSB_PRECISION_FLOAT32};
    dsb_weights weights;
    int x, t, cond, label, y;
    float *theta, before;

    CHECK(dsb_net_create(&net) == DSB_OK);
    CHECK(dsb_net_input(net, "x", 2, &x) == DSB_OK);
    CHECK(dsb_net_input(net, "t", 1, &t) == DSB_OK);
    CHECK(dsb_net_input(net, "cond", 3, &cond) == DSB_OK);
    CHECK(dsb_net_input(net, "label", 1, &label) == DSB_OK);
    CHECK(add(net, "concat", "all", x, cond, 0, &y) == DSB_OK);
    CHECK(add(net, "linear", "out", y, -1, 2, &y) == DSB_OK);
    CHECK(dsb_net_finish(net, y) == DSB_OK);
    theta = calloc((size_t)net->plane, sizeof *theta);
    dsb_net_init(net, 1, 0, theta);
    CHECK(dsb_plan_create(net, be, &request, &plan) == DSB_OK);
    CHECK(dsb_exec_create(plan, be, &exec) == DSB_OK);
    CHECK(dsb_weights_init(&weights, net, be, DSB_PRECISION_FLOAT32, false) == DSB_OK);
    dsb_weights_pack(&weights, theta, 1);
    dsb_exec_forward(exec, &weights.view, 4);
    before = ((float *)exec->output.data)[0];
    CHECK(exec->inputs[DSB_PORT_LABEL].data != NULL);
    ((float *)exec->inputs[DSB_PORT_COND].data)[0] = 1.0f;
    dsb_exec_forward(exec, &weights.view, 4);
    CHECK(((float *)exec->output.data)[0] != before);
    dsb_weights_clear(&weights);
    dsb_exec_destroy(exec);
    dsb_plan_destroy(plan);
    dsb_net_destroy(net);
    free(theta);
}

/* A cache row keeps x, target, t, weight and the id of its source row; reading visits each unit once in
 * a pass, and antithetic partners stay side by side. */
static void
test_window(void)
{
    enum { UNITS = 37, GROUP = 2, N = UNITS * GROUP, PITCH = 16 };
    const dsb_backend *be = dsb_cpu_backend();
    float rows[N * (2 * DIM + 3)], x[N * PITCH] = {0}, target[N * PITCH] = {0}, t[N], weight[N];
    float gtw[3] = {0.5f, 7.0f, 1.25f};
    dsb_window window = {rows, DIM};
    dsb_read_order order = {
        .seed = 3, .stream = 5, .units = UNITS, .stored = UNITS, .group = GROUP};
    uint32_t ids[N];
    int seen[UNITS] = {0};
    dsb_permutation permutation;

    dsb_permutation_init(&permutation, UNITS, order.seed, order.stream, 0);
    for (int unit = 0; unit < UNITS; unit++) {
        for (int member = 0; member < GROUP; member++) {
            uint32_t id = (uint32_t)(100 + unit);

            x[0] = (float)unit;
            x[1] = (float)member;
            target[0] = x[0] + 1.0f;
            be->window_put(NULL, DSB_OUTPUT_DRIFT, 1, x, PITCH, target, PITCH, gtw, NULL, &id,
                           &window, unit * GROUP + member, GROUP);
        }
    }
    be->window_get(NULL, &window, &order, 0, N, x, PITCH, target, PITCH, t, weight, ids);
    for (int r = 0; r < N; r++) {
        int unit = (int)x[r * PITCH];

        CHECK(unit == (int)dsb_permute(&permutation, (uint64_t)(r / GROUP)));
        CHECK(unit >= 0 && unit < UNITS && ids[r] == 100 + (uint32_t)unit);
        CHECK(x[r * PITCH + 1] == (float)(r % GROUP) &&
              unit == (int)x[(r / GROUP * GROUP) * PITCH]);
        CHECK(target[r * PITCH] == 2.0f && t[r] == 7.0f && weight[r] == 1.25f);
        seen[unit]++;
    }
    for (int unit = 0; unit < UNITS; unit++) {
        CHECK(seen[unit] == GROUP);
    }
}

/* Noise is an array over the steps, apart from their sizes; suppliers of an objective come in kinds. */
static void
test_tables(void)
{
    dsb_schedule schedule;
    dsb_steps list;

    CHECK(dsb_schedule_init(&schedule, STEPS, steps) == DSB_OK);
    CHECK(dsb_steps_init(&list, &schedule, DSB_BACKWARD, DSB_GRID, DSB_OUTPUT_DRIFT) == DSB_OK);
    CHECK(list.g[0] == steps[STEPS - 1] && fabs(list.deviation[0] - sqrt(2.0 * list.g[0])) < 1e-15);
    CHECK(list.label[0] == 1000.0f && list.train_gtw[3 * (STEPS - 1) + 1] == 0.0f);
    dsb_steps_clear(&list);
    dsb_schedule_clear(&schedule);
    CHECK(dsb_objective_find("dsb")->supplier == DSB_TRAJECTORY);
    CHECK(dsb_objective_find("bridge")->supplier == DSB_END_POINTS);
    CHECK(dsb_objective_find("nothing") == NULL);
}

int
main(void)
{
    const char *isa = getenv("DSB_ISA");

    printf("instruction set %s\n", dsb_cpu_backend()->isa);
    CHECK(isa == NULL || strcmp(isa, dsb_cpu_backend()->isa) == 0);
    test_plans();
    test_image_nets();
    test_named_inputs();
    test_window();
    test_tables();
    for (int threads = 1; threads <= 3; threads++) {
        CHECK(dsb_pool_set_threads(threads) == DSB_OK);
        test_interruption("dsb");
        test_interruption("bridge");
        test_interrupted_renewal();
    }
    test_options();
    test_conv();
    test_norm();
    test_images();
    test_pairs();
    test_pinned();
    test_exact();
    test_covariance();
    test_allocation();
    CHECK(dsb_alloc_live() == 0);
    printf(failures == 0 ? "all passed\n" : "%d failed\n", failures);
    return failures != 0;
}
