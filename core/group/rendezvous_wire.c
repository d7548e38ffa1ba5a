/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous' frames: byte by byte, with a bound on each, and MACs compared before contents are
 * believed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/assert.h"
#include "base/util.h"
#include "core/base/quote.h"
#include "core/group/rendezvous.h"

static const uint8_t magic[4] = { 'R', 'R', 'E', 'F' };

#define HELLO_HAS_GROUP_KEY 1u
#define ERR_MAX 4095

/* Both ends' view of a connection, without the parts that a step adds. */
#define TRANSCRIPT_BYTES (2 + 4 + 4 + 2 * RC_NONCE_BYTES)

static void rendezvous_transcript_make(const struct rz_session *s, uint8_t *p)
{
	put_le16(p, RZ_VERSION);
	put_le32(p + 2, s->world);
	put_le32(p + 6, s->rank);
	memcpy(p + 10, s->client_nonce, RC_NONCE_BYTES);
	memcpy(p + 10 + RC_NONCE_BYTES, s->server_nonce, RC_NONCE_BYTES);
}

/* Makes the MAC of a step. length <= RZ_FRAME_MAX + RC_MAC_BYTES. */
static void step_mac(const struct rz_session *s, const char *label, const uint8_t *data,
		     size_t length, uint8_t *mac)
{
	uint8_t buf[TRANSCRIPT_BYTES + RZ_FRAME_MAX + RC_MAC_BYTES];

	rb_assert_is(length, <=, RZ_FRAME_MAX + RC_MAC_BYTES);
	rendezvous_transcript_make(s, buf);
	if (length)
		memcpy(buf + TRANSCRIPT_BYTES, data, length);
	rc_mac(s->key, label, buf, TRANSCRIPT_BYTES + length, mac);
}

static size_t rendezvous_head_make(uint8_t *out, enum rz_type type, size_t length)
{
	rb_assert_is(length, <=, RZ_BODY_MAX);
	memcpy(out, magic, sizeof(magic));
	put_le16(out + 4, RZ_VERSION);
	put_le16(out + 6, (uint16_t)type);
	put_le32(out + 8, (uint32_t)length);
	return RZ_HEAD_BYTES + length;
}

static const uint8_t *body(const struct rz_reader *in)
{
	return in->frame + RZ_HEAD_BYTES;
}

static size_t body_length(const struct rz_reader *in)
{
	return get_le32(in->frame + 8);
}

uint16_t rz_version_of(const struct rz_reader *in)
{
	return get_le16(in->frame + 4);
}

enum rz_type rz_type_of(const struct rz_reader *in)
{
	return (enum rz_type)get_le16(in->frame + 6);
}

void rz_next(struct rz_reader *in)
{
	in->have = 0;
}

/* Checks a head that is complete. */
static int frame_head_check(const struct rz_reader *in)
{
	bool frozen = rz_type_of(in) == RZ_HELLO && body_length(in) == RZ_HELLO_BODY;

	if (rz_version_of(in) != RZ_VERSION && !frozen)
		return -EPROTONOSUPPORT;
	return body_length(in) > RZ_BODY_MAX ? -EPROTO : 0;
}

/* Returns the number of bytes that came, 0 if there are none now, or -errno. */
static ssize_t receive(int fd, uint8_t *p, size_t size)
{
	ssize_t n;

	do
		n = recv(fd, p, size, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
	return n ? n : -ECONNRESET;
}

int rz_read(int fd, struct rz_reader *in)
{
	for (;;) {
		size_t want = RZ_HEAD_BYTES;
		ssize_t n;

		/*
		 * Checks the magic as early as its first byte. A peer of another protocol may wait
		 * for our answer for ever.
		 */
		if (memcmp(in->frame, magic, min_of(in->have, sizeof(magic))) != 0)
			return -EPROTO;
		rb_assert_is(in->have, <=, sizeof(in->frame));
		if (in->have >= RZ_HEAD_BYTES) {
			int r = frame_head_check(in);

			if (r)
				return r;
			want += body_length(in);
			if (in->have == want)
				return 1;
		}
		n = receive(fd, in->frame + in->have, want - in->have);
		if (n <= 0)
			return (int)n;
		in->have += (size_t)n;
	}
}

/* ---- entries: rank, incarnation, name, addresses */

static size_t entry_make(const struct rc_member *m, uint8_t *out)
{
	size_t name = strnlen(m->name, RREF_NAME_MAX), n = 0;

	put_le32(out, m->rank);
	put_le64(out + 4, m->incarnation);
	memcpy(out + 12, m->public, RC_KEY_BYTES);
	out[RZ_ENTRY_HEAD - 1] = (uint8_t)name;
	memcpy(out + RZ_ENTRY_HEAD, m->name, name);
	n = RZ_ENTRY_HEAD + name;
	out[n++] = RV_NR_KINDS;
	for (int k = 0; k < RV_NR_KINDS; k++) {
		size_t length = min_of(m->addr[k].len, (size_t)RV_ADDR_MAX);

		put_le16(out + n, (uint16_t)length);
		memcpy(out + n + 2, m->addr[k].bytes, length);
		n += 2 + length;
	}
	rb_assert_is(n, <=, RZ_ENTRY_MAX);
	return n;
}

/* Takes an address from length bytes. Returns how many it used, or 0. */
static size_t addr_take(const uint8_t *p, size_t length, struct rv_addr *out)
{
	if (length < 2)
		return 0;
	out->len = get_le16(p);
	if (out->len > RV_ADDR_MAX || out->len > length - 2)
		return 0;
	memcpy(out->bytes, p + 2, out->len);
	return 2 + out->len;
}

static int entry_take(const uint8_t *p, size_t length, struct rc_member *out)
{
	struct rc_member m;
	size_t n;

	memset(&m, 0, sizeof(m));
	if (length < RZ_ENTRY_HEAD + 1)
		return -EPROTO;
	m.rank = get_le32(p);
	m.incarnation = get_le64(p + 4);
	memcpy(m.public, p + 12, RC_KEY_BYTES);
	n = p[RZ_ENTRY_HEAD - 1];
	if (n > RREF_NAME_MAX || RZ_ENTRY_HEAD + n + 1 > length)
		return -EPROTO;
	memcpy(m.name, p + RZ_ENTRY_HEAD, n);
	/* An embedded NUL would make two different entries one name. */
	if (strlen(m.name) != n || rc_name_check(m.name))
		return -EPROTO;
	n += RZ_ENTRY_HEAD;
	if (p[n++] != RV_NR_KINDS)
		return -EPROTO;
	for (int k = 0; k < RV_NR_KINDS; k++) {
		size_t used = addr_take(p + n, length - n, &m.addr[k]);

		if (!used)
			return -EPROTO;
		n += used;
	}
	if (n != length)
		return -EPROTO;
	*out = m;
	return 0;
}

void rz_digest_start(struct rz_digest *d)
{
	memset(d, 0, sizeof(*d));
}

void rz_digest_add(struct rz_digest *d, const struct rc_key *key, const struct rc_member *m)
{
	uint8_t buf[RC_MAC_BYTES + RZ_ENTRY_MAX];

	memcpy(buf, d->bytes, RC_MAC_BYTES);
	rc_mac(key, "rref rendezvous member 1", buf,
	       RC_MAC_BYTES + entry_make(m, buf + RC_MAC_BYTES), d->bytes);
}

/* ---- frames before the worker has its place */

static void rendezvous_hello_mac(const struct rc_key *key, const uint8_t *frame,
				 uint8_t mac[RC_MAC_BYTES])
{
	rc_mac(key, "rref rendezvous hello", frame, RZ_HEAD_BYTES + RZ_HELLO_BODY - RC_MAC_BYTES,
	       mac);
}

size_t rz_hello_make(const struct rz_session *s, uint8_t *out)
{
	uint8_t *p = out + RZ_HEAD_BYTES;
	size_t length = rendezvous_head_make(out, RZ_HELLO, RZ_HELLO_BODY);

	put_le32(p, s->rank);
	put_le32(p + 4, s->world);
	put_le32(p + 8, s->key->is_group ? HELLO_HAS_GROUP_KEY : 0);
	memcpy(p + 12, s->client_nonce, RC_NONCE_BYTES);
	rendezvous_hello_mac(s->key, out, p + 12 + RC_NONCE_BYTES);
	return length;
}

int rz_hello_take(const struct rz_reader *in, const struct rc_key *key, struct rz_hello *out)
{
	const uint8_t *p = body(in);
	uint8_t mac[RC_MAC_BYTES];

	if (rz_type_of(in) != RZ_HELLO || body_length(in) != RZ_HELLO_BODY)
		return -EPROTO;
	rendezvous_hello_mac(key, in->frame, mac);
	out->is_authentic = rc_mac_equal(mac, p + 12 + RC_NONCE_BYTES, RC_MAC_BYTES);
	out->version = rz_version_of(in);
	out->rank = get_le32(p);
	out->world = get_le32(p + 4);
	out->has_group_key = get_le32(p + 8) & HELLO_HAS_GROUP_KEY;
	memcpy(out->nonce, p + 12, RC_NONCE_BYTES);
	return 0;
}

size_t rz_challenge_make(const struct rz_session *s, uint8_t *out)
{
	uint8_t *p = out + RZ_HEAD_BYTES;

	memcpy(p, s->server_nonce, RC_NONCE_BYTES);
	step_mac(s, "rref rendezvous challenge 1", NULL, 0, p + RC_NONCE_BYTES);
	return rendezvous_head_make(out, RZ_CHALLENGE, RC_NONCE_BYTES + RC_MAC_BYTES);
}

int rz_challenge_take(const struct rz_reader *in, struct rz_session *s)
{
	uint8_t mac[RC_MAC_BYTES];

	if (rz_type_of(in) != RZ_CHALLENGE || body_length(in) != RC_NONCE_BYTES + RC_MAC_BYTES)
		return -EPROTO;
	memcpy(s->server_nonce, body(in), RC_NONCE_BYTES);
	step_mac(s, "rref rendezvous challenge 1", NULL, 0, mac);
	return rc_mac_equal(mac, body(in) + RC_NONCE_BYTES, RC_MAC_BYTES) ? 0 : -EKEYREJECTED;
}

size_t rz_join_make(const struct rz_session *s, const struct rc_member *me, uint8_t *out)
{
	uint8_t *p = out + RZ_HEAD_BYTES;
	size_t length = entry_make(me, p + RC_MAC_BYTES);

	step_mac(s, "rref rendezvous join 1", p + RC_MAC_BYTES, length, p);
	return rendezvous_head_make(out, RZ_JOIN, RC_MAC_BYTES + length);
}

int rz_join_take(const struct rz_reader *in, const struct rz_session *s, struct rc_member *out)
{
	size_t length = body_length(in);
	uint8_t mac[RC_MAC_BYTES];

	if (rz_type_of(in) != RZ_JOIN || length < RC_MAC_BYTES ||
	    length > RC_MAC_BYTES + RZ_ENTRY_MAX)
		return -EPROTO;
	step_mac(s, "rref rendezvous join 1", body(in) + RC_MAC_BYTES, length - RC_MAC_BYTES, mac);
	if (!rc_mac_equal(mac, body(in), RC_MAC_BYTES))
		return -EKEYREJECTED;
	return entry_take(body(in) + RC_MAC_BYTES, length - RC_MAC_BYTES, out);
}

/* ---- rank 0's tagged frames: tag, then contents */

static void tag(const struct rz_session *s, enum rz_type type, const uint8_t *data, size_t length,
		uint8_t *mac)
{
	uint8_t buf[4 + 2 + RZ_FRAME_MAX];

	rb_assert_is(length, <=, RZ_FRAME_MAX);
	put_le32(buf, s->sequence);
	put_le16(buf + 4, (uint16_t)type);
	if (length)
		memcpy(buf + 6, data, length);
	step_mac(s, "rref rendezvous server 1", buf, 6 + length, mac);
}

/* Makes a tagged frame whose contents stand at their place already. */
static size_t tagged_make(struct rz_session *s, enum rz_type type, size_t length, uint8_t *out)
{
	uint8_t *p = out + RZ_HEAD_BYTES;

	tag(s, type, p + RC_MAC_BYTES, length, p);
	s->sequence++;
	return rendezvous_head_make(out, type, RC_MAC_BYTES + length);
}

static int tagged_take(const struct rz_reader *in, struct rz_session *s, enum rz_type type,
		       size_t min, size_t max)
{
	size_t length = body_length(in);
	uint8_t mac[RC_MAC_BYTES];

	if (rz_type_of(in) != type || length < RC_MAC_BYTES + min || length > RC_MAC_BYTES + max)
		return -EPROTO;
	tag(s, type, body(in) + RC_MAC_BYTES, length - RC_MAC_BYTES, mac);
	if (!rc_mac_equal(mac, body(in), RC_MAC_BYTES))
		return -EKEYREJECTED;
	s->sequence++;
	return 0;
}

size_t rz_joined_make(struct rz_session *s, uint8_t *out)
{
	return tagged_make(s, RZ_JOINED, 0, out);
}

int rz_joined_take(const struct rz_reader *in, struct rz_session *s)
{
	return tagged_take(in, s, RZ_JOINED, 0, 0);
}

size_t rz_status_make(struct rz_session *s, const struct rz_status *status, uint8_t *out)
{
	uint8_t *p = out + RZ_HEAD_BYTES + RC_MAC_BYTES;
	size_t length = (s->world + 7) / 8;

	memcpy(p, status->present.bits, length);
	memcpy(p + length, status->came.bits, length);
	return tagged_make(s, RZ_STATUS, 2 * length, out);
}

int rz_status_take(const struct rz_reader *in, struct rz_session *s, struct rz_status *out)
{
	size_t length = (s->world + 7) / 8;
	int r = tagged_take(in, s, RZ_STATUS, 2 * length, 2 * length);

	if (r)
		return r;
	memcpy(out->present.bits, body(in) + RC_MAC_BYTES, length);
	memcpy(out->came.bits, body(in) + RC_MAC_BYTES + length, length);
	return 0;
}

size_t rz_member_make(const struct rc_member *m, uint8_t *out)
{
	return rendezvous_head_make(out, RZ_MEMBER, entry_make(m, out + RZ_HEAD_BYTES));
}

int rz_member_take(const struct rz_reader *in, struct rc_member *out)
{
	if (rz_type_of(in) != RZ_MEMBER || body_length(in) > RZ_ENTRY_MAX)
		return -EPROTO;
	return entry_take(body(in), body_length(in), out);
}

size_t rz_end_make(struct rz_session *s, const struct rz_digest *digest, uint8_t *out)
{
	memcpy(out + RZ_HEAD_BYTES + RC_MAC_BYTES, digest->bytes, RC_MAC_BYTES);
	return tagged_make(s, RZ_END, RC_MAC_BYTES, out);
}

int rz_end_take(const struct rz_reader *in, struct rz_session *s, const struct rz_digest *digest)
{
	int r = tagged_take(in, s, RZ_END, RC_MAC_BYTES, RC_MAC_BYTES);

	if (r)
		return r;
	return rc_mac_equal(body(in) + RC_MAC_BYTES, digest->bytes, RC_MAC_BYTES) ? 0
										  : -EKEYREJECTED;
}

/* ---- refusals: an errno code and words */

static size_t words_make(int err, const char *text, uint8_t *p)
{
	size_t length = strnlen(text, RZ_TEXT_MAX);

	rb_assert_with(err && abs(err) <= ERR_MAX, "%d", err);
	put_le32(p, (uint32_t)abs(err));
	memcpy(p + 4, text, length);
	return 4 + length;
}

static int words_take(const uint8_t *p, size_t length, int *err, char *text, size_t size)
{
	uint32_t code = get_le32(p);

	if (code == 0 || code > ERR_MAX)
		return -EPROTO;
	*err = (int)code;
	rc_quote(text, size, p + 4, length - 4);
	return 0;
}

size_t rz_failed_make(struct rz_session *s, int err, const char *text, uint8_t *out)
{
	return tagged_make(s, RZ_FAILED, words_make(err, text, out + RZ_HEAD_BYTES + RC_MAC_BYTES),
			   out);
}

int rz_failed_take(const struct rz_reader *in, struct rz_session *s, int *err, char *text,
		   size_t size)
{
	int r = tagged_take(in, s, RZ_FAILED, 4, 4 + RZ_TEXT_MAX);

	return r ? r
		 : words_take(body(in) + RC_MAC_BYTES, body_length(in) - RC_MAC_BYTES, err, text,
			      size);
}

size_t rz_refuse_make(int err, const char *text, uint8_t *out)
{
	return rendezvous_head_make(out, RZ_REFUSE, words_make(err, text, out + RZ_HEAD_BYTES));
}

int rz_refuse_take(const struct rz_reader *in, int *err, char *text, size_t size)
{
	if (rz_type_of(in) != RZ_REFUSE || body_length(in) < 4 || body_length(in) > 4 + RZ_TEXT_MAX)
		return -EPROTO;
	return words_take(body(in), body_length(in), err, text, size);
}
