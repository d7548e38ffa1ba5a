/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Message faults, on purpose: the rules, and the messages that are held back. See session/inject.h.
 * Empty without RREF_INJECT.
 */
#include "core/base/kick.h"
#include "core/base/lock.h"
#include "core/session/inject.h"
#include "core/session/internal.h"
#include "core/session/session.h"

#ifdef RREF_INJECT
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define RULES_MAX 32u
#define REORDER_NS (5 * NSEC_PER_MSEC)

/*
 * Kinds: first the types of wire/wire.h, then the types of struct rp_msg, then two kinds that are
 * no types.
 */
enum { KIND_PROTO = RW_NR_TYPES, KIND_REMOTE = KIND_PROTO + RP_MSG_NR_TYPES, KIND_ANY, NR_KINDS };

static const char *const kinds[NR_KINDS] = {
	[RW_AUTH] = "AUTH",
	[RW_CALL] = "CALL",
	[RW_REPLY] = "REPLY",
	[RW_PROTO] = "PROTO",
	[RW_BARRIER] = "BARRIER",
	[RW_BARRIER_DONE] = "BARRIER_DONE",
	[RW_PING] = "PING",
	[RW_PONG] = "PONG",
	[RW_GOODBYE] = "GOODBYE",
	[RW_CANCEL] = "CANCEL",
	[RW_TYPE_QUERY] = "TYPE_QUERY",
	[RW_TYPE_ANSWER] = "TYPE_ANSWER",
	[RW_DONE] = "DONE",
	[RW_FENCED] = "FENCED",
	[KIND_PROTO + RP_MSG_FORK_REQUEST] = "FORK_REQUEST",
	[KIND_PROTO + RP_MSG_FORK_ACK] = "FORK_ACK",
	[KIND_PROTO + RP_MSG_CHILD_ACCEPT] = "CHILD_ACCEPT",
	[KIND_PROTO + RP_MSG_DELETE] = "DELETE",
	[KIND_PROTO + RP_MSG_FETCH] = "FETCH",
	[KIND_PROTO + RP_MSG_FETCH_REPLY] = "FETCH_REPLY",
	[KIND_PROTO + RP_MSG_CREATED] = "CREATED",
	[KIND_PROTO + RP_MSG_PARENT_REQUEST] = "PARENT_REQUEST",
	[KIND_PROTO + RP_MSG_PARENT_ACK] = "PARENT_ACK",
	[KIND_REMOTE] = "REMOTE",
	[KIND_ANY] = "ANY",
};

enum action { FAIL, DROP, DUP, DELAY, REORDER, NOMEM, NR_ACTIONS };

static const char *const actions[NR_ACTIONS] = {
	"fail", "drop", "dup", "delay", "reorder", "nomem"
};

struct rule {
	int kind;
	int64_t rank;     /* -1: all */
	enum action action;
	uint64_t left;    /* messages that the rule still applies to */
	int64_t time_ns;
};

struct held {
	struct list node;
	int64_t due;
	uint32_t to;
	struct rc_outgoing *message;
};

struct rc_inject {
	struct rule rule[RULES_MAX];
	unsigned nr;
	uint64_t random;
	struct list held; /* struct held */
};

/* ---- the rules ---- */

static int kind_by_name(const char *name, size_t length)
{
	for (int k = 0; k < NR_KINDS; k++)
		if (kinds[k] && strlen(kinds[k]) == length && memcmp(kinds[k], name, length) == 0)
			return k;
	return -1;
}

/*
 * Tells whether the layers above bear an action. The other actions are refused, see
 * session/inject.h.
 */
static bool is_allowed(int kind, enum action action)
{
	/* a lost question is asked again, a repeated one is dropped */
	bool type = kind == RW_TYPE_QUERY || kind == RW_TYPE_ANSWER;
	bool proto = type || kind == RW_PROTO || (kind > KIND_PROTO && kind < KIND_REMOTE);

	switch (action) {
	case FAIL:
	case NOMEM:
		return true;
	case DROP:
		return type || kind == RW_CALL || kind == KIND_REMOTE || kind == RW_REPLY;
	case DUP:
		return proto;
	case REORDER:
		return proto || kind == RW_REPLY;
	default:
		return kind != RW_AUTH && kind != RW_GOODBYE;
	}
}

static bool inject_parse_number(const char **s, uint64_t *out)
{
	char *end;

	if (!isdigit((unsigned char)**s))
		return false;
	errno = 0;
	*out = strtoull(*s, &end, 10);
	*s = end;
	return errno == 0;
}

static bool parse_time(const char **s, int64_t *out)
{
	static const struct {
		const char *name;
		int64_t ns;
	} units[] = { { "us", NSEC_PER_USEC }, { "ms", NSEC_PER_MSEC }, { "s", NSEC_PER_SEC } };
	uint64_t n;

	if (!inject_parse_number(s, &n) || n > 1000000)
		return false;
	for (unsigned i = 0; i < array_size(units); i++) {
		if (strncmp(*s, units[i].name, strlen(units[i].name)) == 0) {
			*s += strlen(units[i].name);
			*out = (int64_t)n * units[i].ns;
			return true;
		}
	}
	return false;
}

/* Parses the values after the action's name. Returns NULL, or the mistake. */
static const char *parse_values(const char *s, struct rule *r)
{
	r->left = UINT64_MAX;
	r->time_ns = REORDER_NS;
	if (r->action == DELAY || r->action == REORDER) {
		if (*s == '=') {
			s++;
			if (!parse_time(&s, &r->time_ns))
				return "a time is a number and us, ms or s";
		} else if (r->action == DELAY) {
			return "delay wants a time";
		}
		if (*s == '*' && (s++, !inject_parse_number(&s, &r->left)))
			return "a number of messages is missing";
	} else if (*s == '=' && (s++, !inject_parse_number(&s, &r->left))) {
		return "a number of messages is missing";
	}
	return *s ? "something follows that does not belong there" : NULL;
}

/* Parses one rule that ends with a NUL. Returns NULL, or the mistake. */
static const char *parse_rule(const char *s, uint32_t world, struct rule *r)
{
	size_t length = strcspn(s, "@:");
	uint64_t rank;

	r->kind = kind_by_name(s, length);
	if (r->kind < 0)
		return "no kind of message has that name";
	s += length;
	r->rank = -1;
	if (*s == '@') {
		s++;
		if (!inject_parse_number(&s, &rank) || rank >= world)
			return "no worker has that rank";
		r->rank = (int64_t)rank;
	}
	if (*s++ != ':')
		return "a rule is kind:action or kind@rank:action";
	length = strcspn(s, "=*");
	for (r->action = FAIL; r->action < NR_ACTIONS; r->action++)
		if (strlen(actions[r->action]) == length &&
		    memcmp(actions[r->action], s, length) == 0)
			break;
	if (r->action == NR_ACTIONS)
		return "the actions are fail, drop, dup, delay, reorder and nomem";
	if (!is_allowed(r->kind, r->action))
		return "nothing mends that for this kind of message, "
		       "and no reliable connection does it";
	return parse_values(s + length, r);
}

is_alone int rc_inject_open(struct rref_ctx *ctx)
{
	const char *spec = getenv("RREF_INJECT");
	struct rc_inject *in;
	char one[64];

	if (!spec || !*spec)
		return 0;
	in = calloc(1, sizeof(*in));
	if (!in)
		return rc_fail(ENOMEM, "memory for the rules of RREF_INJECT");
	list_init(&in->held);
	in->random = rb_random64();
	ctx->session.inject = in;
	for (const char *s = spec; s; s = strchr(s, ',') ? strchr(s, ',') + 1 : NULL) {
		size_t length = strcspn(s, ",");
		const char *wrong = "a rule is at most 63 characters";

		if (in->nr == RULES_MAX)
			return rc_fail(EINVAL, "RREF_INJECT: more than %u rules", RULES_MAX);
		snprintf(one, sizeof(one), "%.*s", (int)min_of(length, sizeof(one) - 1), s);
		if (length < sizeof(one))
			wrong = parse_rule(one, ctx->world, &in->rule[in->nr]);
		if (wrong)
			return rc_fail(EINVAL, "RREF_INJECT: '%s': %s", one, wrong);
		in->nr++;
	}
	return 0;
}

static needs_lock void let_go(struct rref_ctx *ctx, struct held *h)
{
	list_del(&h->node);
	ctx->peers[h->to].nr_queued--;
	free(h->message);
	free(h);
}

is_alone void rc_inject_close(struct rref_ctx *ctx)
{
	while (ctx->session.inject && !list_empty(&ctx->session.inject->held))
		let_go(ctx, container_of(ctx->session.inject->held.next, struct held, node));
	free(ctx->session.inject);
	ctx->session.inject = NULL;
}

/* ---- messages ---- */

static bool matches(const struct rule *r, uint32_t to, const struct rw_message *m)
{
	if (!r->left || (r->rank >= 0 && (uint32_t)r->rank != to))
		return false;
	return r->kind == KIND_ANY || r->kind == m->frame.type ||
	       (m->frame.type == RW_PROTO && r->kind == KIND_PROTO + (int)m->u.proto.type) ||
	       (m->frame.type == RW_CALL && r->kind == KIND_REMOTE &&
		m->u.call.kind == RW_CALL_REMOTE);
}

/*
 * Finds the rule that counts for this message, among the rules of one layer. Uses the rule up by
 * one message.
 */
static needs_lock struct rule *inject_find(struct rref_ctx *ctx, uint32_t to, const void *bytes,
					   uint32_t length, bool below)
{
	struct rc_inject *in = ctx->session.inject;
	struct rw_message m;

	if (!in || rw_decode(bytes, length, ctx->world, &m))
		return NULL;
	for (unsigned i = 0; i < in->nr; i++) {
		struct rule *r = &in->rule[i];

		if ((r->action == FAIL) != below || !matches(r, to, &m))
			continue;
		/* A handshake may fail, and lack memory if a rule names AUTH. No other fault may
		 * befall it. */
		if (m.frame.type == RW_AUTH && r->action != FAIL &&
		    (r->action != NOMEM || r->kind != RW_AUTH))
			continue;
		r->left -= r->left != UINT64_MAX;
		return r;
	}
	return NULL;
}

int rc_inject_fails(struct rref_ctx *ctx, uint32_t to, const void *bytes, uint32_t length)
{
	rc_assert_locked(ctx);
	return inject_find(ctx, to, bytes, length, true) ? -EIO : 0;
}

static needs_lock void hold(struct rref_ctx *ctx, uint32_t to, const void *bytes, uint32_t length,
			    int64_t ns)
{
	struct held *h = malloc(sizeof(*h));
	struct rc_outgoing *o = h ? rc_outgoing_make(bytes, length) : NULL;

	if (!o)
		abort(); /* runs in tests only */
	h->to = to;
	h->due = now_ns() + ns;
	h->message = o;
	list_add_tail(&ctx->session.inject->held, &h->node);
	ctx->peers[to].nr_queued++; /* the shutdown waits for it */
	if (h->due < ctx->sleep.wake_at)
		rc_kick(ctx);
}

int rc_inject_takes(struct rref_ctx *ctx, uint32_t to, const void *bytes, uint32_t length)
{
	const struct rule *r = inject_find(ctx, to, bytes, length, false);

	rc_assert_locked(ctx);
	if (!r)
		return 0;
	switch (r->action) {
	case DROP:
		return 1;
	case NOMEM:
		return rc_fail(ENOMEM, "memory for a message");
	case DUP:
		hold(ctx, to, bytes, length, 0);
		return 0;
	case REORDER:
		ctx->session.inject->random =
			ctx->session.inject->random * UINT64_C(6364136223846793005) + 1;
		hold(ctx, to, bytes, length,
		     (int64_t)((ctx->session.inject->random >> 33) % (uint64_t)(r->time_ns + 1)));
		return 1;
	default:
		hold(ctx, to, bytes, length, r->time_ns);
		return 1;
	}
}

void rc_inject_tick(struct rref_ctx *ctx, int64_t now)
{
	struct list *n = ctx->session.inject ? ctx->session.inject->held.next : NULL;

	rc_assert_locked(ctx);
	while (n && n != &ctx->session.inject->held) {
		struct held *h = container_of(n, struct held, node);
		struct rc_outgoing *o = h->message;
		uint32_t to = h->to;

		n = n->next;
		if (h->due > now)
			continue;
		h->message = NULL;
		let_go(ctx, h);
		if (rc_send_encoded(ctx, to, o->bytes, o->length))
			rc_session_end(ctx, &ctx->peers[to], -EOWNERDEAD,
				       "a message to it was held back, and then could not be sent");
		free(o);
	}
}

int64_t rc_inject_due(const struct rref_ctx *ctx)
{
	int64_t due = INT64_MAX;

	rc_assert_locked(ctx);
	for (struct list *n = ctx->session.inject ? ctx->session.inject->held.next : NULL;
	     n && n != &ctx->session.inject->held; n = n->next)
		due = min_of(due, container_of(n, struct held, node)->due);
	return due;
}

void rc_inject_forget(struct rref_ctx *ctx, uint32_t to)
{
	struct list *n = ctx->session.inject ? ctx->session.inject->held.next : NULL;

	rc_assert_locked(ctx);
	while (n && n != &ctx->session.inject->held) {
		struct held *h = container_of(n, struct held, node);

		n = n->next;
		if (h->to == to)
			let_go(ctx, h);
	}
}
#endif
