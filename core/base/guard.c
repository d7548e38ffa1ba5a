/* SPDX-License-Identifier: Apache-2.0 */
/* The guard of each public call: the errors that it gives. */
#include <errno.h>

#include "core/base/guard.h"

int rc_fail_child(void)
{
	return rc_fail(ECHILD, "the context belongs to the parent process: "
		       "after fork() a child must not use it");
}

int rc_enter_slow(const struct rref_ctx *ctx)
{
	if (!ctx)
		return rc_fail(EINVAL, "no context");
	if (rc_is_child(ctx))
		return rc_fail_child();
	if (ctx->guard.gate == RC_NO_GATE && rc_in_scope_hook())
		return rc_fail(EDEADLK,
			       "called from a scope hook, which may run under the library's lock");
	if (at_load_acq(&ctx->state) == RC_CTX_RUNNING)
		return 0;
	return rc_fail(ESHUTDOWN, "the context was shut down");
}
