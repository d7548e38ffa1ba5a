/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the rendezvous' tests: workers on threads, strangers on sockets, and a count of
 * descriptors around each test. */
#ifndef RENDEZVOUS_TEST_H
#define RENDEZVOUS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/util.h"
#include "core/base/error.h"
#include "core/group/rendezvous.h"

#define LONG_MS 60000                            /* never reached unless a test fails */
#define NAME_SIZE (RREF_NAME_MAX + 1)

static const struct rc_key group_key = { .bytes = { 9, 8, 7 }, .is_group = true };
static const struct rc_key other_key = { .bytes = { 9, 8, 6 }, .is_group = true };
static const struct rc_key user_key = { .bytes = { 5, 5, 5 }, .is_group = false };

struct worker {
	char address[80];
	uint32_t world;
	struct rc_member me;
	const struct rc_key *key;
	int timeout_ms;
	pthread_t thread;
	struct rc_group_log log;

	int result;                              /* written by the thread, read after join */
	char text[RREF_TEXT_SIZE];
	struct rc_member *members;

	pthread_mutex_t lock;
	char lines[16384];                       /* guarded by lock: its log so far */
};

static inline void worker_log(void *ctx, int level, const char *text)
{
	struct worker *w = ctx;
	size_t n;

	(void)level;
	pthread_mutex_lock(&w->lock);
	n = strlen(w->lines);
	snprintf(w->lines + n, sizeof(w->lines) - n, "%s\n", text);
	pthread_mutex_unlock(&w->lock);
}

static inline void *worker_run(void *arg)
{
	struct worker *w = arg;

	w->result = rc_rendezvous(w->address, w->world, &w->me, w->key,
				  now_ns() + w->timeout_ms * NSEC_PER_MSEC, &w->log, w->members);
	snprintf(w->text, sizeof(w->text), "%s", w->result ? rc_error_text() : "");
	return NULL;
}

static inline void member_init(struct rc_member *m, uint32_t rank)
{
	memset(m, 0, sizeof(*m));
	m->rank = rank;
	rc_random(&m->incarnation, sizeof(m->incarnation));
	memset(m->public, (int)rank + 2, sizeof(m->public));
	snprintf(m->name, sizeof(m->name), "w:%u", rank);
	m->addr[RV_SHM].len = (uint16_t)(rank % (RV_ADDR_MAX + 1));
	memset(m->addr[RV_SHM].bytes, (int)rank + 1, m->addr[RV_SHM].len);
	m->addr[RV_IBV].len = RV_ADDR_MAX;
	memset(m->addr[RV_IBV].bytes, (int)rank, RV_ADDR_MAX);
}

static inline struct worker *worker_new(int port, uint32_t rank, uint32_t world)
{
	struct worker *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	snprintf(w->address, sizeof(w->address), "127.0.0.1:%d", port);
	w->world = world;
	w->key = &group_key;
	w->timeout_ms = LONG_MS;
	w->log = (struct rc_group_log){ worker_log, w };
	pthread_mutex_init(&w->lock, NULL);
	member_init(&w->me, rank);
	w->members = calloc(world, sizeof(*w->members));
	assert_non_null(w->members);
	return w;
}

static inline void worker_start(struct worker *w)
{
	assert_int_equal(pthread_create(&w->thread, NULL, worker_run, w), 0);
}

static inline int worker_join(struct worker *w)
{
	assert_int_equal(pthread_join(w->thread, NULL), 0);
	return w->result;
}

static inline void worker_free(struct worker *w)
{
	pthread_mutex_destroy(&w->lock);
	free(w->members);
	free(w);
}

static inline bool worker_logged(struct worker *w, const char *part)
{
	bool found;

	pthread_mutex_lock(&w->lock);
	found = strstr(w->lines, part);
	pthread_mutex_unlock(&w->lock);
	return found;
}

static inline void worker_await_log(struct worker *w, const char *part)
{
	int64_t until = now_ns() + LONG_MS * NSEC_PER_MSEC;

	while (!worker_logged(w, part)) {
		assert_true(now_ns() < until);
		poll(NULL, 0, 5);
	}
}

static inline void assert_text(const struct worker *w, const char *part)
{
	if (!strstr(w->text, part)) {
		print_error("rank %u: result %d, text: %s\n", w->me.rank, w->result, w->text);
		fail_msg("the text does not say \"%s\"", part);
	}
	for (const char *p = w->text; *p; p++)
		assert_true(*p >= 0x20 && *p < 0x7f);
}

static inline void assert_joined(struct worker *w)
{
	if (w->result)
		print_error("rank %u: %d: %s\n", w->me.rank, w->result, w->text);
	assert_int_equal(w->result, 0);
	for (uint32_t i = 0; i < w->world; i++) {
		assert_int_equal(w->members[i].rank, i);
		assert_true(w->members[i].name[0]);
	}
	assert_memory_equal(&w->members[w->me.rank].addr, &w->me.addr, sizeof(w->me.addr));
	assert_string_equal(w->members[w->me.rank].name, w->me.name);
	assert_true(w->members[w->me.rank].incarnation == w->me.incarnation);
}

/* A port that was free a moment ago. */
static inline int free_port(void)
{
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(in);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
	close(fd);
	return ntohs(in.sin_port);
}

/* Makes a listener of the test's own, in rank 0's place. */
static inline int stranger_listen(int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
	assert_int_equal(listen(fd, 64), 0);
	return fd;
}

/* Connects as soon as rank 0 listens. */
static inline int stranger_connect(int port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int64_t until = now_ns() + LONG_MS * NSEC_PER_MSEC;

	for (;;) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		assert_true(fd >= 0);
		if (connect(fd, (struct sockaddr *)&in, sizeof(in)) == 0)
			return fd;
		close(fd);
		assert_true(now_ns() < until);
		poll(NULL, 0, 10);
	}
}

static inline void stranger_send(int fd, const void *bytes, size_t length)
{
	/* May fail: the other side may end it at any byte. */
	(void)!send(fd, bytes, length, MSG_NOSIGNAL);
}

/* Waits for the other side to end the connection, and drops its further bytes. */
static inline void assert_ended(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char waste[4096];
	ssize_t n;

	do {
		assert_int_equal(poll(&p, 1, LONG_MS), 1);
		n = recv(fd, waste, sizeof(waste), MSG_DONTWAIT);
	} while (n > 0);
	assert_true(n == 0 || errno == ECONNRESET);
}

/* Reads the next frame. Returns rz_read's result. */
static inline int stranger_read(int fd, struct rz_reader *in)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int r;

	rz_next(in);
	while ((r = rz_read(fd, in)) == 0)
		assert_int_equal(poll(&p, 1, LONG_MS), 1);
	return r;
}

/* Joins by hand, up to and with JOIN. Returns the type of the answer. */
static inline enum rz_type stranger_join(int fd, struct rz_session *s, const struct rc_key *key,
					 const struct rc_member *m, uint32_t world)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	*s = (struct rz_session){ .key = key, .rank = m->rank, .world = world };
	rc_random(s->client_nonce, RC_NONCE_BYTES);
	stranger_send(fd, out, rz_hello_make(s, out));
	assert_int_equal(stranger_read(fd, &in), 1);
	assert_int_equal(rz_challenge_take(&in, s), 0);
	stranger_send(fd, out, rz_join_make(s, m, out));
	assert_int_equal(stranger_read(fd, &in), 1);
	if (rz_type_of(&in) == RZ_JOINED)
		assert_int_equal(rz_joined_take(&in, s), 0);
	return rz_type_of(&in);
}

/* Writes a head with any content. */
static inline size_t frame_head(uint8_t *out, unsigned version, unsigned type, uint32_t length)
{
	memcpy(out, "RREF", 4);
	put_le16(out + 4, (uint16_t)version);
	put_le16(out + 6, (uint16_t)type);
	put_le32(out + 8, length);
	return RZ_HEAD_BYTES;
}

static inline int nr_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int nr = 0;

	assert_non_null(d);
	while (readdir(d))
		nr++;
	closedir(d);
	return nr;
}

static int fds_before;

static inline int count_fds(void **state)
{
	(void)state;
	fds_before = nr_fds();
	return 0;
}

static inline int compare_fds(void **state)
{
	(void)state;
	if (nr_fds() != fds_before)
		print_error("%d descriptors before, %d after\n", fds_before, nr_fds());
	return nr_fds() == fds_before ? 0 : -1;
}

#define COUNTED(f) cmocka_unit_test_setup_teardown(f, count_fds, compare_fds)

#endif
