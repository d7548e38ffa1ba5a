/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "core/wire/wire.h"
#include "verbs/rv.h"

#define WORLD 5u

static uint64_t seed = 88172645463325252u;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * UINT64_C(0x2545f4914f6cdd1d);
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)((rnd() >> 33) % n);
}

static struct rref_id any_id(void)
{
	return (struct rref_id){ .local_id = rnd() | 1, .created_on = below(WORLD) };
}

static struct rp_location any_location(void)
{
	struct rp_location loc = {
		.addr = rnd() >> 2, .length = rnd() >> below(60) >> 2, .nonce = rnd() | 1,
		.type_hash = rnd(),
		.rkey = { (uint32_t)rnd(), (uint32_t)rnd() }, .version = 1 + below(7),
		.nr_segments = (uint16_t)(below(4) ? 1 : below(RREF_SEGMENTS_MAX + 1)),
		.nr_refs = (uint16_t)(below(4) ? 0 : below(RREF_REFS_MAX + 1)),
	};

	if (!below(4)) {
		loc.data_addr = rnd() >> 2 | 1;
		loc.data_rkey[0] = (uint32_t)rnd();
		loc.data_rkey[1] = (uint32_t)rnd();
	}
	return loc;
}

static const struct rp_location none;

/* Where a payload of that many bytes and records could be. */
static struct rp_location located(uint32_t data_length, uint32_t nr_refs)
{
	struct rp_location loc = any_location();

	loc.nr_segments = 1;
	loc.nr_refs = 0;
	loc.length = data_length + (uint64_t)nr_refs * RW_FORK_BYTES;
	loc.data_addr = loc.data_rkey[0] = loc.data_rkey[1] = 0;
	return loc;
}

static char words[RW_INLINE_MAX];

static void any_forks(struct rp_fork *refs, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		refs[i] = (struct rp_fork){
			.id = any_id(), .fork = any_id(), .owner = below(WORLD),
			.parent = below(WORLD), .flags = below(2),
			.owner_incarnation = rnd(), .word = rnd(),
		};
		if (below(2))
			refs[i].loc = any_location();
	}
}

/* In the message, or elsewhere. */
static void any_payload(struct rp_location *loc, uint8_t *key, uint16_t *nr_refs,
			uint32_t *data_length, uint32_t max)
{
	if (below(3)) {
		*nr_refs = (uint16_t)below(RW_REFS_MAX + 1);
		*data_length = below(8) ? below(100) : below(max + 1);
		return;
	}
	*nr_refs = (uint16_t)below(RREF_REFS_MAX + 1);
	*data_length = 1 + below(RREF_ARGS_MAX);
	*loc = located(*data_length, *nr_refs);
	for (unsigned i = 0; *nr_refs && i < RW_KEY_BYTES; i++)
		key[i] = (uint8_t)rnd();
}

static void any_proto(struct rp_msg *p)
{
	bool answers;

	p->type = (enum rp_msg_type)(1 + below(RP_MSG_NR_TYPES - 1));
	answers = p->type == RP_MSG_FORK_ACK || p->type == RP_MSG_FETCH_REPLY ||
		p->type == RP_MSG_CREATED;
	p->id = any_id();
	p->fork = any_id();
	if (p->type == RP_MSG_FORK_REQUEST)
		p->word = rnd();
	if ((answers || p->type == RP_MSG_PARENT_ACK) && below(2)) {
		p->status = -1 - (int)below(4095);
		p->about = (uint16_t)below(WORLD + 1);
		memset(p->text, 'x', below(RP_TEXT_MAX));
	} else if (p->type == RP_MSG_FETCH_REPLY || p->type == RP_MSG_CREATED ||
		   (answers && below(2))) {
		p->loc = any_location();
	}
}

static void any_take(struct rw_call *c)
{
	static uint8_t range[RW_TAKE_BYTES];
	uint32_t nr = 1 + below(RREF_REFS_MAX);

	put_le32(range, below(RREF_REFS_MAX - nr + 1));
	put_le32(range + 4, nr);
	c->id = any_id();
	c->fork = any_id();
	c->name = c->meta = words;
	c->data = range;
	c->data_length = sizeof(range);
}

/* A well-formed message of that type, in the form that decoding gives. */
static void any_message(struct rw_message *m, unsigned type)
{
	struct rw_call *c = &m->u.call;
	struct rw_reply *r = &m->u.reply;

	memset(m, 0, sizeof(*m));
	m->frame = (struct rw_frame){ .type = (uint8_t)type, .epoch = (uint32_t)rnd(), .seq = rnd(),
				      .ack = (uint32_t)rnd() };
	switch (type) {
	case RW_AUTH:
		for (unsigned i = 0; i < sizeof(m->u.auth.mac); i++)
			m->u.auth.mac[i] = (uint8_t)rnd();
		m->u.auth.beacon_addr = rnd();
		m->u.auth.beacon_rkey = (uint32_t)rnd();
		break;
	case RW_CALL:
		c->call_id = rnd();
		c->kind = (uint8_t)(1 + below(3));
		if (c->kind == RW_CALL_TAKE) {
			any_take(c);
			break;
		}
		c->name_length = (uint8_t)(1 + below(RREF_NAME_MAX));
		c->meta_length = (uint16_t)(below(4) ? 0 : below(RREF_META_MAX + 1));
		any_payload(&c->loc, c->key, &c->nr_refs, &c->data_length,
			    RW_INLINE_MAX - c->meta_length);
		if (c->kind == RW_CALL_REMOTE) {
			c->id = any_id();
			c->fork = any_id();
			c->word = rnd();
		}
		c->name = words;
		c->meta = words + 5;
		c->data = c->loc.version ? NULL : words;
		any_forks(c->refs, c->loc.version ? 0 : c->nr_refs);
		break;
	case RW_REPLY:
		r->call_id = rnd();
		r->text = words;
		if (below(2)) {
			r->status = -1 - (int)below(4095);
			r->about = (uint16_t)below(WORLD + 1);
			r->text_length = (uint16_t)below(RP_TEXT_MAX);
		} else {
			any_payload(&r->loc, r->key, &r->nr_refs, &r->data_length, RW_INLINE_MAX);
			any_forks(r->refs, r->loc.version ? 0 : r->nr_refs);
		}
		r->data = r->loc.version ? NULL : words;
		break;
	case RW_PROTO:
		any_proto(&m->u.proto);
		break;
	case RW_TYPE_QUERY:
		m->u.type.number = rnd();
		m->u.type.id = any_id();
		m->u.type.fork = any_id();
		break;
	case RW_TYPE_ANSWER:
		m->u.type.number = rnd();
		m->u.type.name = words;
		if (below(4)) {
			m->u.type.name_length = (uint8_t)(1 + below(RREF_NAME_MAX));
			m->u.type.element_size = rnd();
			m->u.type.flags = (uint32_t)rnd();
		}
		break;
	case RW_RECEIVED:
		for (unsigned i = 0; i < sizeof(m->u.received.mac); i++)
			m->u.received.mac[i] = (uint8_t)rnd();
		m->u.received.seq = rnd();
		break;
	case RW_DONE:
		m->u.done = (struct rw_done){ .call_id = rnd(),
					      .what = 1 + below(2),
					      .status = -(int)below(4096) };
		break;
	case RW_GOODBYE:
		break;
	default:
		m->u.number = rnd();
	}
}

static void assert_id(const struct rref_id *a, const struct rref_id *b)
{
	assert_true(a->local_id == b->local_id && a->created_on == b->created_on &&
		    a->reserved == b->reserved);
}

static void assert_location(const struct rp_location *a, const struct rp_location *b)
{
	assert_true(a->addr == b->addr && a->length == b->length && a->nonce == b->nonce &&
		    a->type_hash == b->type_hash);
	assert_true(a->rkey[0] == b->rkey[0] && a->rkey[1] == b->rkey[1] &&
		    a->version == b->version && a->nr_segments == b->nr_segments &&
		    a->nr_refs == b->nr_refs);
	assert_true(a->data_addr == b->data_addr && a->data_rkey[0] == b->data_rkey[0] &&
		    a->data_rkey[1] == b->data_rkey[1]);
}

static void assert_forks(const struct rp_fork *a, const struct rp_fork *b, unsigned nr)
{
	for (; nr--; a++, b++) {
		assert_id(&a->id, &b->id);
		assert_id(&a->fork, &b->fork);
		assert_true(a->owner == b->owner && a->parent == b->parent && a->flags == b->flags);
		assert_true(a->owner_incarnation == b->owner_incarnation && a->word == b->word);
		assert_location(&a->loc, &b->loc);
	}
}

static void assert_message(const struct rw_message *a, const struct rw_message *b)
{
	assert_true(a->frame.type == b->frame.type && a->frame.seq == b->frame.seq &&
		    a->frame.epoch == b->frame.epoch);
	assert_int_equal(a->frame.ack, b->frame.ack);
	switch (a->frame.type) {
	case RW_AUTH:
		assert_memory_equal(a->u.auth.mac, b->u.auth.mac, sizeof(a->u.auth.mac));
		assert_int_equal(a->u.auth.beacon_addr, b->u.auth.beacon_addr);
		assert_int_equal(a->u.auth.beacon_rkey, b->u.auth.beacon_rkey);
		break;
	case RW_CALL:
		assert_true(a->u.call.call_id == b->u.call.call_id &&
			    a->u.call.kind == b->u.call.kind);
		assert_true(a->u.call.nr_refs == b->u.call.nr_refs &&
			    a->u.call.name_length == b->u.call.name_length);
		assert_int_equal(a->u.call.data_length, b->u.call.data_length);
		assert_int_equal(a->u.call.meta_length, b->u.call.meta_length);
		assert_memory_equal(a->u.call.meta, b->u.call.meta, a->u.call.meta_length);
		assert_location(&a->u.call.loc, &b->u.call.loc);
		assert_true(a->u.call.kind != RW_CALL_REMOTE || a->u.call.word == b->u.call.word);
		if (a->u.call.loc.version) {
			assert_memory_equal(a->u.call.key, b->u.call.key, RW_KEY_BYTES);
			assert_null(b->u.call.data);
			break;
		}
		assert_id(&a->u.call.id, &b->u.call.id);
		assert_id(&a->u.call.fork, &b->u.call.fork);
		assert_memory_equal(a->u.call.name, b->u.call.name, a->u.call.name_length);
		assert_memory_equal(a->u.call.data, b->u.call.data, a->u.call.data_length);
		assert_forks(a->u.call.refs, b->u.call.refs, a->u.call.nr_refs);
		break;
	case RW_REPLY:
		assert_true(a->u.reply.call_id == b->u.reply.call_id &&
			    a->u.reply.status == b->u.reply.status);
		assert_int_equal(a->u.reply.about, b->u.reply.about);
		assert_true(a->u.reply.nr_refs == b->u.reply.nr_refs &&
			    a->u.reply.text_length == b->u.reply.text_length);
		assert_int_equal(a->u.reply.data_length, b->u.reply.data_length);
		assert_memory_equal(a->u.reply.text, b->u.reply.text, a->u.reply.text_length);
		assert_location(&a->u.reply.loc, &b->u.reply.loc);
		if (a->u.reply.loc.version) {
			assert_memory_equal(a->u.reply.key, b->u.reply.key, RW_KEY_BYTES);
			assert_null(b->u.reply.data);
			break;
		}
		assert_memory_equal(a->u.reply.data, b->u.reply.data, a->u.reply.data_length);
		assert_forks(a->u.reply.refs, b->u.reply.refs, a->u.reply.nr_refs);
		break;
	case RW_PROTO:
		assert_true(a->u.proto.type == b->u.proto.type &&
			    a->u.proto.status == b->u.proto.status);
		assert_int_equal(a->u.proto.about, b->u.proto.about);
		assert_id(&a->u.proto.id, &b->u.proto.id);
		assert_id(&a->u.proto.fork, &b->u.proto.fork);
		assert_true(a->u.proto.word == b->u.proto.word);
		assert_location(&a->u.proto.loc, &b->u.proto.loc);
		assert_string_equal(a->u.proto.text, b->u.proto.text);
		break;
	case RW_TYPE_QUERY:
		assert_true(a->u.type.number == b->u.type.number);
		assert_id(&a->u.type.id, &b->u.type.id);
		assert_id(&a->u.type.fork, &b->u.type.fork);
		break;
	case RW_TYPE_ANSWER:
		assert_true(a->u.type.number == b->u.type.number &&
			    a->u.type.element_size == b->u.type.element_size &&
			    a->u.type.flags == b->u.type.flags);
		assert_int_equal(a->u.type.name_length, b->u.type.name_length);
		assert_memory_equal(a->u.type.name, b->u.type.name, a->u.type.name_length);
		break;
	case RW_RECEIVED:
		assert_memory_equal(a->u.received.mac, b->u.received.mac,
				    sizeof(a->u.received.mac));
		assert_true(a->u.received.seq == b->u.received.seq);
		break;
	case RW_DONE:
		assert_true(a->u.done.call_id == b->u.done.call_id &&
			    a->u.done.what == b->u.done.what);
		assert_int_equal(a->u.done.status, b->u.done.status);
		break;
	case RW_GOODBYE:
		break;
	default:
		assert_true(a->u.number == b->u.number);
	}
}

/* Decodes bytes at the very end of an allocation, where sanitizers see each read past them. */
static int decode_tight(const uint8_t *bytes, size_t n, struct rw_message *out, uint8_t **copy)
{
	*copy = malloc(n ? n : 1);
	assert_non_null(*copy);
	memcpy(*copy, bytes, n);
	memset(out, 0xa5, sizeof(*out));
	return rw_decode(*copy, n, WORLD, out);
}

/* Refused, or well-formed: then it encodes to the very same bytes. */
static void assert_refused_or_exact(const uint8_t *bytes, size_t n)
{
	static struct rw_message out;
	uint8_t again[RV_MSG_MAX], *copy;
	int rc = decode_tight(bytes, n, &out, &copy);

	if (rc) {
		assert_int_equal(rc, -EPROTO);
	} else {
		assert_int_equal(rw_encode(&out, again, sizeof(again)), n);
		assert_memory_equal(again, bytes, n);
	}
	free(copy);
}

/* A call with a name and bytes, a reply with bytes: the
 * straight way, and how close to it one is refused. */
static void rw__plain_at_their_limits(void **state)
{
	static const struct { uint8_t name; uint16_t meta; uint32_t data; } good[] = {
		{ 1, 0, 0 }, { 7, 0, 0 }, { 8, 0, 0 }, { RREF_NAME_MAX, 0, RW_INLINE_MAX },
		{ 3, RREF_META_MAX, 0 },
		{ RREF_NAME_MAX, RREF_META_MAX, RW_INLINE_MAX - RREF_META_MAX },
	};
	static const struct { unsigned at; uint8_t is; } bad[] = {
		{ 1, 1 }, { 2, 1 }, { 3, 1 }, { 24 + 8, 0 }, { 24 + 8, RW_CALL_REMOTE },
		{ 24 + 8, RW_CALL_TAKE }, { 24 + 8, 4 },
		{ 24 + 9, 1 }, { 24 + 9, 2 }, { 24 + 10, 0 }, { 24 + 10, 128 }, { 24 + 11, 1 },
		{ 24 + 12, 1 }, { 24 + 13, 1 },
		{ 24 + 14, 1 }, { 24 + 16, 1 }, { 24 + 19, 1 }, { 24 + 20, 0 },
	};
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX], *copy;
	int n;

	(void)state;
	for (size_t i = 0; i < array_size(good); i++) {
		rw_call_init(&m);
		m.u.call.call_id = rnd();
		m.u.call.kind = RW_CALL_RPC;
		m.u.call.name = m.u.call.meta = m.u.call.data = words;
		m.u.call.name_length = good[i].name;
		m.u.call.meta_length = good[i].meta;
		m.u.call.data_length = good[i].data;
		n = rw_encode(&m, buf, sizeof(buf));
		assert_int_equal(n, 24 + 20 + good[i].name + good[i].meta + good[i].data);
		assert_int_equal(decode_tight(buf, (size_t)n, &out, &copy), 0);
		assert_message(&m, &out);
		free(copy);
		/* A NUL anywhere in the name; and no other change may pass. */
		for (unsigned k = 0; k < good[i].name; k++) {
			buf[24 + 20 + k] ^= (uint8_t)words[k];
			assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), -EPROTO);
			buf[24 + 20 + k] ^= (uint8_t)words[k];
		}
	}
	rw_call_init(&m);
	m.u.call.kind = RW_CALL_RPC;
	m.u.call.name = "name";
	m.u.call.name_length = 4;
	n = rw_encode(&m, buf, sizeof(buf));
	for (size_t i = 0; i < array_size(bad); i++) {
		uint8_t was = buf[bad[i].at];

		buf[bad[i].at] = bad[i].is;
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), -EPROTO);
		buf[bad[i].at] = was;
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), 0);
	}
	for (uint32_t data = 0; data <= RW_INLINE_MAX; data += RW_INLINE_MAX / 3) {
		rw_reply_init(&m);
		m.u.reply.call_id = rnd();
		m.u.reply.data = words;
		m.u.reply.data_length = data;
		n = rw_encode(&m, buf, sizeof(buf));
		assert_int_equal(n, 24 + 24 + data);
		assert_int_equal(decode_tight(buf, (size_t)n, &out, &copy), 0);
		assert_message(&m, &out);
		free(copy);
		/* Status, text's length, located, 0, references, 0,
		 * data's length: each has only this value. */
		for (unsigned at = 8; at < 24; at++) {
			buf[24 + at] ^= 1;
			assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), -EPROTO);
			buf[24 + at] ^= 1;
		}
	}
	m.u.reply.data_length = RW_INLINE_MAX + 1;
	assert_int_equal(rw_encode(&m, buf, sizeof(buf)), -EINVAL);
}

static void rw__round_trip(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX], *copy;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		int n;

		any_message(&m, 1 + below(RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n >= (int)RW_FRAME_BYTES);
		assert_int_equal(decode_tight(buf, (size_t)n, &out, &copy), 0);
		assert_int_equal(out.frame.length, n);
		assert_message(&m, &out);
		assert_refused_or_exact(buf, (size_t)n);
		free(copy);
	}
}

static void rw__truncated_or_extended(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX + 1], *copy;

	(void)state;
	for (unsigned i = 0; i < 40 * (RW_NR_TYPES - 1); i++) {
		int n;

		any_message(&m, 1 + i % (RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n > 0);
		buf[n] = 0;
		for (int k = 0; k <= n + 1; k++) {
			if (k == n)
				continue;
			assert_int_equal(decode_tight(buf, (size_t)k, &out, &copy), -EPROTO);
			free(copy);
			/* With a length that says so. */
			if (k >= (int)RW_FRAME_BYTES) {
				put_le32(buf + 4, (uint32_t)k);
				assert_int_equal(decode_tight(buf, (size_t)k, &out, &copy),
						 -EPROTO);
				free(copy);
				put_le32(buf + 4, (uint32_t)n);
			}
		}
	}
}

static void rw__bit_flips(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];

	(void)state;
	for (unsigned i = 0; i < 20 * (RW_NR_TYPES - 1); i++) {
		int n;

		any_message(&m, 1 + i % (RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n > 0);
		for (int bit = 0; bit < 8 * n; bit++) {
			buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_refused_or_exact(buf, (size_t)n);
			buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
	}
}

static void rw__random_bytes(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];

	(void)state;
	for (int i = 0; i < 100000; i++) {
		size_t n = below(400);

		for (size_t k = 0; k < n; k++)
			buf[k] = (uint8_t)(below(3) ? rnd() : rnd() & 3);
		/* Half of them get past the frame. */
		if (n >= RW_FRAME_BYTES && below(2)) {
			any_message(&m, RW_GOODBYE);
			assert_int_equal(rw_encode(&m, buf, RW_FRAME_BYTES), RW_FRAME_BYTES);
			buf[0] = (uint8_t)(1 + below(RW_NR_TYPES - 1));
			put_le32(buf + 4, (uint32_t)n);
		}
		assert_refused_or_exact(buf, n);
	}
}

static void rw__largest_call_fits(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX];
	int n;

	(void)state;
	any_message(&m, RW_CALL);
	m.u.call.kind = RW_CALL_REMOTE;
	m.u.call.id = any_id();
	m.u.call.fork = any_id();
	m.u.call.nr_refs = RW_REFS_MAX;
	any_forks(m.u.call.refs, RW_REFS_MAX);
	m.u.call.name_length = RREF_NAME_MAX;
	m.u.call.meta_length = RREF_META_MAX;
	m.u.call.data_length = RW_INLINE_MAX - RREF_META_MAX;
	m.u.call.data = words;
	memset(&m.u.call.loc, 0, sizeof(m.u.call.loc));
	n = rw_encode(&m, buf, sizeof(buf));
	assert_int_equal(n, 24 + 20 + 24 + 8 + 7 * 116 + 127 + 3072);
	assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), 0);
	assert_message(&m, &out);
}

/* Behind a payload's data: the same records, by themselves. */
static void rw__forks_of_a_payload(void **state)
{
	static struct rp_fork refs[RREF_REFS_MAX], out[RREF_REFS_MAX];
	static uint8_t buf[RREF_REFS_MAX * RW_FORK_BYTES];

	(void)state;
	any_forks(refs, RREF_REFS_MAX);
	assert_int_equal(rw_put_forks(refs, RREF_REFS_MAX, buf), 0);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, WORLD, out), 0);
	assert_forks(refs, out, RREF_REFS_MAX);
	/* ranks of a larger group */
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, 1, out), -EPROTO);
	/* the last one's flags */
	put_le32(buf + (RREF_REFS_MAX - 1) * RW_FORK_BYTES + 48, 2);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, WORLD, out), -EPROTO);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX - 1, WORLD, out), 0);
	refs[3].flags = 2;
	assert_int_equal(rw_put_forks(refs, 4, buf), -EINVAL);
	/* Bytes that nobody wrote so. */
	for (int i = 0; i < 2000; i++) {
		assert_int_equal(rw_put_forks(out, 2, buf), 0);
		buf[below(2 * RW_FORK_BYTES)] ^= (uint8_t)(1 << below(8));
		if (rw_get_forks(buf, 2, WORLD, refs) == 0) {
			static uint8_t again[2 * RW_FORK_BYTES];

			assert_int_equal(rw_put_forks(refs, 2, again), 0);
			assert_memory_equal(again, buf, sizeof(again));
		}
	}
}

static void rw__no_room(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];

	(void)state;
	for (unsigned type = 1; type < RW_NR_TYPES; type++) {
		int n;

		any_message(&m, type);
		n = rw_encode(&m, buf, sizeof(buf));
		for (int size = 0; size < n; size++) {
			uint8_t *tight = malloc((size_t)size + 1);

			assert_non_null(tight);
			tight[size] = 0x5a;
			assert_int_equal(rw_encode(&m, tight, (size_t)size), -EMSGSIZE);
			assert_int_equal(tight[size], 0x5a);
			free(tight);
		}
	}
}

static void rw__encoder_refuses_bad_counts(void **state)
{
	static struct rw_message m;
	uint8_t buf[2 * RV_MSG_MAX];

#define REFUSED(kind_, change) do { \
		do \
			any_message(&m, kind_); \
		while (m.frame.type == RW_CALL && m.u.call.kind == RW_CALL_TAKE); \
		change; \
		assert_int_equal(rw_encode(&m, buf, sizeof(buf)), -EINVAL); \
	} while (0)
	(void)state;
	REFUSED(RW_GOODBYE, m.frame.type = 0);
	REFUSED(RW_GOODBYE, m.frame.type = RW_NR_TYPES);
	REFUSED(RW_GOODBYE, m.frame.flags = 1);
	REFUSED(RW_CALL, m.u.call.kind = 0);
	REFUSED(RW_CALL, m.u.call.kind = 3);
	REFUSED(RW_CALL, m.u.call.kind = 4);
	REFUSED(RW_CALL, (m.u.call.loc = none, m.u.call.nr_refs = RW_REFS_MAX + 1));
	REFUSED(RW_CALL, m.u.call.name_length = 0);
	REFUSED(RW_CALL, m.u.call.name_length = RREF_NAME_MAX + 1);
	REFUSED(RW_CALL, m.u.call.meta_length = RREF_META_MAX + 1);
	REFUSED(RW_CALL, (m.u.call.loc = none, m.u.call.data_length = RW_INLINE_MAX + 1));
	REFUSED(RW_CALL,
		(m.u.call.loc = none, m.u.call.data_length = RW_INLINE_MAX,
		 m.u.call.meta_length = 1));
	REFUSED(RW_CALL,
		(m.u.call.loc = located(RREF_ARGS_MAX + 1u, 0),
		 m.u.call.data_length = RREF_ARGS_MAX + 1u, m.u.call.nr_refs = 0));
	REFUSED(RW_CALL, (m.u.call.loc = located(1, RREF_REFS_MAX + 1), m.u.call.data_length = 1,
			  m.u.call.nr_refs = RREF_REFS_MAX + 1));
	REFUSED(RW_CALL,
		(m.u.call.loc = located(0, 0), m.u.call.data_length = 0, m.u.call.nr_refs = 0));
	REFUSED(RW_CALL,
		(m.u.call.loc = located(10, 2), m.u.call.data_length = 11, m.u.call.nr_refs = 2));
	REFUSED(RW_CALL,
		(m.u.call.loc = none, m.u.call.nr_refs = 1, m.u.call.data_length = 0,
		 any_forks(m.u.call.refs, 1), m.u.call.refs[0].flags = 2));
	REFUSED(RW_REPLY, (m.u.reply.status = 0, m.u.reply.text_length = 0, m.u.reply.loc = none,
			   m.u.reply.nr_refs = RW_REFS_MAX + 1));
	REFUSED(RW_REPLY, m.u.reply.text_length = RP_TEXT_MAX);
	REFUSED(RW_REPLY, (m.u.reply.loc = none, m.u.reply.data_length = RW_INLINE_MAX + 1));
	REFUSED(RW_REPLY,
		(m.u.reply.status = -EIO, m.u.reply.text_length = 0, m.u.reply.loc = located(1, 0),
		 m.u.reply.data_length = 1, m.u.reply.nr_refs = 0));
	REFUSED(RW_DONE, m.u.done.what = 0);
	REFUSED(RW_DONE, m.u.done.what = 3);
	REFUSED(RW_DONE, m.u.done.status = 1);
	REFUSED(RW_DONE, m.u.done.status = -4096);
	REFUSED(RW_REPLY, m.u.reply.status = 1);
	REFUSED(RW_REPLY, m.u.reply.status = -4096);
	REFUSED(RW_REPLY, (m.u.reply.status = -EIO, m.u.reply.data_length = 1));
	REFUSED(RW_REPLY, (m.u.reply.status = 0, m.u.reply.text_length = 1));
	REFUSED(RW_REPLY, (m.u.reply.status = 0, m.u.reply.text_length = 0, m.u.reply.about = 1));
	REFUSED(RW_PROTO, m.u.proto.type = (enum rp_msg_type)0);
	REFUSED(RW_PROTO, m.u.proto.type = RP_MSG_NR_TYPES);
	REFUSED(RW_PROTO, m.u.proto.status = 1);
	REFUSED(RW_PROTO, (m.u.proto.type = RP_MSG_DELETE, m.u.proto.status = -EIO));
	REFUSED(RW_PROTO,
		(m.u.proto.type = RP_MSG_CREATED, m.u.proto.status = 0, m.u.proto.loc.version = 0));
	REFUSED(RW_PROTO, (m.u.proto.type = RP_MSG_CREATED, m.u.proto.status = -EIO,
			   memset(m.u.proto.text, 'x', RP_TEXT_MAX)));
	REFUSED(RW_TYPE_ANSWER, m.u.type.name_length = RREF_NAME_MAX + 1);
	REFUSED(RW_TYPE_ANSWER, (m.u.type.name_length = 0, m.u.type.element_size = 1));
#undef REFUSED
	/* A kind that takes references has its range, in bounds, and nothing else. */
#define REFUSED(change) do { \
		uint8_t range[RW_TAKE_BYTES]; \
		memset(&m, 0, sizeof(m)); \
		m.frame.type = RW_CALL; \
		m.u.call.kind = RW_CALL_TAKE; \
		any_take(&m.u.call); \
		memcpy(range, m.u.call.data, sizeof(range)); \
		m.u.call.data = range; \
		assert_true(rw_encode(&m, buf, sizeof(buf)) > 0); \
		change; \
		assert_int_equal(rw_encode(&m, buf, sizeof(buf)), -EINVAL); \
	} while (0)
	REFUSED(m.u.call.name_length = 1);
	REFUSED(m.u.call.meta_length = 1);
	REFUSED((m.u.call.nr_refs = 1, any_forks(m.u.call.refs, 1)));
	REFUSED(m.u.call.data_length = RW_TAKE_BYTES - 1);
	REFUSED(m.u.call.data_length = RW_TAKE_BYTES + 1);
	REFUSED((m.u.call.loc = located(RW_TAKE_BYTES, 0)));
	REFUSED(put_le32(range + 4, 0));
	REFUSED(put_le32(range + 4, RREF_REFS_MAX + 1));
	REFUSED((put_le32(range, RREF_REFS_MAX), put_le32(range + 4, 1)));
	REFUSED(put_le32(range, UINT32_MAX));
	REFUSED(put_le32(range + 4, UINT32_MAX));
#undef REFUSED
}

static void rw__decoder_refuses(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX];
	int n;

#define REFUSED(change) do { \
		n = rw_encode(&m, buf, sizeof(buf)); \
		assert_true(n > 0); \
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), 0); \
		change; \
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), -EPROTO); \
	} while (0)
	(void)state;
	any_message(&m, RW_CALL);
	m.u.call.kind = RW_CALL_REMOTE;
	m.u.call.id = any_id();
	m.u.call.fork = any_id();
	m.u.call.name_length = 5;
	m.u.call.loc = none;
	m.u.call.nr_refs = 1;
	m.u.call.meta_length = 3;
	m.u.call.data_length = 7;
	m.u.call.data = words;
	any_forks(m.u.call.refs, 1);
	m.u.call.refs[0].loc = any_location();
	m.u.call.refs[0].loc.data_addr = 0x2000;
	m.u.call.refs[0].loc.data_rkey[0] = 1;
	REFUSED(buf[24 + 8] = 3);                        /* kind */
	REFUSED(buf[24 + 9] = 1);                        /* located */
	REFUSED(buf[24 + 9] = 2);
	REFUSED(buf[24 + 10] = 128);                     /* name */
	REFUSED(buf[24 + 11] = 1);                       /* reserved */
	REFUSED(put_le16(buf + 24 + 12, RW_REFS_MAX + 1));
	REFUSED(put_le16(buf + 24 + 14, RREF_META_MAX + 1));
	REFUSED(put_le32(buf + 24 + 16, RW_INLINE_MAX + 1));
	REFUSED(put_le64(buf + 44, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 52, WORLD));              /* its rank */
	REFUSED(put_le32(buf + 64, WORLD));              /* the fork's */
	REFUSED(put_le64(buf + 76 + 12, 0));
	REFUSED(put_le32(buf + 76 + 24, WORLD));         /* owner */
	REFUSED(put_le32(buf + 76 + 28, 0xffffffffu));   /* parent */
	REFUSED(put_le32(buf + 76 + 48, 2));             /* flags */
	REFUSED(put_le32(buf + 76 + 92, 0));             /* version 0 with a location */
	REFUSED(put_le64(buf + 76 + 52, UINT64_MAX));    /* wraps */
	REFUSED(put_le64(buf + 76 + 60, UINT64_MAX));
	REFUSED(put_le64(buf + 76 + 68, 0));             /* local only, with an address */
	REFUSED(put_le16(buf + 76 + 96, RREF_SEGMENTS_MAX + 1));
	REFUSED(put_le16(buf + 76 + 98, RREF_REFS_MAX + 1));
	/* keys of a payload that has no address */
	REFUSED(put_le64(buf + 76 + 100, 0));
	REFUSED(put_le64(buf + 76 + 100, UINT64_MAX));    /* wraps */
	REFUSED(buf[76 + 116] = '\0');                   /* in the name */
	m.u.call.kind = RW_CALL_RPC;
	m.u.call.id = m.u.call.fork = (struct rref_id){ 0 };
	m.u.call.loc = located(5000, 1);
	m.u.call.data_length = 5000;
	REFUSED(buf[24 + 9] = 0);                        /* not located */
	REFUSED(put_le16(buf + 24 + 12, 2));             /* more records than the payload holds */
	REFUSED(put_le16(buf + 24 + 12, 0));
	REFUSED(put_le32(buf + 24 + 16, 4999));          /* a length that lies */
	REFUSED(put_le32(buf + 24 + 16, 5001));
	REFUSED(put_le64(buf + 44 + 8, UINT64_MAX - 64));
	REFUSED(put_le64(buf + 44, UINT64_MAX - 64));    /* wraps */
	REFUSED(put_le32(buf + 44 + 40, 0));             /* version 0 */
	REFUSED(put_le64(buf + 44 + 16, 0));             /* no nonce */
	REFUSED(put_le16(buf + 44 + 44, 2));             /* segments */
	REFUSED(put_le16(buf + 44 + 46, 1));             /* references */
	REFUSED(put_le64(buf + 44 + 48, 0x2000));        /* apart from its header */
	m.u.call.loc = located(5000, 0);
	m.u.call.nr_refs = 0;
	REFUSED(buf[44 + 64] = 1);                       /* a key of no records */
	REFUSED(buf[44 + 79] = 0x80);
	memset(&m.u, 0, sizeof(m.u));
	m.u.call.kind = RW_CALL_TAKE;
	any_take(&m.u.call);
	REFUSED(buf[24 + 8] = RW_CALL_RPC);
	REFUSED(buf[24 + 8] = RW_CALL_REMOTE);
	REFUSED(buf[24 + 9] = 1);
	REFUSED(buf[24 + 10] = 1);
	REFUSED(put_le16(buf + 24 + 12, 1));
	REFUSED(put_le16(buf + 24 + 14, 1));
	REFUSED(put_le32(buf + 24 + 16, 4));
	REFUSED(put_le64(buf + 44, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 64, WORLD));              /* the fork's rank */
	REFUSED(put_le32(buf + 68, RREF_REFS_MAX));      /* first */
	REFUSED(put_le32(buf + 72, 0));                  /* count */
	REFUSED(put_le32(buf + 72, RREF_REFS_MAX + 1));
	m.frame.type = RW_DONE;
	memset(&m.u, 0, sizeof(m.u));
	m.u.done = (struct rw_done){ .call_id = 5, .what = RW_PAYLOAD_REPLY, .status = -ENOMEM };
	REFUSED(put_le32(buf + 24 + 8, 0));
	REFUSED(put_le32(buf + 24 + 8, 3));
	REFUSED(put_le32(buf + 24 + 12, 1));
	REFUSED(put_le32(buf + 24 + 12, 0x80000000u));
	m.frame.type = RW_PROTO;
	memset(&m.u, 0, sizeof(m.u));
	m.u.proto = (struct rp_msg){ .type = RP_MSG_FORK_ACK,
				     .id = any_id(),
				     .fork = any_id(),
				     .status = -ESTALE,
				     .text = "gone" };
	REFUSED(buf[24] = 0);
	REFUSED(buf[24] = RP_MSG_NR_TYPES);
	REFUSED(buf[24] = RP_MSG_DELETE);                /* has no status */
	REFUSED(buf[25] = 1);                            /* a location with an error */
	REFUSED(put_le32(buf + 28, 1));                  /* status > 0 */
	REFUSED(put_le32(buf + 28, 0x80000000u));
	REFUSED(put_le32(buf + 28, 0));                  /* text with success */
	REFUSED(put_le16(buf + 26, 5));                  /* text without its bytes */
	REFUSED(put_le16(buf + 26, 3));
	REFUSED(put_le16(buf + 24 + 32, WORLD + 1));     /* about a rank that there is not */
	REFUSED(buf[24 + 32 + 2 + 1] = '\0');            /* in the text */
	m.frame.type = RW_TYPE_QUERY;
	memset(&m.u, 0, sizeof(m.u));
	m.u.type = (struct rw_type_info){ .number = 1, .id = any_id(), .fork = any_id() };
	REFUSED(put_le64(buf + 32, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 40, WORLD));              /* its rank */
	REFUSED(put_le64(buf + 44, 0));
	REFUSED(put_le32(buf + 52, WORLD));
	m.frame.type = RW_TYPE_ANSWER;
	memset(&m.u, 0, sizeof(m.u));
	m.u.type = (struct rw_type_info){
		.number = 1, .element_size = 4, .flags = 1, .name_length = 3, .name = "i32"
	};
	REFUSED(buf[24 + 20] = 128);                     /* name */
	REFUSED(buf[24 + 20] = 2);
	REFUSED(buf[24 + 20] = 0);
	REFUSED(buf[24 + 21] = 1);                       /* reserved */
	REFUSED(put_le16(buf + 24 + 22, 1));
	REFUSED(buf[24 + 25] = '\0');                    /* in the name */
	m.u.type = (struct rw_type_info){ .number = 1 };
	REFUSED(put_le64(buf + 24 + 8, 4));              /* of no type */
	REFUSED(put_le32(buf + 24 + 16, 1));
#undef REFUSED
}

static void rw__set_seq(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX];
	int n;

	(void)state;
	any_message(&m, RW_PING);
	n = rw_encode(&m, buf, sizeof(buf));
	rw_set_seq(buf, 77, 5);
	rw_set_ack(buf, 3);
	assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), 0);
	m.frame.seq = 77;
	m.frame.epoch = 5;
	m.frame.ack = 3;
	assert_message(&m, &out);
}

static void rw__type_names(void **state)
{
	(void)state;
	for (unsigned i = 1; i < RW_NR_TYPES; i++)
		assert_string_not_equal(rw_type_name(i), "unknown");
	assert_string_equal(rw_type_name(0), "unknown");
	assert_string_equal(rw_type_name(RW_NR_TYPES), "unknown");
	assert_string_equal(rw_type_name(~0u), "unknown");
}

static void hex(const uint8_t *p, int n, char *out)
{
	for (int i = 0; i < n; i++)
		sprintf(out + 2 * i, "%02x", p[i]);
}

/* The bytes themselves, so that a change of the format is a change of this test. */
static void rw__golden_bytes(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];
	char text[2 * 300];
	int n;

	(void)state;
	memset(&m, 0, sizeof(m));
	m.frame = (struct rw_frame){ .type = RW_PROTO,
				     .seq = 0x0102030405060708u,
				     .epoch = 0x0a0b0c0du };
	m.u.proto = (struct rp_msg){
		.type = RP_MSG_FORK_ACK,
		.id = { 1, 2, 0 },
		.fork = { 3, 4, 0 },
		.loc = { .addr = 0x1000,
			 .length = 5,
			 .nonce = 6,
			 .type_hash = 7,
			 .rkey = { 8, 9 },
			 .version = 10,
			 .nr_segments = 11,
			 .nr_refs = 0x102,
			 .data_addr = 0x2000,
			 .data_rkey = { 12, 13 } },
	};
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "04000000"
			    "78000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "02010000"
			    "00000000"
			    "0100000000000000"
			    "02000000"
			    "0300000000000000"
			    "04000000"
			    "0010000000000000"
			    "0500000000000000"
			    "0600000000000000"
			    "0700000000000000"
			    "08000000"
			    "09000000"
			    "0a000000"
			    "0b00"
			    "0201"
			    "0020000000000000"
			    "0c000000"
			    "0d000000");
	m.u.proto.status = -ESTALE;
	strcpy(m.u.proto.text, "no");
	m.u.proto.about = 3;
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "04000000"
			    "3c000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "02000200"
			    "8cffffff"
			    "0100000000000000"
			    "02000000"
			    "0300000000000000"
			    "04000000"
			    "0300"
			    "6e6f");
	memset(&m.u, 0, sizeof(m.u));
	m.u.proto = (struct rp_msg){ .type = RP_MSG_FORK_REQUEST,
				     .id = { 1, 2, 0 },
				     .fork = { 3, 4, 0 },
				     .word = 0x1122334455667788u };
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "04000000"
			    "40000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "01000000"
			    "00000000"
			    "0100000000000000"
			    "02000000"
			    "0300000000000000"
			    "04000000"
			    "8877665544332211");
	memset(&m.u, 0, sizeof(m.u));
	m.frame.type = RW_TYPE_QUERY;
	m.u.type = (struct rw_type_info){ .number = 9, .id = { 1, 2, 0 }, .fork = { 3, 4, 0 } };
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
		"0b000000" "38000000" "0807060504030201" "0d0c0b0a" "00000000"
		"0900000000000000" "0100000000000000" "02000000" "0300000000000000" "04000000");
	memset(&m.u, 0, sizeof(m.u));
	m.frame.type = RW_CALL;
	m.u.call = (struct rw_call){
		.call_id = 11,
		.kind = RW_CALL_REMOTE,
		.word = 0x77,
		.nr_refs = 1,
		.name_length = 1,
		.data_length = 2,
		.id = { 1, 2, 0 },
		.fork = { 3, 4, 0 },
		.name = "f",
		.meta = "m",
		.meta_length = 1,
		.data = "ab",
		.refs = { { .id = { 5, 0, 0 },
			    .fork = { 6, 1, 0 },
			    .owner = 3,
			    .parent = 1,
			    .flags = RP_FORK_EARLY,
			    .owner_incarnation = 0x99,
			    .word = 0x88 } },
	};
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "02000000"
			    "c4000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "0b00000000000000"
			    "02"
			    "00"
			    "01"
			    "00"
			    "0100"
			    "0100"
			    "02000000"
			    "0100000000000000"
			    "02000000"
			    "0300000000000000"
			    "04000000"
			    "7700000000000000"
			    "0500000000000000"
			    "00000000"
			    "0600000000000000"
			    "01000000"
			    "03000000"
			    "01000000"
			    "9900000000000000"
			    "8800000000000000"
			    "01000000"
			    "0000000000000000"
			    "0000000000000000"
			    "0000000000000000"
			    "0000000000000000"
			    "00000000"
			    "00000000"
			    "00000000"
			    "00000000"
			    "0000000000000000"
			    "00000000"
			    "00000000"
			    "66"
			    "6d"
			    "6162");
	m.u.call = (struct rw_call){
		.call_id = 11,
		.kind = RW_CALL_RPC,
		.nr_refs = 1,
		.name_length = 1,
		.data_length = 5000,
		.name = "f",
		.loc = { .addr = 0x1000,
			 .length = 5116,
			 .nonce = 6,
			 .rkey = { 8, 9 },
			 .version = 1,
			 .nr_segments = 1 },
		.key = { 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xab,
			 0xac, 0xad, 0xae, 0xaf },
	};
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "02000000"
			    "7d000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "0b00000000000000"
			    "01"
			    "01"
			    "01"
			    "00"
			    "0100"
			    "0000"
			    "88130000"
			    "0010000000000000"
			    "fc13000000000000"
			    "0600000000000000"
			    "0000000000000000"
			    "08000000"
			    "09000000"
			    "01000000"
			    "01000000"
			    "0000000000000000"
			    "00000000"
			    "00000000"
			    "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf"
			    "66");
	m.u.call = (struct rw_call){
		.call_id = 11, .kind = RW_CALL_TAKE, .id = { 1, 2, 0 }, .fork = { 3, 4, 0 },
		.name = "",
		.data = "\x05\0\0\0\x03\0\0", .data_length = RW_TAKE_BYTES,
	};
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "02000000"
			    "4c000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "00000000"
			    "0b00000000000000"
			    "03"
			    "00"
			    "00"
			    "00"
			    "0000"
			    "0000"
			    "08000000"
			    "0100000000000000"
			    "02000000"
			    "0300000000000000"
			    "04000000"
			    "05000000"
			    "03000000");
	memset(&m.u, 0, sizeof(m.u));
	m.frame.type = RW_RECEIVED;
	m.frame.ack = 0x0e0f1011;
	memset(m.u.received.mac, 0xee, 32);
	m.u.received.seq = 12;
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text,
			    "0f000000"
			    "40000000"
			    "0807060504030201"
			    "0d0c0b0a"
			    "11100f0e"
			    "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
			    "0c00000000000000");
	m.frame.ack = 0;
	m.frame.type = RW_DONE;
	m.u.done = (struct rw_done){ .call_id = 11, .what = RW_PAYLOAD_REPLY, .status = -ENOMEM };
	n = rw_encode(&m, buf, sizeof(buf));
	hex(buf, n, text);
	assert_string_equal(text, "0d000000" "28000000" "0807060504030201" "0d0c0b0a" "00000000"
				  "0b00000000000000" "02000000" "f4ffffff");
}

/* Each table of docs/WIRE.md has no gap and adds up to what the code uses. */
static void rw__tables_of_the_document(void **state)
{
	static const struct { const char *heading; unsigned bytes; } tables[] = {
		{ "## Frame\n", RW_FRAME_BYTES }, { "## Id\n", RW_ID_BYTES },
		{ "## Location\n", RW_LOCATION_BYTES },
		{ "## Fork record\n", RW_FORK_BYTES }, { "## TYPE_ANSWER\n", 24 },
		{ "## CALL\n", 20 }, { "## REPLY\n", 24 }, { "## PROTO\n", 32 },
		{ "## DONE\n", 16 },
	};
	unsigned seen = 0, at = 0, table = array_size(tables), offset, size;
	char line[512];
	FILE *f = fopen("docs/WIRE.md", "r");

	(void)state;
	if (!f) {
		print_message("docs/WIRE.md is not in reach of the working directory\n");
		skip();
	}
	while (fgets(line, sizeof(line), f)) {
		if (line[0] == '#') {
			for (table = 0;
			     table < array_size(tables) && strcmp(line, tables[table].heading);
			     table++)
				;
			at = 0;
		} else if (table < array_size(tables) &&
			   sscanf(line, "| %u | %u |", &offset, &size) == 2) {
			assert_int_equal(offset, at);
			at += size;
			assert_true(at <= tables[table].bytes);
			seen += at == tables[table].bytes;
		}
	}
	fclose(f);
	assert_int_equal(seen, array_size(tables));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rw__bit_flips),
		cmocka_unit_test(rw__decoder_refuses),
		cmocka_unit_test(rw__encoder_refuses_bad_counts),
		cmocka_unit_test(rw__forks_of_a_payload),
		cmocka_unit_test(rw__golden_bytes),
		cmocka_unit_test(rw__largest_call_fits),
		cmocka_unit_test(rw__no_room),
		cmocka_unit_test(rw__plain_at_their_limits),
		cmocka_unit_test(rw__random_bytes),
		cmocka_unit_test(rw__round_trip),
		cmocka_unit_test(rw__set_seq),
		cmocka_unit_test(rw__tables_of_the_document),
		cmocka_unit_test(rw__truncated_or_extended),
		cmocka_unit_test(rw__type_names),
	};

	for (size_t i = 0; i < sizeof(words); i++)
		words[i] = (char)('a' + i % 26);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
