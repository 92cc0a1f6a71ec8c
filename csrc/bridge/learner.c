#include "bridge/learner.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"

#define BLOCK 2048 /* floats of a plane that one task takes */

static size_t
plane_bytes(const dsb_net *net)
{
    return sizeof(float) * (size_t)net->plane;
}

size_t
dsb_learner_bytes(const dsb_net *net, bool ema)
{
    return plane_bytes(net) * (ema ? DSB_PLANES : DSB_PLANES - 1);
}

dsb_status
dsb_learner_init(dsb_learner *learner, const dsb_net *net, const dsb_backend *be, bool ema)
{
    *learner = (dsb_learner){.net = net, .be = be};
    for (int i = 0; i < (ema ? DSB_PLANES : DSB_EMA); i++) {
        DSB_TRY(be->alloc(plane_bytes(net), &learner->planes[i]));
    }
    return DSB_OK;
}

void
dsb_learner_clear(dsb_learner *learner)
{
    for (int i = 0; i < DSB_PLANES && learner->be != NULL; i++) {
        learner->be->free(learner->planes[i]);
    }
    *learner = (dsb_learner){.net = NULL};
}

dsb_status
dsb_learner_reset(dsb_learner *learner, uint64_t seed, uint32_t draw)
{
    size_t bytes = plane_bytes(learner->net);
    float *host;

    DSB_TRY(dsb_alloc(bytes, &host));
    for (int i = DSB_MOMENT1; i <= DSB_MOMENT2; i++) {
        learner->be->upload(learner->planes[i], host, bytes);
    }
    dsb_net_init(learner->net, seed, draw, host);
    learner->be->upload(learner->planes[DSB_THETA], host, bytes);
    if (learner->planes[DSB_EMA] != NULL) {
        learner->be->upload(learner->planes[DSB_EMA], host, bytes);
    }
    learner->adam_steps = 0;
    learner->trained = false;
    dsb_free(host);
    return DSB_OK;
}

const float *
dsb_learner_serving(const dsb_learner *learner)
{
    return learner->planes[DSB_EMA] != NULL ? learner->planes[DSB_EMA] : learner->planes[DSB_THETA];
}

/* ---- gradients ---- */

static int
blocks_of(const dsb_net *net)
{
    return (int)((net->plane + BLOCK - 1) / BLOCK);
}

size_t
dsb_gradients_bytes(const dsb_net *net, int lanes)
{
    return plane_bytes(net) * (size_t)lanes + sizeof(double) * (size_t)(blocks_of(net) + lanes);
}

dsb_status
dsb_gradients_init(dsb_gradients *gradients, const dsb_net *net, const dsb_backend *be, int lanes)
{
    *gradients =
        (dsb_gradients){.be = be, .lanes = lanes, .plane = net->plane, .n_blocks = blocks_of(net)};
    DSB_TRY(be->alloc(plane_bytes(net) * (size_t)lanes, &gradients->planes));
    DSB_TRY(be->alloc(sizeof(double) * (size_t)(gradients->n_blocks + lanes), &gradients->norms));
    gradients->loss = gradients->norms + gradients->n_blocks;
    return DSB_OK;
}

void
dsb_gradients_clear(dsb_gradients *gradients)
{
    if (gradients->be != NULL) {
        gradients->be->free(gradients->planes);
        gradients->be->free(gradients->norms);
    }
    *gradients = (dsb_gradients){.lanes = 0};
}

static int64_t
block_length(int64_t plane, int64_t block)
{
    int64_t left = plane - block * BLOCK;

    return left < BLOCK ? left : BLOCK;
}

static void
reduce_block(void *context, int64_t block, int worker)
{
    dsb_gradients *g = context;

    (void)worker;
    g->be->reduce_lanes(NULL, g->lanes, g->plane, block_length(g->plane, block),
                        g->planes + block * BLOCK, &g->norms[block]);
}

void
dsb_gradients_reduce(dsb_gradients *gradients, int max_workers, double *norm_squared, double *loss)
{
    double one;

    gradients->be->parallel(max_workers, gradients->n_blocks, reduce_block, gradients);
    *norm_squared = *loss = 0.0;
    for (int i = 0; i < gradients->n_blocks; i++) {
        gradients->be->download(&one, &gradients->norms[i], sizeof one);
        *norm_squared += one;
    }
    for (int i = 0; i < gradients->lanes; i++) {
        gradients->be->download(&one, &gradients->loss[i], sizeof one);
        *loss += one;
    }
}

/* ---- the step ---- */

typedef struct update {
    dsb_learner *learner;
    const float *grad;
    dsb_adam adam;
    dsb_step step;
} update;

static void
update_block(void *context, int64_t block, int worker)
{
    const update *u = context;
    float *const *planes = u->learner->planes;
    int64_t at = block * BLOCK;

    (void)worker;
    u->learner->be->adam_step(NULL, block_length(u->learner->net->plane, block), &u->adam, &u->step,
                              u->grad + at, planes[DSB_THETA] + at, planes[DSB_MOMENT1] + at,
                              planes[DSB_MOMENT2] + at,
                              planes[DSB_EMA] != NULL ? planes[DSB_EMA] + at : NULL);
}

/* mu_s = mu (1 - mu^(s-1)) / (1 - mu^s), s = step + 1: with it shadow <- mu_s shadow + (1 - mu_s) theta is
 * sum_i (1 - mu) mu^(s-i) theta_i / (1 - mu^s), an average of this half-bridge's weights from its first step
 * on, without bias towards those it began with. */
static float
average_rate(float mu, int64_t step)
{
    double m = (double)mu, before = pow(m, (double)step);

    return (float)(m * (1.0 - before) / (1.0 - m * before));
}

void
dsb_learner_step(dsb_learner *learner, const dsb_gradients *gradients, const dsb_rate *rate,
                 const dsb_adam *adam, int64_t step, int64_t steps, double norm_squared,
                 int max_workers)
{
    update u = {.learner = learner, .grad = gradients->planes, .adam = *adam};
    double t = (double)++learner->adam_steps, norm = sqrt(norm_squared), eta = rate->rate;

    if (rate->cosine) {
        eta *= 0.5 * (1.0 + cos(3.14159265358979323846 * (double)step / (double)steps));
    }
    u.step.rate = (float)(eta / (1.0 - pow((double)adam->beta1, t)));
    u.step.root = (float)(1.0 / sqrt(1.0 - pow((double)adam->beta2, t)));
    u.step.clip = 1.0f;
    if (rate->clip > 0.0 && rate->clip < norm + 1e-6) { /* PyTorch's clip_grad_norm_ */
        u.step.clip = (float)(rate->clip / (norm + 1e-6));
    }
    if (rate->fresh_average) {
        u.adam.ema = average_rate(adam->ema, step);
    }
    learner->be->parallel(max_workers, gradients->n_blocks, update_block, &u);
    learner->trained = true;
}
