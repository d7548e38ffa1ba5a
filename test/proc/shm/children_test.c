/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shm provider, and children that no fork handler saw (clone(2)): they have copies of its
 * descriptors. Such a copy must not keep a connection alive that this side ended. It must not be
 * reported here any more.
 */
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "test/proc/verbs/pair.h"

static pid_t child;

static int end_child(void **state)
{
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	child = 0;
	return teardown(state);
}

static void make_child(void)
{
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	assert_true(child >= 0);
	if (child == 0) {
		alarm(120);
		for (;;)
			pause();
	}
}

static bool is_readable(void)
{
	struct pollfd p = { .fd = me.ops->fd(me.dev), .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

static void closed_here__ends_there(void **state)
{
	struct tlv_conn there, *c;

	(void)state;
	c = start_joined(TLV_COUNT);
	make_child();
	tlv_close_conn(c);
	assert_true(tlv_peer_until_down(&peer, &me, 0, &there));
	tlv_peer_exit(&peer);
	tlv_pump_for(&me, 50);
	assert_false(is_readable());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(closed_here__ends_there, end_child),
	};

	unsetenv("RREF_TEST_DEVICE");
	tlv_ops = &rv_shm_ops;
	return cmocka_run_group_tests_name("children", tests, NULL, NULL);
}
