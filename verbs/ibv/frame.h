/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this provider puts before each message, and around the core's connection data.
 *
 *   frame          offset 0  u8   magic and version of the frame, 0xa1
 *   (8 bytes,      offset 1  u8   type: 1 message, 2 credits only
 *   little-endian) offset 2  u16  credits returned
 *                  offset 4  u16  bytes of the message that follows; 0 in type 2
 *                  offset 6  u16  sequence number of this direction, from 0, wrapping
 *
 *   connection     offset 0  u8   bytes that follow and count; the rest is the CM's zero padding
 *   data
 *
 * Pure functions; everything in them may come from a hostile peer.
 */
#ifndef RVI_FRAME_H
#define RVI_FRAME_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "verbs/rv.h"

#define RVI_FRAME_BYTES 8
#define RVI_FRAME_MAGIC 0xa1
#define RVI_PDATA_MAX 196 /* the largest of the three; an accept's */

enum rvi_frame_type { RVI_FRAME_MSG = 1, RVI_FRAME_CREDITS = 2 };

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

/* 0 or -EPROTO. byte_len is what the device says has arrived. */
static inline int rvi_frame_get(const uint8_t *p, size_t byte_len, struct rvi_frame *out)
{
	struct rvi_frame f;

	if (byte_len < RVI_FRAME_BYTES || byte_len > RVI_FRAME_BYTES + RV_MSG_MAX || p[0] != RVI_FRAME_MAGIC)
		return -EPROTO;
	f.type = p[1];
	f.grant = get_le16(p + 2);
	f.len = get_le16(p + 4);
	f.seq = get_le16(p + 6);
	if (f.len != byte_len - RVI_FRAME_BYTES)
		return -EPROTO;
	/* A credit message that grants nothing is refused, else a flood of them would be legal. */
	if (f.type == RVI_FRAME_MSG ? !f.len : f.type != RVI_FRAME_CREDITS || f.len || !f.grant)
		return -EPROTO;
	*out = f;
	return 0;
}

/* Returns the bytes to hand to the CM. len < 256 and fits out. */
static inline uint8_t rvi_pdata_put(uint8_t *out, const void *data, size_t len)
{
	out[0] = (uint8_t)len;
	if (len)
		memcpy(out + 1, data, len);
	return (uint8_t)(len + 1);
}

/* 0 or -EPROTO. The CM hands over `size` bytes, padded: only the own length byte counts, and it is not believed either. */
static inline int rvi_pdata_get(const uint8_t *p, size_t size, size_t max, uint32_t *len)
{
	if (!size) {
		*len = 0;
		return 0;
	}
	if (p[0] > max || (size_t)p[0] + 1 > size)
		return -EPROTO;
	*len = p[0];
	return 0;
}

#endif
