/* SPDX-License-Identifier: Apache-2.0 */
/* Counters, dumps and leaks: the names for other rooms. Described in docs/OBSERVING.md. */
#ifndef RC_OBSERVE_OBSERVE_H
#define RC_OBSERVE_OBSERVE_H

#include "core/ctx.h"

/* leak.c */
/*
 * Reports the handles that the program never released. The shutdown calls it before it ends these
 * handles.
 */
void rc_leaks_handles(struct rref_ctx *ctx);
/* Reports the references that are left now, and counts the leaks and the stuck ones. */
void rc_leaks_rest(struct rref_ctx *ctx, char *summary, size_t size, uint64_t *leaks,
		   uint64_t *stuck);
void rc_leaks_free(struct rref_ctx *ctx);

#endif
