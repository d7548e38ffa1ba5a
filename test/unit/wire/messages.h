/* SPDX-License-Identifier: Apache-2.0 */
/* Random messages of every type, and their comparison, for the tests of the codec. */
#ifndef MESSAGES_H
#define MESSAGES_H

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

static inline uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * UINT64_C(0x2545f4914f6cdd1d);
}

static inline uint32_t below(uint32_t n)
{
	return (uint32_t)((rnd() >> 33) % n);
}

static inline struct rref_id any_id(void)
{
	return (struct rref_id){ .local_id = rnd() | 1, .created_on = below(WORLD) };
}

static inline struct rp_location any_location(void)
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

/* Returns a possible place of a payload with that many bytes and records. */
static inline struct rp_location located(uint32_t data_length, uint32_t nr_refs)
{
	struct rp_location loc = any_location();

	loc.nr_segments = 1;
	loc.nr_refs = 0;
	loc.length = data_length + (uint64_t)nr_refs * RW_FORK_BYTES;
	loc.data_addr = loc.data_rkey[0] = loc.data_rkey[1] = 0;
	return loc;
}

static char words[RW_INLINE_MAX];

static inline void any_forks(struct rp_fork *refs, unsigned nr)
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

/* Chooses a payload, in the message or elsewhere. */
static inline void any_payload(struct rp_location *loc, uint8_t *key, uint16_t *nr_refs,
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

static inline void any_proto(struct rp_msg *p)
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

static inline void any_take(struct rw_call *c)
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

/* Makes a well-formed message of that type, in the form that decoding gives. */
static inline void any_message(struct rw_message *m, unsigned type)
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

static inline void assert_id(const struct rref_id *a, const struct rref_id *b)
{
	assert_true(a->local_id == b->local_id && a->created_on == b->created_on &&
		    a->reserved == b->reserved);
}

static inline void assert_location(const struct rp_location *a, const struct rp_location *b)
{
	assert_true(a->addr == b->addr && a->length == b->length && a->nonce == b->nonce &&
		    a->type_hash == b->type_hash);
	assert_true(a->rkey[0] == b->rkey[0] && a->rkey[1] == b->rkey[1] &&
		    a->version == b->version && a->nr_segments == b->nr_segments &&
		    a->nr_refs == b->nr_refs);
	assert_true(a->data_addr == b->data_addr && a->data_rkey[0] == b->data_rkey[0] &&
		    a->data_rkey[1] == b->data_rkey[1]);
}

static inline void assert_forks(const struct rp_fork *a, const struct rp_fork *b, unsigned nr)
{
	for (; nr--; a++, b++) {
		assert_id(&a->id, &b->id);
		assert_id(&a->fork, &b->fork);
		assert_true(a->owner == b->owner && a->parent == b->parent && a->flags == b->flags);
		assert_true(a->owner_incarnation == b->owner_incarnation && a->word == b->word);
		assert_location(&a->loc, &b->loc);
	}
}

static inline void assert_message(const struct rw_message *a, const struct rw_message *b)
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
static inline int decode_tight(const uint8_t *bytes, size_t n, struct rw_message *out,
			       uint8_t **copy)
{
	*copy = malloc(n ? n : 1);
	assert_non_null(*copy);
	memcpy(*copy, bytes, n);
	memset(out, 0xa5, sizeof(*out));
	return rw_decode(*copy, n, WORLD, out);
}

/* Checks that the bytes are refused, or encode to the very same bytes. */
static inline void assert_refused_or_exact(const uint8_t *bytes, size_t n)
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

#endif
