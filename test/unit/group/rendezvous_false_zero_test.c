/* SPDX-License-Identifier: Apache-2.0 */
/* A worker whose rank 0 is another program, another version, or hostile. It may also lie although
 * it holds the key. */
#include "rendezvous_test.h"

struct false_zero {
	int listener;
	const void *bytes;
	size_t length;
	bool holds;                      /* stay connected and silent after the bytes */
	pthread_t thread;
	struct worker *one;
};

/* Serves one connection: reads the hello, sends the bytes, and closes after the worker. */
static void *false_zero_run(void *arg)
{
	struct false_zero *z = arg;
	struct rz_reader in = { .have = 0 };
	struct pollfd p = { .events = POLLIN };
	char waste[256];
	int fd = accept(z->listener, NULL, NULL);

	p.fd = fd;
	while (rz_read(fd, &in) == 0)
		poll(&p, 1, LONG_MS);
	stranger_send(fd, z->bytes, z->length);
	if (!z->holds)
		shutdown(fd, SHUT_WR);
	while (poll(&p, 1, LONG_MS) == 1 && recv(fd, waste, sizeof(waste), 0) > 0)
		;
	close(fd);
	return NULL;
}

static struct worker *meet_false_zero(const void *bytes, size_t length, bool holds, int timeout_ms)
{
	int port = free_port();
	struct false_zero z = {
		.listener = stranger_listen(port), .bytes = bytes, .length = length, .holds = holds
	};

	z.one = worker_new(port, 1, 2);
	z.one->timeout_ms = timeout_ms;
	assert_int_equal(pthread_create(&z.thread, NULL, false_zero_run, &z), 0);
	worker_run(z.one);
	assert_int_equal(pthread_join(z.thread, NULL), 0);
	close(z.listener);
	return z.one;
}

static void false_zero__other_protocol(void **state)
{
	static const char *const answers[] = { "HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-x\r\n",
					       "\x15\x03\x01\x02\x02\x16" };
	struct worker *w;

	(void)state;
	for (size_t i = 0; i < array_size(answers); i++) {
		w = meet_false_zero(answers[i], strlen(answers[i]), true, LONG_MS);
		assert_int_equal(w->result, -EPROTO);
		assert_text(w, "does not speak this protocol");
		if (i == 0)
			assert_text(w, "HTTP/1.1");
		worker_free(w);
	}
}

static void false_zero__malformed_frames(void **state)
{
	static const struct {
		unsigned type;
		uint32_t length;
	} cases[] = {
		{ RZ_CHALLENGE, 0 }, { RZ_CHALLENGE, 1u << 30 }, { RZ_CHALLENGE, UINT32_MAX },
		{ RZ_CHALLENGE, 47 }, { RZ_CHALLENGE, 49 },
		{ RZ_HELLO, RZ_HELLO_BODY }, { RZ_JOINED, 32 }, { RZ_MEMBER, 30 },
		{ RZ_FAILED, 40 }, { RZ_REFUSE, 0 },
		{ RZ_REFUSE, 3 }, { RZ_REFUSE, 10 }, { RZ_END, 64 }, { 0, 0 }, { 9999, 0 },
	};
	uint8_t bytes[RZ_FRAME_MAX];

	(void)state;
	for (size_t i = 0; i < array_size(cases); i++) {
		struct worker *w;
		size_t n;

		memset(bytes, 0, sizeof(bytes));
		n = frame_head(bytes, RZ_VERSION, cases[i].type, cases[i].length);
		w = meet_false_zero(bytes, n + (cases[i].length < 100 ? cases[i].length : 0), true,
				    LONG_MS);
		assert_true(w->result == -EPROTO || w->result == -EKEYREJECTED);
		worker_free(w);
	}
}

static void false_zero__without_the_key(void **state)
{
	uint8_t bytes[RZ_FRAME_MAX];
	struct rz_session s = { .key = &other_key, .rank = 1, .world = 2 };
	struct worker *w = meet_false_zero(bytes, rz_challenge_make(&s, bytes), true, LONG_MS);

	(void)state;
	assert_int_equal(w->result, -EKEYREJECTED);
	assert_text(w, "does not hold this group's key");
	worker_free(w);
}

static void false_zero__other_version(void **state)
{
	uint8_t bytes[RZ_HEAD_BYTES];
	struct worker *w = meet_false_zero(bytes, frame_head(bytes, 8, RZ_REFUSE, 60), true,
					   LONG_MS);
	char own[32];

	(void)state;
	assert_int_equal(w->result, -EPROTONOSUPPORT);
	assert_text(w, "version 8");
	snprintf(own, sizeof(own), "version %u", RZ_VERSION);
	assert_text(w, own);
	worker_free(w);
}

/* Checks that an unsigned refusal may only give reasons that no signed one can give. */
static void false_zero__unsigned_refusals(void **state)
{
	uint8_t bytes[RZ_FRAME_MAX];
	struct worker *w = meet_false_zero(bytes, rz_refuse_make(EKEYREJECTED, "no\x1b[31m", bytes),
					   true, LONG_MS);

	(void)state;
	assert_int_equal(w->result, -EKEYREJECTED);
	assert_text(w, "refused: no?[31m");
	worker_free(w);
	w = meet_false_zero(bytes, rz_refuse_make(EEXIST, "you are there twice", bytes), true,
			    LONG_MS);
	assert_int_equal(w->result, -EPROTO);
	worker_free(w);
}

static void false_zero__silent(void **state)
{
	struct worker *w = meet_false_zero("", 0, true, 1000), *half;

	(void)state;
	assert_int_equal(w->result, -ETIMEDOUT);
	assert_text(w, "did not answer");
	worker_free(w);
	half = meet_false_zero("RREF\1", 5, true, 1000);
	assert_int_equal(half->result, -ETIMEDOUT);
	worker_free(half);
}

/* Accepts and closes, again and again. */
static void *close_all(void *arg)
{
	int listener = *(int *)arg, fd;

	while ((fd = accept(listener, NULL, NULL)) >= 0)
		close(fd);
	return NULL;
}

static void false_zero__closes_at_once(void **state)
{
	int port = free_port(), listener = stranger_listen(port);
	struct worker *w = worker_new(port, 1, 2);
	pthread_t thread;

	(void)state;
	w->timeout_ms = 1000;
	assert_int_equal(pthread_create(&thread, NULL, close_all, &listener), 0);
	worker_run(w);
	shutdown(listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(listener);
	assert_int_equal(w->result, -ECONNREFUSED);
	assert_text(w, "closed before an answer");
	worker_free(w);
}

/* A rank 0 that holds the key and has given rank 1 its place; then the script. */
struct scripted_zero {
	int listener;
	void (*script)(int fd, struct rz_session *s, const struct rc_member table[2]);
};

static void *scripted_zero_run(void *arg)
{
	struct scripted_zero *z = arg;
	struct rz_session s = { .key = &group_key };
	struct rc_member table[2];
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;
	struct rz_hello h;
	int fd = accept(z->listener, NULL, NULL);

	member_init(&table[0], 0);
	assert_int_equal(stranger_read(fd, &in), 1);
	assert_int_equal(rz_hello_take(&in, s.key, &h), 0);
	s.rank = h.rank;
	s.world = h.world;
	memcpy(s.client_nonce, h.nonce, RC_NONCE_BYTES);
	stranger_send(fd, out, rz_challenge_make(&s, out));
	assert_int_equal(stranger_read(fd, &in), 1);
	assert_int_equal(rz_join_take(&in, &s, &table[1]), 0);
	stranger_send(fd, out, rz_joined_make(&s, out));
	z->script(fd, &s, table);
	close(z->listener); /* a worker that comes again finds no listener */
	shutdown(fd, SHUT_WR);
	assert_ended(fd);
	close(fd);
	return NULL;
}

static void script_close(int fd, struct rz_session *s, const struct rc_member table[2])
{
	(void)fd;
	(void)s;
	(void)table;
}

static struct worker *meet_scripted_zero(void (*script)(int fd, struct rz_session *s,
							const struct rc_member table[2]))
{
	int port = free_port();
	struct scripted_zero z = { .listener = stranger_listen(port), .script = script };
	struct worker *one = worker_new(port, 1, 2);
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, scripted_zero_run, &z), 0);
	/* A worker that was lost without a reason comes again until its time is over. */
	if (script == script_close)
		one->timeout_ms = 1500;
	worker_run(one);
	assert_int_equal(pthread_join(thread, NULL), 0);
	/* No received byte was handed out. */
	for (uint32_t i = 0; i < 2 && one->result; i++)
		assert_int_equal(one->members[i].name[0], 0);
	return one;
}

/* Sends entries, and END with another digest. */
static void send_table(int fd, struct rz_session *s, const struct rc_member *sent,
		       const struct rc_member *signed_table)
{
	struct rz_digest digest;
	uint8_t out[RZ_FRAME_MAX];

	rz_digest_start(&digest);
	for (int i = 0; i < 2; i++) {
		stranger_send(fd, out, rz_member_make(&sent[i], out));
		rz_digest_add(&digest, s->key, &signed_table[i]);
	}
	stranger_send(fd, out, rz_end_make(s, &digest, out));
}

static void script_good(int fd, struct rz_session *s, const struct rc_member table[2])
{
	send_table(fd, s, table, table);
}

static void script_changed_entry(int fd, struct rz_session *s, const struct rc_member table[2])
{
	struct rc_member changed[2] = { table[0], table[1] };

	changed[0].addr[RV_IBV].bytes[0] ^= 1;
	send_table(fd, s, changed, table);
}

static void script_wrong_order(int fd, struct rz_session *s, const struct rc_member table[2])
{
	struct rc_member changed[2] = { table[1], table[0] };

	send_table(fd, s, changed, changed);
}

static void script_other_self(int fd, struct rz_session *s, const struct rc_member table[2])
{
	struct rc_member changed[2] = { table[0], table[1] };

	changed[1].incarnation ^= 1;
	send_table(fd, s, changed, changed);
}

static void script_early_end(int fd, struct rz_session *s, const struct rc_member table[2])
{
	struct rz_digest digest;
	uint8_t out[RZ_FRAME_MAX];

	rz_digest_start(&digest);
	rz_digest_add(&digest, s->key, &table[0]);
	stranger_send(fd, out, rz_member_make(&table[0], out));
	stranger_send(fd, out, rz_end_make(s, &digest, out));
}

static void script_joined_twice(int fd, struct rz_session *s, const struct rc_member table[2])
{
	uint8_t out[RZ_FRAME_MAX];

	(void)table;
	stranger_send(fd, out, rz_joined_make(s, out));
}

static void script_status_of_another_session(int fd, struct rz_session *s,
					     const struct rc_member table[2])
{
	struct rz_status status = { { { 0 } }, { { 0 } } };
	uint8_t out[RZ_FRAME_MAX];

	(void)table;
	s->sequence += 5;
	stranger_send(fd, out, rz_status_make(s, &status, out));
}

static void script_half_a_table(int fd, struct rz_session *s, const struct rc_member table[2])
{
	uint8_t out[RZ_FRAME_MAX];

	(void)s;
	stranger_send(fd, out, rz_member_make(&table[0], out));
	stranger_send(fd, out, rz_member_make(&table[1], out) / 2);
}

static void script_failed_in_the_table(int fd, struct rz_session *s,
				       const struct rc_member table[2])
{
	uint8_t out[RZ_FRAME_MAX];

	stranger_send(fd, out, rz_member_make(&table[0], out));
	stranger_send(fd, out, rz_failed_make(s, EEXIST, "a\nb", out));
}

static void false_zero__with_the_key_and_a_bad_table(void **state)
{
	static const struct {
		void (*script)(int fd, struct rz_session *s, const struct rc_member table[2]);
		int result;
	} cases[] = {
		{ script_good, 0 }, { script_changed_entry, -EKEYREJECTED },
		{ script_wrong_order, -EPROTO },
		{ script_other_self, -EPROTO }, { script_early_end, -EPROTO },
		{ script_joined_twice, -EPROTO },
		{ script_status_of_another_session, -EKEYREJECTED },
		{ script_close, -ECONNREFUSED },
		{ script_half_a_table, -ECONNREFUSED }, { script_failed_in_the_table, -EEXIST },
	};

	(void)state;
	for (size_t i = 0; i < array_size(cases); i++) {
		struct worker *w = meet_scripted_zero(cases[i].script);

		if (w->result != cases[i].result)
			print_error("case %zu: %d: %s\n", i, w->result, w->text);
		assert_int_equal(w->result, cases[i].result);
		if (cases[i].result == -EEXIST)
			assert_text(w, "a?b");
		worker_free(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(false_zero__closes_at_once),
		COUNTED(false_zero__malformed_frames),
		COUNTED(false_zero__other_protocol),
		COUNTED(false_zero__other_version),
		COUNTED(false_zero__silent),
		COUNTED(false_zero__unsigned_refusals),
		COUNTED(false_zero__with_the_key_and_a_bad_table),
		COUNTED(false_zero__without_the_key),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
