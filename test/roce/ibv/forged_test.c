/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Control messages that are not the peer's, over a connection of RDMA (tg_foe.h). The foe plays two
 * parts. It is the honest peer of worker 1. It is also a stranger that can bring packets into the
 * connection, but has no keys of its messages. For that it reaches into the device layer. Each such
 * message ends the connection, is counted and logged, and does nothing. The session goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_foe.h"
#include "verbs/ibv/ibv.h"

/* Accepts worker 1, which has lost the connection and comes back: the session goes on. It also
 * accepts the next attempt after one that worker 1 gave up. */
static void take_back(struct foe *f)
{
	uint64_t heard = f->nr_recv[RW_RECEIVED];
	uint32_t epoch = f->hs.epoch;

	do {
		struct rc_handshake h = { .self_rank = FOE,
					  .self_incarnation = f->me.incarnation };
		uint8_t answer[RV_ANSWER_MAX];
		size_t length;

		FOE_UNTIL(f, f->request);
		f->ops->close_conn(f->conn);
		f->connected = f->failed = f->ended = false;
		foe_asked(f, &h);
		TG_IS(h.peer_rank, 1);
		TG_CHECK(h.resumes);
		TG_IS(h.epoch, epoch);
		h.server_received = f->got;
		length = rc_answer_make(&f->pair[1], &h, answer);
		foe_accept(f, &h, answer, length);
		f->hs = h;
		FOE_UNTIL(f, f->nr_recv[RW_RECEIVED] > heard || f->failed || f->ended);
	} while (f->nr_recv[RW_RECEIVED] == heard);
	TG_OK(f->ops->allow_reads(f->conn));
	TG_OK(foe_say_received(f, NULL));
	foe_still_served(f);
}

#define LOGGED "a frame that is not the peer's next"

/* Checks that the last message had no effect: no PONG came for it. Worker 1 counts and logs it
 * after the foe knows the connection's end. */
static void was_refused(struct foe *f, uint64_t rejected, uint64_t pongs, const char *what)
{
	FOE_UNTIL(f, f->ended);
	FOE_UNTIL(f, foe_rejected(1) > rejected && strstr(foe_shown()->logged, LOGGED));
	if (foe_rejected(1) != rejected + 1 || f->nr_recv[RW_PONG] != pongs) {
		fprintf(stderr, "%s: rejected %lu -> %lu, PONGs %lu -> %lu, logged: %s\n", what,
			(unsigned long)rejected, (unsigned long)foe_rejected(1),
			(unsigned long)pongs, (unsigned long)f->nr_recv[RW_PONG],
			foe_shown()->logged);
		_exit(1);
	}
	take_back(f);
	foe_others_work();
}

/* Sends PING over the connection as `change` left it: it is refused.
 * The honest peer's count is as before. */
#define BRING(what, change)                                                        \
	do {                                                                       \
		uint64_t rejected_ = foe_rejected(1), pongs_ = f->nr_recv[RW_PONG], seq_ = f->seq; \
		struct rvi_seal *s = &f->conn->tx_seal;                            \
		(void)s;                                                           \
		foe_shown()->logged[0] = '\0';                                     \
		change;                                                            \
		foe_say_number(f, RW_PING, 9);                                     \
		f->seq = seq_;                                                     \
		was_refused(f, rejected_, pongs_, what);                           \
	} while (0)

FOE_TEST(forged__with_any_other_key)
{
	foe_meet(f, 1);
	foe_still_served(f);
	BRING("a key that was guessed", s->key[5] ^= 1);
	BRING("the key of the other direction",
	      memcpy(s->key, f->conn->rx_seal.key, sizeof(s->key)));
	BRING("no MAC at all", f->conn->sealed = false);
}

FOE_TEST(forged__at_another_place)
{
	uint8_t old[RV_SEAL_KEY_BYTES];

	foe_meet(f, 1);
	foe_still_served(f);
	/* An old message, bit by bit: it has the old numbers of frame and message. */
	BRING("repeated", (s->number--, f->conn->tx_seq--, f->seq--));
	BRING("repeated, with the frame's number of now", s->number--);
	BRING("before its turn", (s->number++, f->conn->tx_seq++));
	/* The old message over the next connection. */
	memcpy(old, f->conn->tx_seal.key, sizeof(old));
	f->ops->close_conn(f->conn);
	f->conn = NULL;
	take_back(f);
	BRING("of the connection before", memcpy(s->key, old, sizeof(old)));
}

FOE_TEST(forged__credits)
{
	uint64_t rejected, pongs;

	foe_meet(f, 1);
	foe_still_served(f);
	rejected = foe_rejected(1);
	pongs = f->nr_recv[RW_PONG];
	foe_shown()->logged[0] = '\0';
	f->conn->tx_seal.key[0] ^= 1;
	/* More credits than were ever given: accepted, they would drown us. */
	f->conn->rx_window = 0; /* the foe's own device adds them up */
	f->conn->to_return = f->conn->dev->credits;
	rvi_return_credits(f->conn);
	was_refused(f, rejected, pongs, "credits");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(forged__at_another_place),
		cmocka_unit_test(forged__credits),
		cmocka_unit_test(forged__with_any_other_key),
	};

	return cmocka_run_group_tests_name("forged", tests, NULL, NULL);
}
