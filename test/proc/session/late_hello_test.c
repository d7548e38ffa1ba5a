/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two workers connect at the same moment, over a real device. The foe (tg_foe.h) plays an honest
 * worker, message by message. Its own hello loses the crossing, and arrives when the winner's
 * session is up. test/unit/session/crossing_test.c has all orders.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_foe.h"

static uint64_t call_id;

static void on_call(struct foe *f, const struct rw_call *c)
{
	(void)f;
	call_id = c->call_id;
}

/* Lets worker 0, the lower rank, call the foe over a session that worker 0 began. Writes the foe's
 * own early hello and returns its length. */
static size_t lose_the_crossing(struct foe *f, uint8_t early[RV_HELLO_MAX])
{
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };
	uint8_t answer[RV_ANSWER_MAX];
	size_t length, n;

	foe_make_hello(f, 0);
	n = f->hello_length;
	memcpy(early, f->hello, n);
	f->on_call = on_call;
	tg_set_flag(F_CALL_FOE, 1);
	FOE_UNTIL(f, f->request);
	foe_asked(f, &h);
	h.epoch = 1;
	length = rc_answer_make(&f->pair[0], &h, answer);
	f->hs = h;
	foe_accept(f, &h, answer, length);
	FOE_UNTIL(f, f->nr_recv[RW_AUTH]);
	memset(f->proof, 0, sizeof(f->proof));
	TG_OK(foe_say_auth(f));
	FOE_UNTIL(f, f->nr_recv[RW_CALL]);
	return n;
}

FOE_TEST(late_hello__leaves_the_present_session)
{
	struct rw_message reply = { .frame.type = RW_REPLY };
	struct rv_conn *session, *late;
	uint8_t early[RV_HELLO_MAX];
	size_t n = lose_the_crossing(f, early);

	session = f->conn;
	TG_OK(f->ops->connect(f->dev, &f->members[0].addr[f->ops->kind], early, n, NULL, &late));
	f->conn = late;
	f->connected = false;
	FOE_UNTIL(f, f->connected || f->failed);
	TG_CHECK(f->failed);
	TG_IS(f->status, -ESTALE);
	f->ops->close_conn(late);
	f->conn = session;
	/* The answer to a call takes the call's session. */
	rw_reply_init(&reply);
	reply.u.reply.call_id = call_id;
	TG_OK(foe_say(f, &reply));
	FOE_UNTIL(f, foe_shown()->called || f->ended);
	TG_IS(foe_shown()->called, 1);
}

/* Sends a hello that was made later. That is news: the foe has lost
 * the session, and worker 0 did not know. */
FOE_TEST(late_hello__a_new_hello_ends_the_session)
{
	uint8_t early[RV_HELLO_MAX];

	lose_the_crossing(f, early);
	foe_meet(f, 0);
	FOE_UNTIL(f, foe_shown()->called);
	TG_IS(foe_shown()->called, 1 + ENETRESET);
	foe_still_served(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(late_hello__leaves_the_present_session),
		cmocka_unit_test(late_hello__a_new_hello_ends_the_session),
	};

	return cmocka_run_group_tests_name("late_hello", tests, NULL, NULL);
}
