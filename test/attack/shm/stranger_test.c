/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Strangers over shared memory (T1 of docs/SECURITY.md). They are another user of the machine, and
 * processes of the same user without the group's key. Each connects to worker 1 as fast as it can,
 * for a second. The work that they cause and their lines in the log are bounded, however many come.
 * The session that is up goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "tg_attack.h"
#include "verbs/shm/shm.h"

#define OTHER_UID 12345
#define BACKLOG 129 /* connections that wait to be accepted: listen(128) */
#define LINES 60u   /* 32, powers of two, and some of others */

/* Attacks from a separate process. Writes to `out` the number of
 * connections it made and the time it took. */
static void strangers(struct foe *f, tg_act_fn act, uid_t uid, int out)
{
	uint64_t said[2] = { 0, 0 };
	int64_t start = now_ns();

	if (uid && (setgid(uid) || setuid(uid)))
		_exit(2);
	while (now_ns() - start < NSEC_PER_SEC)
		said[0] += tg_stranger(f, act);
	said[1] = (uint64_t)(now_ns() - start);
	_exit(write(out, said, sizeof(said)) == sizeof(said) ? 0 : 3);
}

static void flood_by(struct foe *f, tg_act_fn act, uid_t uid)
{
	uint64_t said[2], lines = foe_shown()->logged_lines, rounds;
	int pair[2], status;
	pid_t pid;

	foe_meet(f, 1);
	TG_OK(pipe(pair));
	pid = fork();
	TG_CHECK(pid >= 0);
	if (!pid)
		strangers(f, act, uid, pair[1]);
	close(pair[1]);
	rounds = foe_shown()->rounds;
	foe_others_work();
	TG_IS(read(pair[0], said, sizeof(said)), sizeof(said));
	close(pair[0]);
	TG_IS(waitpid(pid, &status, 0), pid);
	TG_IS(status, 0);
	TG_CHECK(foe_shown()->rounds > rounds);
	/* Worker 1 took so many, and so many still wait. */
	if (said[0] > (said[1] / RVS_WINDOW_NS + 2) * RVS_WINDOW_STRANGERS + BACKLOG) {
		fprintf(stderr, "worker 1 took %lu strangers in %lu ms\n", (unsigned long)said[0],
			(unsigned long)(said[1] / 1000000));
		_exit(1);
	}
	TG_CHECK(said[0] > RVS_WINDOW_STRANGERS);
	foe_others_work();
	foe_still_served(f); /* this session too */
	if (foe_shown()->logged_lines - lines > LINES) {
		fprintf(stderr, "%lu lines in the log\n",
			(unsigned long)(foe_shown()->logged_lines - lines));
		_exit(1);
	}
}

FOE_TEST(other_user__connects)
{
	if (geteuid()) {
		fprintf(stderr, "skipped: needs root to become another user\n");
		return;
	}
	flood_by(f, tg_act_leave, OTHER_UID);
	flood_by(f, tg_act_stay_silent, OTHER_UID);
}

FOE_TEST(stranger__hangs_up)
{
	flood_by(f, tg_act_leave, 0);
}

FOE_TEST(stranger__says_nothing)
{
	flood_by(f, tg_act_stay_silent, 0);
}

FOE_TEST(stranger__says_garbage)
{
	flood_by(f, tg_act_send_garbage, 0);
}

FOE_TEST(stranger__sends_byte_by_byte)
{
	flood_by(f, tg_act_trickle, 0);
}

FOE_TEST(stranger__hands_over_a_pipe)
{
	flood_by(f, tg_act_hand_over_pipe, 0);
}

FOE_TEST(stranger__has_another_key)
{
	flood_by(f, tg_act_say_hello, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(other_user__connects),
		cmocka_unit_test(stranger__hangs_up),
		cmocka_unit_test(stranger__hands_over_a_pipe),
		cmocka_unit_test(stranger__has_another_key),
		cmocka_unit_test(stranger__says_garbage),
		cmocka_unit_test(stranger__sends_byte_by_byte),
		cmocka_unit_test(stranger__says_nothing),
	};

	return cmocka_run_group_tests_name("shm_stranger", tests, NULL, NULL);
}
