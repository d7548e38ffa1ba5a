/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that passes for another (tg_foe.h). It holds the group's key, and knows each member's
 * rank, incarnation and public key. Worker 0 has a session with worker 1 and holds a reference to
 * its value: neither may change.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_foe.h"

/* Keys that the foe has, or can make: the key of workers 0 and 1 is not among them. */
enum { GROUP, WITH_ITS_SERVER, WITH_ITS_VICTIM, OF_A_NEW_IDENTITY, NR_KEYS };

static struct rc_key key_for(struct foe *f, int which)
{
	struct rc_member as = f->members[0];
	struct rc_identity own;
	struct rc_key key;

	switch (which) {
	case GROUP:
		return f->key;
	case WITH_ITS_SERVER:
		return f->pair[1];
	case WITH_ITS_VICTIM:
		return f->pair[0];
	default:
		rc_identity_make(&own);
		TG_OK(rc_pair_key(&f->key, &own, &as, &f->members[1], &key));
		return key;
	}
}

/* Sends a hello to worker 1 in worker 0's name, with a number beyond all of worker 0's own. */
static void hello_as_0(struct foe *f, int which, bool resumes, uint32_t epoch)
{
	struct rc_key key = key_for(f, which);

	for (int i = 0; i < 100; i++)
		foe_make_hello(f, 1);
	f->hs = (struct rc_handshake){ .resumes = resumes,
				       .self_rank = 0,
				       .peer_rank = 1,
				       .epoch = epoch,
				       .self_incarnation = f->members[0].incarnation,
				       .peer_incarnation = f->members[1].incarnation };
	f->hello_length = rc_hello_make(&key, &f->hs, f->hello);
}

FOE_TEST(impostor__says_hello_as_another)
{
	uint64_t forks = foe_fresh_look(1, &foe_shown()->of[1].forks);

	TG_CHECK(forks > 0);
	for (int which = 0; which < NR_KEYS; which++) {
		hello_as_0(f, which, false, 0);
		foe_refused(f, 1, -EKEYREJECTED, "key");
		TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), forks);
	}
}

FOE_TEST(impostor__resumes_the_session_of_another)
{
	uint64_t forks = foe_fresh_look(1, &foe_shown()->of[1].forks);

	TG_CHECK(forks > 0);
	for (int which = 0; which < NR_KEYS; which++)
		for (uint32_t epoch = 0; epoch < 4; epoch++) {
			hello_as_0(f, which, true, epoch);
			foe_refused(f, 1, -EKEYREJECTED, "key");
			TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), forks);
		}
}

/* Checks that the real worker is not locked out: the impostor's
 * large numbers did not count as its own. */
FOE_TEST(impostor__locks_no_worker_out)
{
	for (int which = 0; which < NR_KEYS; which++) {
		hello_as_0(f, which, false, 0);
		foe_refused(f, 1, -EKEYREJECTED, "key");
	}
	/* The foe's own hellos, which are later, are served: a session for each. */
	for (int i = 0; i < 3; i++) {
		foe_meet(f, 1);
		foe_still_served(f);
		foe_hang_up(f);
	}
}

/* Sends messages about a foreign reference: a message acts on its sender's own references, and
 * names no other holder. */
FOE_TEST(impostor__gives_back_a_foreign_reference)
{
	uint64_t forks = foe_fresh_look(1, &foe_shown()->of[1].forks);

	foe_meet(f, 1);
	for (uint64_t id = 1; id < 6; id++)
		for (uint64_t fork = 1; fork < 12; fork++)
			for (uint32_t of = 0; of < FOE; of++) {
				uint64_t pongs = f->nr_recv[RW_PONG];

				TG_OK(foe_say_proto(f, RP_MSG_DELETE, foe_id_of(of, id),
						    foe_id_of(0, fork)));
				foe_say_number(f, RW_PING, 7);
				FOE_UNTIL(f, f->nr_recv[RW_PONG] > pongs || f->ended);
				if (f->ended)
					foe_meet(f, 1); /* nonsense ends the foe's own session */
			}
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), forks);
}

/* Joins with a public key of low order, which gives a secret that
 * everybody knows. No handshake uses it. */
static void *join_with_no_key(void *arg)
{
	struct rc_member me = { .rank = 1, .incarnation = 77, .name = "weak" }, members[2];
	struct rc_key key;
	struct rv_dev *dev;
	struct rv_options ro = { .gid_index = -1, .max_conns = 4 };
	const struct rv_ops *ops = tg_is_shm() ? &rv_shm_ops : &rv_ibv_ops;

	TG_OK(rc_key_load(NULL, &key));
	TG_OK(ops->open(&ro, &dev));
	ops->addr(dev, &me.addr[ops->kind]);
	TG_OK(rc_rendezvous(arg, 2, &me, &key, tg_deadline(), NULL, members));
	tg_meet(0);
	tg_meet(1);
	ops->close(dev);
	return NULL;
}

TG_TEST(impostor__an_invalid_public_key, 2)
{
	struct rref_ctx *ctx;
	char text[256];
	int err;

	if (rank == 1) {
		join_with_no_key(tg_current->rendezvous);
		return 0;
	}
	ctx = tg_join(rank);
	tg_meet(0);
	err = rref_rpc_sync(ctx, 1, "tg.echo", NULL, 10 * NSEC_PER_SEC, NULL);
	snprintf(text, sizeof(text), "%s", rref_last_error());
	TG_IS(err, -EKEYREJECTED);
	TG_CHECK(strstr(text, "weak (rank 1)") != NULL);
	tg_meet(1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(impostor__an_invalid_public_key),
		cmocka_unit_test(impostor__gives_back_a_foreign_reference),
		cmocka_unit_test(impostor__locks_no_worker_out),
		cmocka_unit_test(impostor__resumes_the_session_of_another),
		cmocka_unit_test(impostor__says_hello_as_another),
	};

	return cmocka_run_group_tests_name("impostor", tests, NULL, NULL);
}
