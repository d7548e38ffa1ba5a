/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Functions that can be called here: a table by name, which only grows. Looking one up takes no
 * lock.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/guard.h"
#include "core/call/internal.h"
#include "core/ctx.h"

static _Atomic(struct rc_function *) *bucket_of(struct rref_ctx *ctx, const char *name,
						size_t length)
{
	uint64_t first = 0, last = 0;

	copy_short(&first, name, min_of(length, sizeof(first)));
	if (length > sizeof(last))
		memcpy(&last, name + length - sizeof(last), sizeof(last));
	return &ctx->call.functions[((first ^ last >> 7) + length) * UINT64_C(0x9e3779b97f4a7c15) >>
					    40 &
				    (RC_FUNCTION_BUCKETS - 1)];
}

const struct rc_function *rc_function_find(struct rref_ctx *ctx, const char *name, size_t length)
{
	/* Pairs with the release in rref_register (acquire). Entries are never removed while the
	 * context lives. */
	for (const struct rc_function *fn = at_load_acq(bucket_of(ctx, name, length)); fn;
	     fn = fn->next)
		if (fn->name_length == length && memcmp(fn->name, name, length) == 0)
			return fn;
	return NULL;
}

int rref_register(struct rref_ctx *ctx, const struct rref_function *f)
{
	RB_NO_CANCEL;
	struct rc_function *fn;
	int err;

	if (!ctx || !f || !f->handler)
		return rc_fail(EINVAL,
			       "rref_register: no context, or a function without a handler");
	/* Skipped before the context runs: rref_init then registers its own table. */
	if (at_load_acq(&ctx->state) != RC_CTX_STARTING && (err = rc_enter(ctx)))
		return err;
	err = rc_function_check(f->name);
	if (err)
		return err;
	if (f->flags & ~RREF_INLINE)
		return rc_fail(EINVAL, "rref_register: function %s: unknown flags %#x", f->name,
			       f->flags);
	fn = calloc(1, sizeof(*fn));
	if (!fn)
		return rc_fail(ENOMEM, "memory for a function");
	fn->handler = f->handler;
	fn->arg = f->arg;
	fn->flags = f->flags;
	snprintf(fn->name, sizeof(fn->name), "%s", f->name);
	fn->name_length = strlen(fn->name);
	pthread_mutex_lock(&ctx->call.function_lock);
	if (rc_function_find(ctx, fn->name, strlen(fn->name))) {
		pthread_mutex_unlock(&ctx->call.function_lock);
		free(fn);
		return rc_fail(EEXIST, "a function named %s is registered already", f->name);
	}
	_Atomic(struct rc_function *) *head = bucket_of(ctx, fn->name, fn->name_length);

	fn->next = at_load(head);
	at_store_rel(head, fn);
	pthread_mutex_unlock(&ctx->call.function_lock);
	return 0;
}
