/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that is reused at once, and READs of it. A READ needs the two devices alone. It looks into
 * the owner's memory when it is carried out, perhaps long after it was posted. It is carried out
 * only while the owner has not fenced the reader. (After the device fence nothing of the reader is
 * in flight.) Then it must find its value.
 */
#include "test/sim/sim.h"

void sim_memory_set(struct sim *s, struct object *o)
{
	struct machine *k = &s->machines[o->owner];

	if (k->nr_free) {
		o->slot = k->free[--k->nr_free];
	} else {
		k->memory = sim_grow(k->memory, k->nr_slots, &k->max_slots, sizeof(*k->memory));
		o->slot = (uint32_t)k->nr_slots++;
	}
	k->memory[o->slot] = (struct slot){ .nonce = o->nonce, .obj = o };
}

void sim_memory_locate(const struct object *o, struct rp_location *loc)
{
	*loc = (struct rp_location){
		.addr = o->slot, .length = 1, .nonce = o->nonce, .version = 1
	};
}

void sim_memory_free(struct sim *s, struct object *o)
{
	struct machine *k = &s->machines[o->owner];

	if (k->memory[o->slot].obj != o)
		sim_fail(s, "memory is freed that holds another value by now");
	k->memory[o->slot] = (struct slot){ .nonce = 0 };
	k->free = sim_grow(k->free, k->nr_free, &k->max_free, sizeof(*k->free));
	k->free[k->nr_free++] = o->slot;
}

void sim_memory_close(struct machine *k)
{
	k->nr_slots = k->nr_free = 0;
}

static void look(struct sim *s, const struct object *o, const struct rp_location *loc,
		 uint32_t reader)
{
	const struct machine *k = &s->machines[o->owner];

	s->result->reads++;
	if (loc->addr >= k->nr_slots || k->memory[loc->addr].nonce != loc->nonce ||
	    loc->nonce != o->nonce || o->freed)
		sim_fail(s, "worker %u read freed or reused memory of worker %u", reader, o->owner);
}

void sim_local_read(struct sim *s, const struct object *o)
{
	struct rp_location loc = { .addr = o->slot, .nonce = o->nonce };

	look(s, o, &loc, o->owner);
}

void sim_read_post(struct sim *s, struct handle *h, const struct rp_location *loc)
{
	uint32_t r = h->machine, epoch = s->machines[r].views[h->obj->owner].epoch;

	/* The session is over, or the owner lies: nothing is promised. */
	if (!epoch || h->obj->owner == s->evil)
		return;
	h->reads++;
	s->reads = sim_grow(s->reads, s->nr_reads, &s->max_reads, sizeof(*s->reads));
	s->reads[s->nr_reads++] = (struct read){
		.uid = sim_uid(s), .handle = h, .machine = r, .epoch = epoch, .loc = *loc
	};
	sim_note(s, "   w%u posts a READ of w%u's memory at %llu", r, h->obj->owner,
		 (unsigned long long)loc->addr);
}

void sim_unpin(struct sim *s, struct handle *h)
{
	if (!--h->reads && h->released)
		sim_later(s, (struct todo){ TODO_RELEASE, h, 0 });
}

static void end_read(struct sim *s, size_t i)
{
	struct handle *h = s->reads[i].handle;

	s->reads[i] = s->reads[--s->nr_reads];
	sim_unpin(s, h);
}

/* Reads the value. The view keeps the handle: by it the reader asks for the value's references. */
static void read_well(struct sim *s, const struct read *rd)
{
	struct handle *h = rd->handle;

	look(s, h->obj, &rd->loc, rd->machine);
	if (sim_chance(s, 40))
		sim_take(s, h);
}

bool sim_read_run(struct sim *s)
{
	uint64_t salt = sim_draw(s), best = 0;
	size_t which = s->nr_reads;

	for (size_t i = 0; i < s->nr_reads; i++) {
		const struct read *rd = &s->reads[i];
		uint32_t owner = rd->handle->obj->owner;
		const struct view *there = &s->machines[owner].views[rd->machine];

		/* The owner has still to enter that session, or the two
		 * do not reach each other now. */
		if (s->parted[rd->machine][owner] ||
		    (s->machines[owner].alive && rd->epoch > there->last &&
		     rd->epoch != there->epoch))
			continue;
		if (which == s->nr_reads || sim_mix(salt ^ rd->uid) > best) {
			which = i;
			best = sim_mix(salt ^ rd->uid);
		}
	}
	if (which == s->nr_reads)
		return false;
	{
		const struct read *rd = &s->reads[which];
		const struct object *o = rd->handle->obj;

		sim_note(s, "   w%u's READ of w%u's memory at %llu is carried out", rd->machine,
			 o->owner, (unsigned long long)rd->loc.addr);
		if (sim_owner_alive(s, o) &&
		    s->machines[o->owner].views[rd->machine].epoch == rd->epoch)
			read_well(s, rd);
		else if (!s->broken)
			sim_fail(s, "a READ of worker %u failed in a run without crashes",
				 rd->machine);
	}
	end_read(s, which);
	return true;
}

void sim_reads_fail(struct sim *s, uint32_t r, uint32_t peer)
{
	for (size_t i = s->nr_reads; i--;)
		if (s->reads[i].machine == r && s->reads[i].handle->obj->owner == peer)
			end_read(s, i);
}

void sim_reads_forget(struct sim *s, uint32_t r)
{
	for (size_t i = s->nr_reads; i--;)
		if (s->reads[i].machine == r)
			s->reads[i] = s->reads[--s->nr_reads];
}
