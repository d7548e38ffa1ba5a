/* SPDX-License-Identifier: Apache-2.0 */
/* The limits of this process. */
#ifndef RC_BASE_LIMITS_H
#define RC_BASE_LIMITS_H

#include "core/ctx.h"

void rc_limits_raise(struct rref_ctx *ctx);

#endif
