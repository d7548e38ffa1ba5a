/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that asks for references it has no right to, or asks without end.
 * Another member whose values lie about the references they hold. Each harms its
 * own requests or its own session, and nothing else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_rig.h"

#define REGION_BYTES ((size_t)65536)

/* ---- functions of worker 1 ---- */

/* Creates a value that holds references to new values. The first two
 * bytes of the request give their number. */
static int nest(struct rref_call *call, void *arg)
{
	static const struct rref_type secret = { sizeof(secret), "secret", 0, RREF_LOCAL_ONLY };
	struct rref *refs[RREF_REFS_MAX];
	const unsigned char *how = rref_call_data(call);
	size_t nr = get_le16(how);
	int err;

	(void)arg;
	for (size_t i = 0; i < nr; i++)
		TG_OK(rref_new(rref_call_context(call), &i, sizeof(i), &refs[i]));
	if (how[2])
		err = rref_call_reply_value(call,
					    TG_VALUE(.type = &secret, .refs = refs, .nr_refs = nr));
	else
		err = rref_call_reply(call,
				      &(struct rref_args){ .data = how,
							   .length = 3,
							   .refs = refs,
							   .nr_refs = nr });
	for (size_t i = 0; i < nr; i++)
		rref_release(refs[i]);
	return err;
}

/* Reads its reference and takes all references that it claims to hold. */
static int take_all(struct rref_call *call, void *arg)
{
	struct rref *refs[RREF_REFS_MAX];
	struct rref_view *v;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	size_t nr = rref_view_nr_refs(v);

	err = nr ? rref_view_refs(v, 0, nr, RREF_DEFAULT, refs) : 0;
	rref_view_free(v);
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	for (size_t i = 0; i < nr; i++)
		rref_release(refs[i]);
	return rref_call_error(call, -EDOM, "%zu taken", nr);
}

static const struct rref_function served[] = {
	{ .name = "nest", .handler = nest }, { .name = "take_all", .handler = take_all },
	RIG_PAYLOAD_BYTES,
};

/* ---- asking ---- */

static void create(struct foe *f, const char *function, uint64_t n, uint16_t nr_refs,
		   unsigned char local_only)
{
	struct rw_message m = { .frame.type = RW_CALL };
	unsigned char how[3] = { nr_refs & 0xff, (unsigned char)(nr_refs >> 8), local_only };

	m.u.call = (struct rw_call){ .call_id = n,
				     .kind = RW_CALL_REMOTE,
				     .name = function,
				     .name_length = (uint8_t)strlen(function),
				     .id = foe_id_of(FOE, n),
				     .fork = foe_id_of(FOE, n + 1000),
				     .data = how,
				     .data_length = 3 };
	TG_OK(foe_say(f, &m));
}

/* Asks for a creation, and waits until worker 1 has finished it. */
static void created(struct foe *f, const char *function, uint64_t n, uint16_t nr_refs,
		    unsigned char local_only)
{
	uint64_t before = f->nr_proto[RP_MSG_CREATED];

	create(f, function, n, nr_refs, local_only);
	FOE_UNTIL(f, f->nr_proto[RP_MSG_CREATED] > before);
}

static struct rw_message a_take(struct rref_id id, struct rref_id fork, uint32_t first, uint32_t nr)
{
	static unsigned char range[RW_TAKE_BYTES];
	static uint64_t call_id = 1000000;
	struct rw_message m = { .frame.type = RW_CALL };

	put_le32(range, first);
	put_le32(range + 4, nr);
	m.u.call = (struct rw_call){ .call_id = call_id++,
				     .kind = RW_CALL_TAKE,
				     .id = id,
				     .fork = fork,
				     .name = "",
				     .data = range,
				     .data_length = sizeof(range) };
	return m;
}

/* Returns the status of the answer. */
static int take(struct foe *f, struct rref_id id, struct rref_id fork, uint32_t first, uint32_t nr)
{
	uint64_t before = f->nr_recv[RW_REPLY];
	struct rw_message m = a_take(id, fork, first, nr);

	TG_OK(foe_say(f, &m));
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] > before || f->ended);
	TG_CHECK(!f->ended);
	return f->reply_status;
}

FOE_TEST(take__of_held_references_alone)
{
	struct rref_id id = foe_id_of(FOE, 1), fork = foe_id_of(FOE, 1001),
		       other = foe_id_of(FOE, 2);

	foe_meet(f, 1);
	created(f, "nest", 1, 3, 0);
	TG_IS(f->proto.loc.nr_refs, 3);
	created(f, "nest", 2, 2, 0);
	uint64_t forks = foe_fresh_look(1, &foe_shown()->of[1].forks);

	TG_IS(take(f, id, fork, 0, 3), 0);
	TG_IS(f->reply_nr_refs, 3);
	for (int i = 0; i < 3; i++) {
		const struct rp_fork *r = &f->reply_refs[i];

		TG_CHECK(r->owner == 1 && r->parent == 1 && r->fork.created_on == 1 &&
			 r->loc.version == 1 && r->loc.length == sizeof(size_t));
		TG_OK(foe_say_proto(f, RP_MSG_DELETE, r->id, r->fork));
	}
	foe_still_served(f);
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), forks);
	/* Beyond the end, of all kinds. */
	TG_IS(take(f, id, fork, 3, 1), -EINVAL);
	TG_IS(take(f, id, fork, 0, 4), -EINVAL);
	TG_IS(take(f, id, fork, 2, 2), -EINVAL);
	TG_IS(take(f, id, fork, RREF_REFS_MAX - 1, 1), -EINVAL);
	TG_IS(take(f, id, fork, 0, RREF_REFS_MAX), -EINVAL);
	/* Requests for references that it does not hold: another value, another fork, the fork of
	 * another holder, nothing at all. */
	TG_IS(take(f, other, fork, 0, 1), -ESTALE);
	TG_IS(take(f, id, foe_id_of(FOE, 1002), 0, 1), -ESTALE);
	TG_IS(take(f, id, foe_id_of(FOE, 777), 0, 1), -ESTALE);
	for (uint64_t i = 1; i < 8; i++) {
		TG_IS(take(f, foe_id_of(0, i), foe_id_of(0, i + 1), 0, 1), -ESTALE);
		TG_IS(take(f, foe_id_of(1, i), fork, 0, 1), -ESTALE);
		TG_IS(take(f, foe_id_of(1, i), foe_id_of(1, i), 0, 1), -ESTALE);
	}
	TG_CHECK(strstr(f->reply_text, "rank 2 does not hold it"));
	TG_IS(f->reply_nr_refs, 0);
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), forks);
	/* The foe releases its reference and asks again. */
	TG_OK(foe_say_proto(f, RP_MSG_DELETE, id, fork));
	TG_IS(take(f, id, fork, 0, 1), -ESTALE);
	foe_still_served(f);
}

FOE_TEST(take__of_values_without_references)
{
	foe_meet(f, 1);
	created(f, "nest", 1, 0, 0);                        /* a value without references */
	TG_IS(take(f, foe_id_of(FOE, 1), foe_id_of(FOE, 1001), 0, 1), -EINVAL);
	/* the value stays with its owner, and so do its references */
	created(f, "nest", 2, 5, 1);
	TG_IS(f->proto_status, 0);
	TG_IS(take(f, foe_id_of(FOE, 2), foe_id_of(FOE, 1002), 0, 1), -EPERM);
	created(f, "no.such", 3, 0, 0);                     /* was never made */
	TG_IS(take(f, foe_id_of(FOE, 3), foe_id_of(FOE, 1003), 0, 1), -ENOSYS);
	create(f, "keep", 4, 0, 0);                         /* is not made yet */
	foe_still_served(f);
	TG_IS(take(f, foe_id_of(FOE, 4), foe_id_of(FOE, 1004), 0, 1), -EAGAIN);
	tg_set_flag(F_ANSWER, 1);
	FOE_UNTIL(f, f->nr_proto[RP_MSG_CREATED] == 4);
	TG_IS(take(f, foe_id_of(FOE, 4), foe_id_of(FOE, 1004), 0, 1), -EINVAL);
	foe_still_served(f);
}

FOE_TEST(take__malformed)
{
	static const struct { uint16_t at; uint8_t value; } bad[] = {
		/* located, name, reserved, references, metadata */
		{ 33, 1 }, { 34, 1 }, { 35, 1 }, { 36, 1 }, { 38, 1 },
		{ 40, 7 }, { 40, 9 }, { 41, 1 },                       /* length of the range */
		{ 69, 4 }, { 70, 1 }, { 71, 128 },                     /* first */
		{ 72, 0 }, { 73, 4 }, { 74, 1 }, { 75, 255 },          /* how many */
		{ 32, RW_CALL_RPC }, { 32, RW_CALL_REMOTE }, { 32, 4 },
	};
	uint8_t buf[RV_MSG_MAX];

	for (unsigned i = 0; i < array_size(bad); i++) {
		uint64_t before = foe_rejected(1);
		struct rw_message m = a_take(foe_id_of(FOE, 1), foe_id_of(FOE, 2), 1020, 1);
		int n;

		foe_meet(f, 1);
		n = rw_encode(&m, buf, sizeof(buf));
		TG_IS(n, 76);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		buf[bad[i].at] = bad[i].value;
		foe_send_bytes(f, buf, (size_t)n);
		foe_must_end(f, 1, before, "malformed");
	}
}

/* Takes without end. Each take uses up the foe's quota of forks, and large answers its room. All of
 * it is free again when the session has ended. */
FOE_TEST(take__flood)
{
	int n = tg_scale(4000);

	foe_meet(f, 1);
	created(f, "nest", 1, RREF_REFS_MAX, 0);
	for (int i = 0; i < n; i++) {
		struct rw_message m = a_take(foe_id_of(FOE, 1), foe_id_of(FOE, 1001),
					     (uint32_t)i % 1000, 3);

		TG_OK(foe_say(f, &m));
		foe_pump(f);
	}
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] == (uint64_t)n);
	TG_IS(f->reply_status, 0);
	TG_CHECK(foe_fresh_look(1, &foe_shown()->of[1].forks) >= 3 * (uint64_t)n);
	for (int i = 0; i < 20; i++) {
		struct rw_message m = a_take(foe_id_of(FOE, 1), foe_id_of(FOE, 1001), 0,
					     RREF_REFS_MAX);

		TG_OK(foe_say(f, &m));
	}
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] == (uint64_t)n + 20);
	TG_IS(f->reply_nr_refs, RREF_REFS_MAX);
	/* never read */
	TG_CHECK(rig_offered(f) >= 20u * RREF_REFS_MAX * RW_FORK_BYTES);
	foe_others_work();
	foe_hang_up(f);
	for (int64_t end = now_ns() + 20 * NSEC_PER_SEC;
	     foe_fresh_look(1, &foe_shown()->of[1].forks) > 1;)
		TG_CHECK(now_ns() < end);
	foe_meet(f, 1);
	TG_IS(rig_offered(f), 0);
}

/* ---- the foe's values ---- */

/* Offers 8 bytes that hold `nr` references, or claim to. */
static struct rp_fork put_value(struct foe *f, struct rig *r, uint16_t nr)
{
	struct rp_fork rec = foe_record(f, FOE, foe_id_of(FOE, r->next), 100000 + r->next);

	r->next++;
	memset(r->memory, 0, 256);
	rec.loc = rig_header(f, r, rec.id.local_id, 8, 12345, 1, nr);
	return rec;
}

/* The foe's answer to a request for the references in its value. */
static struct rw_reply answer;
static uint64_t asked, last_fork = 200000;
static struct rw_call question;

static void on_call(struct foe *f, const struct rw_call *c)
{
	struct rw_message m = { .frame.type = RW_REPLY };

	if (c->kind != RW_CALL_TAKE)
		return;
	asked++;
	question = *c;
	TG_CHECK(get_le32(c->data) == 0);
	m.u.reply = answer;
	m.u.reply.call_id = c->call_id;
	TG_OK(foe_say(f, &m));
	TG_OK(foe_say(f, &m)); /* twice: the second is of no call */
}

/* Prepares an answer of `nr` records for values of `owner`, with ids from `first` on. */
static void answer_with(struct foe *f, uint16_t nr, uint32_t owner, uint64_t first)
{
	answer = (struct rw_reply){ .nr_refs = nr };
	for (uint16_t i = 0; i < nr; i++) {
		answer.refs[i] = foe_record(f, owner, foe_id_of(owner, first + i), ++last_fork);
		if (owner == FOE)
			answer.refs[i].loc = (struct rp_location){ .addr = 4096,
								   .length = 1,
								   .nonce = 9,
								   .rkey = { 77, 77 },
								   .version = 1,
								   .nr_segments = 1 };
	}
}

#define IS(f, rec, status, words) \
	do { \
		TG_IS(foe_reply_to(f, "take_all", rec), status); \
		if (!strstr((f)->reply_text, words)) { \
			fprintf(stderr, "%s:%d: \"%s\" does not say \"%s\"\n", __FILE__, __LINE__, \
				(f)->reply_text, words); \
			_exit(1); \
		} \
	} while (0)

FOE_TEST(give__something_else)
{
	struct rp_fork rec;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	f->on_call = on_call;
	foe_meet(f, 1);
	rec = put_value(f, &r, 0);
	IS(f, &rec, -EDOM, "0 taken");
	TG_IS(asked, 0);
	answer_with(f, 2, FOE, 5000);
	rec = put_value(f, &r, 2);
	IS(f, &rec, -EDOM, "2 taken");
	TG_IS(asked, 1);
	/* The question names the same fork that the foe gave. */
	TG_CHECK(question.id.local_id == rec.id.local_id &&
		 question.fork.local_id == rec.fork.local_id);
	for (uint16_t n = 0; n < 5; n++) {
		answer_with(f, n, FOE, 6000 + n * 10u);
		rec = put_value(f, &r, 2);
		if (n == 2)
			IS(f, &rec, -EDOM, "2 taken");
		else
			IS(f, &rec, -EBADMSG, "references came, of 2 that were asked for");
	}
	/* References to unknown values, in the name of others, and of another incarnation. */
	for (uint32_t owner = 0; owner < 2; owner++) {
		answer_with(f, 2, owner, 1000000);
		rec = put_value(f, &r, 2);
		IS(f, &rec, -ESTALE, "");
	}
	answer_with(f, 2, 0, 1000000);
	answer.refs[1].parent = 0;
	rec = put_value(f, &r, 2);
	IS(f, &rec, -EPROTO, "");
	answer_with(f, 2, FOE, 7000);
	answer.refs[1].owner_incarnation++;
	rec = put_value(f, &r, 2);
	IS(f, &rec, -ESTALE, "");
	answer = (struct rw_reply){ .status = -EXDEV, .text = "not today", .text_length = 9 };
	rec = put_value(f, &r, 2);
	IS(f, &rec, -EXDEV, "not today");
	/* Bytes beside the references were not asked for, and are dropped. */
	answer_with(f, 2, FOE, 8000);
	answer.data = "bytes";
	answer.data_length = 5;
	rec = put_value(f, &r, 2);
	IS(f, &rec, -EDOM, "2 taken");
	/* The header's number differs from the location's. */
	uint64_t before = asked;

	rec = put_value(f, &r, 2);
	put_le16(r.memory + 50, 3);
	IS(f, &rec, -EBADMSG, "contradicts");
	rec = put_value(f, &r, 0);
	put_le16(r.memory + 50, 3);
	IS(f, &rec, -EBADMSG, "contradicts");
	TG_IS(asked, before);
	foe_still_served(f);
	f->on_call = NULL;
	rig_close(f, &r);
}

FOE_TEST(give__more_than_there_may_be)
{
	struct rp_fork rec;
	uint8_t buf[RV_MSG_MAX];
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	uint64_t before = foe_rejected(1);

	rec = put_value(f, &r, RREF_REFS_MAX + 1);
	foe_meet(f, 1);
	size_t n = foe_a_call(buf, "take_all", 7, &rec, 1);

	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	foe_send_bytes(f, buf, n);
	foe_must_end(f, 1, before, "malformed location");
	rig_close(f, &r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(give__more_than_there_may_be),
		cmocka_unit_test(give__something_else),
		cmocka_unit_test(take__flood),
		cmocka_unit_test(take__malformed),
		cmocka_unit_test(take__of_values_without_references),
		cmocka_unit_test(take__of_held_references_alone),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
