/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holds: the references that a value holds, and the reference that a view holds. How a reader asks
 * a value's owner for references is call/nested.c.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/value/value.h"

/* ---- values ---- */

int rc_value_hold(struct rc_value *v, struct rref *const *refs, size_t nr)
{
	struct rref **held = NULL;

	if (nr && !v->extra)
		v->extra = calloc(1, sizeof(*v->extra));
	if (nr && (!v->extra || !(held = malloc(nr * sizeof(*held)))))
		return rc_fail(ENOMEM, "memory for %zu references in a value", nr);
	for (size_t i = 0; i < nr; i++) {
		held[i] = rref_dup(refs[i]);
		at_add(&held[i]->nested, 1);
	}
	at_add(&v->view.ctx->n.nested, nr);
	if (v->extra)
		v->extra->refs = held;
	v->view.nr_refs = (uint16_t)nr;
	return 0;
}

void rc_value_let_go(struct rc_value *v)
{
	struct rref **refs = v->extra ? v->extra->refs : NULL;

	if (likely(!refs))
		return;
	v->extra->refs = NULL;
	at_sub(&v->view.ctx->n.nested, v->view.nr_refs);
	for (uint32_t i = 0; i < v->view.nr_refs; i++) {
		at_sub(&refs[i]->nested, 1);
		/* values within values: the lock's holder takes one after another off a list */
		rref_release(refs[i]);
	}
	free(refs);
}

/*
 * Lets go of the references in values that handles still pin. The program never released these
 * handles. Their values' references must not outlive the context, nor must a circle of them.
 */
void rc_values_let_go(struct rref_ctx *ctx)
{
	rc_assert_locked(ctx);
	for (const struct rref *h = rc_handle_next(ctx, NULL); h; h = rc_handle_next(ctx, h))
		if (h->pins)
			rc_value_let_go(h->value);
}

/* ---- views ---- */

void rc_view_hold(struct rc_landing *l, struct rref *ref, uint16_t nr_refs)
{
	l->outer = rref_dup(ref);
	l->view.nr_refs = nr_refs;
}

void rc_view_let_go(struct rref_view *v)
{
	v->nr_refs = 0;
	rref_release(rc_landing_of(v)->outer);
}

size_t rref_view_nr_refs(const struct rref_view *view)
{
	return view && !rc_view_lost(view) ? view->nr_refs : 0;
}
