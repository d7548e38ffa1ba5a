/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers 0 and 1 use the library. Worker 2, the foe, is a member of the group, but speaks to the
 * device layer itself. It says things that no worker would. Each of them ends its own connection or
 * changes nothing, and is counted. The calls and reads of the others go on, their memory stays
 * bounded, and the foe's remains are freed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "tg_foe.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* ---- connecting ---- */

FOE_TEST(hello__with_another_key)
{
	struct rc_key key = f->pair[1];

	f->pair[1].bytes[3] ^= 1;
	foe_make_hello(f, 1);
	f->pair[1] = key;
	foe_refused(f, 1, -EKEYREJECTED, "key");
	for (size_t i = 0; i < f->hello_length; i += 9) {
		foe_make_hello(f, 1);
		f->hello[i] ^= 0x40;
		foe_dial(f, 1);
		TG_CHECK(f->failed);
	}
	foe_others_work();
}

FOE_TEST(hello__garbage)
{
	uint64_t before = foe_rejected(1);

	for (size_t n = 1; n <= RV_HELLO_MAX; n += 6) {
		rc_random(f->hello, sizeof(f->hello));
		f->hello[0] = 0;
		f->hello_length = n;
		foe_dial(f, 1);
		TG_CHECK(f->failed);
		TG_IS(f->status, -EPROTO);
	}
	TG_CHECK(foe_rejected(1) > before);
}

FOE_TEST(hello__of_another_version)
{
	foe_make_hello(f, 1);
	put_le16(f->hello + 1, RW_PROTOCOL_VERSION + 1);
	foe_refused(f, 1, -EPROTONOSUPPORT, "version 3");
	TG_CHECK(strstr(foe_shown()->logged, "version 3") != NULL);
}

FOE_TEST(hello__for_another_worker)
{
	/* The victim itself. */
	foe_make_hello(f, 1);
	f->hs.self_rank = 1;
	f->hello_length = rc_hello_make(&f->pair[1], &f->hs, f->hello);
	foe_refused(f, 1, -EKEYREJECTED, "this very worker");
	/* An unknown rank, and an earlier self. */
	foe_make_hello(f, 1);
	f->hs.self_rank = 77;
	f->hello_length = rc_hello_make(&f->pair[1], &f->hs, f->hello);
	foe_refused(f, 1, -ESTALE, "not a member");
	foe_make_hello(f, 1);
	f->hs.self_incarnation++;
	f->hello_length = rc_hello_make(&f->pair[1], &f->hs, f->hello);
	foe_refused(f, 1, -ESTALE, "not a member");
	/* Hellos to another worker, and to an earlier life of this one. */
	foe_make_hello(f, 0);
	foe_refused(f, 1, -EKEYREJECTED, "");
	foe_make_hello(f, 1);
	f->hs.peer_incarnation++;
	f->hello_length = rc_hello_make(&f->pair[1], &f->hs, f->hello);
	foe_refused(f, 1, -ESTALE, "another incarnation");
}

/* Checks that a session survives a copy of its own hello. A second
 * session survives a copy of the first hello. */
FOE_TEST(hello__repeated)
{
	struct rv_conn *session, *copy;

	for (int i = 0; i < 2; i++) {
		uint64_t before = foe_rejected(1);
		uint8_t hello[RV_HELLO_MAX];

		foe_meet(f, 1);
		if (i == 0)
			memcpy(hello, f->hello, sizeof(hello));
		session = f->conn;
		TG_OK(f->ops->connect(f->dev, &f->members[1].addr[f->ops->kind],
				      i ? hello : f->hello, f->hello_length, NULL, &copy));
		f->conn = copy;
		f->connected = false;
		FOE_UNTIL(f, f->connected || f->failed);
		TG_CHECK(f->failed);
		TG_IS(f->status, -ESTALE);
		f->ops->close_conn(copy);
		f->conn = session;
		foe_still_served(f);
		TG_IS(foe_rejected(1), before + 1);
	}
}

FOE_TEST(silence__after_connecting)
{
	int64_t start = now_ns();
	uint64_t before = foe_rejected(1);

	foe_make_hello(f, 1);
	foe_dial(f, 1);
	TG_CHECK(f->connected);
	foe_must_end(f, 1, before, "silence");
	TG_CHECK(now_ns() - start > NSEC_PER_SEC && now_ns() - start < 15 * NSEC_PER_SEC);
	foe_meet(f, 1);
	foe_still_served(f);
}

FOE_TEST(silence__of_a_server)
{
	uint8_t answer[RV_ANSWER_MAX];
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };

	tg_set_flag(F_CALL_FOE, 1);
	FOE_UNTIL(f, f->request);
	foe_asked(f, &h);
	h.epoch = 1;
	foe_accept(f, &h, answer, rc_answer_make(&f->pair[0], &h, answer));
	FOE_UNTIL(f, foe_shown()->called);
	TG_IS(foe_shown()->called, 1 + ETIMEDOUT);
	TG_CHECK(foe_shown()->took_ns < 15 * tg_slow() * NSEC_PER_SEC);
}

FOE_TEST(server__never_answers)
{
	tg_set_flag(F_CALL_FOE, 1);
	FOE_UNTIL(f, foe_shown()->called);
	TG_IS(foe_shown()->called, 1 + ETIMEDOUT);
	TG_CHECK(foe_shown()->took_ns < 15 * tg_slow() * NSEC_PER_SEC);
}

static void serve_with(struct foe *f, const uint8_t *answer, size_t length, bool accept)
{
	f->request = NULL;
	foe_shown()->called = 0;
	usleep(300000); /* the other does not try again at once */
	tg_set_flag(F_CALL_FOE, 1);
	FOE_UNTIL(f, f->request);
	foe_hang_up(f);
	if (accept) {
		f->conn = f->request;
		TG_OK(f->ops->accept(f->conn, answer, length, NULL));
	} else {
		f->ops->reject(f->request, answer, length);
	}
	FOE_UNTIL(f, foe_shown()->called);
	TG_CHECK(foe_shown()->took_ns < 15 * tg_slow() * NSEC_PER_SEC);
	foe_others_work();
}

FOE_TEST(server__answers_nonsense)
{
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };
	uint8_t answer[RV_ANSWER_MAX];
	size_t n;

	rc_random(answer, sizeof(answer));
	answer[0] = 0;
	serve_with(f, answer, 59, true);
	TG_IS(foe_shown()->called, 1 + EPROTO);
	foe_asked(f, &h);
	h.epoch = 5;
	n = rc_answer_make(&f->pair[0], &h, answer); /* of another hello */
	serve_with(f, answer, n, true);
	TG_IS(foe_shown()->called, 1 + EKEYREJECTED);
	put_le16(answer + 1, RW_PROTOCOL_VERSION + 1);
	serve_with(f, answer, n, true);
	TG_IS(foe_shown()->called, 1 + EPROTONOSUPPORT);
	TG_CHECK(strstr(foe_shown()->called_text, "version 3") != NULL);
	serve_with(f, answer,
		   rc_reason_make(-EPROTONOSUPPORT, "version 9 is what I speak\033[2J", answer),
		   false);
	TG_IS(foe_shown()->called, 1 + EPROTONOSUPPORT);
	TG_CHECK(strstr(foe_shown()->called_text, "version 9 is what I speak?[2J") != NULL);
	rc_random(answer, sizeof(answer));
	serve_with(f, answer, RV_REASON_MAX, false); /* neither this nor the next is a refusal */
	TG_IS(foe_shown()->called, 1 + ETIMEDOUT);
	/* the announced attempt never comes */
	serve_with(f, answer, rc_reason_make(-EALREADY, "crossing", answer), false);
	TG_IS(foe_shown()->called, 1 + ETIMEDOUT);
}

/* ---- the proof, and messages before it ---- */

FOE_TEST(proof__wrong_or_something_else)
{
	for (int i = 0; i < 5; i++) {
		uint64_t before = foe_rejected(1);

		foe_make_hello(f, 1);
		foe_dial(f, 1);
		TG_CHECK(f->connected);
		if (i == 0) {
			f->proof[31] ^= 1;
			foe_say_auth(f);
		} else if (i == 1) {
			f->seq = 1;
			foe_say_auth(f);
		} else if (i == 2) {
			f->hs.epoch++;
			foe_say_auth(f);
		} else if (i == 3) {
			foe_say_number(f, RW_PING, 1);
		} else {
			foe_send_bytes(f, "?", 1);
		}
		foe_must_end(f, 1, before, "no proof");
		TG_IS(f->nr_recv[RW_PONG], 0);
	}
	uint64_t before = foe_rejected(1);

	foe_meet(f, 1);
	foe_say_auth(f);
	foe_must_end(f, 1, before, "the proof twice");
}

/* ---- messages that are none ---- */

FOE_TEST(malformed__in_every_way)
{
	static const struct { uint16_t at; uint8_t value; } bad[] = {
		/* ... and its acknowledgements */
		{ 0, 0 }, { 0, RW_NR_TYPES }, { 0, 255 }, { 1, 1 }, { 2, 1 }, { 4, 255 },
		{ 7, 255 }, { 22, 255 },
		{ 32, 0 }, { 32, 3 },      /* kind */
		{ 33, 1 }, { 33, 255 },    /* references */
		{ 34, 0 }, { 34, 255 },    /* length of the name */
		{ 35, 1 }, { 37, 255 }, { 39, 255 }, /* length of the data */
		{ 40, 0 },                 /* NUL in the name */
	};
	uint8_t buf[RV_MSG_MAX];

	for (unsigned i = 0; i < array_size(bad); i++) {
		uint64_t before = foe_rejected(1);
		size_t n = foe_a_call(buf, "tg.echo", 1, NULL, 0);

		foe_meet(f, 1);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		buf[bad[i].at] = bad[i].value;
		foe_send_bytes(f, buf, n);
		foe_must_end(f, 1, before, "malformed");
	}
	for (unsigned i = 0; i < 8; i++) {
		uint64_t before = foe_rejected(1);
		size_t n = foe_a_call(buf, "tg.echo", 1, NULL, 0);

		foe_meet(f, 1);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		if (i == 7)
			rc_random(buf, sizeof(buf));
		/* cut short, or noise */
		foe_send_bytes(f, buf, i < 7 ? n * i / 7 + 1 - (i == 6) : sizeof(buf));
		foe_must_end(f, 1, before, "cut");
	}
	TG_IS(f->nr_recv[RW_REPLY], 0);
	TG_CHECK(foe_dropped(1) >= array_size(bad) + 8);
}

FOE_TEST(sequence__wrong_number_or_epoch)
{
	static const int seq[] = { -1, 0, 2, 1000 }, epoch[] = { -1, 1, 1 << 30 };
	uint8_t buf[RV_MSG_MAX];

	for (unsigned i = 0; i < array_size(seq) + array_size(epoch); i++) {
		uint64_t before = foe_rejected(1);
		size_t n = foe_a_call(buf, "tg.echo", 1, NULL, 0);

		foe_meet(f, 1);
		if (i < array_size(seq))
			rw_set_seq(buf, f->seq + (uint64_t)seq[i], f->hs.epoch);
		else
			rw_set_seq(buf, f->seq + 1,
				   f->hs.epoch + (uint32_t)epoch[i - array_size(seq)]);
		foe_send_bytes(f, buf, n);
		foe_must_end(f, 1, before, "out of sequence");
	}
	TG_IS(f->nr_recv[RW_REPLY], 0);
}

/* Checks that a silent member's beacon is READ, and that a false
 * beacon ends that member's session. */
FOE_TEST(beacon__false)
{
	f->beacon_mr.rkey ^= 0x5a00;
	foe_meet(f, 1);
	FOE_UNTIL(f, f->ended);
	foe_others_work();
	f->beacon_mr.rkey ^= 0x5a00;
	foe_meet(f, 1);
	foe_still_served(f);
}

/* ---- well-formed, and not the foe's to say ---- */

FOE_TEST(direction__wrong)
{
	static const struct { uint8_t type; uint64_t number; int to; } bad[] = {
		{ RW_BARRIER, 1, 1 },       /* rank 1 holds no barriers */
		{ RW_BARRIER, 4, 0 },       /* not the next one */
		{ RW_BARRIER, UINT64_MAX, 0 },
		{ RW_BARRIER_DONE, 1, 1 },  /* not from rank 0 */
		{ RW_BARRIER_DONE, 1, 0 },
		{ RW_PONG, 1, 1 },          /* never asked */
	};

	for (unsigned i = 0; i < array_size(bad); i++) {
		uint64_t before = foe_rejected(bad[i].to);

		foe_meet(f, bad[i].to);
		foe_say_number(f, bad[i].type, bad[i].number);
		foe_must_end(f, bad[i].to, before, rw_type_name(bad[i].type));
	}
	/* The foe's own first barrier concerns the foe alone. A cancel is a hint. A goodbye is no
	 * more than that: its sender may speak on. */
	foe_meet(f, 0);
	foe_say_number(f, RW_BARRIER, 2);
	foe_say_number(f, RW_CANCEL, 99);
	foe_say(f, &(struct rw_message){ .frame.type = RW_GOODBYE });
	foe_still_served(f);
}

/* Ends the session of the foe, and no other. */
FOE_TEST(fenced__says_the_foe)
{
	static const uint64_t still[] = { 0, 1, UINT64_MAX };

	for (unsigned i = 0; i < array_size(still); i++) {
		int64_t end = now_ns() + 20 * NSEC_PER_SEC;

		foe_meet(f, 1);
		foe_say_number(f, RW_FENCED, still[i]);
		while (!f->ended && now_ns() < end)
			foe_pump(f);
		TG_CHECK(f->ended);
		foe_others_work();
	}
}

FOE_TEST(protocol__answers_never_asked_for)
{
	static const enum rp_msg_type quiet[] = { RP_MSG_FORK_ACK, RP_MSG_CHILD_ACCEPT,
						  RP_MSG_FETCH_REPLY, RP_MSG_CREATED,
						  RP_MSG_PARENT_ACK };
	uint64_t before = foe_dropped(1), rejects;

	foe_meet(f, 1);
	for (unsigned i = 0; i < array_size(quiet); i++)
		for (uint64_t n = 1; n < 50; n++)
			foe_say_proto(f, quiet[i], foe_id_of(1, n), foe_id_of(1, n + 1000000));
	foe_still_served(f);
	TG_CHECK(foe_dropped(1) >= before + 49 * array_size(quiet));
	/* The id names a child that the victim never had. */
	for (int i = 0; i < 2; i++) {
		foe_meet(f, 1);
		rejects = foe_rejected(1);
		foe_say_proto(f, i ? RP_MSG_PARENT_REQUEST : RP_MSG_CHILD_ACCEPT, foe_id_of(1, 1),
			      foe_id_of(FOE, 1));
		foe_must_end(f, 1, rejects, "child of another");
	}
	/* A reply to an unknown call, also with references. */
	struct rw_message m = { .frame.type = RW_REPLY };

	foe_meet(f, 1);
	before = foe_dropped(1);
	for (uint64_t n = 0; n < 1000; n++) {
		m.u.reply.call_id = n << 32 | (n & 7);
		foe_say(f, &m);
	}
	foe_still_served(f);
	TG_CHECK(foe_dropped(1) >= before + 1000);
}

/* Attacks values of others. Worker 0's reference to the value on worker 1
 * outlives all of this: others_work reads it. */
FOE_TEST(protocol__values_of_others)
{
	uint64_t acks;

	foe_meet(f, 1);
	for (uint64_t n = 1; n < 200; n++) {
		foe_say_proto(f, RP_MSG_DELETE, foe_id_of(0, 1 + n % 4), foe_id_of(0, n));
		foe_say_proto(f, RP_MSG_DELETE, foe_id_of(1, 1 + n % 4), foe_id_of(1, n));
		foe_say_proto(f, RP_MSG_FETCH, foe_id_of(0, 1 + n % 4), foe_id_of(0, n));
	}
	foe_still_served(f);
	TG_IS(f->nr_proto[RP_MSG_FETCH_REPLY], 199);
	TG_IS(f->proto_status, -ESTALE);
	foe_others_work();
	acks = f->nr_proto[RP_MSG_FORK_ACK];
	for (uint64_t n = 1; n <= 5000; n++)
		foe_say_proto(f, RP_MSG_FORK_REQUEST, foe_id_of(n % 3, n + 1000000),
			      foe_id_of(FOE, n));
	foe_still_served(f);
	TG_IS(f->nr_proto[RP_MSG_FORK_ACK], acks + 5000);
	TG_IS(f->proto_status, -ESTALE);
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), 1);
	for (uint64_t n = 1; n <= 5000; n++)
		foe_say_proto(f, RP_MSG_DELETE, foe_id_of(1, n), foe_id_of(FOE, n + 10000));
	foe_still_served(f);
}

FOE_TEST(records__forged)
{
	struct rp_fork r;

	f->word = foe_be_given(f).word;
	foe_meet(f, 1);
	r = foe_record(f, 1, foe_id_of(1, 1000000), 1);      /* the victim never owned it */
	TG_IS(foe_reply_to(f, "tg.read", &r), -ESTALE);
	r = foe_record(f, 0, foe_id_of(0, 1000000), 2);      /* worker 0 never owned it either */
	TG_IS(foe_reply_to(f, "tg.read", &r), -ESTALE);
	r = foe_record(f, 0, foe_id_of(0, 1000000), 3);
	r.owner_incarnation++;
	TG_IS(foe_reply_to(f, "tg.read", &r), -ESTALE);
	r = foe_record(f, 0, foe_id_of(0, 1), 4);
	r.parent = 0;                                /* worker 0's name */
	TG_IS(foe_reply_to(f, "tg.read", &r), -EPROTO);
	r = foe_record(f, 0, foe_id_of(0, 1), 5);
	r.fork = foe_id_of(0, 5);
	TG_IS(foe_reply_to(f, "tg.read", &r), -EPROTO);
	/* The foe's own value, at an invalid place. */
	r = foe_record(f, FOE, foe_id_of(FOE, 1), 6);
	r.loc = (struct rp_location){ .addr = 4096,
				      .length = 100,
				      .nonce = 9,
				      .rkey = { 77, 77 },
				      .version = 1,
				      .nr_segments = 1 };
	/* the read with a wrong key ends this very connection */
	TG_CHECK(foe_reply_to(f, "tg.read", &r) < 0);
	/* Worker 0's value, at an invalid place. Only the owner's word about the place counts: else
	 * two good workers were parted. */
	foe_meet(f, 1);
	r = foe_record(f, 0, foe_id_of(0, 1), 8);
	r.loc = (struct rp_location){ .addr = 4096,
				      .length = 100,
				      .nonce = 9,
				      .rkey = { 77, 77 },
				      .version = 1,
				      .nr_segments = 1 };
	TG_IS(foe_reply_to(f, "tg.read", &r), 0);
	foe_others_work();
	r = foe_record(f, FOE, foe_id_of(FOE, 2), 7);
	r.loc = (struct rp_location){ .addr = 4096,
				      .length = UINT64_C(1) << 40,
				      .nonce = 9,
				      .rkey = { 77, 77 },
				      .version = 1,
				      .nr_segments = 1 };
	TG_CHECK(foe_reply_to(f, "tg.read", &r) < 0);
	foe_still_served(f);
	TG_IS(foe_reply_to(f, "no.such.function", NULL), -ENOSYS);
	TG_IS(foe_reply_to(f, "tg.echo", NULL), 0);
	/* the same call id again concerns the foe alone */
	TG_IS(foe_reply_to(f, "tg.echo", NULL), 0);
}

FOE_TEST(creation__with_ids_of_others)
{
	struct rw_message m = { .frame.type = RW_CALL };
	uint64_t before;

	m.u.call = (struct rw_call){
		.call_id = 1, .kind = RW_CALL_REMOTE, .name = "tg.echo", .name_length = 7
	};
	for (int i = 0; i < 2; i++) {
		foe_meet(f, 1);
		before = foe_rejected(1);
		m.u.call.id = foe_id_of(i ? FOE : 0, 1);
		m.u.call.fork = foe_id_of(i ? 0 : FOE, 2);
		foe_say(f, &m);
		foe_must_end(f, 1, before, "creation in another's name");
	}
	/* The same creation many times over makes one value. */
	foe_meet(f, 1);
	m.u.call.id = foe_id_of(FOE, 1);
	m.u.call.fork = foe_id_of(FOE, 2);
	for (int i = 0; i < 100; i++)
		foe_say(f, &m);
	FOE_UNTIL(f, f->nr_proto[RP_MSG_CREATED]);
	foe_still_served(f);
	TG_IS(f->nr_proto[RP_MSG_CREATED], 1);
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), 2);
}

/* ---- too much of it ---- */

/* Sends more calls than the bound, and each further call is answered -EAGAIN. The foe is served
 * again when the earlier calls end. */
FOE_TEST(flood__of_calls)
{
	uint64_t rss = foe_fresh_look(1, &foe_shown()->of[1].rss_kib);
	struct rw_message m = { .frame.type = RW_CALL };
	static char data[1000];
	int n = tg_is_shm() ? 100000 : 2000;

	foe_meet(f, 1);
	m.u.call = (struct rw_call){ .kind = RW_CALL_RPC,
				     .name = "keep",
				     .name_length = 4,
				     .data = data,
				     .data_length = sizeof(data) };
	for (int i = 0; i < n; i++) {
		m.u.call.call_id = (uint64_t)i;
		TG_OK(foe_say(f, &m));
		if (i % 1000 == 0)
			foe_pump(f);
	}
	foe_still_served(f);
	foe_others_work();
	if (tg_is_shm())
		TG_CHECK(f->nr_again > 20000 && f->nr_again < 80000);
	if (!SANITIZED)
		TG_CHECK(foe_fresh_look(1, &foe_shown()->of[1].rss_kib) < rss + 160 * 1024);
	tg_set_flag(F_ANSWER, 1);
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] == (uint64_t)n);
	TG_IS(foe_reply_to(f, "tg.echo", NULL), 0);
}

/* Asks and never reads: the session ends at the bound of its waiting messages. */
FOE_TEST(flood__from_a_member_that_does_not_read)
{
	uint64_t rss = foe_fresh_look(1, &foe_shown()->of[1].rss_kib), before = foe_rejected(1);
	struct rw_message m = { .frame.type = RW_CALL };
	static char data[RW_INLINE_MAX];

	if (!tg_is_shm())
		return; /* this takes a day otherwise */
	foe_meet(f, 1);
	f->deaf = true;
	m.u.call = (struct rw_call){ .kind = RW_CALL_RPC,
				     .name = "tg.echo_inline",
				     .name_length = 14,
				     .data = data,
				     .data_length = sizeof(data) };
	for (int i = 0; i < 1000000 && foe_say(f, &m) == 0; i++) {
		m.u.call.call_id++;
		if (i % 64 == 0)
			foe_pump(f);
	}
	foe_must_end(f, 1, before, "deaf");
	if (!SANITIZED)
		TG_CHECK(foe_fresh_look(1, &foe_shown()->of[1].rss_kib) < rss + 400 * 1024);
	foe_meet(f, 1);
	foe_still_served(f);
}

/* Calls handlers that wait in vain. Their threads are bounded, the calls of others find a thread,
 * and the calls beyond the bound get an error. */
FOE_TEST(flood__of_calls_that_wait)
{
	uint8_t buf[RV_MSG_MAX];
	int n = tg_is_shm() ? 1500 : 600;

	foe_meet(f, 1);
	for (int i = 0; i < n; i++) {
		struct rp_fork r = foe_record(f, FOE, foe_id_of(FOE, 1000 + (uint64_t)i),
					      5000 + (uint64_t)i);
		size_t length = foe_a_call(buf, "tg.read", (uint64_t)i, &r, 1);

		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		TG_OK(foe_send_bytes(f, buf, length));
	}
	foe_still_served(f);
	FOE_UNTIL(f, f->nr_proto[RP_MSG_FETCH] > 400);
	foe_others_work();
	FOE_UNTIL(f, f->nr_again >= (uint64_t)n - FOE_WAITING - 40);
	TG_CHECK(f->nr_again <= (uint64_t)n - FOE_WAITING);
	TG_CHECK(foe_fresh_look(1, &foe_shown()->of[1].threads) < FOE_WAITING + 40);
}

/* Replies to unknown calls, with references that are never confirmed. */
FOE_TEST(flood__of_unwanted_references)
{
	uint64_t before = foe_rejected(1);
	struct rw_message m = { .frame.type = RW_REPLY };
	int i;

	foe_meet(f, 1);
	m.u.reply.nr_refs = 1;
	for (i = 0; i < 100000; i++) {
		m.u.reply.refs[0] = foe_record(f, 0, foe_id_of(FOE, 1 + (uint64_t)i),
					       1000000 + (uint64_t)i);
		m.u.reply.refs[0].flags = RP_FORK_EARLY;
		if (foe_say(f, &m))
			break;
		if (i % 64 == 0)
			foe_pump(f);
	}
	foe_must_end(f, 1, before, "references unasked");
	TG_CHECK(i < 20000);
}

FOE_TEST(flood__of_pings)
{
	foe_meet(f, 1);
	for (int i = 0; i < (tg_is_shm() ? 50000 : 1000); i++) {
		TG_OK(foe_say_number(f, RW_PING, (uint64_t)i));
		if (i % 32 == 0)
			foe_pump(f);
	}
	foe_still_served(f);
}

/* Begins sessions as fast as it can: a bounded number of them begins in a second. */
FOE_TEST(flood__of_sessions)
{
	int64_t start = now_ns(), took;
	int nr = 0;

	for (int i = 0; i < (tg_is_shm() ? 200 : 20); i++) {
		foe_make_hello(f, 1);
		foe_dial(f, 1);
		nr += f->connected;
		TG_CHECK(f->connected || f->status == -EAGAIN);
		if (f->connected && i % 3 == 0) {
			TG_OK(foe_say_auth(f));
			foe_say_proto(f, RP_MSG_FORK_REQUEST, foe_id_of(0, 1 + (uint64_t)i),
				      foe_id_of(FOE, 1 + (uint64_t)i));
		}
		if (i % 10 == 0)
			foe_others_work();
	}
	took = now_ns() - start;
	if (nr > (took / NSEC_PER_SEC + 2) * (int)RC_HELLOS_MAX) {
		fprintf(stderr, "worker 1 took %d sessions in %lld ms\n", nr,
			(long long)(took / NSEC_PER_MSEC));
		_exit(1);
	}
	foe_meet(f, 1);
	foe_still_served(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hello__with_another_key),
		cmocka_unit_test(hello__garbage),
		cmocka_unit_test(hello__of_another_version),
		cmocka_unit_test(hello__for_another_worker),
		cmocka_unit_test(hello__repeated),
		cmocka_unit_test(silence__after_connecting),
		cmocka_unit_test(silence__of_a_server),
		cmocka_unit_test(server__never_answers),
		cmocka_unit_test(server__answers_nonsense),
		cmocka_unit_test(proof__wrong_or_something_else),
		cmocka_unit_test(malformed__in_every_way),
		cmocka_unit_test(sequence__wrong_number_or_epoch),
		cmocka_unit_test(direction__wrong),
		cmocka_unit_test(fenced__says_the_foe),
		cmocka_unit_test(protocol__answers_never_asked_for),
		cmocka_unit_test(beacon__false),
		cmocka_unit_test(protocol__values_of_others),
		cmocka_unit_test(records__forged),
		cmocka_unit_test(creation__with_ids_of_others),
		cmocka_unit_test(flood__of_calls),
		cmocka_unit_test(flood__from_a_member_that_does_not_read),
		cmocka_unit_test(flood__of_calls_that_wait),
		cmocka_unit_test(flood__of_unwanted_references),
		cmocka_unit_test(flood__of_pings),
		cmocka_unit_test(flood__of_sessions),
	};

	return cmocka_run_group_tests_name("abuse", tests, NULL, NULL);
}
