/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/atomic.h"
#include "base/fast.h"
#include "base/util.h"
#include "core/wire/internal.h"
#include "verbs/rv.h"

/* The largest of all messages goes into one send. */
#define LARGEST_CALL \
	(RW_FRAME_BYTES + RW_CALL_BYTES + 2 * RW_ID_BYTES + RW_WORD_BYTES + RREF_NAME_MAX)
static_assert(LARGEST_CALL + RW_REFS_MAX * RW_FORK_BYTES + RW_INLINE_MAX <= RV_MSG_MAX,
	      "a full call without metadata fits a message");
static_assert(LARGEST_CALL + RW_LOCATION_BYTES + RW_KEY_BYTES + RREF_META_MAX <= RV_MSG_MAX,
	      "a call with a payload fits a message");
/* A reply with an error has a text, and neither references nor data. */
static_assert(RW_FRAME_BYTES + RW_REPLY_BYTES + RW_REFS_MAX * RW_FORK_BYTES + RW_INLINE_MAX <=
	      RV_MSG_MAX, "a full reply fits a message");

/* Writes on, or only counts once the room is used up. */
struct writer {
	uint8_t *buf;
	size_t size, at;
};

static inline uint8_t *encode_room(struct writer *w, size_t n)
{
	uint8_t *p = w->size >= n && w->at <= w->size - n ? w->buf + w->at : NULL;

	w->at += n;
	return p;
}

static void put8(struct writer *w, uint8_t v)
{
	uint8_t *p = encode_room(w, 1);

	if (p)
		*p = v;
}

static void put16(struct writer *w, uint16_t v)
{
	uint8_t *p = encode_room(w, 2);

	if (p)
		put_le16(p, v);
}

static void put32(struct writer *w, uint32_t v)
{
	uint8_t *p = encode_room(w, 4);

	if (p)
		put_le32(p, v);
}

static void put64(struct writer *w, uint64_t v)
{
	uint8_t *p = encode_room(w, 8);

	if (p)
		put_le64(p, v);
}

static void put_bytes(struct writer *w, const void *from, size_t n)
{
	uint8_t *p = encode_room(w, n);

	if (p && n)
		memcpy(p, from, n);
}

/* Writes a part of fixed size, for which there is room. */
static inline void encode_id_at(uint8_t *p, const struct rref_id *id)
{
	put_le64(p, id->local_id);
	put_le32(p + 8, id->created_on);
}

static void put_id(struct writer *w, const struct rref_id *id)
{
	uint8_t *p = encode_room(w, RW_ID_BYTES);

	if (p)
		encode_id_at(p, id);
}

static inline void encode_location_at(uint8_t *p, const struct rp_location *l)
{
	/* Writes one form only for "unknown". */
	if (!l->version) {
		memset(p, 0, RW_LOCATION_BYTES);
		return;
	}
	put_le64(p, l->addr);
	put_le64(p + 8, l->length);
	put_le64(p + 16, l->nonce);
	put_le64(p + 24, l->type_hash);
	put_le32(p + 32, l->rkey[0]);
	put_le32(p + 36, l->rkey[1]);
	put_le32(p + 40, l->version);
	put_le16(p + 44, l->nr_segments);
	put_le16(p + 46, l->nr_refs);
	put_le64(p + 48, l->data_addr);
	put_le32(p + 56, l->data_rkey[0]);
	put_le32(p + 60, l->data_rkey[1]);
}

static void put_location(struct writer *w, const struct rp_location *l)
{
	uint8_t *p = encode_room(w, RW_LOCATION_BYTES);

	if (p)
		encode_location_at(p, l);
}

static int put_forks(struct writer *w, const struct rp_fork *refs, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		if (refs[i].flags & ~RP_FORK_EARLY)
			return -EINVAL;
		uint8_t *p = encode_room(w, RW_FORK_BYTES);

		if (!p)
			continue;
		encode_id_at(p, &refs[i].id);
		encode_id_at(p + RW_ID_BYTES, &refs[i].fork);
		put_le32(p + 24, refs[i].owner);
		put_le32(p + 28, refs[i].parent);
		put_le64(p + 32, refs[i].owner_incarnation);
		put_le64(p + 40, refs[i].word);
		put_le32(p + 48, refs[i].flags);
		encode_location_at(p + 52, &refs[i].loc);
	}
	return 0;
}

/* Writes the location of a payload and the key of its records, if it has any; or the records. */
static int put_payload(struct writer *w, const struct rp_location *l, const uint8_t *key,
		       const struct rp_fork *refs, unsigned nr)
{
	static const uint8_t none[RW_KEY_BYTES];

	if (!l->version)
		return put_forks(w, refs, nr);
	put_location(w, l);
	put_bytes(w, nr ? key : none, RW_KEY_BYTES);
	return 0;
}

static bool is_status(int status)
{
	return status <= 0 && status >= -RW_ERRNO_MAX;
}

static int put_call(struct writer *w, const struct rw_call *c)
{
	if (!rw_call_valid(c, c->data) ||
	    !rw_payload_valid(&c->loc, c->data_length, c->nr_refs, c->meta_length))
		return -EINVAL;
	uint8_t *p = encode_room(w, RW_CALL_BYTES);

	if (p) {
		put_le64(p, c->call_id);
		p[8] = c->kind;
		p[9] = c->loc.version != 0;
		p[10] = c->name_length;
		p[11] = 0;
		put_le16(p + 12, c->nr_refs);
		put_le16(p + 14, c->meta_length);
		put_le32(p + 16, c->data_length);
	}
	if (c->kind != RW_CALL_RPC && (p = encode_room(w, 2 * RW_ID_BYTES))) {
		encode_id_at(p, &c->id);
		encode_id_at(p + RW_ID_BYTES, &c->fork);
	}
	if (c->kind == RW_CALL_REMOTE)
		put64(w, c->word);
	if (put_payload(w, &c->loc, c->key, c->refs, c->nr_refs))
		return -EINVAL;
	put_bytes(w, c->name, c->name_length);
	put_bytes(w, c->meta, c->meta_length);
	put_bytes(w, c->data, c->loc.version ? 0 : c->data_length);
	return 0;
}

static int put_reply(struct writer *w, const struct rw_reply *r)
{
	if (!is_status(r->status) || !rw_reply_valid(r, r->loc.version != 0) ||
	    !rw_payload_valid(&r->loc, r->data_length, r->nr_refs, 0))
		return -EINVAL;
	uint8_t *p = encode_room(w, RW_REPLY_BYTES);

	if (p) {
		put_le64(p, r->call_id);
		put_le32(p + 8, (uint32_t)r->status);
		put_le16(p + 12, r->text_length);
		p[14] = r->loc.version != 0;
		p[15] = 0;
		put_le16(p + 16, r->nr_refs);
		put_le16(p + 18, r->about);
		put_le32(p + 20, r->data_length);
	}
	if (put_payload(w, &r->loc, r->key, r->refs, r->nr_refs))
		return -EINVAL;
	put_bytes(w, r->text, r->text_length);
	put_bytes(w, r->data, r->loc.version ? 0 : r->data_length);
	return 0;
}

static int put_done(struct writer *w, const struct rw_done *d)
{
	if ((d->what != RW_PAYLOAD_CALL && d->what != RW_PAYLOAD_REPLY) || !is_status(d->status))
		return -EINVAL;
	put64(w, d->call_id);
	put32(w, d->what);
	put32(w, (uint32_t)d->status);
	return 0;
}

static int put_proto(struct writer *w, const struct rp_msg *m)
{
	bool located = !m->status && m->loc.version && rw_proto_has_location(m->type);
	size_t text = m->status ? strnlen(m->text, RP_TEXT_MAX) : 0;

	if (!is_status(m->status) || !rw_proto_valid(m->type, m->status, located, text))
		return -EINVAL;
	uint8_t *p = encode_room(w, RW_PROTO_BYTES);

	if (p) {
		put_le32(p, (uint32_t)m->type | (uint32_t)located << 8 | (uint32_t)text << 16);
		put_le32(p + 4, (uint32_t)m->status);
		encode_id_at(p + 8, &m->id);
		encode_id_at(p + 8 + RW_ID_BYTES, &m->fork);
	}
	if (rw_proto_has_word(m->type))
		put64(w, m->word);
	if (located)
		put_location(w, &m->loc);
	if (m->status)
		put16(w, m->about);
	put_bytes(w, m->text, text);
	return 0;
}

static int put_type(struct writer *w, const struct rw_type_info *t)
{
	if (t->name_length > RREF_NAME_MAX || (!t->name_length && (t->element_size || t->flags)))
		return -EINVAL;
	put64(w, t->number);
	put64(w, t->element_size);
	put32(w, t->flags);
	put8(w, t->name_length);
	put8(w, 0);
	put16(w, 0);
	put_bytes(w, t->name, t->name_length);
	return 0;
}

int rw_put_forks(const struct rp_fork *refs, unsigned nr, void *buf)
{
	struct writer w = { .buf = buf, .size = (size_t)nr * RW_FORK_BYTES };

	return put_forks(&w, refs, nr);
}

static void put_frame(uint8_t *p, const struct rw_frame *f, size_t length)
{
	put_le64(p, f->type | (uint64_t)length << 32); /* no flags */
	put_le64(p + RW_AT_SEQ, f->seq);
	put_le32(p + RW_AT_EPOCH, f->epoch);
	put_le32(p + RW_AT_ACK, f->ack);
}

static __attribute__((noinline)) int encode_any(const struct rw_message *m, void *buf, size_t size)
{
	struct writer w = { .buf = buf, .size = size };
	int rc = 0;

	if (m->frame.flags)
		return -EINVAL;
	uint8_t *frame = encode_room(&w, RW_FRAME_BYTES);

	switch (m->frame.type) {
	case RW_AUTH:
		put_bytes(&w, m->u.auth.mac, RW_MAC_BYTES);
		put64(&w, m->u.auth.beacon_addr);
		put32(&w, m->u.auth.beacon_rkey);
		break;
	case RW_CALL:
		rc = put_call(&w, &m->u.call);
		break;
	case RW_REPLY:
		rc = put_reply(&w, &m->u.reply);
		break;
	case RW_PROTO:
		rc = put_proto(&w, &m->u.proto);
		break;
	case RW_TYPE_QUERY:
		put64(&w, m->u.type.number);
		put_id(&w, &m->u.type.id);
		put_id(&w, &m->u.type.fork);
		break;
	case RW_TYPE_ANSWER:
		rc = put_type(&w, &m->u.type);
		break;
	case RW_BARRIER:
	case RW_BARRIER_DONE:
	case RW_PING:
	case RW_PONG:
	case RW_CANCEL:
	case RW_FENCED:
		put64(&w, m->u.number);
		break;
	case RW_DONE:
		rc = put_done(&w, &m->u.done);
		break;
	case RW_RECEIVED:
		put_bytes(&w, m->u.received.mac, RW_MAC_BYTES);
		put64(&w, m->u.received.seq);
		break;
	case RW_GOODBYE:
		break;
	default:
		rc = -EINVAL;
	}
	if (rc)
		return rc;
	if (w.at > size)
		return -EMSGSIZE;
	rb_assert_with(frame == (uint8_t *)buf && w.at >= RW_FRAME_BYTES && w.at <= RV_MSG_MAX,
		       "%zu", w.at);
	put_frame(frame, &m->frame, w.at);
	return (int)w.at;
}

/*
 * Encodes a plain call, as encode_plain_reply a plain reply: only the fixed part and bytes, and
 * room for them. Returns 0 for any other message and for a fault; encode_any then tells which.
 */
static size_t encode_plain_call(const struct rw_message *m, uint8_t *p, size_t size)
{
	const struct rw_call *c = &m->u.call;
	size_t name = c->name_length, meta = c->meta_length, data = c->data_length;
	size_t length = RW_FRAME_BYTES + RW_CALL_BYTES + name + meta + data;

	if (c->kind != RW_CALL_RPC || c->loc.version || c->nr_refs || !name ||
	    name > RREF_NAME_MAX || meta > RREF_META_MAX || data > RW_INLINE_MAX - meta ||
	    length > size)
		return 0;
	put_frame(p, &m->frame, length);
	p += RW_FRAME_BYTES;
	put_le64(p, c->call_id);
	put_le64(p + 8, RW_CALL_RPC | (uint64_t)name << 16 | (uint64_t)meta << 48);
	put_le32(p + 16, (uint32_t)data);
	p += RW_CALL_BYTES;
	copy_short(p, c->name, name);
	if (meta)
		memcpy(p + name, c->meta, meta);
	if (data)
		memcpy(p + name + meta, c->data, data);
	return length;
}

static size_t encode_plain_reply(const struct rw_message *m, uint8_t *p, size_t size)
{
	const struct rw_reply *r = &m->u.reply;
	size_t data = r->data_length, length = RW_FRAME_BYTES + RW_REPLY_BYTES + data;

	if (r->status || r->text_length || r->nr_refs || r->about || r->loc.version ||
	    data > RW_INLINE_MAX || length > size)
		return 0;
	put_frame(p, &m->frame, length);
	p += RW_FRAME_BYTES;
	put_le64(p, r->call_id);
	put_le64(p + 8, 0);
	put_le64(p + 16, (uint64_t)data << 32);
	if (data)
		memcpy(p + RW_REPLY_BYTES, r->data, data);
	return length;
}

/* Asserts that the general way would have written the same. */
static void same_as_any(const struct rw_message *m, const void *buf, size_t length)
{
#if RB_CHECKED
	uint8_t any[RV_MSG_MAX];

	rb_assert_is(encode_any(m, any, sizeof(any)), ==, (int)length);
	rb_assert_with(!memcmp(any, buf, length), "a message of type %d", m->frame.type);
#else
	(void)m, (void)buf, (void)length;
#endif
}

int rw_encode(const struct rw_message *m, void *buf, size_t size)
{
	size_t length = 0;

	if (RB_FAST(m->frame.type == RW_CALL && !m->frame.flags))
		length = encode_plain_call(m, buf, size);
	else if (RB_FAST(m->frame.type == RW_REPLY && !m->frame.flags))
		length = encode_plain_reply(m, buf, size);
	rb_assert_is(length, <=, size);
	if (length)
		same_as_any(m, buf, length);
	return likely(length) ? (int)length : encode_any(m, buf, size);
}

const char *rw_type_name(unsigned type)
{
	static const char *const names[RW_NR_TYPES] = {
		[RW_AUTH] = "auth",
		[RW_CALL] = "call",
		[RW_REPLY] = "reply",
		[RW_PROTO] = "proto",
		[RW_BARRIER] = "barrier",
		[RW_BARRIER_DONE] = "barrier-done",
		[RW_PING] = "ping",
		[RW_PONG] = "pong",
		[RW_GOODBYE] = "goodbye",
		[RW_CANCEL] = "cancel",
		[RW_TYPE_QUERY] = "type-query",
		[RW_TYPE_ANSWER] = "type-answer",
		[RW_DONE] = "done",
		[RW_FENCED] = "fenced",
		[RW_RECEIVED] = "received",
	};

	return type < RW_NR_TYPES && names[type] ? names[type] : "unknown";
}
