/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that resumes sessions wrongly (tg_foe.h). Each of its messages ends its own connection,
 * or its session, and the others go on. It resumes a standing session by a second connection, which
 * takes the first one's place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_foe.h"

/* Asks worker `to` to resume the session of that epoch over a new
 * connection. The foe closes the old one. */
static void dial(struct foe *f, int to, uint32_t epoch, uint64_t received)
{
	uint32_t own_epoch = f->hs.epoch;

	f->hs = (struct rc_handshake){ .resumes = true, .self_rank = FOE, .peer_rank = (uint32_t)to,
				       .self_incarnation = f->me.incarnation,
				       .peer_incarnation = f->members[to].incarnation,
				       .epoch = epoch, .client_received = received };
	f->hello_length = rc_hello_make(&f->pair[to], &f->hs, f->hello);
	f->connected = f->failed = f->ended = false;
	TG_OK(f->ops->connect(f->dev, &f->members[to].addr[f->ops->kind], f->hello, f->hello_length,
			      NULL, &f->conn));
	FOE_UNTIL(f, f->connected || f->failed);
	if (f->failed)
		f->hs.epoch = own_epoch;
}

/* Resumes the session as a whole. Returns false if the worker did not accept it. */
static bool resume(struct foe *f, int to, uint64_t received)
{
	struct rv_conn *old = f->conn;
	uint64_t heard = f->nr_recv[RW_RECEIVED], got = f->got;

	dial(f, to, f->hs.epoch, received);
	if (old)
		f->ops->close_conn(old);
	if (f->failed)
		return false;
	f->got = received;
	TG_OK(f->ops->allow_reads(f->conn));
	TG_OK(foe_say_received(f, f->proof));
	FOE_UNTIL(f, f->nr_recv[RW_RECEIVED] > heard || f->ended);
	if (f->ended)
		f->got = got;
	return !f->ended;
}

static void refused(struct foe *f, int to, uint32_t epoch, int status)
{
	struct rv_conn *session = f->conn;
	uint64_t before = foe_rejected(to);

	dial(f, to, epoch, f->got);
	TG_CHECK(f->failed);
	TG_IS(f->status, status);
	TG_IS(foe_rejected(to), before + 1);
	f->ops->close_conn(f->conn);
	f->conn = session;
	f->connected = session != NULL;
	f->failed = false;
}

/* Tells worker 1, which has lost the connection and dials itself, to leave that to the foe. */
static void leave_it_to_us(struct foe *f)
{
	uint8_t reason[RV_REASON_MAX];

	FOE_UNTIL(f, f->request);
	f->ops->reject(f->request, reason, rc_reason_make(-EALREADY, "crossing", reason));
	f->request = NULL;
}

/* Dials before worker 1 does: the worker, whose rank is lower, must
 * have no attempt of its own under way. */
static void come_back(struct foe *f)
{
	for (;;) {
		leave_it_to_us(f);
		if (resume(f, 1, f->got))
			return;
		TG_IS(f->status, -EALREADY);
	}
}

/* ---- as it should ---- */

FOE_TEST(resume__in_order)
{
	foe_meet(f, 1);
	for (int i = 0; i < 20; i++) {
		foe_still_served(f);
		TG_CHECK(resume(f, 1, f->got));
	}
	foe_still_served(f);
	TG_IS(foe_reply_to(f, "tg.echo", NULL), 0);
	/* Messages that it lacks come again: the last reply, and no more. */
	uint64_t replies = f->nr_recv[RW_REPLY], sent = f->nr_recv[RW_PONG];

	TG_CHECK(resume(f, 1, f->got - 1));
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] == replies + 1);
	TG_IS(f->nr_recv[RW_PONG], sent);
	foe_still_served(f);
}

/* Closes the connection without a word. Worker 1 dials by itself, and is accepted. */
FOE_TEST(resume__by_the_worker)
{
	uint8_t answer[RV_ANSWER_MAX];
	uint64_t heard;

	foe_meet(f, 1);
	foe_still_served(f);
	f->ops->close_conn(f->conn);
	f->conn = NULL;
	FOE_UNTIL(f, f->request);
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };

	foe_asked(f, &h);
	TG_CHECK(h.resumes);
	TG_IS(h.epoch, f->hs.epoch);
	h.server_received = f->got;
	f->connected = false;
	heard = f->nr_recv[RW_RECEIVED];
	size_t length = rc_answer_make(&f->pair[1], &h, answer);

	foe_accept(f, &h, answer, length);
	FOE_UNTIL(f, f->nr_recv[RW_RECEIVED] > heard);
	TG_OK(f->ops->allow_reads(f->conn));
	TG_OK(foe_say_received(f, NULL));
	foe_still_served(f);
}

/* ---- another session, no session ---- */

FOE_TEST(resume__of_another_session)
{
	refused(f, 1, 0, -ENETRESET);
	refused(f, 1, 1, -ENETRESET);
	foe_meet(f, 1);
	refused(f, 1, f->hs.epoch + 1, -ENETRESET);
	foe_still_served(f);
	refused(f, 1, f->hs.epoch - 1, -ENETRESET);
	foe_still_served(f);
	uint32_t old = f->hs.epoch;

	foe_meet(f, 1);
	refused(f, 1, old, -ENETRESET);
	foe_still_served(f);
}

/* Checks that a copy of the hello does not cost the session its connection. */
FOE_TEST(resume__repeated)
{
	struct rv_conn *session;
	uint64_t before;

	foe_meet(f, 1);
	TG_CHECK(resume(f, 1, f->got));
	session = f->conn;
	before = foe_rejected(1);
	f->connected = false;
	TG_OK(f->ops->connect(f->dev, &f->members[1].addr[f->ops->kind], f->hello, f->hello_length,
			      NULL, &f->conn));
	FOE_UNTIL(f, f->connected || f->failed);
	TG_CHECK(f->failed);
	TG_IS(f->status, -ESTALE);
	f->ops->close_conn(f->conn);
	f->conn = session;
	foe_still_served(f);
	TG_IS(foe_rejected(1), before + 1);
}

/* ---- before the proof ---- */

/* Checks that an impostor ends an attempt, not the session: the real peer comes and resumes it. */
FOE_TEST(resume__without_a_proof)
{
	foe_meet(f, 1);
	foe_still_served(f);
	for (int i = 0; i < 4; i++) {
		uint64_t before = foe_rejected(1), pongs = f->nr_recv[RW_PONG];
		struct rv_conn *old = f->conn;

		dial(f, 1, f->hs.epoch, f->got);
		f->ops->close_conn(old);
		TG_CHECK(f->connected);
		if (i == 0) {
			f->proof[31] ^= 1;
			TG_OK(foe_say_received(f, f->proof));
		} else if (i == 1) {
			uint64_t seq = f->seq;

			foe_say_number(f, RW_PING, 1);
			f->seq = seq;
		} else if (i == 2) {
			uint64_t seq = f->seq;

			foe_say_auth(f);
			f->seq = seq;
		} else {
			foe_send_bytes(f, "?", 1);
		}
		FOE_UNTIL(f, f->ended);
		TG_IS(foe_rejected(1), before + 1);
		TG_IS(f->nr_recv[RW_PONG], pongs);
		f->ops->close_conn(f->conn);
		f->conn = NULL;
		come_back(f);
		foe_still_served(f);
	}
}

/* ---- numbers that cannot be ---- */

static void must_be_over(struct foe *f, uint64_t before)
{
	FOE_UNTIL(f, f->ended || f->failed);
	TG_CHECK(foe_rejected(1) > before);
	foe_hang_up(f);
	refused(f, 1, f->hs.epoch, -ENETRESET);
	foe_others_work();
}

FOE_TEST(resume__with_a_count_above_the_sent_messages)
{
	static const uint64_t more[] = { 1, 1000, UINT64_C(1) << 32, UINT64_MAX / 2 };

	for (unsigned i = 0; i < array_size(more); i++) {
		foe_meet(f, 1);
		foe_still_served(f);
		uint64_t before = foe_rejected(1);

		TG_CHECK(!resume(f, 1, f->got + more[i]));
		must_be_over(f, before);
	}
}

FOE_TEST(resume__with_a_count_below_the_acknowledged_messages)
{
	foe_meet(f, 1);
	foe_still_served(f);
	TG_OK(foe_say_received(f, NULL));
	foe_still_served(f);
	uint64_t before = foe_rejected(1);

	TG_CHECK(!resume(f, 1, 0));
	must_be_over(f, before);
}

FOE_TEST(acknowledged__an_unsent_message)
{
	for (int i = 0; i < 6; i++) {
		struct rw_message m = { .frame.type = RW_RECEIVED };
		uint8_t buf[RV_MSG_MAX];
		uint64_t before = foe_rejected(1), seq = 0;
		int n;

		foe_meet(f, 1);
		foe_still_served(f);
		m.frame.epoch = f->hs.epoch;
		m.frame.ack = (uint32_t)f->got;
		m.u.received.seq = f->got;
		if (i == 0) {
			m.frame.ack++;
			m.u.received.seq++;
		} else if (i == 1) {
			m.u.received.seq++;
		} else if (i == 2) {
			m.u.received.mac[0] = 1;
		} else if (i == 3) {
			seq = f->seq + 1; /* it lacks one */
		} else {
			m = (struct rw_message){
				.frame = { .type = RW_PING,
					   .ack = (uint32_t)f->got + (i == 4 ? 1 : INT32_MAX / 2) }
			};
			seq = f->seq + 1;
		}
		n = rw_encode(&m, buf, sizeof(buf));
		TG_OK(n);
		rw_set_seq(buf, seq, f->hs.epoch);
		foe_send_bytes(f, buf, (size_t)n);
		foe_must_end(f, 1, before, "numbers");
	}
}

/* Sends the old messages again over the new connection: each number counts once. */
FOE_TEST(resume__and_the_same_messages_again)
{
	for (int i = 0; i < 2; i++) {
		foe_meet(f, 1);
		foe_still_served(f);
		foe_still_served(f);
		TG_CHECK(resume(f, 1, f->got));
		uint64_t before = foe_rejected(1), pongs = f->nr_recv[RW_PONG];

		f->seq += i ? 1 : (uint64_t)-1;
		foe_say_number(f, RW_PING, 1);
		foe_must_end(f, 1, before, "the same number again, or one left out");
		TG_IS(f->nr_recv[RW_PONG], pongs);
	}
}

/* Resumes too often in too short a time. The session ends, and no other begins for a while. */
FOE_TEST(resume__all_the_time)
{
	int n = 0, max = tg_is_shm() ? 1000 : 100;

	foe_meet(f, 1);
	while (n < max && resume(f, 1, f->got))
		n++;
	if (n == max && !tg_is_shm()) {
		foe_still_served(f); /* emulated hardware does not do it often enough */
		return;
	}
	TG_CHECK(n > 50 && n < 200);
	foe_hang_up(f);
	foe_make_hello(f, 1);
	foe_dial(f, 1);
	TG_CHECK(f->failed);
	TG_IS(f->status, -EAGAIN);
	foe_others_work();
}

/* ---- the server of the worker's attempt ---- */

/* Breaks the connection while worker 0 waits for the answer to a call. The caller then replies
 * badly to the attempt to resume. */
static void called_meanwhile(struct foe *f)
{
	foe_meet(f, 0);
	foe_shown()->called = 0;
	uint64_t calls = f->nr_recv[RW_CALL];

	tg_set_flag(F_CALL_FOE, 1);
	FOE_UNTIL(f, f->nr_recv[RW_CALL] > calls);
	f->request = NULL;
	foe_hang_up(f);
	FOE_UNTIL(f, f->request);
}

FOE_TEST(server__refuses_to_resume)
{
	static const struct { int reason, status; } say[] = {
		{ -ENETRESET, -ENETRESET },     /* cut off by the server */
		{ -EAGAIN, -ENETRESET },        /* cut off, and not to come back soon */
		{ -ESTALE, -ESTALE },           /* another incarnation, told each time */
		{ -ESHUTDOWN, -EOWNERDEAD },    /* it left */
		{ -EPROTO, -EOWNERDEAD },
	};
	uint8_t reason[RV_REASON_MAX];

	for (unsigned i = 0; i < array_size(say); i++) {
		called_meanwhile(f);
		for (; !foe_shown()->called; foe_pump(f)) {
			if (!f->request)
				continue;
			f->ops->reject(f->request, reason,
				       rc_reason_make(say[i].reason, "no\033[2J", reason));
			f->request = NULL;
		}
		TG_IS(foe_shown()->called, 1 - say[i].status);
		TG_CHECK(foe_shown()->took_ns < 15 * tg_slow() * NSEC_PER_SEC);
		foe_others_work();
		usleep(300000); /* the other does not try again at once */
	}
}

/* Refuses one hello with ESTALE, as a copy of a hello is refused: once, that ends no session. */
FOE_TEST(server__refuses_an_attempt_as_stale)
{
	uint8_t reason[RV_REASON_MAX], answer[RV_ANSWER_MAX];
	uint64_t heard;

	foe_meet(f, 1);
	foe_still_served(f);
	f->request = NULL;
	f->ops->close_conn(f->conn);
	f->conn = NULL;
	FOE_UNTIL(f, f->request);
	f->ops->reject(f->request, reason, rc_reason_make(-ESTALE, "too late", reason));
	f->request = NULL;
	FOE_UNTIL(f, f->request);
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };

	foe_asked(f, &h);
	TG_CHECK(h.resumes);
	TG_IS(h.epoch, f->hs.epoch);
	h.server_received = f->got;
	heard = f->nr_recv[RW_RECEIVED];
	foe_accept(f, &h, answer, rc_answer_make(&f->pair[1], &h, answer));
	FOE_UNTIL(f, f->nr_recv[RW_RECEIVED] > heard);
	TG_OK(f->ops->allow_reads(f->conn));
	TG_OK(foe_say_received(f, NULL));
	foe_still_served(f);
}

/* Answers nonsense again and again, or nothing. The worker gives up in bounded time. */
FOE_TEST(server__answers_nonsense_to_a_resume)
{
	for (int i = 0; i < 4; i++) {
		uint8_t answer[RV_ANSWER_MAX];
		int n = 0;

		called_meanwhile(f);
		while (!foe_shown()->called) {
			struct rc_handshake h = { .self_rank = FOE,
						  .self_incarnation = f->me.incarnation };
			size_t length = 67;

			foe_pump(f);
			if (!f->request || i == 3)
				continue;
			foe_hang_up(f);
			foe_asked(f, &h);
			TG_CHECK(h.resumes);
			h.server_received = i == 2 ? UINT64_MAX : 1;
			if (i == 1) {
				h.resumes = false; /* a new session's answer */
				h.epoch++;
			}
			length = rc_answer_make(&f->pair[h.peer_rank], &h, answer);
			if (i == 0)
				rc_random(answer + 3, length - 3);
			foe_accept(f, &h, answer, length);
			n++;
		}
		TG_IS(foe_shown()->called, 1 + (i == 2 ? EPROTO : EOWNERDEAD));
		TG_CHECK(i == 3 || n > 0);
		TG_CHECK(foe_shown()->took_ns < 15 * tg_slow() * NSEC_PER_SEC);
		foe_others_work();
		usleep(300000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(resume__in_order),
		cmocka_unit_test(resume__by_the_worker),
		cmocka_unit_test(resume__of_another_session),
		cmocka_unit_test(resume__repeated),
		cmocka_unit_test(resume__without_a_proof),
		cmocka_unit_test(resume__with_a_count_above_the_sent_messages),
		cmocka_unit_test(resume__with_a_count_below_the_acknowledged_messages),
		cmocka_unit_test(acknowledged__an_unsent_message),
		cmocka_unit_test(resume__and_the_same_messages_again),
		cmocka_unit_test(resume__all_the_time),
		cmocka_unit_test(server__refuses_an_attempt_as_stale),
		cmocka_unit_test(server__refuses_to_resume),
		cmocka_unit_test(server__answers_nonsense_to_a_resume),
	};

	return cmocka_run_group_tests_name("resume_abuse", tests, NULL, NULL);
}
