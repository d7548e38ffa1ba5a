/* SPDX-License-Identifier: Apache-2.0 */
/* Visits of the machine: holders, values, times and givers; all at once and a piece at a time. */
#include "rp_test.h"

struct seen {
	unsigned nr[4];
	struct rp_visit last[4];
};

static void note(void *ctx, const struct rp_visit *v)
{
	struct seen *s = ctx;

	s->nr[v->kind]++;
	s->last[v->kind] = *v;
}

static struct seen look(const struct rp *m)
{
	struct rp_cursor c = { 0 };
	struct seen s = { .nr = { 0 } };

	while (rp_visit_some(m, &c, 1, note, &s))
		;
	return s;
}

static void rp_visit__owner_and_forks(void **state)
{
	struct rp *m = machine(0, 4);
	struct rp_fork rec;
	int made, value;
	struct seen s;

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1), .now = 10, .maker = &made)), 0);
	s = look(m);
	assert_int_equal(s.nr[RP_VISIT_OWNER], 1);
	assert_string_equal(s.last[RP_VISIT_OWNER].state, "pending");
	assert_int_equal(s.last[RP_VISIT_OWNER].since, 10);
	assert_ptr_equal(s.last[RP_VISIT_OWNER].maker, &made);
	assert_null(s.last[RP_VISIT_OWNER].value);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .now = 20, .value = &value)), 0);
	assert_int_equal(step(m, EV(PEER_UP, .peer = 2, .epoch = 5)), 0);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .fork = ID(0, 2), .peer = 2, .now = 30),
				  &rec),
			 0);
	s = look(m);
	assert_string_equal(s.last[RP_VISIT_OWNER].state, "ready");
	assert_int_equal(s.last[RP_VISIT_OWNER].since, 10);
	assert_int_equal(s.last[RP_VISIT_OWNER].forks, 1);
	assert_int_equal(s.last[RP_VISIT_OWNER].local, 1);
	assert_null(s.last[RP_VISIT_OWNER].maker);
	assert_ptr_equal(s.last[RP_VISIT_OWNER].value, &value);
	assert_int_equal(s.nr[RP_VISIT_FORK], 1);
	assert_int_equal(s.last[RP_VISIT_FORK].peer, 2);
	assert_int_equal(s.last[RP_VISIT_FORK].parent, 0);
	assert_int_equal(s.last[RP_VISIT_FORK].epoch, 5);
	assert_int_equal(s.last[RP_VISIT_FORK].since, 30);
	assert_false(s.last[RP_VISIT_FORK].grace);
	/* A reference that 1 shared with 3. */
	assert_int_equal(step(m,
			      EV(MSG, .peer = 3, .now = 40,
				 .msg = &(struct rp_msg){ .type = RP_MSG_FORK_REQUEST,
							  .id = ID(0, 1),
							  .fork = ID(1, 9),
							  .word = WORD })),
			 0);
	s = look(m);
	assert_int_equal(s.nr[RP_VISIT_FORK], 2);
	assert_int_equal(s.last[RP_VISIT_FORK].peer, 3);
	assert_int_equal(s.last[RP_VISIT_FORK].parent, 1);
	assert_int_equal(s.last[RP_VISIT_FORK].since, 40);
	assert_int_equal(step(m, EV(PEER_FENCED, .peer = 3, .status = -EOWNERDEAD)), 0);
	assert_true(look(m).last[RP_VISIT_FORK].grace);
	assert_int_equal(step(m, EV(PEER_GRACE, .peer = 3)), 0);
	assert_int_equal(look(m).nr[RP_VISIT_FORK], 1);
	rp_destroy(m);
}

static void rp_visit__failed_and_abandoned(void **state)
{
	struct rp *m = machine(0, 4);
	struct seen s;
	int made;

	(void)state;
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 1), .maker = &made)), 0);
	assert_int_equal(step(m, EV(SET, .id = ID(0, 1), .status = -EDOM)), 0);
	s = look(m);
	assert_string_equal(s.last[RP_VISIT_OWNER].state, "failed");
	assert_int_equal(s.last[RP_VISIT_OWNER].status, -EDOM);
	assert_null(s.last[RP_VISIT_OWNER].value);
	assert_null(s.last[RP_VISIT_OWNER].maker);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	assert_int_equal(look(m).nr[RP_VISIT_OWNER], 0);
	assert_int_equal(step(m, EV(NEW, .id = ID(0, 2), .maker = &made)), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 2))), 0);
	s = look(m);
	assert_string_equal(s.last[RP_VISIT_OWNER].state, "abandoned");
	assert_null(s.last[RP_VISIT_OWNER].maker); /* its maker went with its handle */
	rp_destroy(m);
}

static void rp_visit__user_and_children(void **state)
{
	struct rp *m = machine(1, 4);
	struct rp_fork rec = { .word = WORD,
			       .id = ID(0, 1),
			       .fork = ID(2, 5),
			       .owner = 0,
			       .parent = 2 },
		       out;
	struct rp_peer_counts c;
	struct seen s;

	(void)state;
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 2, .now = 100)), 0);
	assert_int_equal(step_rec(m,
				  EV(FORK, .id = ID(0, 1), .src = ID(2, 5), .fork = ID(1, 1),
				     .peer = 3, .now = 110),
				  &out),
			 0);
	s = look(m);
	assert_int_equal(s.nr[RP_VISIT_USER], 1);
	assert_int_equal(s.nr[RP_VISIT_CHILD], 1);
	assert_string_equal(s.last[RP_VISIT_USER].state, "requested");
	assert_int_equal(s.last[RP_VISIT_USER].peer, 0);
	assert_int_equal(s.last[RP_VISIT_USER].parent, 2);
	assert_int_equal(s.last[RP_VISIT_USER].since, 100);
	assert_int_equal(s.last[RP_VISIT_USER].children, 1);
	assert_false(s.last[RP_VISIT_USER].released);
	assert_int_equal(s.last[RP_VISIT_CHILD].peer, 3);
	assert_int_equal(s.last[RP_VISIT_CHILD].since, 110);
	assert_int_equal(s.last[RP_VISIT_CHILD].id.local_id, 1);
	rp_peer_counts(m, 0, &c);
	assert_int_equal(c.users, 1);
	assert_int_equal(c.pending_children, 0);
	rp_peer_counts(m, 3, &c);
	assert_int_equal(c.users, 0);
	assert_int_equal(c.pending_children, 1);
	/* A visit that did not ask for children gets no children: leak reports count users. */
	memset(&s, 0, sizeof(s));
	rp_visit(m, note, &s);
	assert_int_equal(s.nr[RP_VISIT_USER], 1);
	assert_int_equal(s.nr[RP_VISIT_CHILD], 0);
	assert_int_equal(step(m, EV(DROP, .fork = ID(2, 5))), 0);
	assert_true(look(m).last[RP_VISIT_USER].released);
	assert_int_equal(step(m, MSG(FORK_ACK, 0, ID(0, 1), ID(2, 5))), 0);
	assert_int_equal(step(m, MSG(CHILD_ACCEPT, 3, ID(0, 1), ID(1, 1))), 0);
	s = look(m);
	assert_int_equal(s.nr[RP_VISIT_USER] + s.nr[RP_VISIT_CHILD], 0);
	rp_peer_counts(m, 0, &c);
	assert_int_equal(c.users, 0);
	rp_peer_counts(m, 3, &c);
	assert_int_equal(c.pending_children, 0);
	rp_destroy(m);
}

/* Visits in pieces, while entries go and come in between. Every
 * entry that stays is visited once. */
static void rp_visit__in_pieces_while_it_changes(void **state)
{
	enum { NR = 2000 };
	struct rp *m = machine(0, 2);
	struct rp_cursor c = { 0 };
	struct seen s = { .nr = { 0 } };
	bool more = true;
	unsigned pieces = 0;

	(void)state;
	for (uint64_t i = 1; i <= NR; i++)
		assert_int_equal(step(m, EV(NEW, .id = ID(0, i))), 0);
	while (more) {
		unsigned before = s.nr[RP_VISIT_OWNER];

		more = rp_visit_some(m, &c, 100, note, &s);
		assert_true(s.nr[RP_VISIT_OWNER] - before <= 100);
		/* The first quarter goes after the first piece: whole
		 * chunks of the pool are given back under the cursor. */
		for (uint64_t i = 1; !pieces && i <= NR / 4; i++) {
			assert_int_equal(step(m, EV(SET, .id = ID(0, i), .status = -EDOM)), 0);
			assert_int_equal(step(m, EV(RELEASE, .id = ID(0, i))), 0);
		}
		pieces++;
	}
	assert_int_equal(s.nr[RP_VISIT_OWNER], 100 + NR - NR / 4);
	assert_int_equal(pieces, (100 + NR - NR / 4) / 100 + 1);
	rp_destroy(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_visit__failed_and_abandoned),
		cmocka_unit_test(rp_visit__in_pieces_while_it_changes),
		cmocka_unit_test(rp_visit__owner_and_forks),
		cmocka_unit_test(rp_visit__user_and_children),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
