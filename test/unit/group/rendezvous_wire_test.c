/* SPDX-License-Identifier: Apache-2.0 */
/* The rendezvous' frames: every bit and every length, replays,
 * and entries that lie about themselves. */
#include "rendezvous_test.h"

static struct rz_session new_session(void)
{
	struct rz_session s = { .key = &group_key, .rank = 2, .world = 20 };

	memset(s.client_nonce, 0xc1, sizeof(s.client_nonce));
	memset(s.server_nonce, 0x5e, sizeof(s.server_nonce));
	return s;
}

static struct rc_member new_member(void)
{
	struct rc_member m;

	member_init(&m, 2);
	return m;
}

enum { HELLO, CHALLENGE, JOIN, JOINED, STATUS, END, FAILED, NR_SIGNED };

static size_t make(int which, uint8_t *out)
{
	struct rz_session s = new_session();
	struct rz_status status;
	struct rz_digest digest = { { 7 } };
	struct rc_member m;

	memset(&m, 0, sizeof(m));
	m.rank = 2;
	m.incarnation = 77;
	snprintf(m.name, sizeof(m.name), "worker");
	m.addr[RV_SHM].len = 5;
	memset(&status, 0x0f, sizeof(status));
	switch (which) {
	case HELLO:
		return rz_hello_make(&s, out);
	case CHALLENGE:
		return rz_challenge_make(&s, out);
	case JOIN:
		return rz_join_make(&s, &m, out);
	case JOINED:
		return rz_joined_make(&s, out);
	case STATUS:
		return rz_status_make(&s, &status, out);
	case END:
		return rz_end_make(&s, &digest, out);
	default:
		return rz_failed_make(&s, EEXIST, "words", out);
	}
}

/* Takes the frame as its receiver would. */
static int take(int which, const struct rz_reader *in, struct rz_session s)
{
	struct rz_digest digest = { { 7 } };
	struct rz_status status;
	struct rz_hello hello;
	struct rc_member m;
	char text[64];
	int err, r;

	switch (which) {
	case HELLO:
		r = rz_hello_take(in, s.key, &hello);
		return r						    ? r
			: hello.is_authentic && hello.version == RZ_VERSION ? 0
									    : -EKEYREJECTED;
	case CHALLENGE:
		return rz_challenge_take(in, &s);
	case JOIN:
		return rz_join_take(in, &s, &m);
	case JOINED:
		return rz_joined_take(in, &s);
	case STATUS:
		return rz_status_take(in, &s, &status);
	case END:
		return rz_end_take(in, &s, &digest);
	default:
		return rz_failed_take(in, &s, &err, text, sizeof(text));
	}
}

/* Returns rz_read's result for the bytes of a peer that then closes. */
static int read_bytes(const uint8_t *bytes, size_t length, struct rz_reader *in)
{
	int pair[2], r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	if (length)
		assert_int_equal(send(pair[0], bytes, length, MSG_NOSIGNAL), length);
	close(pair[0]);
	memset(in, 0, sizeof(*in));
	r = rz_read(pair[1], in);
	close(pair[1]);
	return r;
}

static void frame__comes_back(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	(void)state;
	for (int which = 0; which < NR_SIGNED; which++) {
		size_t n = make(which, out);

		assert_in_range(n, RZ_HEAD_BYTES, RZ_FRAME_MAX);
		assert_int_equal(read_bytes(out, n, &in), 1);
		assert_int_equal(take(which, &in, new_session()), 0);
	}
}

static void frame__every_bit_flip_is_refused(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	(void)state;
	for (int which = 0; which < NR_SIGNED; which++) {
		size_t n = make(which, out);

		for (size_t bit = 0; bit < n * 8; bit++) {
			out[bit / 8] ^= (uint8_t)(1u << bit % 8);
			if (read_bytes(out, n, &in) == 1)
				assert_true(take(which, &in, new_session()) < 0);
			out[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
	}
}

static void frame__cut_short_is_never_whole(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	(void)state;
	for (int which = 0; which < NR_SIGNED; which++) {
		size_t n = make(which, out);

		for (size_t length = 0; length < n; length++)
			assert_int_equal(read_bytes(out, length, &in), -ECONNRESET);
	}
}

static void frame__byte_by_byte(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	size_t n = make(JOIN, out);
	struct rz_reader in = { .have = 0 };
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(rz_read(pair[1], &in), 0);
		assert_int_equal(send(pair[0], out + i, 1, 0), 1);
	}
	assert_int_equal(rz_read(pair[1], &in), 1);
	assert_int_equal(take(JOIN, &in, new_session()), 0);
	close(pair[0]);
	close(pair[1]);
}

/* Sends two frames in one segment: the second stays in its place. */
static void frame__never_read_past_its_end(void **state)
{
	uint8_t out[2 * RZ_FRAME_MAX];
	size_t n = make(CHALLENGE, out), m = make(JOIN, out + n);
	struct rz_reader in = { .have = 0 };
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(send(pair[0], out, n + m, 0), n + m);
	assert_int_equal(rz_read(pair[1], &in), 1);
	assert_int_equal(in.have, n);
	rz_next(&in);
	assert_int_equal(rz_read(pair[1], &in), 1);
	assert_int_equal(in.have, m);
	close(pair[0]);
	close(pair[1]);
}

static void frame__head_decides_early(void **state)
{
	uint8_t head[RZ_HEAD_BYTES] = { 'R', 'R', 'E', 'F', RZ_VERSION, 0, RZ_JOIN, 0 };
	static const uint32_t lengths[] = { RZ_BODY_MAX + 1, 1u << 16, 1u << 30, 1u << 31,
					    UINT32_MAX };
	struct rz_reader in;

	(void)state;
	assert_int_equal(read_bytes((const uint8_t *)"G", 1, &in), -EPROTO);
	assert_int_equal(read_bytes((const uint8_t *)"RREG", 4, &in), -EPROTO);
	assert_int_equal(read_bytes((const uint8_t *)"FERR", 4, &in), -EPROTO);
	for (size_t i = 0; i < array_size(lengths); i++) {
		put_le32(head + 8, lengths[i]);
		assert_int_equal(read_bytes(head, sizeof(head), &in), -EPROTO);
	}
	put_le32(head + 8, 0);
	assert_int_equal(read_bytes(head, sizeof(head), &in), 1);
	for (unsigned version = 0; version < 65536; version += 257) {
		if (version == RZ_VERSION)
			continue;
		put_le16(head + 4, (uint16_t)version);
		assert_int_equal(read_bytes(head, sizeof(head), &in), -EPROTONOSUPPORT);
		assert_int_equal(rz_version_of(&in), version);
	}
}

/* Tries any type with any body: the readers check type and length first. */
static void frame__wrong_type_is_refused(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in = { .have = RZ_HEAD_BYTES };
	struct rc_member m;
	char text[8];
	int err;

	(void)state;
	for (int which = 0; which < NR_SIGNED; which++) {
		size_t n = make(which, out);

		memcpy(in.frame, out, n);
		for (int other = 0; other < NR_SIGNED; other++)
			if (other != which)
				assert_int_equal(take(other, &in, new_session()), -EPROTO);
		assert_int_equal(rz_member_take(&in, &m), -EPROTO);
		assert_int_equal(rz_refuse_take(&in, &err, text, sizeof(text)), -EPROTO);
	}
}

static void frame__replayed_in_another_session_is_refused(void **state)
{
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	(void)state;
	for (int which = CHALLENGE; which < NR_SIGNED; which++) {
		struct rz_session s;

		read_bytes(out, make(which, out), &in);
		s = new_session();
		s.client_nonce[3] ^= 1;
		assert_int_equal(take(which, &in, s), -EKEYREJECTED);
		s = new_session();
		s.server_nonce[3] ^= 1;
		/* The challenge brings the server's nonce. */
		assert_int_equal(take(which, &in, s), which == CHALLENGE ? 0 : -EKEYREJECTED);
		s = new_session();
		s.rank++;
		assert_int_equal(take(which, &in, s), -EKEYREJECTED);
		s = new_session();
		s.world++;
		assert_int_equal(take(which, &in, s), -EKEYREJECTED);
		s = new_session();
		s.key = &other_key;
		assert_int_equal(take(which, &in, s), -EKEYREJECTED);
		s = new_session();
		s.sequence++;
		assert_int_equal(take(which, &in, s), which <= JOIN ? 0 : -EKEYREJECTED);
	}
}

/* Sends rank 0's own END after a table that rank 0 did not send. */
static void frame__end_of_another_table_is_refused(void **state)
{
	struct rz_session s = new_session();
	struct rz_digest digest = { { 8 } };
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;

	(void)state;
	assert_int_equal(read_bytes(out, make(END, out), &in), 1);
	assert_int_equal(rz_end_take(&in, &s, &digest), -EKEYREJECTED);
}

/* Changes any one byte of a member's frame: it is refused, or changes the digest. */
static void member__change_is_seen_by_the_digest(void **state)
{
	struct rc_member m = new_member(), got;
	struct rz_digest want, have;
	uint8_t out[RZ_FRAME_MAX];
	size_t n = rz_member_make(&m, out);
	struct rz_reader in;

	(void)state;
	rz_digest_start(&want);
	rz_digest_add(&want, &group_key, &m);
	assert_int_equal(read_bytes(out, n, &in), 1);
	assert_int_equal(rz_member_take(&in, &got), 0);
	assert_memory_equal(got.name, m.name, sizeof(m.name));
	rz_digest_start(&have);
	rz_digest_add(&have, &group_key, &got);
	assert_memory_equal(&want, &have, sizeof(want));
	for (size_t bit = RZ_HEAD_BYTES * 8; bit < n * 8; bit++) {
		out[bit / 8] ^= (uint8_t)(1u << bit % 8);
		if (read_bytes(out, n, &in) == 1 && rz_member_take(&in, &got) == 0) {
			rz_digest_start(&have);
			rz_digest_add(&have, &group_key, &got);
			assert_memory_not_equal(&want, &have, sizeof(want));
		}
		out[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static void put_member(struct rz_reader *in, const uint8_t *entry, size_t length)
{
	memset(in, 0, sizeof(*in));
	memcpy(in->frame, "RREF", 4);
	put_le16(in->frame + 4, RZ_VERSION);
	put_le16(in->frame + 6, RZ_MEMBER);
	put_le32(in->frame + 8, (uint32_t)length);
	memcpy(in->frame + RZ_HEAD_BYTES, entry, length);
	in->have = RZ_HEAD_BYTES + length;
}

static void member__every_other_length_is_refused(void **state)
{
	struct rc_member m = new_member(), got;
	uint8_t out[RZ_FRAME_MAX] = { 0 };
	size_t n = rz_member_make(&m, out) - RZ_HEAD_BYTES;
	struct rz_reader in;

	(void)state;
	for (size_t length = 0; length <= RZ_BODY_MAX; length++) {
		put_member(&in, out + RZ_HEAD_BYTES, length);
		assert_int_equal(rz_member_take(&in, &got), length == n ? 0 : -EPROTO);
	}
}

static void member__lies_are_refused(void **state)
{
	struct rc_member m, got, before;
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;
	size_t n;

	(void)state;
	memset(&m, 0, sizeof(m));
	snprintf(m.name, sizeof(m.name), "abc");
	n = rz_member_make(&m, out) - RZ_HEAD_BYTES;
	memset(&before, 0x77, sizeof(before));
#define REFUSED(offset, value)                                               \
	do {                                                                 \
		got = before;                                                \
		put_member(&in, out + RZ_HEAD_BYTES, n);                     \
		in.frame[RZ_HEAD_BYTES + (offset)] = (uint8_t)(value);       \
		assert_int_equal(rz_member_take(&in, &got), -EPROTO);        \
		assert_memory_equal(&got, &before, sizeof(got));             \
	} while (0)
	for (int length = 0; length < 256; length++)
		if (length != 3)
			REFUSED(44, length);     /* the name's length */
	REFUSED(45, 0);                          /* its bytes */
	REFUSED(46, 0);
	REFUSED(47, ' ');
	REFUSED(47, '%');
	REFUSED(47, 0xff);
	for (int kinds = 0; kinds < 256; kinds++)
		if (kinds != RV_NR_KINDS)
			REFUSED(48, kinds);
	for (int length = 1; length < 256; length++)
		REFUSED(49, length);             /* an address' length */
	REFUSED(50, 1);
	REFUSED(52, 0xff);
#undef REFUSED
}

/* Changes a public key on its way: END vouches for the keys, so the change is noticed. */
static void digest__covers_all_of_an_entry(void **state)
{
	struct rz_digest want, got;
	struct rc_member m = new_member(), other;

	(void)state;
	rz_digest_start(&want);
	rz_digest_add(&want, &group_key, &m);
#define CHANGED(change)                                                      \
	do {                                                                 \
		other = m;                                                   \
		change;                                                      \
		rz_digest_start(&got);                                       \
		rz_digest_add(&got, &group_key, &other);                     \
		assert_memory_not_equal(want.bytes, got.bytes, RC_MAC_BYTES); \
	} while (0)
	for (size_t i = 0; i < RC_KEY_BYTES; i++)
		CHANGED(other.public[i] ^= 1);
	CHANGED(other.rank++);
	CHANGED(other.incarnation++);
	CHANGED(other.name[0] = 'x');
	CHANGED(other.addr[RV_IBV].bytes[7] ^= 1);
#undef CHANGED
}

static void refusal__codes_and_text_are_bounded(void **state)
{
	static const uint32_t bad[] = { 0, 4096, 65536, INT32_MAX, 0x80000000u, UINT32_MAX };
	uint8_t out[RZ_FRAME_MAX];
	struct rz_reader in;
	char longer[2 * RZ_TEXT_MAX], text[RZ_TEXT_MAX + 1];
	int err = 0;

	(void)state;
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(read_bytes(out, rz_refuse_make(-EKEYREJECTED, longer, out), &in), 1);
	assert_int_equal(rz_refuse_take(&in, &err, text, sizeof(text)), 0);
	assert_int_equal(err, EKEYREJECTED);
	assert_int_equal(strlen(text), RZ_TEXT_MAX);
	assert_int_equal(rz_refuse_take(&in, &err, text, 8), 0);
	assert_true(strlen(text) < 8);
	for (size_t i = 0; i < array_size(bad); i++) {
		put_le32(in.frame + RZ_HEAD_BYTES, bad[i]);
		assert_int_equal(rz_refuse_take(&in, &err, text, sizeof(text)), -EPROTO);
	}
	read_bytes(out, rz_refuse_make(EPROTO, "a\x1b[31m\n%n\x80", out), &in);
	assert_int_equal(rz_refuse_take(&in, &err, text, sizeof(text)), 0);
	assert_string_equal(text, "a?[31m?%n?");
	read_bytes(out, rz_refuse_make(EPROTO, "", out), &in);
	assert_int_equal(rz_refuse_take(&in, &err, text, sizeof(text)), 0);
	assert_string_equal(text, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(digest__covers_all_of_an_entry),
		COUNTED(frame__byte_by_byte),
		COUNTED(frame__comes_back),
		COUNTED(frame__cut_short_is_never_whole),
		COUNTED(frame__end_of_another_table_is_refused),
		COUNTED(frame__every_bit_flip_is_refused),
		COUNTED(frame__head_decides_early),
		COUNTED(frame__never_read_past_its_end),
		COUNTED(frame__replayed_in_another_session_is_refused),
		COUNTED(frame__wrong_type_is_refused),
		COUNTED(member__change_is_seen_by_the_digest),
		COUNTED(member__every_other_length_is_refused),
		COUNTED(member__lies_are_refused),
		COUNTED(refusal__codes_and_text_are_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
