/* SPDX-License-Identifier: Apache-2.0 */
/* Checks if a datagram of the device would find a route, in its own network namespace. */
#include <arpa/inet.h>
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

static struct rv_dev dev;

static void set_ip(struct sockaddr_storage *to, const char *ip)
{
	struct sockaddr_in a = { .sin_family = AF_INET };

	assert_int_equal(inet_pton(AF_INET, ip, &a.sin_addr), 1);
	memset(to, 0, sizeof(*to));
	memcpy(to, &a, sizeof(a));
}

static bool has_route(const char *ip)
{
	struct sockaddr_storage to;

	set_ip(&to, ip);
	return rvi_has_route(&dev, &to);
}

static void ask(unsigned long request, void *arg)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, request, arg), 0);
	close(fd);
}

static void route__goes_with_the_interface_and_its_address(void **state)
{
	struct ifreq up = { .ifr_name = "lo", .ifr_flags = IFF_UP }, down = { .ifr_name = "lo" };

	(void)state;
	if (unshare(CLONE_NEWUSER | CLONE_NEWNET)) {
		printf("skipped: no network namespace: %s\n", strerror(errno));
		skip();
	}
	ask(SIOCSIFFLAGS, &up);
	set_ip(&dev.src, "127.0.0.1");
	dev.ifindex = if_nametoindex("lo");
	assert_true(dev.ifindex > 0);
	for (int i = 0; i < 2; i++) {
		assert_true(has_route("10.1.2.3"));
		ask(SIOCSIFFLAGS, &down);
		assert_false(has_route("10.1.2.3"));
		ask(SIOCSIFFLAGS, &up);
	}
	assert_true(has_route("10.1.2.3"));
	/* The device's own address is gone. */
	set_ip(&dev.src, "10.9.9.9");
	assert_false(has_route("10.1.2.3"));
}

/* Asks the port alone: InfiniBand has no such interface, and no socket for each family. */
static void route__unknown(void **state)
{
	struct sockaddr_storage none = { 0 };

	(void)state;
	set_ip(&dev.src, "127.0.0.1");
	dev.ifindex = 0;
	assert_true(has_route("10.1.2.3"));
	dev.ifindex = 1;
	assert_true(rvi_has_route(&dev, &none));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(route__goes_with_the_interface_and_its_address),
		cmocka_unit_test(route__unknown),
	};

	return cmocka_run_group_tests_name("rv_ibv_netdev", tests, NULL, NULL);
}
