/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The offsets and sizes of the wire format, on which encoder and decoder must agree. docs/WIRE.md
 * shows them as tables.
 */
#ifndef RW_INTERNAL_H
#define RW_INTERNAL_H

#include "base/util.h"
#include "core/wire/wire.h"

enum {
	/* frame */
	RW_AT_TYPE = 0,
	RW_AT_FLAGS = 1,
	RW_AT_RESERVED = 2,
	RW_AT_LENGTH = 4,
	RW_AT_SEQ = 8,
	RW_AT_EPOCH = 16,
	RW_AT_ACK = 20,
	/* fixed parts of bodies */
	/* u64 call, u8 kind, u8 located, u8 name length, u8 0, u16 refs, u16 meta length, u32 data
	 * length */
	RW_CALL_BYTES = 20,
	/* u64 call, i32 status, u16 text length, u8 located, u8 0, u16 refs, u16 about, u32 data
	 * length */
	RW_REPLY_BYTES = 24,
	/* u8 type, u8 has location, u16 text length, i32 status, id, fork */
	RW_PROTO_BYTES = 32,
	RW_WORD_BYTES = 8,
	RW_MAC_BYTES = 32,
	RW_ERRNO_MAX = 4095, /* statuses are -RW_ERRNO_MAX..0 */
};

/* Tell which parts a message of the protocol may carry. */
static inline int rw_proto_has_status(unsigned type)
{
	return type == RP_MSG_FORK_ACK || type == RP_MSG_FETCH_REPLY || type == RP_MSG_CREATED ||
	       type == RP_MSG_PARENT_ACK;
}
static inline int rw_proto_has_location(unsigned type)
{
	return type == RP_MSG_FORK_ACK || type == RP_MSG_FETCH_REPLY || type == RP_MSG_CREATED;
}
static inline int rw_proto_has_word(unsigned type)
{
	return type == RP_MSG_FORK_REQUEST;
}
/* Returns true for a type whose success says nothing without a location. */
static inline int rw_proto_needs_location(unsigned type)
{
	return type == RP_MSG_FETCH_REPLY || type == RP_MSG_CREATED;
}
/* Checks that a message of that type may have these parts. Only an error has a text. */
static inline int rw_proto_valid(unsigned type, int32_t status, bool located, size_t text_length)
{
	if (type < RP_MSG_FORK_REQUEST || type >= RP_MSG_NR_TYPES || text_length >= RP_TEXT_MAX)
		return 0;
	if (status)
		return rw_proto_has_status(type) && !located;
	return !text_length &&
	       (located ? rw_proto_has_location(type) : !rw_proto_needs_location(type));
}

/* Checks that a reply has either a result or an error. */
static inline int rw_reply_valid(const struct rw_reply *r, bool located)
{
	if (r->text_length >= RP_TEXT_MAX)
		return 0;
	return r->status ? !r->nr_refs && !r->data_length && !located
			 : !r->text_length && !r->about;
}

/*
 * Checks the counts of a payload or a message. A payload is one segment. It holds all the data and
 * fork records, and nothing else. A message holds few records or no records.
 */
static inline int rw_payload_valid(const struct rp_location *l, uint32_t data_length,
				   uint32_t nr_refs, uint32_t meta_length)
{
	if (!l->version)
		return data_length <= RW_INLINE_MAX && data_length + meta_length <= RW_INLINE_MAX &&
		       nr_refs <= RW_REFS_MAX;
	return data_length <= RREF_ARGS_MAX && nr_refs <= RREF_REFS_MAX &&
	       (data_length || nr_refs) && l->nonce && !rp_is_wrapped(l) && l->nr_segments == 1 &&
	       !l->nr_refs && l->length == data_length + (uint64_t)nr_refs * RW_FORK_BYTES;
}

/* Checks a TAKE. It has no name. data: NULL when it was cut off. */
static inline int rw_take_valid(const struct rw_call *c, const void *data)
{
	uint32_t first, nr;

	if (c->name_length || c->meta_length || c->nr_refs || c->loc.version ||
	    c->data_length != RW_TAKE_BYTES || !data)
		return 0;
	first = get_le32(data);
	nr = get_le32((const uint8_t *)data + 4);
	return nr && nr <= RREF_REFS_MAX && first <= RREF_REFS_MAX - nr;
}

/* Checks a call. A function is called by its name. data: as rw_take_valid. */
static inline int rw_call_valid(const struct rw_call *c, const void *data)
{
	if (c->kind == RW_CALL_TAKE)
		return rw_take_valid(c, data);
	return (c->kind == RW_CALL_RPC || c->kind == RW_CALL_REMOTE) && c->name_length &&
	       c->name_length <= RREF_NAME_MAX && c->meta_length <= RREF_META_MAX;
}

/*
 * Checks that a value, its header, its payload and the table of its segments fit the address space.
 * The header is in front of the value. The table begins at a multiple of 8. A payload that lies
 * elsewhere must fit too. A local value (nonce 0) has no address and no rkey.
 */
#define RW_VALUE_HEADER_BYTES 64u
static inline int rw_location_valid(const struct rp_location *l)
{
	uint64_t extra = RW_VALUE_HEADER_BYTES +
			 (l->nr_segments > 1 ? 7u + 8u * (uint64_t)l->nr_segments : 0);

	return l->length <= UINT64_MAX - extra && l->addr <= UINT64_MAX - extra - l->length &&
	       l->data_addr <= UINT64_MAX - extra - l->length &&
	       l->nr_segments <= RREF_SEGMENTS_MAX && l->nr_refs <= RREF_REFS_MAX &&
	       (l->nonce || !(l->addr | l->data_addr | l->rkey[0] | l->rkey[1])) &&
	       (rp_is_wrapped(l) || !(l->data_rkey[0] | l->data_rkey[1]));
}

#endif
