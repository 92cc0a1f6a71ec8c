/* What a bridge is told, checked and completed. */
#include <math.h>

#include "bridge/trainer.h"

#define MICROBATCH 64 /* rows whose activations stay in the second-level cache for the usual MLPs */
/* Numbers in the largest image times rows, at most: some megabytes pass from op to op in a second-level
 * cache or not far from it. Time of a step of the U-Net for 28 x 28 pixels (Zen 5, one thread) with 2, 4, 8
 * and 16 rows, relative to 4: 1.03, 1, 1.00, 1.01 in float32 and 1.06, 1, 1.01, 1.02 in bf16. */
#define IMAGE_NUMBERS (1 << 20)
#define MAX_LANES 8

/* Numbers in the largest image of a row; 0 for a net of vectors. */
static int64_t
largest_image(const dsb_net *net)
{
    int64_t most = 0;

    for (int v = 0; v < net->n_values; v++) {
        const dsb_shape *s = &net->values[v].shape;
        int64_t size = s->image ? (int64_t)s->h * s->w * s->width : 0;

        most = size > most ? size : most;
    }
    return most;
}

int
dsb_default_chunk(const dsb_net *net)
{
    int64_t size = largest_image(net);
    int rows = DSB_MAX_CHUNK;

    while (size > 0 && rows > 1 && rows * size > IMAGE_NUMBERS) {
        rows /= 2;
    }
    return rows;
}

int
dsb_default_microbatch(const dsb_net *net, int batch)
{
    int rows = largest_image(net) > 0 ? dsb_default_chunk(net) : MICROBATCH;

    rows = rows < 2 ? 2 : rows; /* antithetic pairs, and bfloat16's pairs of images */
    while (rows > 2 && rows > batch / 2) {
        rows /= 2;
    }
    return rows;
}

int
dsb_default_lanes(int batch, int microbatch)
{
    int lanes = 1, n = (batch + microbatch - 1) / microbatch;

    while (2 * lanes <= n && 2 * lanes <= MAX_LANES) {
        lanes *= 2;
    }
    return lanes;
}

static dsb_status
check_training(const dsb_bridge_config *c)
{
    DSB_REQUIRE(c->batch >= 1 && c->batch <= 1 << 24, "batch must lie in 1 .. 2^24, got %d",
                c->batch);
    DSB_REQUIRE(!c->antithetic || c->batch % 2 == 0, "antithetic pairs need an even batch, got %d",
                c->batch);
    DSB_REQUIRE(c->refresh >= 1 && c->refresh <= 1 << 24, "refresh must lie in 1 .. 2^24, got %d",
                c->refresh);
    DSB_REQUIRE(c->reuse >= 1 && c->reuse <= 255, "reuse must lie in 1 .. 255, got %d", c->reuse);
    DSB_REQUIRE(c->cache_bytes >= 0, "cache_bytes must not be negative, got %lld",
                (long long)c->cache_bytes);
    DSB_REQUIRE(c->rate.rate > 0.0 && c->rate.rate <= 1e6,
                "learning_rate must lie in (0, 1e6], got %g", c->rate.rate);
    DSB_REQUIRE(c->rate.clip >= 0.0 && isfinite(c->rate.clip), "clip must not be negative, got %g",
                c->rate.clip);
    DSB_REQUIRE(c->adam.beta1 >= 0.0f && c->adam.beta1 < 1.0f, "beta1 must lie in [0, 1), got %g",
                (double)c->adam.beta1);
    DSB_REQUIRE(c->adam.beta2 >= 0.0f && c->adam.beta2 < 1.0f, "beta2 must lie in [0, 1), got %g",
                (double)c->adam.beta2);
    DSB_REQUIRE(c->adam.epsilon > 0.0f, "epsilon must be positive, got %g",
                (double)c->adam.epsilon);
    DSB_REQUIRE(c->adam.ema >= 0.0f && c->adam.ema < 1.0f, "ema must lie in [0, 1), got %g",
                (double)c->adam.ema);
    return DSB_OK;
}

static dsb_status
fill_lanes(dsb_bridge_config *c)
{
    int n;

    if (c->microbatch == 0) {
        c->microbatch = dsb_default_microbatch(c->net, c->batch);
    }
    DSB_REQUIRE(c->microbatch >= 1 && c->microbatch <= 1 << 16,
                "microbatch must lie in 1 .. 65536, got %d", c->microbatch);
    DSB_REQUIRE(!c->antithetic || c->microbatch % 2 == 0,
                "antithetic pairs need an even microbatch, got %d", c->microbatch);
    if (c->lanes == 0) {
        c->lanes = dsb_default_lanes(c->batch, c->microbatch);
    }
    n = (c->batch + c->microbatch - 1) / c->microbatch;
    DSB_REQUIRE(c->lanes >= 1 && c->lanes <= n && (c->lanes & (c->lanes - 1)) == 0,
                "lanes must be a power of two, at most the %d microbatches of a batch, got %d", n,
                c->lanes);
    return DSB_OK;
}

dsb_cache_shape
dsb_config_cache_shape(const dsb_bridge_config *c)
{
    return (dsb_cache_shape){.dim = dsb_net_dim(c->net),
                             .batch = c->batch,
                             .refresh = c->refresh,
                             .reuse = c->reuse,
                             .group = c->antithetic ? 2 : 1,
                             .n = c->n};
}

/* A refresh, at most the one asked for, whose window fits in cache_bytes and can be numbered. */
static dsb_status
bound_refresh(dsb_bridge_config *c)
{
    dsb_cache_shape shape = dsb_config_cache_shape(c);
    size_t bound = c->cache_bytes > 0 ? (size_t)c->cache_bytes : SIZE_MAX;

    while (c->cache_bytes > 0 && shape.refresh > 1 &&
           (!dsb_cache_countable(&shape) || dsb_cache_bytes(&shape) > bound)) {
        shape.refresh = shape.refresh * 9 / 10;
    }
    DSB_REQUIRE(
        dsb_cache_countable(&shape),
        "a window of the cache holds at most 2^32 - 1 rows: lower refresh (%d) or batch (%d)",
        shape.refresh, c->batch);
    DSB_REQUIRE(dsb_cache_bytes(&shape) <= bound,
                "cache_bytes = %lld is too small: the rows of one gradient step take %zu bytes",
                (long long)c->cache_bytes, dsb_cache_bytes(&shape));
    c->refresh = shape.refresh;
    return DSB_OK;
}

static dsb_status
check_coupling(const dsb_bridge_config *c)
{
    const dsb_objective *objective = dsb_objective_find(c->objective);
    bool ends = objective != NULL && objective->supplier == DSB_END_POINTS;

    DSB_REQUIRE(objective != NULL, "unknown objective '%s'; there are dsb, simplified and bridge",
                c->objective);
    DSB_REQUIRE(!ends || c->convention == DSB_GRID,
                "objective '%s' needs the convention 'grid': the released code has no such target",
                c->objective);
    DSB_REQUIRE(ends || c->first_coupling == DSB_COUPLING_REFERENCE,
                "only objective 'bridge' begins with another coupling than the reference's");
    DSB_REQUIRE(c->first_coupling != DSB_COUPLING_PAIRS || c->source.rows.data == NULL ||
                    c->prior.rows.data == NULL || c->source.rows.n == c->prior.rows.n,
                "pairs are rows of two data sets of equal length, got %lld and %lld",
                (long long)c->source.rows.n, (long long)c->prior.rows.n);
    return DSB_OK;
}

static dsb_status
check_covariance(const dsb_bridge_config *c)
{
    dsb_covariance kind = c->covariance.kind;
    int64_t dim = dsb_net_dim(c->net);
    int least = kind == DSB_COVARIANCE_FULL ? (int)(4 * dim > 256 ? 4 * dim : 256) : 16;

    if (kind == DSB_COVARIANCE_REFERENCE) {
        return DSB_OK;
    }
    DSB_REQUIRE(kind != DSB_COVARIANCE_FULL || dim <= DSB_MAX_FULL,
                "full covariances are kept up to dimension %d, got %lld: covariance='diagonal' "
                "takes any",
                DSB_MAX_FULL, (long long)dim);
    DSB_REQUIRE(c->covariance.paths >= least && c->covariance.paths <= DSB_MAX_PATHS,
                "covariance_paths must lie in %d .. 2^24%s, got %d", least,
                kind == DSB_COVARIANCE_FULL
                    ? " for full covariances (4 paths a dimension: the sample covariance of noise "
                      "then has eigenvalues from 1/4 to 9/4 of the true one's)"
                    : "",
                c->covariance.paths);
    return DSB_OK;
}

dsb_status
dsb_config_complete(dsb_bridge_config *config)
{
    DSB_TRY(check_training(config));
    DSB_TRY(check_coupling(config));
    DSB_TRY(check_covariance(config));
    DSB_TRY(fill_lanes(config));
    return bound_refresh(config);
}
