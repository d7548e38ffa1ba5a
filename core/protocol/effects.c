/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The output of a step: effects, the faults that many of them may share, and the waits that they
 * end.
 */
#include <stdlib.h>
#include <string.h>

#include "core/protocol/internal.h"

int rp_effects_grow(struct rp *m, size_t n)
{
	size_t max = m->max_effects ? m->max_effects : RP_EFFECTS_KEPT;
	struct rp_effect *effects;

	if (m->first_effect) {
		/* Use the room of effects that were taken out. */
		m->nr_effects -= m->first_effect;
		memmove(m->effects, m->effects + m->first_effect, m->nr_effects * sizeof(*effects));
		m->first_effect = 0;
		if (rp_effects_room(m) >= n)
			return 0;
	}
	rb_assert_is(m->nr_effects, <=, max);
	while (max - m->nr_effects < n)
		max *= 2;
	effects = realloc(m->effects, max * sizeof(*effects));
	if (!effects)
		return -ENOMEM;
	m->effects = effects;
	m->max_effects = max;
	return 0;
}

struct rp_effect *rp_effect_add(struct rp *m, enum rp_effect_type type)
{
	struct rp_effect *e;

	rb_require(m->nr_effects < m->max_effects);
	e = &m->effects[m->nr_effects++];
	/* The texts are long and mostly empty: clear their first byte only. */
	memset(e, 0, offsetof(struct rp_effect, msg));
	e->type = type;
	if (type == RP_EFF_SEND) {
		memset(&e->msg, 0, offsetof(struct rp_msg, text) + 1);
	} else {
		memset(&e->loc, 0, sizeof(e->loc));
		e->text[0] = '\0';
	}
	return e;
}

const struct rp_effect *rp_effects(const struct rp *m, size_t *count)
{
	*count = m->nr_effects - m->first_effect;
	return m->effects + m->first_effect;
}

void rp_text_copy(char *to, const char *from)
{
	size_t n = from ? strnlen(from, RP_TEXT_MAX - 1) : 0;

	memcpy(to, from ? from : "", n);
	to[n] = '\0';
}

void rp_effect_status(const struct rp *m, struct rp_effect *e, int status, uint32_t fault)
{
	e->status = status;
	e->about = fault && !(fault & RP_FAULT_BARE) ? rp_fault_at(m, fault)->about : 0;
	if (fault)
		rp_text_copy(e->text, rp_fault_text(m, fault));
}

void rp_send(struct rp *m, uint32_t to, enum rp_msg_type type, struct rref_id id,
	     struct rref_id fork, int status, void *value, uint32_t fault)
{
	struct rp_effect *e;

	rb_assert_is(to, <, m->world);
	rb_assert_with(status <= 0 && !(status && value), "status %d", status);
	rb_assert_with(rp_id_valid(m, &id) && rp_id_valid(m, &fork), "message %d", type);
	if (!rp_peer_reachable(m, to))
		return;
	e = rp_effect_add(m, RP_EFF_SEND);
	e->peer = to;
	e->msg.type = type;
	e->msg.id = id;
	e->msg.fork = fork;
	e->msg.status = status;
	if (!status)
		e->value = value;
	if (status && fault)
		rp_text_copy(e->msg.text, rp_fault_text(m, fault));
	if (status && fault && !(fault & RP_FAULT_BARE))
		e->msg.about = rp_fault_at(m, fault)->about;
}

void rp_send_refusal(struct rp *m, uint32_t to, enum rp_msg_type type, const struct rref_id *id,
		     const struct rref_id *fork, int status, const char *text)
{
	size_t before = m->nr_effects;

	rp_send(m, to, type, *id, *fork, status, NULL, 0);
	if (m->nr_effects > before)
		rp_text_copy(m->effects[before].msg.text, text);
}

uint32_t rp_fault_new(struct rp *m, int status, const char *text)
{
	struct rp_fault *f;
	uint32_t i;

	rb_assert_is(status, <, 0);
	if (rp_pool_reserve(&m->faults, 1))
		return RP_FAULT_BARE | (uint32_t)-status;
	i = rp_pool_take(&m->faults);
	f = rp_fault_at(m, i);
	f->refs = 1;
	f->status = status;
	f->about = 0;
	rp_text_copy(f->text, text);
	return i;
}

void rp_fault_about(struct rp *m, uint32_t fault, uint16_t about)
{
	if (!(fault & RP_FAULT_BARE))
		rp_fault_at(m, fault)->about = about;
}

uint32_t rp_fault_get(struct rp *m, uint32_t fault)
{
	rb_assert_if(!(fault & RP_FAULT_BARE), rp_fault_at(m, fault)->refs);
	if (!(fault & RP_FAULT_BARE))
		rp_fault_at(m, fault)->refs++;
	return fault;
}

void rp_fault_put(struct rp *m, uint32_t fault)
{
	rb_assert_if(fault && !(fault & RP_FAULT_BARE), rp_fault_at(m, fault)->refs);
	if (fault && !(fault & RP_FAULT_BARE) && !--rp_fault_at(m, fault)->refs)
		rp_pool_put(&m->faults, fault);
}

void rp_wait_add(struct rp *m, rp_list *waits, uint32_t *nr, uint64_t cookie)
{
	uint32_t i = rp_pool_take(&m->waits);

	rp_wait_at(m, i)->cookie = cookie;
	rp_list_add(&m->waits, offsetof(struct rp_wait, link), waits, i);
	++*nr;
	m->counts.parked++;
}

static void wait_erase(struct rp *m, rp_list *waits, uint32_t *nr, uint32_t i)
{
	rb_assert_is(*nr, >, 0);
	rb_assert_is(m->counts.parked, >, 0);
	rp_list_del(&m->waits, offsetof(struct rp_wait, link), waits, i);
	rp_pool_put(&m->waits, i);
	--*nr;
	m->counts.parked--;
}

int rp_wait_remove(struct rp *m, rp_list *waits, uint32_t *nr, uint64_t cookie)
{
	rp_list_for_each(i, &m->waits, struct rp_wait, link, *waits) {
		if (rp_wait_at(m, i)->cookie == cookie) {
			wait_erase(m, waits, nr, i);
			return 0;
		}
	}
	return -ESTALE;
}

void rp_waited(struct rp *m, uint64_t cookie, int status, uint32_t fault, void *value,
	       const struct rp_location *loc)
{
	struct rp_effect *e = rp_effect_add(m, RP_EFF_WAITED);

	e->cookie = cookie;
	rp_effect_status(m, e, status, fault);
	if (!status)
		e->value = value;
	if (!status && loc)
		e->loc = *loc;
}

bool rp_waits_end(struct rp *m, rp_list *waits, uint32_t *nr, int status, uint32_t fault,
		  void *value, const struct rp_location *loc)
{
	while (*waits) {
		if (!rp_effects_room(m))
			return false;
		rp_waited(m, rp_wait_at(m, *waits)->cookie, status, fault, value, loc);
		wait_erase(m, waits, nr, *waits);
	}
	return true;
}
