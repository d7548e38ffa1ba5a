/* SPDX-License-Identifier: Apache-2.0 */
/* Trace: a line for each decision, step and effect, to show how a seed fails. Values and forks are
 * written rank/number, from the second incarnation on rank.incarnation/number. */
#include <inttypes.h>
#include <stdarg.h>

#include "test/sim/sim.h"

static const char *const events[] = {
	"?", "NEW", "SET", "RETAIN", "RELEASE", "CREATE", "CREATE_FAILED", "FORK", "FORK_UNDO",
	"RECV_FORK", "DROP", "WAIT",
	"UNWAIT", "OWN", "MSG", "PEER_UP", "PEER_FENCED", "PEER_GRACE",
};
static const char *const effects[] = {
	"?", "SEND", "NEW_HANDLE", "READY", "LOCATION", "CONFIRMED", "FAILED", "CREATED", "WAITED",
	"FREE_VALUE", "GONE",
	"DUPLICATE",
};
static const char *const messages[] = {
	"?", "FORK_REQUEST", "FORK_ACK", "CHILD_ACCEPT", "DELETE", "FETCH", "FETCH_REPLY",
	"CREATED", "PARENT_REQUEST",
	"PARENT_ACK",
};

void sim_note(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (!s->trace)
		return;
	va_start(ap, fmt);
	vfprintf(s->trace, fmt, ap);
	va_end(ap);
	putc('\n', s->trace);
}

static void print_id(FILE *f, const char *what, const struct rref_id *id)
{
	if (!id->local_id)
		return;
	fprintf(f, " %s %u", what, id->created_on);
	if (id->local_id >> 32 > 1)
		fprintf(f, ".%u", (unsigned)(id->local_id >> 32));
	fprintf(f, "/%" PRIu32, (uint32_t)id->local_id);
}

static void print_message(FILE *f, const struct rp_msg *msg)
{
	fprintf(f, " %s", msg->type < array_size(messages) ? messages[msg->type] : "?");
	print_id(f, "id", &msg->id);
	print_id(f, "fork", &msg->fork);
	if (msg->status)
		fprintf(f, " status %d", msg->status);
}

void sim_trace_event(struct sim *s, uint32_t r, const struct rp_event *ev)
{
	const struct rref_id *id = ev->rec ? &ev->rec->id : &ev->id,
			     *fork = ev->rec ? &ev->rec->fork : &ev->fork;

	if (!s->trace)
		return;
	fprintf(s->trace, "   w%u %s", r, events[ev->type]);
	if (ev->msg) {
		print_message(s->trace, ev->msg);
		fprintf(s->trace, " from w%u", ev->peer);
	} else {
		print_id(s->trace, "id", id);
		print_id(s->trace, "fork", fork);
		print_id(s->trace, "of", &ev->src);
		if (ev->type == RP_EV_CREATE || ev->type == RP_EV_FORK ||
		    ev->type == RP_EV_FORK_UNDO || ev->type == RP_EV_RECV_FORK ||
		    ev->type == RP_EV_OWN || ev->type >= RP_EV_PEER_UP)
			fprintf(s->trace, " peer w%u", ev->peer);
		if (ev->rec && ev->rec->flags)
			fprintf(s->trace, " early");
		if (ev->status)
			fprintf(s->trace, " status %d", ev->status);
	}
	/* The step may end the process. */
	fflush(s->trace);
}

void sim_trace_effects(struct sim *s, uint32_t r, int rc)
{
	const struct rp_effect *e;
	size_t nr;

	if (!s->trace)
		return;
	if (rc)
		fprintf(s->trace, " -> %d", rc);
	putc('\n', s->trace);
	e = rp_effects(s->machines[r].m, &nr);
	for (; nr--; e++) {
		fprintf(s->trace, "      %s", effects[e->type]);
		if (e->type == RP_EFF_SEND) {
			print_message(s->trace, &e->msg);
			fprintf(s->trace, " to w%u", e->peer);
		} else {
			print_id(s->trace, "id", &e->id);
			print_id(s->trace, "fork", &e->fork);
			if (e->status)
				fprintf(s->trace, " status %d", e->status);
		}
		putc('\n', s->trace);
	}
}
