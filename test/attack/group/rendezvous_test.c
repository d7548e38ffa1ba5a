/* SPDX-License-Identifier: Apache-2.0 */
/* Strangers take all places at the rendezvous, and take them again as soon as they lose them. The
 * group meets all the same. */
#include "test/unit/group/rendezvous_test.h"

#define WORLD 6
#define NR_ATTACKERS 2
#define NR_HELD 200            /* held by each attacker: more than rank 0 lets in */
#define PLACES 64              /* MAX_HALF_OPEN */

enum manner { SILENT, HALF_A_HELLO, HANGS_UP, NR_MANNERS };

static struct attack {
	int port;
	enum manner manner;
	_Atomic bool stop;
	_Atomic unsigned long nr_connected;
} attack;

/* Connects from that address of this host, without waiting for the connection. */
static int dial_from(int port, const char *source)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in from = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	inet_pton(AF_INET, source, &from.sin_addr);
	if (bind(fd, (struct sockaddr *)&from, sizeof(from)) < 0 ||
	    (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void wait_connected(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	(void)poll(&p, 1, LONG_MS);
}

/* Returns whether the other side has closed the connection. */
static bool is_over(int fd)
{
	char byte;
	ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT);

	return n == 0 || (n < 0 && errno != EAGAIN && errno != ENOTCONN);
}

static void *attacker(void *arg)
{
	int fd[NR_HELD];
	uint8_t head[RZ_HEAD_BYTES];
	size_t n = frame_head(head, RZ_VERSION, RZ_HELLO, RZ_HELLO_BODY);

	(void)arg;
	for (int i = 0; i < NR_HELD; i++)
		fd[i] = -1;
	for (int i = 0; !attack.stop; i = (i + 1) % NR_HELD) {
		if (fd[i] >= 0 && (attack.manner == HANGS_UP || is_over(fd[i]))) {
			close(fd[i]);
			fd[i] = -1;
		}
		if (fd[i] < 0 && (fd[i] = dial_from(attack.port, "127.0.0.1")) >= 0) {
			wait_connected(fd[i]);
			attack.nr_connected++;
			if (attack.manner == HALF_A_HELLO)
				stranger_send(fd[i], head, n);
		}
	}
	for (int i = 0; i < NR_HELD; i++)
		if (fd[i] >= 0)
			close(fd[i]);
	return NULL;
}

/* Lets the group meet beside attackers, which use the loopback address as all members do. */
static void group_meets_beside(enum manner manner)
{
	struct worker *w[WORLD];
	pthread_t thread[NR_ATTACKERS];

	attack.port = free_port();
	attack.manner = manner;
	attack.stop = false;
	attack.nr_connected = 0;
	for (uint32_t i = 0; i < WORLD; i++)
		w[i] = worker_new(attack.port, i, WORLD);
	worker_start(w[0]);
	close(stranger_connect(attack.port)); /* it listens */
	for (int i = 0; i < NR_ATTACKERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, attacker, NULL), 0);
	while (attack.nr_connected < 2 * PLACES)
		poll(NULL, 0, 1);
	for (uint32_t i = 1; i < WORLD; i++)
		worker_start(w[i]);
	for (uint32_t i = 0; i < WORLD; i++)
		worker_join(w[i]);
	/* The attackers took more than all places before the workers came. No worker waited until
	 * their time was over. */
	assert_true(manner == HANGS_UP || worker_logged(w[0], "made room"));
	attack.stop = true;
	for (int i = 0; i < NR_ATTACKERS; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	for (uint32_t i = 0; i < WORLD; i++) {
		assert_joined(w[i]);
		worker_free(w[i]);
	}
}

static void strangers__silent_and_back_at_once(void **state)
{
	(void)state;
	group_meets_beside(SILENT);
}

static void strangers__half_a_hello_and_back_at_once(void **state)
{
	(void)state;
	group_meets_beside(HALF_A_HELLO);
}

static void strangers__hang_up_and_back_at_once(void **state)
{
	(void)state;
	group_meets_beside(HANGS_UP);
}

/* Floods from one address: the flood takes the places of that address, and no other's. */
static void strangers__of_an_address_lose_their_own_places(void **state)
{
	int port = free_port(), quiet[4], fd[4 * PLACES], over = 0;
	struct worker *zero = worker_new(port, 0, 2), *one = worker_new(port, 1, 2);

	(void)state;
	worker_start(zero);
	for (size_t i = 0; i < array_size(quiet); i++)
		quiet[i] = stranger_connect(port);
	for (size_t i = 0; i < array_size(fd); i++) {
		fd[i] = dial_from(port, "127.0.0.2");
		assert_true(fd[i] >= 0);
		wait_connected(fd[i]);
	}
	/* All have come when so many had to go: each takes a place after that. */
	for (size_t i = 0; i < array_size(fd) - (PLACES - array_size(quiet)); i++, over++)
		assert_ended(fd[i]);
	for (size_t i = 0; i < array_size(quiet); i++)
		/* The connection ran out of time, on a machine that stood still. */
		if (is_over(quiet[i]))
			assert_true(worker_logged(zero, "too slow"));
	assert_true(over > PLACES && worker_logged(zero, "made room"));
	worker_start(one);
	worker_join(one);
	worker_join(zero);
	assert_joined(zero);
	assert_joined(one);
	for (size_t i = 0; i < array_size(fd); i++)
		close(fd[i]);
	for (size_t i = 0; i < array_size(quiet); i++)
		close(quiet[i]);
	worker_free(zero);
	worker_free(one);
}

/* Connects members that hold the key and never join: they are
 * bounded too, and keep no worker out. */
static void members__without_a_join_make_room(void **state)
{
	int port = free_port(), fd[3 * PLACES];
	struct worker *zero = worker_new(port, 0, 2), *one = worker_new(port, 1, 2);

	(void)state;
	worker_start(zero);
	for (size_t i = 0; i < array_size(fd); i++) {
		struct rz_session s = { .key = &group_key, .rank = 1, .world = 2 };
		uint8_t out[RZ_FRAME_MAX];
		struct rz_reader in;

		fd[i] = stranger_connect(port);
		rc_random(s.client_nonce, RC_NONCE_BYTES);
		stranger_send(fd[i], out, rz_hello_make(&s, out));
		assert_int_equal(stranger_read(fd[i], &in), 1);
		assert_int_equal(rz_challenge_take(&in, &s), 0);
	}
	for (size_t i = 0; i < array_size(fd) - PLACES; i++)
		assert_ended(fd[i]);
	assert_true(worker_logged(zero, "made room"));
	worker_start(one);
	worker_join(one);
	worker_join(zero);
	assert_joined(zero);
	assert_joined(one);
	for (size_t i = 0; i < array_size(fd); i++)
		close(fd[i]);
	worker_free(zero);
	worker_free(one);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(members__without_a_join_make_room),
		COUNTED(strangers__half_a_hello_and_back_at_once),
		COUNTED(strangers__hang_up_and_back_at_once),
		COUNTED(strangers__of_an_address_lose_their_own_places),
		COUNTED(strangers__silent_and_back_at_once),
	};

	return cmocka_run_group_tests_name("rendezvous_attack", tests, NULL, NULL);
}
