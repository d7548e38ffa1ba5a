/* SPDX-License-Identifier: Apache-2.0 */
/* The rendezvous among strangers: their bytes end their connection, and nothing else. */
#include "rendezvous_test.h"

#include <sys/resource.h>

#define NR_SILENT 80                             /* more than rank 0 lets in at a time */
#define LARGE_WORLD 1024

struct pair {
	int port;
	struct worker *zero, *one;
};

/* Starts rank 0, which waits for its one other worker; pair_end sends that one. */
static struct pair pair_start(void)
{
	struct pair p = { .port = free_port() };

	p.zero = worker_new(p.port, 0, 2);
	p.one = worker_new(p.port, 1, 2);
	worker_start(p.zero);
	return p;
}

static void pair_end(struct pair *p)
{
	worker_start(p->one);
	worker_join(p->one);
	worker_join(p->zero);
	assert_joined(p->zero);
	assert_joined(p->one);
	worker_free(p->zero);
	worker_free(p->one);
}

/* Makes a HELLO of another version, as its speaker would sign it. */
static size_t hello_of_version(const struct rz_session *s, unsigned version, uint8_t *out)
{
	size_t n = rz_hello_make(s, out);

	put_le16(out + 4, (uint16_t)version);
	rc_mac(s->key, "rref rendezvous hello", out, n - RC_MAC_BYTES, out + n - RC_MAC_BYTES);
	return n;
}

static void assert_refused(int fd, int err, const char *part)
{
	char text[RZ_TEXT_MAX + 1];
	struct rz_reader in;
	int got;

	assert_int_equal(stranger_read(fd, &in), 1);
	assert_int_equal(rz_refuse_take(&in, &got, text, sizeof(text)), 0);
	assert_int_equal(got, err);
	assert_non_null(strstr(text, part));
	assert_ended(fd);
}

static void strangers__garbage_ends_itself(void **state)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
	struct rz_session s = { .key = &group_key, .rank = 1, .world = 2 };
	struct pair p = pair_start();
	uint8_t bytes[4 * RZ_FRAME_MAX];
	uint32_t x = 99;
	int fd, nr = 0;

	(void)state;
#define STRANGER(expression)                                  \
	do {                                                  \
		fd = stranger_connect(p.port);                \
		expression;                                   \
		assert_ended(fd);                             \
		close(fd);                                    \
		nr++;                                         \
	} while (0)
	STRANGER(stranger_send(fd, http, sizeof(http) - 1));
	STRANGER(stranger_send(fd, "G", 1));
	STRANGER(stranger_send(fd, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)); /* TLS */
	STRANGER(stranger_send(fd, "SSH-2.0-x\r\n", 11));
	STRANGER(stranger_send(fd, "FERR", 4));
	STRANGER(stranger_send(fd, "\0\0\0\0\0\0\0\0\0\0\0\0", 12));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_HELLO, 1u << 30)));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_HELLO, UINT32_MAX)));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_HELLO, 0)));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_JOINED, 0)));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, 0, 0)));
	STRANGER(stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, 65535, 0)));
	STRANGER(shutdown(fd, SHUT_WR));
	STRANGER((stranger_send(fd, "RREF", 4), shutdown(fd, SHUT_WR)));
	/* JOIN before HELLO, HELLO twice, a rank 0's frame, an empty JOIN. */
	STRANGER((memset(bytes, 0, sizeof(bytes)),
		  stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_JOIN, 40) + 40)));
	STRANGER((stranger_send(fd, bytes, rz_hello_make(&s, bytes)),
		  stranger_send(fd, bytes, rz_hello_make(&s, bytes))));
	STRANGER(stranger_send(fd, bytes, rz_joined_make(&s, bytes)));
	STRANGER((stranger_send(fd, bytes, rz_hello_make(&s, bytes)),
		  memset(bytes, 0, sizeof(bytes)),
		  stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_JOIN, 0))));
	STRANGER((stranger_send(fd, bytes, rz_hello_make(&s, bytes)),
		  memset(bytes, 0, sizeof(bytes)),
		  stranger_send(fd, bytes, frame_head(bytes, RZ_VERSION, RZ_JOIN, 200) + 200)));
	for (int round = 0; round < 50; round++) {
		for (size_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		/* Half of them have a head that looks good. */
		if (round % 2)
			frame_head(bytes, RZ_VERSION, (unsigned)round % 12, x % (RZ_BODY_MAX + 1));
		STRANGER((stranger_send(fd, bytes, sizeof(bytes)), shutdown(fd, SHUT_WR)));
	}
#undef STRANGER
	assert_true(nr > 64);
	assert_true(worker_logged(p.zero, "refused connection 32:"));
	/* Only some of so many are logged. */
	assert_false(worker_logged(p.zero, "refused connection 33:"));
	assert_true(worker_logged(p.zero, "refused connection 64:"));
	pair_end(&p);
}

static void strangers__immediate_close(void **state)
{
	const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	struct pair p = pair_start();

	(void)state;
	for (int i = 0; i < 200; i++) {
		int fd = stranger_connect(p.port);

		if (i % 2)
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
	}
	pair_end(&p);
}

/* Sends a HELLO a byte at a time. Rank 0 ends the connection before it
 * is whole, and a worker comes meanwhile. */
static void strangers__slow_bytes(void **state)
{
	struct rz_session s = { .key = &group_key, .rank = 2, .world = 3 };
	struct worker *zero, *one, *two;
	uint8_t out[RZ_FRAME_MAX];
	size_t n = rz_hello_make(&s, out), sent = 0;
	int port = free_port(), fd;
	struct pollfd slow;

	(void)state;
	zero = worker_new(port, 0, 3);
	one = worker_new(port, 1, 3);
	two = worker_new(port, 2, 3);
	worker_start(zero);
	fd = stranger_connect(port);
	slow = (struct pollfd){ .fd = fd, .events = POLLIN };
	worker_start(one);
	worker_await_log(zero, "rank 1 \"w:1\"");
	while (sent < n && poll(&slow, 1, 200) == 0)
		stranger_send(fd, out + sent++, 1);
	assert_true(sent < n);
	assert_ended(fd);
	close(fd);
	assert_true(worker_logged(zero, "too slow"));
	worker_start(two);
	worker_join(one);
	worker_join(two);
	worker_join(zero);
	assert_joined(zero);
	assert_joined(one);
	assert_joined(two);
	worker_free(zero);
	worker_free(one);
	worker_free(two);
}

/* Takes every place for strangers with silent ones. The worker after
 * them gets in when their time is over. */
static void strangers__in_silence_cannot_keep_a_worker_out(void **state)
{
	struct pair p = pair_start();
	int fd[NR_SILENT];

	(void)state;
	for (int i = 0; i < NR_SILENT; i++)
		fd[i] = stranger_connect(p.port);
	pair_end(&p);
	for (int i = 0; i < NR_SILENT; i++)
		close(fd[i]);
}

/* Floods rank 0 during the whole rendezvous. */
static void *flood(void *arg)
{
	struct worker *zero = arg;
	int port = atoi(strchr(zero->address, ':') + 1);

	while (!worker_logged(zero, "END OF FLOOD")) {
		struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
					  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		if (fd >= 0 && connect(fd, (struct sockaddr *)&in, sizeof(in)) == 0)
			stranger_send(fd, "POST /x HTTP/1.0\r\n\r\n", 20);
		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

static void strangers__flood_during_a_good_rendezvous(void **state)
{
	int port = free_port();
	struct worker *w[6];
	pthread_t flooder;

	(void)state;
	for (uint32_t i = 0; i < 6; i++)
		w[i] = worker_new(port, i, 6);
	worker_start(w[0]);
	assert_int_equal(pthread_create(&flooder, NULL, flood, w[0]), 0);
	worker_await_log(w[0], "refused connection 8:");
	for (uint32_t i = 1; i < 6; i++)
		worker_start(w[i]);
	for (uint32_t i = 0; i < 6; i++)
		worker_join(w[i]);
	worker_log(w[0], 0, "END OF FLOOD");
	assert_int_equal(pthread_join(flooder, NULL), 0);
	for (uint32_t i = 0; i < 6; i++) {
		assert_joined(w[i]);
		worker_free(w[i]);
	}
}

static void version__of_a_stranger_is_refused_with_both_numbers(void **state)
{
	struct rz_session s = { .key = &other_key, .rank = 1, .world = 2 };
	struct pair p = pair_start();
	uint8_t out[RZ_FRAME_MAX];
	char text[80];
	int fd;

	(void)state;
	fd = stranger_connect(p.port);
	stranger_send(fd, out, hello_of_version(&s, 7, out));
	snprintf(text, sizeof(text), "version 7, rank 0 version %u", RZ_VERSION);
	assert_refused(fd, EPROTONOSUPPORT, text);
	close(fd);
	/* Another form than this version's. */
	fd = stranger_connect(p.port);
	stranger_send(fd, out, frame_head(out, 300, RZ_HELLO, 1000));
	snprintf(text, sizeof(text), "version 300, rank 0 version %u", RZ_VERSION);
	assert_refused(fd, EPROTONOSUPPORT, text);
	close(fd);
	pair_end(&p);
}

static void version__of_a_worker_fails_all(void **state)
{
	struct rz_session s = { .key = &group_key, .rank = 2, .world = 3 };
	int port = free_port(), fd;
	struct worker *w[2];
	uint8_t out[RZ_FRAME_MAX];
	char text[80];

	(void)state;
	for (uint32_t i = 0; i < 2; i++) {
		w[i] = worker_new(port, i, 3);
		worker_start(w[i]);
	}
	fd = stranger_connect(port);
	stranger_send(fd, out, hello_of_version(&s, RZ_VERSION + 1, out));
	snprintf(text, sizeof(text), "rank 2 speaks protocol version %u, rank 0 version %u",
		 RZ_VERSION + 1, RZ_VERSION);
	assert_refused(fd, EPROTONOSUPPORT, text);
	close(fd);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(worker_join(w[i]), -EPROTONOSUPPORT);
		assert_text(w[i], text);
		worker_free(w[i]);
	}
}

/* Holds the key, and breaks the protocol: its place is free again. */
static void member__that_talks_loses_its_place(void **state)
{
	struct pair p = { .port = free_port() };
	struct worker *three = worker_new(p.port, 2, 3);
	struct rz_session s;
	int fd;

	(void)state;
	p.zero = worker_new(p.port, 0, 3);
	p.one = worker_new(p.port, 1, 3);
	worker_start(p.zero);
	fd = stranger_connect(p.port);
	assert_int_equal(stranger_join(fd, &s, &group_key, &three->me, 3), RZ_JOINED);
	stranger_send(fd, "more", 4);
	assert_ended(fd);
	close(fd);
	assert_true(worker_logged(p.zero, "broke the protocol"));
	three->me.incarnation++;
	worker_start(three);
	worker_start(p.one);
	worker_join(three);
	worker_join(p.one);
	worker_join(p.zero);
	assert_joined(p.zero);
	assert_joined(p.one);
	assert_joined(three);
	worker_free(p.zero);
	worker_free(p.one);
	worker_free(three);
}

/* Connects the same process a second time, which is no second worker. */
static void member__that_comes_again_keeps_its_place(void **state)
{
	int port = free_port(), fd[2];
	struct worker *zero = worker_new(port, 0, 3), *one = worker_new(port, 1, 3);
	struct rc_member me;
	struct rz_session s;
	struct rz_reader in;

	(void)state;
	worker_start(zero);
	member_init(&me, 2);
	for (int i = 0; i < 2; i++) {
		fd[i] = stranger_connect(port);
		assert_int_equal(stranger_join(fd[i], &s, &group_key, &me, 3), RZ_JOINED);
	}
	assert_ended(fd[0]);
	worker_start(one);
	worker_join(one);
	worker_join(zero);
	assert_joined(zero);
	assert_joined(one);
	do
		assert_int_equal(stranger_read(fd[1], &in), 1);
	while (rz_type_of(&in) != RZ_END);
	close(fd[0]);
	close(fd[1]);
	worker_free(zero);
	worker_free(one);
}

/* Sends another rank in the entry than the proved one. */
static void member__that_changes_its_rank_is_refused(void **state)
{
	struct pair p = pair_start();
	struct rz_session s = { .key = &group_key, .rank = 1, .world = 2 };
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;
	struct rc_member m;
	int fd = stranger_connect(p.port);

	(void)state;
	rc_random(s.client_nonce, RC_NONCE_BYTES);
	member_init(&m, 0);
	stranger_send(fd, out, rz_hello_make(&s, out));
	assert_int_equal(stranger_read(fd, &in), 1);
	assert_int_equal(rz_challenge_take(&in, &s), 0);
	stranger_send(fd, out, rz_join_make(&s, &m, out));
	assert_refused(fd, EPROTO, "malformed");
	close(fd);
	pair_end(&p);
}

/* Plays 1023 workers by hand, one after the other: the table streams to all of them. */
static void rendezvous__largest_group(void **state)
{
	struct rlimit limit, wanted;
	int port = free_port(), *fd;
	struct rz_session *s;
	struct worker *zero;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	wanted = limit;
	wanted.rlim_cur = 3 * LARGE_WORLD;
	if (limit.rlim_cur < wanted.rlim_cur && setrlimit(RLIMIT_NOFILE, &wanted) < 0) {
		print_message("skipped: both ends need %d descriptors, the limit is %llu\n",
			      3 * LARGE_WORLD, (unsigned long long)limit.rlim_max);
		skip();
	}
	zero = worker_new(port, 0, LARGE_WORLD);
	fd = calloc(LARGE_WORLD, sizeof(*fd));
	s = calloc(LARGE_WORLD, sizeof(*s));
	assert_true(fd && s);
	worker_start(zero);
	for (uint32_t rank = 1; rank < LARGE_WORLD; rank++) {
		struct rc_member m;

		member_init(&m, rank);
		fd[rank] = stranger_connect(port);
		assert_int_equal(stranger_join(fd[rank], &s[rank], &group_key, &m, LARGE_WORLD),
				 RZ_JOINED);
	}
	/* The last ones are read first: one worker's silence is not in the way of others. */
	for (uint32_t rank = LARGE_WORLD - 1; rank > 0; rank--) {
		struct rz_status status;
		struct rz_digest digest;
		struct rz_reader in;
		uint32_t next = 0;

		if (rank % 128) {
			assert_ended(fd[rank]);
			close(fd[rank]);
			continue;
		}
		rz_digest_start(&digest);
		do {
			struct rc_member m;

			assert_int_equal(stranger_read(fd[rank], &in), 1);
			if (rz_type_of(&in) == RZ_STATUS) {
				assert_int_equal(rz_status_take(&in, &s[rank], &status), 0);
				continue;
			}
			if (rz_type_of(&in) == RZ_END)
				break;
			assert_int_equal(rz_member_take(&in, &m), 0);
			assert_int_equal(m.rank, next++);
			rz_digest_add(&digest, &group_key, &m);
		} while (true);
		assert_int_equal(next, LARGE_WORLD);
		assert_int_equal(rz_end_take(&in, &s[rank], &digest), 0);
		close(fd[rank]);
	}
	worker_join(zero);
	assert_joined(zero);
	setrlimit(RLIMIT_NOFILE, &limit);
	free(fd);
	free(s);
	worker_free(zero);
}

/* Limits the descriptors below the size of the group. Rank 0 says so when the time is over; it
 * neither spins nor dies. */
static void rendezvous__lack_of_descriptors_is_named(void **state)
{
	struct rlimit limit, low;
	int port = free_port(), fd[4], spare[3];
	struct worker *zero = worker_new(port, 0, 8);

	(void)state;
	zero->timeout_ms = 2000;
	worker_start(zero);
	fd[0] = stranger_connect(port);
	for (int i = 1; i < 4; i++)
		fd[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* No new descriptor can be made after this, but the existing sockets can connect. */
	for (int i = 0; i < 3; i++)
		spare[i] = dup(fd[0]);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	low = limit;
	low.rlim_cur = 3;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
	for (int i = 1; i < 4; i++) {
		struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
					  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

		assert_int_equal(connect(fd[i], (struct sockaddr *)&in, sizeof(in)), 0);
	}
	worker_join(zero);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(zero->result, -ETIMEDOUT);
	assert_text(zero, "could not accept more");
	for (int i = 0; i < 4; i++)
		close(fd[i]);
	for (int i = 0; i < 3; i++)
		close(spare[i]);
	worker_free(zero);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(member__that_changes_its_rank_is_refused),
		COUNTED(member__that_comes_again_keeps_its_place),
		COUNTED(member__that_talks_loses_its_place),
		COUNTED(rendezvous__lack_of_descriptors_is_named),
		COUNTED(rendezvous__largest_group),
		COUNTED(strangers__flood_during_a_good_rendezvous),
		COUNTED(strangers__garbage_ends_itself),
		COUNTED(strangers__immediate_close),
		COUNTED(strangers__in_silence_cannot_keep_a_worker_out),
		COUNTED(strangers__slow_bytes),
		COUNTED(version__of_a_stranger_is_refused_with_both_numbers),
		COUNTED(version__of_a_worker_fails_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
