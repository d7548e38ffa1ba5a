/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that lies about what it looks at, in the table of its page. Worker 1 keeps values for a
 * mark that names a reference of the foe's own, and for no other. It is bounded, and ends with the
 * mark.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/shm/shm.h"

#define BYTES 70000

/* ---- functions of worker 1 ---- */

static struct rref *given[16], *never_given;
static unsigned nr_given;

static struct rref *make_large(struct rref_call *call, unsigned seed)
{
	struct rref *ref;
	void *data;

	TG_OK(rref_alloc(rref_call_context(call), BYTES, &ref, &data));
	tg_fill(data, BYTES, seed);
	TG_OK(rref_set(ref));
	return ref;
}

/* Gives a value, and keeps one that nobody is given. */
static int give_one(struct rref_call *call, void *arg)
{
	(void)arg;
	if (!never_given)
		never_given = make_large(call, 99);
	TG_CHECK(nr_given < array_size(given));
	given[nr_given] = make_large(call, nr_given);
	nr_given++;
	return rref_call_reply(call, &(struct rref_args){ .refs = &given[nr_given - 1],
							  .nr_refs = 1 });
}

static int give_up_all(struct rref_call *call, void *arg)
{
	(void)arg;
	rref_release_batch(given, nr_given);
	nr_given = 0;
	rref_release(never_given);
	never_given = NULL;
	return rref_call_reply(call, NULL);
}

#define MANY 111 /* an errno */

/* Fails with minus the number of views for which values are kept, or -MANY for more. */
static int count_looked(struct rref_call *call, void *arg)
{
	int nr = (int)min_of(tg_stats(rref_call_context(call)).views_left, MANY);

	(void)arg;
	return nr ? rref_call_error(call, -nr, "values are looked at")
		  : rref_call_reply(call, NULL);
}

static const struct rref_function served[] = {
	{ .name = "give", .handler = give_one },
	{ .name = "drop", .handler = give_up_all },
	{ .name = "looked", .handler = count_looked },
};

/* ---- marks ---- */

static void set_mark(struct foe *f, uint32_t place, struct rref_id id, struct rref_id fork)
{
	struct rvs_place *p = &f->dev->page->place[place];

	at_store_rel(&p->word[1], id.local_id);
	at_store_rel(&p->word[2], (uint64_t)fork.created_on << 32 | id.created_on);
	at_store_sc(&p->word[0], fork.local_id);
	if (at_load(&f->dev->page->places_end) <= place)
		at_store_sc(&f->dev->page->places_end, place + 1);
}

static void clear_mark(struct foe *f, uint32_t place)
{
	at_store_sc(&f->dev->page->place[place].word[0], 0);
}

static struct rp_fork be_given_one(struct foe *f)
{
	TG_IS(foe_reply_to(f, "give", NULL), 0);
	TG_IS(f->reply_nr_refs, 1);
	return f->reply_refs[0];
}

/* Ends the session and begins another. Returns how many values worker 1 keeps for the last ones. */
static int meet_again(struct foe *f)
{
	foe_meet(f, 1);
	return -foe_reply_to(f, "looked", NULL);
}

/* Marks a value that the foe holds by that fork, which is kept. No other mark keeps anything. */
FOE_TEST(marks__of_what_is_not_held)
{
	struct rp_fork r;

	foe_meet(f, 1);
	r = be_given_one(f);
	set_mark(f, 0, r.id, foe_id_of(1, r.fork.local_id + 1));
	set_mark(f, 1, foe_id_of(1, r.id.local_id - 1), r.fork); /* never given */
	set_mark(f, 2, foe_id_of(1, r.id.local_id - 1), r.id);
	set_mark(f, 3, r.id, foe_id_of(FOE, r.fork.local_id));
	set_mark(f, RV_LOOKS - 1, r.fork, r.id);
	TG_IS(meet_again(f), 0);
	r = be_given_one(f);
	set_mark(f, 4, r.id, r.fork);
	TG_IS(meet_again(f), 1);
	TG_IS(foe_reply_to(f, "drop", NULL), 0);
	TG_IS(-foe_reply_to(f, "looked", NULL), 1);
	clear_mark(f, 4);
	FOE_UNTIL(f, foe_reply_to(f, "looked", NULL) == 0);
	foe_others_work();
}

/* Names one value in the whole table: each place has a pin, and all of them go. */
FOE_TEST(marks__all_of_one_value)
{
	struct rp_fork r;

	foe_meet(f, 1);
	r = be_given_one(f);
	for (uint32_t i = 0; i < RV_LOOKS; i++)
		set_mark(f, i, r.id, r.fork);
	at_store_sc(&f->dev->page->places_end, UINT32_MAX);
	TG_IS(meet_again(f), MANY);
	TG_IS(foe_reply_to(f, "drop", NULL), 0);
	at_store_sc(&f->dev->page->places_end, RV_LOOKS); /* the foe's device closes by it */
	for (uint32_t i = 0; i < RV_LOOKS; i++)
		clear_mark(f, i);
	FOE_UNTIL(f, foe_reply_to(f, "looked", NULL) == 0);
	foe_others_work();
}

/* Changes a mark to another one, which keeps nothing. */
FOE_TEST(marks__that_change)
{
	struct rp_fork r[2];

	foe_meet(f, 1);
	r[0] = be_given_one(f);
	r[1] = be_given_one(f);
	set_mark(f, 0, r[0].id, r[0].fork);
	TG_IS(meet_again(f), 1);
	TG_IS(foe_reply_to(f, "drop", NULL), 0);
	set_mark(f, 0, r[1].id, r[1].fork);
	FOE_UNTIL(f, foe_reply_to(f, "looked", NULL) == 0);
	for (int round = 0; round < 20; round++) {
		for (uint32_t i = 0; i < 64; i++)
			set_mark(f, i, foe_id_of((uint32_t)random(), (uint64_t)random()),
				 foe_id_of((uint32_t)random(), (uint64_t)random() + 1));
		at_store_sc(&f->dev->page->leaves, round & 1);
		TG_IS(meet_again(f), 0);
		foe_still_served(f);
		for (uint32_t i = 0; i < 64; i++)
			set_mark(f, i, r[0].id, r[0].fork);
	}
	foe_others_work();
}

/* Leaves views behind in session after session. Worker 1 keeps those of a few; then the foe may
 * look no more. */
FOE_TEST(marks__of_session_after_session)
{
	int kept = 0;

	foe_meet(f, 1);
	for (uint32_t i = 0; i < 8; i++) {
		struct rp_fork r = be_given_one(f);

		TG_IS(at_load(f->conn->peer_lets_look), i < 4);
		set_mark(f, i, r.id, r.fork);
		kept = meet_again(f);
		TG_IS(kept, min_of(i + 1, 4u));
	}
	TG_IS(foe_reply_to(f, "drop", NULL), 0);
	TG_IS(-foe_reply_to(f, "looked", NULL), 4);
	for (uint32_t i = 0; i < 8; i++)
		clear_mark(f, i);
	FOE_UNTIL(f, foe_reply_to(f, "looked", NULL) == 0);
	TG_IS(meet_again(f), 0);
	TG_IS(at_load(f->conn->peer_lets_look), 1);
	foe_others_work();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(marks__of_what_is_not_held),
		cmocka_unit_test(marks__all_of_one_value),
		cmocka_unit_test(marks__that_change),
		cmocka_unit_test(marks__of_session_after_session),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests_name("marks", tests, NULL, NULL);
}
