/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a network interface is up, asked of the loopback of a network namespace of its own. */
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "verbs/ibv/ibv.h"

static void set_lo(bool up)
{
	struct ifreq r = { .ifr_name = "lo", .ifr_flags = up ? IFF_UP : 0 };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &r), 0);
	close(fd);
}

static void netdev__is_up_while_it_is_up(void **state)
{
	unsigned lo;

	(void)state;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) {
		printf("skipped: no network namespace: %s\n", strerror(errno));
		skip();
	}
	lo = if_nametoindex("lo");
	assert_true(lo > 0);
	for (int i = 0; i < 2; i++) {
		set_lo(false);
		assert_false(rvi_netdev_is_up(lo));
		set_lo(true);
		assert_true(rvi_netdev_is_up(lo));
	}
}

/* InfiniBand has none, and one may be out of sight: then the port alone is asked. */
static void netdev__that_nobody_knows_is_up(void **state)
{
	(void)state;
	assert_true(rvi_netdev_is_up(0));
	assert_true(rvi_netdev_is_up(INT32_MAX));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(netdev__is_up_while_it_is_up),
		cmocka_unit_test(netdev__that_nobody_knows_is_up),
	};

	return cmocka_run_group_tests_name("rv_ibv_netdev", tests, NULL, NULL);
}
