/* SPDX-License-Identifier: Apache-2.0 */
/* Names that the files of value/ share. */
#ifndef RC_VALUE_INTERNAL_H
#define RC_VALUE_INTERNAL_H

#include "core/ctx.h"

/* memory.c */
int rc_region_reg(struct rref_ctx *ctx, enum rv_access access, void *base, size_t length, int fd,
		  void **cookie);
int rc_region_dereg(void *ctx, void *cookie); /* returns 0, or -errno: the memory must be kept */
int rc_arena_fail(int err, const char *what, size_t length); /* an arena's error, in words */

/* Gives back the memory of a value that is scrubbed, and its record. */
void rc_value_free(struct rc_value *v);

/* scrub.c */
struct rc_value *rc_large_make(void); /* makes the record of a large value; NULL: no memory */
/* Takes over a large value that ended. The caller may hold the progress lock. */
void rc_scrub_later(struct rc_value *v);

/* landing.c */
/* Gives back the blocks that are kept for reads to come. */
void rc_landing_drain(struct rref_ctx *ctx);

#endif
