/* SPDX-License-Identifier: Apache-2.0 */
/* The network: packets under way, lost ones, repeated ones. */
#include "test/sim/sim.h"

#define MAX_SENT 3u             /* packets of a link that may be sent again */

/* Returns whether a packet is too old. Packets of a session end with
 * it, at the receiver; newer ones wait. */
static bool stale(const struct sim *s, const struct packet *p)
{
	return !s->machines[p->to].alive || p->epoch <= s->machines[p->to].views[p->from].last;
}

static bool current(const struct sim *s, const struct packet *p)
{
	return p->epoch == s->machines[p->to].views[p->from].epoch;
}

static void call_dropped(struct sim *s, struct call *call)
{
	if (--call->copies || call->seen)
		return;
	if (call->take)
		sim_unpin(s, call->take);
	for (unsigned i = 0; i < call->nr; i++)
		call->claims[i]->state = CLAIM_OVER;
	if (call->create)
		call->create->unsent = true;
}

static void packet_free(struct sim *s, struct packet *p)
{
	if (p->call)
		call_dropped(s, p->call);
	free(p);
}

void sim_push(struct sim *s, uint32_t from, uint32_t to, const struct rp_msg *msg,
	      struct call *call)
{
	const struct view *there = &s->machines[to].views[from];
	unsigned copies = (s->flags & SIM_CHAOS) && sim_chance(s, 20) ? 2 : 1;

	if (call)
		call->copies = copies;
	/* The hostile worker reads its messages, though it has no machine. */
	for (unsigned i = 0; call && to == s->evil && i < call->nr; i++)
		call->claims[i]->obj->given = true;
	while (copies--) {
		struct packet *p = calloc(1, sizeof(*p)), **tail = &s->links[from][to];

		if (!p)
			abort();
		p->uid = sim_uid(s);
		p->from = from;
		p->to = to;
		p->epoch = s->machines[from].views[to].epoch;
		p->call = call;
		if (msg)
			p->msg = *msg;
		if (!p->epoch)
			sim_fail(s, "worker %u sends to worker %u, which it has fenced", from, to);
		if (stale(s, p) || from == s->dying || p->epoch == there->deaf) {
			packet_free(s, p);
			continue;
		}
		while (*tail)
			tail = &(*tail)->next;
		*tail = p;
	}
}

static void drop_if(struct sim *s, uint32_t from, uint32_t to,
		    bool (*gone)(const struct sim *s, const struct packet *p))
{
	struct packet **at = &s->links[from][to];

	while (*at) {
		struct packet *p = *at;

		if (!gone(s, p)) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		packet_free(s, p);
	}
}

void sim_purge(struct sim *s, uint32_t from, uint32_t to)
{
	drop_if(s, from, to, stale);
}

static bool offered(const struct sim *s, const struct packet *p)
{
	const struct view *there = &s->machines[p->to].views[p->from];

	return p->epoch > there->last && p->epoch != there->epoch;
}

void sim_withdraw(struct sim *s, uint32_t from, uint32_t to)
{
	s->machines[to].views[from].coming = 0;
	drop_if(s, from, to, offered);
}

/* Picks one of the packets that can arrive now, by the salt. */
static struct packet **pick(struct sim *s)
{
	uint64_t salt = sim_draw(s), best = 0;
	struct packet **which = NULL;

	for (uint32_t from = 0; from < s->n; from++)
		for (uint32_t to = 0; to < s->n; to++)
			for (struct packet **at = &s->links[from][to]; *at && !s->parted[from][to];
			     at = &(*at)->next) {
				bool can = current(s, *at);

				if (can && (!which || sim_mix(salt ^ (*at)->uid) > best)) {
					which = at;
					best = sim_mix(salt ^ (*at)->uid);
				}
				if (!(s->flags & SIM_CHAOS))
					break;
			}
	return which;
}

struct packet *sim_pick(struct sim *s)
{
	struct packet **at = pick(s), *p;

	if (!at)
		return NULL;
	p = *at;
	*at = p->next;
	p->next = NULL;
	return p;
}

/* Loses a message, which ends its session. The receiver sees the gap, or
 * the sender its completion with an error. */
void sim_drop(struct sim *s)
{
	struct packet **at = pick(s), *p;
	uint32_t from, to, epoch;

	if (!at || (*at)->from == (*at)->to)
		return;
	from = (*at)->from;
	to = (*at)->to;
	epoch = (*at)->epoch;
	sim_note(s, "   w%u -> w%u: lost", from, to);
	sim_lose(s, from, to);
	if (s->flags & SIM_CHAOS) {
		p = *at;
		*at = p->next;
		packet_free(s, p);
		return;
	}
	/* Messages keep their order: no later one comes either. */
	s->machines[to].views[from].deaf = epoch;
	while (*at) {
		p = *at;
		if (p->epoch != epoch) {
			at = &p->next;
			continue;
		}
		*at = p->next;
		packet_free(s, p);
	}
}

void sim_arrived(struct sim *s, struct packet *p)
{
	struct packet **list = &s->machines[p->from].sent[p->to];
	unsigned nr = 0;

	if (!(s->flags & (SIM_CUT | SIM_DELAY)) || !s->machines[p->from].alive || !current(s, p)) {
		free(p);
		return;
	}
	if (p->call)
		p->call->copies++;
	while (*list) {
		nr++;
		list = &(*list)->next;
	}
	*list = p;
	p->next = NULL;
	list = &s->machines[p->from].sent[p->to];
	if (nr >= MAX_SENT) {
		p = *list;
		*list = p->next;
		packet_free(s, p);
	}
}

void sim_forget_sent(struct sim *s, uint32_t from, uint32_t to)
{
	struct packet *p;

	while ((p = s->machines[from].sent[to])) {
		s->machines[from].sent[to] = p->next;
		packet_free(s, p);
	}
}

/*
 * Makes the connection of a pair anew within the session. The sender repeats all
 * packets that may not have arrived. The machine must not care, although a runtime
 * would drop repetitions by their sequence number.
 */
void sim_replay(struct sim *s)
{
	uint32_t from = sim_pick_alive(s), to = sim_pick_rank(s);
	struct packet *p, **tail;

	if (from == s->n || from == to || s->parted[from][to] ||
	    s->machines[from].views[to].state != LINK_UP)
		return;
	tail = &s->machines[from].sent[to];
	while ((p = *tail)) {
		if (stale(s, p) || !current(s, p)) {
			*tail = p->next;
			packet_free(s, p);
			continue;
		}
		p->uid = sim_uid(s);
		tail = &p->next;
	}
	if (!s->machines[from].sent[to])
		return;
	sim_note(s, "   w%u -> w%u: replayed", from, to);
	*tail = s->links[from][to];
	s->links[from][to] = s->machines[from].sent[to];
	s->machines[from].sent[to] = NULL;
}

void sim_net_close(struct sim *s)
{
	for (uint32_t a = 0; a < s->n; a++)
		for (uint32_t b = 0; b < s->n; b++) {
			sim_forget_sent(s, a, b);
			while (s->links[a][b]) {
				struct packet *p = s->links[a][b];

				s->links[a][b] = p->next;
				free(p);
			}
		}
}
