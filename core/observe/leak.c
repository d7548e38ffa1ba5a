/* SPDX-License-Identifier: Apache-2.0 */
/*
 * References that a graceful shutdown leaves behind, each with the place in the program that made
 * it.
 *
 *   unreleased  a handle that the program still held; the shutdown released it. A hint, no error.
 *   view        a handle that only views hold, which the program did not free. A hint, too.
 *   leak        a reference of another worker to a value owned here that was not given back. An
 *               error.
 *   stuck       a reference held here whose owner did not answer in time.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/guard.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/site.h"
#include "core/observe/dump.h"
#include "core/observe/observe.h"
#include "core/value/look.h"

#define REPORT_BYTES ((size_t)1 << 20) /* bound of the report; records beyond it are counted */

struct rc_leaks {
	struct rc_record r;
	uint64_t more;           /* records that did not fit */
};

static needs_lock bool fits(struct rref_ctx *ctx)
{
	if (!ctx->end.leaks)
		ctx->end.leaks = calloc(1, sizeof(*ctx->end.leaks));
	if (!ctx->end.leaks)
		return false;
	if (ctx->end.leaks->r.used < REPORT_BYTES)
		return true;
	ctx->end.leaks->more++;
	return false;
}

is_alone void rc_leaks_free(struct rref_ctx *ctx)
{
	if (ctx->end.leaks)
		free(ctx->end.leaks->r.buf);
	free(ctx->end.leaks);
}

/* Summary in words, on one line, of as many references as fit. */
struct summary {
	char *buf;
	size_t size, used;
	uint64_t more;
};

/* Says where a reference was made: at a site, or by a function. */
static void origin_text(const struct rc_value *v, const char *site, char text[80])
{
	const char *function = v ? rc_value_function(v) : NULL;

	text[0] = 0;
	if (v && rc_value_site(v))
		site = rc_value_site(v);
	if (site)
		snprintf(text, 80, " made at %.60s", site + max_of((ssize_t)strlen(site) - 60, 0));
	else if (function)
		snprintf(text, 80, " made by %.60s", function);
}

static void sum_up(struct summary *s, struct rref_id id, const struct rc_value *v, const char *site,
		   const char *verb, const char *name)
{
	size_t left = s->size - s->used;
	char origin[80];
	int n;

	origin_text(v, site, origin);
	n = snprintf(s->buf + s->used, left, "%s%.60s%s(%u,%" PRIu64 ")%s%s%.127s",
		     s->used ? ", " : "", v ? v->type->name : "", v ? " " : "", id.created_on,
		     id.local_id, origin, verb, name);
	if (n < 0 || (size_t)n >= left) {
		s->buf[s->used] = 0;
		s->more++;
	} else {
		s->used += (size_t)n;
	}
}

static void end_summary(struct summary *s)
{
	if (s->more)
		snprintf(s->buf + s->used, s->size - s->used, " ...");
}

/* Handles that are left behind: held by the program, or by views of it alone. */
struct left {
	char text[RREF_TEXT_SIZE - 120];
	struct summary s;
	uint64_t nr;
};

static needs_lock void add_left(struct rref_ctx *ctx, struct left *l, const char *kind,
				const struct rref *h)
{
	if (!l->nr++)
		l->s = (struct summary){ l->text, sizeof(l->text) - 5, 0, 0 };
	if (fits(ctx))
		rc_rec_handle(ctx, &ctx->end.leaks->r, kind, h);
	sum_up(&l->s, h->id, rc_handle_value(h), rc_handle_site(h), h->owned ? "" : " owned by ",
	       h->owned ? "" : ctx->members[h->owner].name);
}

/* Returns how often h is in a list in the order of addresses. */
static uint32_t views_of(const struct rref *const *looked, size_t nr, const struct rref *h)
{
	size_t from = 0, to = nr;

	while (from < to) {
		size_t middle = from + (to - from) / 2;

		if (looked[middle] < h)
			from = middle + 1;
		else
			to = middle;
	}
	while (to < nr && looked[to] == h)
		to++;
	return (uint32_t)(to - from);
}

static void log_left(struct rref_ctx *ctx, struct left *l, const char *what)
{
	if (!l->nr)
		return;
	l->s.size += 5;
	end_summary(&l->s);
	rc_log(ctx, RREF_LOG_INFO, "%" PRIu64 " %s by the program before it left: %s", l->nr, what,
	       l->text);
}

void rc_leaks_handles(struct rref_ctx *ctx)
{
	struct left released = { .nr = 0 }, freed = { .nr = 0 };
	const struct rref **looked;
	size_t nr;

	rc_lock_settled(ctx);
	nr = rc_looks_held(ctx, &looked);
	for (const struct rref *h = rc_handle_next(ctx, NULL); h; h = rc_handle_next(ctx, h)) {
		uint32_t holds = at_load(&h->refs) - at_load(&h->nested);

		/* A reference that only values hold goes with these values. */
		if (h->ended || !holds)
			continue;
		if (nr && holds == views_of(looked, nr, h))
			add_left(ctx, &freed, "view", h);
		else
			add_left(ctx, &released, "unreleased", h);
	}
	rc_unlock(ctx);
	free(looked);
	log_left(ctx, &released, "references were not released");
	log_left(ctx, &freed, "values have views that were not freed");
}

struct rest {
	struct rref_ctx *ctx;
	struct summary s;
	uint64_t leaks, stuck;
};

static needs_lock void rest_line(void *arg, const struct rp_visit *v)
{
	struct rest *r = arg;
	const struct rc_value *value = v->owned ? v->value : NULL;
	const struct rref *h = v->handle;

	if (v->kind != RP_VISIT_FORK && v->kind != RP_VISIT_USER)
		return;
	r->leaks += v->owned;
	r->stuck += !v->owned;
	if (fits(r->ctx))
		rc_rec_visit(r->ctx, &r->ctx->end.leaks->r, v->owned ? "leak" : "stuck", v);
	sum_up(&r->s, v->id, value, h ? rc_handle_site(h) : NULL,
	       v->owned ? " held by " : " owned by ", r->ctx->members[v->peer].name);
}

void rc_leaks_rest(struct rref_ctx *ctx, char *text, size_t size, uint64_t *leaks, uint64_t *stuck)
{
	struct rest r = { .ctx = ctx, .s = { text, size - 5, 0, 0 } };

	text[0] = 0;
	rc_lock(ctx);
	rp_visit(ctx->op.machine, rest_line, &r);
	rc_unlock(ctx);
	r.s.size += 5;
	end_summary(&r.s);
	*leaks = r.leaks;
	*stuck = r.stuck;
}

int rref_leak_report(struct rref_ctx *ctx, char *buf, size_t size)
{
	RB_NO_CANCEL;
	const struct rc_leaks *l;
	size_t n = 0;

	if (!ctx || (!buf && size))
		return rc_fail(EINVAL, "rref_leak_report: no context or no buffer");
	if (rc_is_barred(ctx))
		return rc_enter_slow(ctx);
	rc_lock(ctx);
	l = ctx->end.leaks;
	if (l && l->r.used) {
		n = min_of(l->r.used, (size_t)INT32_MAX);
		if (size)
			memcpy(buf, l->r.buf, min_of(n, size - 1));
	}
	if (size)
		buf[min_of(n, size - 1)] = 0;
	rc_unlock(ctx);
	return (int)n;
}
