/* SPDX-License-Identifier: Apache-2.0 */
/* Limits of the process that a group can meet, looked at when it joins. */
#include <inttypes.h>
#include <sys/resource.h>

#include "core/base/limits.h"
#include "core/base/log.h"
#include "core/ctx.h"

#define FDS_USUAL 1024u /* usual soft limit, enough for most programs */
#define FDS_OF_PEER                                                                                \
	4u /* a session, the next one while it replaces that, and descriptors of a handshake */
#define FDS_LEAST 64u   /* without peers */

/*
 * Raises the soft limit of descriptors to the number that a group of this size may take. The hard
 * limit bounds it. Warns if even the hard limit is too low: connections then wait for one another.
 */
void rc_limits_raise(struct rref_ctx *ctx)
{
	rlim_t want = FDS_USUAL + (rlim_t)FDS_OF_PEER * ctx->world;
	rlim_t least = FDS_LEAST + 2 * (rlim_t)ctx->world;
	struct rlimit limit, raised;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	raised = limit;
	raised.rlim_cur = min_of(want, limit.rlim_max);
	if (limit.rlim_cur < raised.rlim_cur && !setrlimit(RLIMIT_NOFILE, &raised)) {
		rc_log(ctx, RREF_LOG_INFO,
		       "raised RLIMIT_NOFILE from %" PRIu64 " to %" PRIu64 " descriptors",
		       (uint64_t)limit.rlim_cur, (uint64_t)raised.rlim_cur);
		limit = raised;
	}
	if (limit.rlim_cur < least)
		rc_log(ctx, RREF_LOG_WARNING,
		       "RLIMIT_NOFILE is %" PRIu64
		       " descriptors, and a group of %u needs about %" PRIu64
		       ": raise it (ulimit -Hn)",
		       (uint64_t)limit.rlim_cur, ctx->world, (uint64_t)least);
}
