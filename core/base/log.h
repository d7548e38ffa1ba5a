/* SPDX-License-Identifier: Apache-2.0 */
/* Lines for the program's log function. */
#ifndef RC_BASE_LOG_H
#define RC_BASE_LOG_H

#include "core/base/locked.h"
#include "core/ctx.h"

/* log.c */
int rc_log_open(struct rref_ctx *ctx);
void rc_log_flush(struct rref_ctx *ctx); /* delivers what is due, for the end of a context */
void rc_log_close(struct rref_ctx *ctx);
void rc_log(struct rref_ctx *ctx, enum rref_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
