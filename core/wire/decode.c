/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parser of everything that a peer sends. It reads through a cursor that cannot leave the
 * message. After the first missing field each later field reads as zero, and the message is refused
 * at the end.
 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/atomic.h"
#include "base/fast.h"
#include "base/util.h"
#include "core/wire/internal.h"

struct reader {
	const uint8_t *at;
	size_t left;
	uint32_t world;
	bool bad;
};

static inline const uint8_t *decode_take(struct reader *r, size_t n)
{
	const uint8_t *p = r->at;

	if (r->bad || r->left < n) {
		r->bad = true;
		return NULL;
	}
	r->at += n;
	r->left -= n;
	return p;
}

static uint8_t get8(struct reader *r)
{
	const uint8_t *p = decode_take(r, 1);

	return p ? *p : 0;
}

static uint16_t get16(struct reader *r)
{
	const uint8_t *p = decode_take(r, 2);

	return p ? get_le16(p) : 0;
}

static uint32_t get32(struct reader *r)
{
	const uint8_t *p = decode_take(r, 4);

	return p ? get_le32(p) : 0;
}

static uint64_t get64(struct reader *r)
{
	const uint8_t *p = decode_take(r, 8);

	return p ? get_le64(p) : 0;
}

static inline void want(struct reader *r, bool good)
{
	r->bad |= !good;
}

/* Returns a part of fixed size, whose bytes are there. */
static inline uint32_t rank_at(struct reader *r, const uint8_t *p)
{
	uint32_t rank = get_le32(p);

	want(r, rank < r->world);
	return rank;
}

static inline struct rref_id decode_id_at(struct reader *r, const uint8_t *p)
{
	struct rref_id id = { .local_id = get_le64(p), .created_on = rank_at(r, p + 8) };

	want(r, id.local_id != 0);
	return id;
}

static struct rref_id get_id(struct reader *r)
{
	const uint8_t *p = decode_take(r, RW_ID_BYTES);

	return p ? decode_id_at(r, p) : (struct rref_id){ 0 };
}

static inline void decode_location_at(struct reader *r, const uint8_t *p, struct rp_location *l)
{
	*l = (struct rp_location){
		.addr = get_le64(p),
		.length = get_le64(p + 8),
		.nonce = get_le64(p + 16),
		.type_hash = get_le64(p + 24),
		.rkey = { get_le32(p + 32), get_le32(p + 36) },
		.version = get_le32(p + 40),
		.nr_segments = get_le16(p + 44),
		.nr_refs = get_le16(p + 46),
		.data_addr = get_le64(p + 48),
		.data_rkey = { get_le32(p + 56), get_le32(p + 60) },
	};
	want(r, rw_location_valid(l));
	/* Allows one form only for "unknown". */
	want(r, l->version || !(l->addr | l->length | l->nonce | l->type_hash | l->rkey[0] |
				l->rkey[1] | l->nr_segments | l->nr_refs | l->data_addr));
}

/* Reads a location that is known. */
static void get_location(struct reader *r, struct rp_location *l)
{
	const uint8_t *p = decode_take(r, RW_LOCATION_BYTES);

	if (!p)
		return;
	decode_location_at(r, p, l);
	want(r, l->version != 0);
}

/* Reads nr fork records. refs has room for nr. */
static void get_forks(struct reader *r, struct rp_fork *refs, unsigned nr)
{
	const uint8_t *p = decode_take(r, (size_t)nr * RW_FORK_BYTES);

	for (unsigned i = 0; p && i < nr; i++, p += RW_FORK_BYTES) {
		refs[i].id = decode_id_at(r, p);
		refs[i].fork = decode_id_at(r, p + RW_ID_BYTES);
		refs[i].owner = rank_at(r, p + 24);
		refs[i].parent = rank_at(r, p + 28);
		refs[i].owner_incarnation = get_le64(p + 32);
		refs[i].word = get_le64(p + 40);
		refs[i].flags = get_le32(p + 48);
		want(r, !(refs[i].flags & ~RP_FORK_EARLY));
		decode_location_at(r, p + 52, &refs[i].loc);
	}
}

static inline int32_t decode_status_of(struct reader *r, uint32_t v)
{
	/* -RW_ERRNO_MAX..0 in two's complement, without converting what may be out of range. */
	if (v && v < (uint32_t)-RW_ERRNO_MAX) {
		r->bad = true;
		return 0;
	}
	return -(int32_t)(0u - v);
}

static int32_t get_status(struct reader *r)
{
	return decode_status_of(r, get32(r));
}

static const void *get_bytes(struct reader *r, size_t n)
{
	return decode_take(r, n);
}

static const char *get_text(struct reader *r, size_t n)
{
	const char *text = (const char *)decode_take(r, n);

	want(r, text && !memchr(text, '\0', n));
	return text;
}

/*
 * Reads the location and key of a payload, or the fork records. Returns false to refuse the
 * message.
 */
static bool get_payload(struct reader *r, unsigned located, struct rp_location *loc, uint8_t *key,
			struct rp_fork *refs, unsigned nr, uint32_t data_length,
			uint32_t meta_length)
{
	static const uint8_t no_key[RW_KEY_BYTES];
	static const struct rp_location none;
	const uint8_t *p;

	*loc = none;
	want(r, located <= 1);
	if (located) {
		get_location(r, loc);
		p = decode_take(r, RW_KEY_BYTES);
		memcpy(key, p ? p : no_key, RW_KEY_BYTES);
		/* Allows one form only for "no references". */
		want(r, nr || !memcmp(key, no_key, RW_KEY_BYTES));
	}
	want(r, rw_payload_valid(loc, data_length, nr, meta_length));
	if (!r->bad && !located)
		get_forks(r, refs, nr);
	return !r->bad;
}

static void get_call(struct reader *r, struct rw_call *c)
{
	static const struct rref_id none;
	unsigned located;

	const uint8_t *p = decode_take(r, RW_CALL_BYTES);

	if (!p)
		return;
	c->call_id = get_le64(p);
	c->kind = p[8];
	located = p[9];
	c->name_length = p[10];
	want(r, !p[11]);
	c->nr_refs = get_le16(p + 12);
	c->meta_length = get_le16(p + 14);
	c->data_length = get_le32(p + 16);
	c->id = c->fork = none;
	if (c->kind != RW_CALL_RPC && (p = decode_take(r, 2 * RW_ID_BYTES))) {
		c->id = decode_id_at(r, p);
		c->fork = decode_id_at(r, p + RW_ID_BYTES);
	}
	c->word = c->kind == RW_CALL_REMOTE ? get64(r) : 0;
	if (!get_payload(r, located, &c->loc, c->key, c->refs, c->nr_refs, c->data_length,
			 c->meta_length))
		return;
	c->name = get_text(r, c->name_length);
	c->meta = get_bytes(r, c->meta_length);
	c->data = located ? NULL : get_bytes(r, c->data_length);
	want(r, rw_call_valid(c, c->data));
}

static void get_reply(struct reader *r, struct rw_reply *reply)
{
	unsigned located;

	reply->call_id = get64(r);
	reply->status = get_status(r);
	reply->text_length = get16(r);
	located = get8(r);
	want(r, !get8(r));
	reply->nr_refs = get16(r);
	reply->about = get16(r);
	want(r, reply->about <= r->world);
	reply->data_length = get32(r);
	want(r, rw_reply_valid(reply, located));
	if (!get_payload(r, located, &reply->loc, reply->key, reply->refs, reply->nr_refs,
			 reply->data_length, 0))
		return;
	reply->text = get_text(r, reply->text_length);
	reply->data = located ? NULL : get_bytes(r, reply->data_length);
}

static void get_done(struct reader *r, struct rw_done *d)
{
	d->call_id = get64(r);
	d->what = get32(r);
	want(r, d->what == RW_PAYLOAD_CALL || d->what == RW_PAYLOAD_REPLY);
	d->status = get_status(r);
}

static void get_proto(struct reader *r, struct rp_msg *m)
{
	static const struct rp_location none;
	const uint8_t *p = decode_take(r, RW_PROTO_BYTES);
	unsigned type, located, length;
	const char *text;

	if (!p)
		return;
	type = p[0], located = p[1], length = get_le16(p + 2);
	m->type = (enum rp_msg_type)type;
	m->status = decode_status_of(r, get_le32(p + 4));
	m->id = decode_id_at(r, p + 8);
	m->fork = decode_id_at(r, p + 8 + RW_ID_BYTES);
	m->word = rw_proto_has_word(type) ? get64(r) : 0;
	want(r, located <= 1 && rw_proto_valid(type, m->status, located, length));
	if (located)
		get_location(r, &m->loc);
	else
		m->loc = none;
	m->text[0] = '\0';
	m->about = m->status ? get16(r) : 0;
	want(r, m->about <= r->world);
	if (likely(!length))
		return;
	text = get_text(r, length);
	if (r->bad)
		return;
	memcpy(m->text, text, length);
	m->text[length] = '\0';
}

static void get_type(struct reader *r, struct rw_type_info *t)
{
	t->number = get64(r);
	t->element_size = get64(r);
	t->flags = get32(r);
	t->name_length = get8(r);
	want(r, !get8(r));
	want(r, !get16(r));
	want(r, t->name_length <= RREF_NAME_MAX);
	want(r, t->name_length || !(t->element_size | t->flags));
	t->name = get_text(r, t->name_length);
}

int rw_get_forks(const void *buf, unsigned nr, uint32_t world, struct rp_fork *refs)
{
	struct reader r = { .at = buf, .left = (size_t)nr * RW_FORK_BYTES, .world = world };

	get_forks(&r, refs, nr);
	return r.bad ? -EPROTO : 0;
}

static __attribute__((noinline)) int decode_any(const void *buf, size_t length, uint32_t world,
						struct rw_message *out)
{
	struct reader r = { .at = (const uint8_t *)buf + RW_FRAME_BYTES,
			    .left = length - RW_FRAME_BYTES,
			    .world = world };
	const uint8_t *mac;

	switch (out->frame.type) {
	case RW_AUTH:
		mac = decode_take(&r, RW_MAC_BYTES);
		if (mac)
			memcpy(out->u.auth.mac, mac, RW_MAC_BYTES);
		out->u.auth.beacon_addr = get64(&r);
		out->u.auth.beacon_rkey = get32(&r);
		break;
	case RW_CALL:
		get_call(&r, &out->u.call);
		break;
	case RW_REPLY:
		get_reply(&r, &out->u.reply);
		break;
	case RW_PROTO:
		get_proto(&r, &out->u.proto);
		break;
	case RW_TYPE_QUERY:
		memset(&out->u.type, 0, sizeof(out->u.type));
		out->u.type.number = get64(&r);
		out->u.type.id = get_id(&r);
		out->u.type.fork = get_id(&r);
		break;
	case RW_TYPE_ANSWER:
		get_type(&r, &out->u.type);
		break;
	case RW_BARRIER:
	case RW_BARRIER_DONE:
	case RW_PING:
	case RW_PONG:
	case RW_CANCEL:
	case RW_FENCED:
		out->u.number = get64(&r);
		break;
	case RW_DONE:
		get_done(&r, &out->u.done);
		break;
	case RW_RECEIVED:
		mac = decode_take(&r, RW_MAC_BYTES);
		if (mac)
			memcpy(out->u.received.mac, mac, RW_MAC_BYTES);
		out->u.received.seq = get64(&r);
		break;
	case RW_GOODBYE:
		break;
	default:
		return -EPROTO;
	}
	return r.bad || r.left ? -EPROTO : 0;
}

/*
 * Decodes a plain call, as decode_plain_reply a plain reply: only the fixed part and bytes, and all
 * well-formed. Returns false for any other message; decode_any then tells what it is. p: behind the
 * frame.
 */
static bool decode_plain_call(const uint8_t *p, size_t left, struct rw_call *c)
{
	static const struct rp_location nowhere;
	static const struct rref_id none;

	/* Checks with one look: kind, located, the byte that is 0, references. */
	if (left < RW_CALL_BYTES || (get_le64(p + 8) & UINT64_C(0xffffff00ffff)) != RW_CALL_RPC)
		return false;
	size_t name = p[10], meta = get_le16(p + 14), data = get_le32(p + 16);

	if (!name || name > RREF_NAME_MAX || meta > RREF_META_MAX || data > RW_INLINE_MAX - meta ||
	    left != RW_CALL_BYTES + name + meta + data || memchr(p + RW_CALL_BYTES, '\0', name))
		return false;
	c->call_id = get_le64(p);
	c->kind = RW_CALL_RPC;
	c->name_length = (uint8_t)name;
	c->nr_refs = 0;
	c->meta_length = (uint16_t)meta;
	c->data_length = (uint32_t)data;
	c->id = c->fork = none;
	c->loc = nowhere;
	c->name = (const char *)p + RW_CALL_BYTES;
	c->meta = p + RW_CALL_BYTES + name;
	c->data = p + RW_CALL_BYTES + name + meta;
	return true;
}

static bool decode_plain_reply(const uint8_t *p, size_t left, struct rw_reply *reply)
{
	static const struct rp_location nowhere;

	/* Checks that there is no status, text, payload or reference. */
	if (left < RW_REPLY_BYTES || get_le64(p + 8) || get_le32(p + 16))
		return false;
	size_t data = get_le32(p + 20);

	if (data > RW_INLINE_MAX || left != RW_REPLY_BYTES + data)
		return false;
	reply->call_id = get_le64(p);
	reply->status = 0;
	reply->text_length = reply->nr_refs = reply->about = 0;
	reply->data_length = (uint32_t)data;
	reply->loc = nowhere;
	reply->text = (const char *)p + RW_REPLY_BYTES;
	reply->data = p + RW_REPLY_BYTES;
	return true;
}

/* Asserts that the general way would have read the same. */
static void same_as_decode_any(const void *buf, size_t length, uint32_t world,
			       const struct rw_message *m)
{
#if RB_CHECKED
	struct rw_message any = { .frame = m->frame };

	rb_assert(!decode_any(buf, length, world, &any));
	if (m->frame.type == RW_CALL) {
		rb_assert(any.u.call.call_id == m->u.call.call_id && !any.u.call.loc.version);
		rb_assert(any.u.call.name == m->u.call.name && any.u.call.meta == m->u.call.meta);
		rb_assert_is(any.u.call.nr_refs, ==, m->u.call.nr_refs);
		rb_assert_if(m->u.call.data_length, any.u.call.data == m->u.call.data);
		rb_assert_is(any.u.call.data_length, ==, m->u.call.data_length);
	} else {
		rb_assert(any.u.reply.call_id == m->u.reply.call_id && !any.u.reply.status);
		rb_assert_is(any.u.reply.data_length, ==, m->u.reply.data_length);
		rb_assert_if(m->u.reply.data_length, any.u.reply.data == m->u.reply.data);
	}
#else
	(void)buf, (void)length, (void)world, (void)m;
#endif
}

/* Reads a message the fast way. Returns false for all others, and for malformed ones. */
static inline bool decode_plain(const uint8_t *body, size_t left, struct rw_message *out)
{
	switch (out->frame.type) {
	case RW_CALL:
		return decode_plain_call(body, left, &out->u.call);
	case RW_REPLY:
		return decode_plain_reply(body, left, &out->u.reply);
	default:
		return false;
	}
}

int rw_decode(const void *buf, size_t length, uint32_t world, struct rw_message *out)
{
	const uint8_t *frame = buf, *body = frame + RW_FRAME_BYTES;

	/* Checks with one look that flags and reserved bytes are 0. */
	if (length < RW_FRAME_BYTES || get_le64(frame) >> 8 != (uint64_t)length << 24)
		return -EPROTO;
	out->frame.type = frame[RW_AT_TYPE];
	out->frame.flags = 0;
	out->frame.length = (uint32_t)length;
	out->frame.seq = get_le64(frame + RW_AT_SEQ);
	out->frame.epoch = get_le32(frame + RW_AT_EPOCH);
	out->frame.ack = get_le32(frame + RW_AT_ACK);
	if (RB_FAST(true) && likely(decode_plain(body, length - RW_FRAME_BYTES, out))) {
		same_as_decode_any(buf, length, world, out);
		return 0;
	}
	return decode_any(buf, length, world, out);
}
