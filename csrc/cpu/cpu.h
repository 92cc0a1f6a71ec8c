/* The CPU backend: one table of functions for each instruction set.
 *
 * Purpose: csrc/cpu/{gemm,elementwise,noise,simulate,optimise,conv,conv_weight,norm,attention,image,
 * pairs,transport}.c are compiled once for each, with -DDSB_ISA=v2, v3, v4 or aarch64, conv and conv_weight
 * also for v4bf16; conv_tile, conv_tile_pack and conv_tile_weight are one family, for amx and twin (tiles in
 * plain C). Each family exports one function that fills its entries of a table. What families share stands in headers:
 * vector.h; lines.h (parts of vectors), wide.h (sums in float64), groups.h (groups of channels); distance.h (squared
 * distances); conv_pad.h, conv_run.h, conv_narrow.h, conv_repeat.h (convolutions by vectors); tile.h, conv_tile.h (by
 * tiles).
 * Ownership: the tables are static. Threads: every function may be called from any thread; a change
 * of instruction set is seen by whoever asks for the backend afterwards.
 */
#ifndef DSB_CPU_H
#define DSB_CPU_H

#include "backend.h"
#include "base/status.h"

#define DSB_MAX_ISAS 8

/* Switches to the instruction set of this name, NULL being the best one. Fails with DSB_ERR_VALUE,
 * naming those that this machine offers. */
dsb_status dsb_cpu_select(const char *isa) DSB_MUST_CHECK;

/* The instruction sets that this machine offers, best first; returns how many. */
int dsb_cpu_isas(const char *names[DSB_MAX_ISAS]);

#define DSB_PASTE_(a, b) a##_##b
#define DSB_PASTE(a, b) DSB_PASTE_(a, b)
#define DSB_KERNEL(name) DSB_PASTE(name, DSB_ISA)

#define DSB_CPU_FAMILIES(isa)                           \
    void dsb_cpu_gemm_##isa(dsb_backend *table);        \
    void dsb_cpu_elementwise_##isa(dsb_backend *table); \
    void dsb_cpu_noise_##isa(dsb_backend *table);       \
    void dsb_cpu_simulate_##isa(dsb_backend *table);    \
    void dsb_cpu_optimise_##isa(dsb_backend *table);    \
    void dsb_cpu_conv_##isa(dsb_backend *table);        \
    void dsb_cpu_conv_weight_##isa(dsb_backend *table); \
    void dsb_cpu_norm_##isa(dsb_backend *table);        \
    void dsb_cpu_attention_##isa(dsb_backend *table);   \
    void dsb_cpu_image_##isa(dsb_backend *table);       \
    void dsb_cpu_pairs_##isa(dsb_backend *table);       \
    void dsb_cpu_transport_##isa(dsb_backend *table);

#if defined(__x86_64__)
DSB_CPU_FAMILIES(v2)
DSB_CPU_FAMILIES(v3)
DSB_CPU_FAMILIES(v4)
void dsb_cpu_conv_v4bf16(dsb_backend *table);
void dsb_cpu_conv_weight_v4bf16(dsb_backend *table);
void dsb_cpu_conv_tile_amx(dsb_backend *table);
#elif defined(__aarch64__)
DSB_CPU_FAMILIES(aarch64)
#else
#error "dsb has CPU kernels for x86-64 and aarch64"
#endif
void dsb_cpu_conv_tile_twin(dsb_backend *table); /* the tile kernels over tiles in plain C */

#endif
