/* SPDX-License-Identifier: Apache-2.0 */
/* Short words for tests of the protocol's machine: one
 * machine, its events, and the effects that they must have. */
#ifndef RP_TEST_H
#define RP_TEST_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/protocol/protocol.h"
#include "test/lib/tl_rpcheck.h"

#define ID(rank, n) ((struct rref_id){ .local_id = (n), .created_on = (rank) })
#define LOC(n) ((struct rp_location){ .addr = 4096, .length = 1, .nonce = (n), .version = 1 })
/* Every value's word, except in tests of words. */
#define WORD UINT64_C(0x5ec2e7)
#define EV_WORD(w, t, ...) (&(struct rp_event){ .type = RP_EV_##t, .word = (w), __VA_ARGS__ })
#define EV(t, ...) EV_WORD(WORD, t, __VA_ARGS__)
#define MSG_WORD(w, t, from, i, f, ...) EV(MSG, .peer = (from), .msg = \
	&(struct rp_msg){ .type = RP_MSG_##t, .id = (i), .fork = (f), .word = (w), __VA_ARGS__ })
#define MSG(t, from, i, f, ...) MSG_WORD(WORD, t, from, i, f, __VA_ARGS__)

static inline struct rp *machine(uint32_t self, uint32_t world)
{
	struct rp *m;

	assert_int_equal(rp_create(self, world, &m), 0);
	return m;
}

/* Makes a step whose effects replace the effects of the last one. */
static inline int step_rec(struct rp *m, const struct rp_event *ev, struct rp_fork *rec)
{
	const char *text;
	size_t nr;
	int rc;

	rp_effects_clear(m);
	rc = rp_step(m, ev, rec);
	text = tl_rp_check(m);
	if (text)
		fail_msg("%s", text);
	rp_effects(m, &nr);
	if (rc)
		assert_int_equal(nr, 0);
	return rc;
}

static inline int step(struct rp *m, const struct rp_event *ev)
{
	return step_rec(m, ev, NULL);
}

static inline size_t nr_effects(const struct rp *m)
{
	size_t nr;

	rp_effects(m, &nr);
	return nr;
}

/* Returns the n-th effect, which must be of that type. */
static inline const struct rp_effect *effect(const struct rp *m, size_t n, enum rp_effect_type type)
{
	size_t nr;
	const struct rp_effect *e = rp_effects(m, &nr);

	assert_true(n < nr);
	assert_int_equal(e[n].type, type);
	return &e[n];
}

/* Returns the message of the n-th effect, which must send it to that peer. */
static inline const struct rp_msg *sent(const struct rp *m, size_t n, uint32_t peer,
					enum rp_msg_type type)
{
	const struct rp_effect *e = effect(m, n, RP_EFF_SEND);

	assert_int_equal(e->peer, peer);
	assert_int_equal(e->msg.type, type);
	return &e->msg;
}

/* Does the same, and checks that it tells that value's place. */
static inline void told(const struct rp *m, size_t n, uint32_t peer, enum rp_msg_type type,
			const void *value)
{
	assert_int_equal(sent(m, n, peer, type)->status, 0);
	assert_ptr_equal(effect(m, n, RP_EFF_SEND)->value, value);
}

/* Gives an own value its word, as its first share does; the share is taken back. */
static inline void give_word(struct rp *m, struct rref_id id)
{
	struct rp_fork rec;

	assert_int_equal(step_rec(m, EV(FORK, .id = id, .fork = ID(id.created_on, 999), .peer = 2),
				  &rec),
			 0);
	assert_true(rec.word == WORD);
	assert_int_equal(step(m,
			      EV(FORK_UNDO, .id = id, .fork = ID(id.created_on, 999), .peer = 2)),
			 0);
}

static inline struct rp_counts counts(const struct rp *m)
{
	struct rp_counts c;

	rp_counts(m, &c);
	return c;
}

static inline void assert_empty(const struct rp *m)
{
	struct rp_counts c = counts(m);

	assert_int_equal(c.owners | c.pending_owners | c.forks | c.users | c.pending_users |
				 c.pending_children | c.parked,
			 0);
}

#endif
