/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The provider's frame before each message, and its bytes around the core's connection data.
 *
 *   frame          offset 0  u8   magic and version of the frame, 0xa2
 *   (8 bytes,      offset 1  u8   type: 1 message, 2 credits only, 3 offer, 4 ready
 *   little-endian) offset 2  u16  credits returned
 *                  offset 4  u16  bytes that follow: of the message; 0, 12, 4 in types 2, 3, 4
 *                  offset 6  u16  sequence number of this direction, from 0, wrapping
 *
 *   offer          u32 number of the pair, u32 queue pair number, u32 first packet number
 *   ready          u32 number of the pair. Both are about queue pairs for READs: pair.c
 *
 *   seal           8 bytes behind the message of a sealed connection (rv.h): the MAC
 *
 *   connection     request   u8   bits 0..5 bytes of hello, bits 6..7 credit class; then the hello
 *   data           answer    u8   bytes of the answer; u8 credit class; then the answer
 *                  reject    u8   bytes of the reason; then the reason
 *                  The rest is the CM's zero padding.
 *
 * The credit class is the number of messages that its sender takes before any frame came; frames
 * grant more. It has two bits, since a request has no byte to spare.
 *
 * Pure functions; everything in them may come from a hostile peer.
 */
#ifndef RVI_FRAME_H
#define RVI_FRAME_H

#include <errno.h>
#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/util.h"
#include "verbs/rv.h"

#define RVI_FRAME_BYTES 8
#define RVI_FRAME_MAGIC 0xa2
#define RVI_OFFER_BYTES 12
#define RVI_READY_BYTES 4
#define RVI_PDATA_MAX 196 /* the largest of the three; an accept's */

enum rvi_frame_type {
	RVI_FRAME_MSG = 1,
	RVI_FRAME_CREDITS = 2,
	RVI_FRAME_OFFER = 3,
	RVI_FRAME_READY = 4,
};

struct rvi_frame {
	uint8_t type;
	uint16_t grant, len, seq;
};

static inline void rvi_frame_put(uint8_t *p, const struct rvi_frame *f)
{
	p[0] = RVI_FRAME_MAGIC;
	p[1] = f->type;
	put_le16(p + 2, f->grant);
	put_le16(p + 4, f->len);
	put_le16(p + 6, f->seq);
}

/* Tells whether a frame of that type may have that length. A credit message that grants nothing is
 * refused, else a flood of them would be legal. */
static inline bool rvi_frame_fits(const struct rvi_frame *f)
{
	switch (f->type) {
	case RVI_FRAME_MSG:
		return f->len;
	case RVI_FRAME_CREDITS:
		return !f->len && f->grant;
	case RVI_FRAME_OFFER:
		return f->len == RVI_OFFER_BYTES;
	case RVI_FRAME_READY:
		return f->len == RVI_READY_BYTES;
	default:
		return false;
	}
}

/* Reads a frame. Returns 0 or -EPROTO. byte_len is the length that the device reports. */
static inline int rvi_frame_get(const uint8_t *p, size_t byte_len, struct rvi_frame *out)
{
	struct rvi_frame f;

	if (byte_len < RVI_FRAME_BYTES || byte_len > RVI_FRAME_BYTES + RV_MSG_MAX ||
	    p[0] != RVI_FRAME_MAGIC)
		return -EPROTO;
	f.type = p[1];
	f.grant = get_le16(p + 2);
	f.len = get_le16(p + 4);
	f.seq = get_le16(p + 6);
	if (f.len != byte_len - RVI_FRAME_BYTES || !rvi_frame_fits(&f))
		return -EPROTO;
	*out = f;
	return 0;
}

/*
 * A sealed frame ends with a MAC: SipHash-2-4 of the frame, the message and the frame's number.
 * Both ends count the number and neither sends it. The key belongs to this connection and this
 * direction. So a frame fits at one place only.
 */
#define RVI_SEAL_BYTES 8

struct rvi_seal {
	uint8_t key[RV_SEAL_KEY_BYTES];
	uint64_t number;             /* number of the next frame */
};

_Static_assert(RVI_SEAL_BYTES == crypto_shorthash_BYTES &&
		       RV_SEAL_KEY_BYTES == crypto_shorthash_KEYBYTES,
	       "SipHash");

static inline void rvi_seal_init(struct rvi_seal *s, const uint8_t key[RV_SEAL_KEY_BYTES])
{
	memcpy(s->key, key, sizeof(s->key));
	s->number = 0;
}

/* Writes the MAC; there is room for it behind the frame and message. The number stays: the caller
 * counts the frames that really went out. */
static inline void rvi_seal_put(const struct rvi_seal *s, uint8_t *mem, size_t bytes)
{
	uint8_t mac[RVI_SEAL_BYTES];

	put_le64(mem + bytes, s->number);
	crypto_shorthash(mac, mem, bytes + RVI_SEAL_BYTES, s->key);
	memcpy(mem + bytes, mac, sizeof(mac));
}

/* 0: the MAC fits, *bytes is now without it, and the next frame is expected. Else -EBADMSG.
 * Writes to the MAC's place. */
static inline int rvi_seal_get(struct rvi_seal *s, uint8_t *mem, size_t *bytes)
{
	uint8_t came[RVI_SEAL_BYTES], mac[RVI_SEAL_BYTES];
	size_t n = *bytes - RVI_SEAL_BYTES;

	if (*bytes < RVI_FRAME_BYTES + RVI_SEAL_BYTES || n > RVI_FRAME_BYTES + RV_MSG_MAX)
		return -EBADMSG;
	memcpy(came, mem + n, sizeof(came));
	put_le64(mem + n, s->number);
	crypto_shorthash(mac, mem, *bytes, s->key);
	if (sodium_memcmp(mac, came, sizeof(mac)))
		return -EBADMSG;
	s->number++;
	*bytes = n;
	return 0;
}

enum rvi_pdata { RVI_PD_REQUEST, RVI_PD_ANSWER, RVI_PD_REASON };

static inline uint32_t rvi_class_credits(unsigned class)
{
	static const uint8_t credits[] = { 4, 8, 32, 64 };

	return credits[class & 3];
}

/* The largest class that promises no more than that. credits >= 4. */
static inline unsigned rvi_credit_class(uint32_t credits)
{
	unsigned class = 3;

	while (class && rvi_class_credits(class) > credits)
		class--;
	return class;
}

/* Returns the bytes to hand to the CM. len is at most the contract's maximum of that kind. */
static inline uint8_t rvi_pdata_put(enum rvi_pdata kind, uint8_t *out, const void *data, size_t len,
				    unsigned class)
{
	size_t head = kind == RVI_PD_ANSWER ? 2 : 1;

	rb_assert_with(class <= 3 && len + head <= UINT8_MAX, "%u, %zu", class, len);
	rb_assert_if(kind == RVI_PD_REQUEST, len < 64);
	out[0] = (uint8_t)(kind == RVI_PD_REQUEST ? len | class << 6 : len);
	if (kind == RVI_PD_ANSWER)
		out[1] = (uint8_t)class;
	if (len)
		memcpy(out + head, data, len);
	return (uint8_t)(len + head);
}

struct rvi_pdata_view {
	const uint8_t *data;
	uint32_t len;
	unsigned class;
};

/* Reads connection data. Returns 0 or -EPROTO. The CM hands over `size` bytes, padded. Only the
 * length byte counts, and it is checked too. */
static inline int rvi_pdata_get(enum rvi_pdata kind, const uint8_t *p, size_t size,
				struct rvi_pdata_view *out)
{
	static const uint8_t max[] = { RV_HELLO_MAX, RV_ANSWER_MAX, RV_REASON_MAX };
	size_t head = kind == RVI_PD_ANSWER ? 2 : 1;
	struct rvi_pdata_view v = { 0 };

	/* A CM that refuses by itself carries nothing. */
	if (!size && kind == RVI_PD_REASON) {
		*out = v;
		return 0;
	}
	if (size < head)
		return -EPROTO;
	v.data = p + head;
	v.len = kind == RVI_PD_REQUEST ? p[0] & 63 : p[0];
	v.class = kind == RVI_PD_REQUEST ? p[0] >> 6 : kind == RVI_PD_ANSWER ? p[1] : 0;
	if (v.len > max[kind] || v.len + head > size || v.class > 3)
		return -EPROTO;
	*out = v;
	return 0;
}

_Static_assert(RV_HELLO_MAX + 1 <= 56 && RV_HELLO_MAX < 64, "a hello fits a request");
_Static_assert(RV_ANSWER_MAX + 2 <= 196 && RV_REASON_MAX + 1 <= 148, "answers and reasons fit");

#endif
