/* SPDX-License-Identifier: Apache-2.0 */
/* Messages as bytes: at their limits, and as docs/WIRE.md defines them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "messages.h"

/* Sends a call with a name and bytes, and a reply with bytes, in the fast way. Values just past
 * the limits are refused. */
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
		/* A NUL anywhere in the name is refused; no other change may pass. */
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
	/* A reply without an error is about no worker, written in either way. */
	rw_reply_init(&m);
	m.u.reply.about = 1;
	assert_int_equal(rw_encode(&m, buf, sizeof(buf)), -EINVAL);
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

/* Compares the bytes themselves, so that a change of the format is a change of this test. */
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

/* Checks that each table of docs/WIRE.md has no gap and adds up to the size in the code. */
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
		cmocka_unit_test(rw__encoder_refuses_bad_counts),
		cmocka_unit_test(rw__golden_bytes),
		cmocka_unit_test(rw__largest_call_fits),
		cmocka_unit_test(rw__no_room),
		cmocka_unit_test(rw__plain_at_their_limits),
		cmocka_unit_test(rw__set_seq),
		cmocka_unit_test(rw__tables_of_the_document),
		cmocka_unit_test(rw__type_names),
	};

	for (size_t i = 0; i < sizeof(words); i++)
		words[i] = (char)('a' + i % 26);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
