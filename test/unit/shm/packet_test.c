/* SPDX-License-Identifier: Apache-2.0 */
/* Packets of a peer that leaves between the look at its last packet and the taking of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "verbs/shm/shm.h"

/* Leaves with a packet of ours unread: the socket reports ECONNRESET once, before the packet. */
static void packet__of_a_peer_that_left(void **state)
{
	struct rvs_packet p;
	char byte = 'x';
	int s[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	assert_int_equal(send(s[0], "unread", 6, 0), 6);
	assert_int_equal(send(s[1], "why", 3, 0), 3);
	close(s[1]);
	assert_int_equal(rvs_packet_skip(s[0]), 0);
	assert_int_equal(recv(s[0], &byte, 1, MSG_DONTWAIT), 0); /* the end */
	close(s[0]);

	/* The next one is as before: nothing there, a bad packet. */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	assert_int_equal(rvs_packet_skip(s[0]), -EAGAIN);
	assert_int_equal(send(s[1], "garbage", 7, 0), 7);
	assert_int_equal(rvs_packet_recv(s[0], &p, (int[RVS_PKT_FDS]){ -1 }, &(unsigned){ 0 }),
			 -EPROTO);
	close(s[0]);
	close(s[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(packet__of_a_peer_that_left),
	};

	return cmocka_run_group_tests_name("packet", tests, NULL, NULL);
}
