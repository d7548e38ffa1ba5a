/* SPDX-License-Identifier: Apache-2.0 */
/* Ids can be guessed. The owner gives a value only to a worker that shows its word. */
#include "core/protocol/internal.h"
#include "test/unit/protocol/rp_test.h"

static int handle, value;

static struct rp *owner(void)
{
	struct rp *m = machine(0, 4);

	for (uint64_t i = 1; i <= 2; i++) {
		assert_int_equal(step(m, EV(NEW, .id = ID(0, i))), 0);
		assert_int_equal(step(m, EV(SET, .id = ID(0, i), .value = &value)), 0);
	}
	return m;
}

/* Shares (0, id) with worker 1, which has the word then; the fork is (0, id + 10). */
static struct rp_fork share(struct rp *m, uint64_t id, uint64_t word)
{
	struct rp_fork rec;

	assert_int_equal(step_rec(m,
				  EV_WORD(word, FORK, .id = ID(0, id), .fork = ID(0, id + 10),
					  .peer = 1),
				  &rec),
			 0);
	return rec;
}

/* Makes a guess, and fetches the answer, which must tell nothing. The step has no other effect. */
static void refused(struct rp *m, const struct rp_event *ev, struct rp_msg *answer)
{
	assert_int_equal(step(m, ev), 0);
	*answer = *sent(m, 0, 3, RP_MSG_FORK_ACK);
	assert_int_equal(nr_effects(m), 1);
	assert_null(effect(m, 0, RP_EFF_SEND)->value);
	assert_int_equal(answer->status, -ESTALE);
}

static void rp_word__a_request_needs_the_word(void **state)
{
	struct rp *m = owner();
	struct rp_msg of_none, of_another, of_wrong;

	(void)state;
	share(m, 1, WORD);
	share(m, 2, 99);
	refused(m, MSG(FORK_REQUEST, 3, ID(0, 7), ID(1, 1)), &of_none); /* no such value */
	refused(m, MSG_WORD(0, FORK_REQUEST, 3, ID(0, 1), ID(1, 2)), &of_wrong);
	assert_string_equal(of_wrong.text, of_none.text);
	refused(m, MSG_WORD(WORD ^ 1, FORK_REQUEST, 3, ID(0, 1), ID(1, 3)), &of_wrong);
	assert_string_equal(of_wrong.text, of_none.text);
	refused(m, MSG_WORD(99, FORK_REQUEST, 3, ID(0, 1), ID(1, 4)), &of_another);
	assert_string_equal(of_another.text, of_none.text);
	assert_int_equal(m->peers[3].nr_forks, 0);
	assert_int_equal(counts(m).forks, 2);
	assert_int_equal(counts(m).ignored, 4);
	assert_int_equal(counts(m).refused, 0); /* a child with a wrong word may be honest */
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 5))), 0);
	told(m, 0, 3, RP_MSG_FORK_ACK, &value);
	rp_destroy(m);
}

static void rp_word__an_unshared_value_has_no_word(void **state)
{
	struct rp *m = owner();
	struct rp_msg answer;
	struct rp_fork rec;

	(void)state;
	refused(m, MSG_WORD(0, FORK_REQUEST, 3, ID(0, 1), ID(1, 1)), &answer);
	refused(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 2)), &answer);
	/* A share without a word would make one. */
	assert_int_equal(step_rec(m, EV_WORD(0, FORK, .id = ID(0, 1), .fork = ID(0, 11), .peer = 1),
				  &rec),
			 -EINVAL);
	assert_int_equal(step(m, EV_WORD(0, CREATE, .id = ID(0, 20), .fork = ID(0, 21), .peer = 1)),
			 -EINVAL);
	assert_int_equal(counts(m).forks + counts(m).users, 0);
	rp_destroy(m);
}

static void rp_word__is_made_once(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec;

	(void)state;
	assert_true(share(m, 1, WORD).word == WORD);
	for (uint32_t to = 0; to < 4; to++) {
		assert_int_equal(step_rec(m,
					  EV_WORD(7 + to, FORK, .id = ID(0, 1),
						  .fork = ID(0, 30 + to), .peer = to),
					  &rec),
				 0);
		assert_true(rec.word == WORD);
	}
	/* Taking a share back does not end it either: others have the word. */
	assert_int_equal(step(m, EV(FORK_UNDO, .id = ID(0, 1), .fork = ID(0, 32), .peer = 2)), 0);
	assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 5))), 0);
	told(m, 0, 3, RP_MSG_FORK_ACK, &value);
	rp_destroy(m);
}

static void rp_word__the_quota_tells_nothing(void **state)
{
	struct rp *m = owner();
	struct rp_msg answer;

	(void)state;
	share(m, 1, WORD);
	m->peers[3].nr_forks = RP_FORKS_MAX;
	rp_effects_clear(m);
	assert_int_equal(rp_step(m, MSG_WORD(5, FORK_REQUEST, 3, ID(0, 1), ID(1, 1)), NULL), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	m->peers[3].nr_forks = 0;
	refused(m, MSG_WORD(5, FORK_REQUEST, 3, ID(0, 1), ID(1, 2)), &answer);
	rp_destroy(m);
}

static void rp_word__opens_nothing_once_the_value_died(void **state)
{
	struct rp *m = owner();
	struct rp_msg answer;

	(void)state;
	share(m, 1, WORD);
	/* The true holder's request, repeated and late. */
	for (int i = 0; i < 2; i++) {
		assert_int_equal(step(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 1))), 0);
		told(m, 0, 3, RP_MSG_FORK_ACK, &value);
	}
	assert_int_equal(step(m, MSG(DELETE, 3, ID(0, 1), ID(1, 1))), 0);
	refused(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 1)), &answer); /* its tombstone */
	assert_int_equal(step(m, MSG(DELETE, 1, ID(0, 1), ID(0, 11))), 0);
	assert_int_equal(step(m, EV(RELEASE, .id = ID(0, 1))), 0);
	effect(m, 0, RP_EFF_FREE_VALUE);
	refused(m, MSG(FORK_REQUEST, 3, ID(0, 1), ID(1, 2)), &answer);
	assert_int_equal(counts(m).forks, 0);
	rp_destroy(m);
}

static void rp_word__of_a_worker_passing_for_a_holder(void **state)
{
	struct rp *m = owner();

	(void)state;
	share(m, 1, WORD);
	/* Worker 3 names the fork of worker 1 in each message; worker 1 itself needs no word. */
	assert_int_equal(step(m, MSG_WORD(0, FORK_REQUEST, 3, ID(0, 1), ID(0, 11))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(step(m, MSG_WORD(0, FETCH, 3, ID(0, 1), ID(0, 11))), 0);
	assert_int_equal(sent(m, 0, 3, RP_MSG_FETCH_REPLY)->status, -ESTALE);
	assert_int_equal(step(m, MSG_WORD(0, DELETE, 3, ID(0, 1), ID(0, 11))), 0);
	assert_int_equal(nr_effects(m), 0);
	assert_int_equal(counts(m).forks, 1);
	assert_int_equal(step(m, MSG_WORD(0, FETCH, 1, ID(0, 1), ID(0, 11))), 0);
	told(m, 0, 1, RP_MSG_FETCH_REPLY, &value);
	rp_destroy(m);
}

static void rp_word__a_record_of_an_own_value_needs_the_word(void **state)
{
	struct rp *m = owner();
	struct rp_fork rec = { .id = ID(0, 1), .fork = ID(3, 1), .owner = 0, .parent = 3 };
	const uint64_t wrong[] = { 0, 99, WORD ^ 1 };

	(void)state;
	share(m, 1, WORD);
	share(m, 2, 99);
	for (size_t i = 0; i < 3; i++) {
		rec.word = wrong[i];
		rec.fork.local_id++;
		assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 5)), 0);
		assert_int_equal(effect(m, 0, RP_EFF_READY)->status, -ESTALE); /* and no handle */
		sent(m, 1, 3, RP_MSG_CHILD_ACCEPT);
		assert_int_equal(nr_effects(m), 2);
	}
	rec.word = WORD;
	rec.fork.local_id++;
	assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 5)), 0);
	assert_ptr_equal(effect(m, 0, RP_EFF_NEW_HANDLE)->value, &value);
	assert_int_equal(effect(m, 1, RP_EFF_READY)->status, 0);
	rp_destroy(m);
}

/* Checks that early records of a present value and of an unknown one are treated alike. */
static void rp_word__an_early_record_tells_nothing(void **state)
{
	struct rp *m = owner();

	(void)state;
	share(m, 1, WORD);
	for (uint64_t id = 1; id <= 7; id += 6) {
		struct rp_fork rec = { .id = ID(0, id),
				       .fork = ID(3, id),
				       .owner = 0,
				       .parent = 3,
				       .flags = RP_FORK_EARLY,
				       .word = 5 };

		assert_int_equal(step(m, EV(RECV_FORK, .rec = &rec, .peer = 3, .cookie = 5)), 0);
		sent(m, 0, 3, RP_MSG_PARENT_REQUEST);
		assert_int_equal(nr_effects(m), 1);
		assert_int_equal(step(m, MSG(PARENT_ACK, 3, ID(0, id), ID(3, id))), 0);
		assert_int_equal(effect(m, 0, RP_EFF_READY)->status, -ESTALE);
		sent(m, 1, 3, RP_MSG_CHILD_ACCEPT);
		assert_int_equal(nr_effects(m), 2);
	}
	assert_int_equal(counts(m).users, 0);
	rp_destroy(m);
}

static void rp_word__a_creators_own(void **state)
{
	struct rp *a = machine(1, 4), *o = machine(0, 4), *b = machine(2, 4);
	struct rp_fork rec, again;

	(void)state;
	assert_int_equal(step(a,
			      EV_WORD(42, CREATE, .id = ID(1, 1), .fork = ID(1, 2), .peer = 0,
				      .handle = &handle)),
			 0);
	/* Shared before the owner has answered, and by its receiver in turn. */
	assert_int_equal(step_rec(a,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 2), .fork = ID(1, 5),
				     .peer = 2),
				  &rec),
			 0);
	assert_true(rec.word == 42 && rec.flags == RP_FORK_EARLY);
	assert_true(sent(a, 0, 0, RP_MSG_FORK_REQUEST)->word == 42);
	assert_int_equal(step(b, EV(RECV_FORK, .rec = &rec, .peer = 1, .cookie = 6)), 0);
	*effect(b, 0, RP_EFF_NEW_HANDLE)->handle_slot = &handle;
	assert_int_equal(step_rec(b,
				  EV(FORK, .id = ID(1, 1), .src = ID(1, 5), .fork = ID(2, 1),
				     .peer = 3),
				  &again),
			 0);
	assert_true(again.word == 42);
	assert_int_equal(step(b, MSG(PARENT_ACK, 1, ID(1, 1), ID(1, 5))), 0);
	assert_true(sent(b, 0, 0, RP_MSG_FORK_REQUEST)->word == 42);
	/* The owner learned it with the creation, and passes on the same. */
	assert_int_equal(step(o, EV_WORD(42, OWN, .id = ID(1, 1), .fork = ID(1, 2), .peer = 1)), 0);
	assert_int_equal(step(o, MSG_WORD(41, FORK_REQUEST, 2, ID(1, 1), ID(1, 4))), 0);
	assert_int_equal(sent(o, 0, 2, RP_MSG_FORK_ACK)->status, -ESTALE);
	assert_int_equal(step(o, MSG_WORD(42, FORK_REQUEST, 2, ID(1, 1), ID(1, 5))), 0);
	assert_int_equal(sent(o, 0, 2, RP_MSG_FORK_ACK)->status, 0);
	assert_int_equal(step_rec(o, EV_WORD(43, FORK, .id = ID(1, 1), .fork = ID(0, 1), .peer = 3),
				  &rec),
			 0);
	assert_true(rec.word == 42);
	rp_destroy(a);
	rp_destroy(b);
	rp_destroy(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rp_word__a_creators_own),
		cmocka_unit_test(rp_word__a_record_of_an_own_value_needs_the_word),
		cmocka_unit_test(rp_word__a_request_needs_the_word),
		cmocka_unit_test(rp_word__an_unshared_value_has_no_word),
		cmocka_unit_test(rp_word__an_early_record_tells_nothing),
		cmocka_unit_test(rp_word__is_made_once),
		cmocka_unit_test(rp_word__of_a_worker_passing_for_a_holder),
		cmocka_unit_test(rp_word__opens_nothing_once_the_value_died),
		cmocka_unit_test(rp_word__the_quota_tells_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
