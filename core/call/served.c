/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call that is served, as its handler sees it; and the end of all calls that a context keeps.
 * How calls come and end: serve.c.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/call/call.h"
#include "core/call/internal.h"

is_alone void rc_calls_close(struct rref_ctx *ctx)
{
	struct list *l;

	while (ctx->call.spare_calls.next && (l = list_pop(&ctx->call.spare_calls)))
		free(container_of(l, struct rref_call, hook.node)->block);
	if (at_load(&ctx->call.spare_call))
		free(at_load(&ctx->call.spare_call)->block);
	for (uint32_t i = 0; i < RC_CONSUMED_KEPT; i++) {
		struct rref_call *call = at_load(&ctx->call.consumed[i]);

		if (call)
			free(call->block);
	}
}

struct rref_ctx *rref_call_context(const struct rref_call *call)
{
	return call ? call->ctx : NULL;
}

const char *rref_call_function(const struct rref_call *call)
{
	return call ? call->name : "";
}

int rref_call_caller(const struct rref_call *call)
{
	return call ? (int)call->caller : rc_fail(EINVAL, "rref_call_caller: no call");
}

const void *rref_call_data(const struct rref_call *call)
{
	return call ? call->bytes : NULL;
}

size_t rref_call_length(const struct rref_call *call)
{
	return call ? call->length : 0;
}

const void *rref_call_meta(const struct rref_call *call)
{
	return call ? call->meta : NULL;
}

size_t rref_call_meta_length(const struct rref_call *call)
{
	return call ? call->meta_length : 0;
}

int rref_call_cancelled(const struct rref_call *call)
{
	return call ? (int)at_load(&call->cancelled)
		    : rc_fail(EINVAL, "rref_call_cancelled: no call");
}

size_t rref_call_nr_refs(const struct rref_call *call)
{
	return call ? call->in.nr : 0;
}

struct rref *rref_call_ref(const struct rref_call *call, size_t i)
{
	return call && i < call->in.nr ? call->in.ref[i].handle : NULL;
}
