/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wr_id as a typed token {kind, index, generation}. A failed completion carries little else that
 * may be read, and completions outlive their queue pair (docs/design/devices.md). So the token
 * alone must tell which request ended, and whether it is still waited for. Only this file packs and
 * unpacks one.
 *
 *   bit 63..60 kind   59..32 index   31..0 generation
 *
 * For READ and SEND the index is {connection 16 bits, slot 12 bits}; for RECV it is the buffer's
 * number.
 */
#ifndef RVI_TOKEN_H
#define RVI_TOKEN_H

#include <stdint.h>

#include "base/assert.h"

/* 0 is no kind, so that a zeroed wr_id is unknown. */
enum rvi_kind { RVI_READ = 1, RVI_SEND = 2, RVI_RECV = 3 };

#define RVI_SLOT_BITS 12
#define RVI_SLOTS_MAX (1u << RVI_SLOT_BITS)
#define RVI_CONNS_MAX (1u << 16)
#define RVI_INDEX_MAX (1u << 28)

struct rvi_token {
	uint32_t kind, index, gen;
};

static inline uint64_t rvi_token_pack(enum rvi_kind kind, uint32_t index, uint32_t gen)
{
	return (uint64_t)kind << 60 | (uint64_t)(index & (RVI_INDEX_MAX - 1)) << 32 | gen;
}

static inline struct rvi_token rvi_token_unpack(uint64_t wr_id)
{
	return (struct rvi_token){
		.kind = (uint32_t)(wr_id >> 60),
		.index = (uint32_t)(wr_id >> 32) & (RVI_INDEX_MAX - 1),
		.gen = (uint32_t)wr_id,
	};
}

static inline uint32_t rvi_index(uint32_t conn, uint32_t slot)
{
	rb_assert_with(conn < RVI_CONNS_MAX && slot < RVI_SLOTS_MAX, "%u, %u", conn, slot);
	return conn << RVI_SLOT_BITS | slot;
}

static inline uint32_t rvi_index_conn(uint32_t index)
{
	return index >> RVI_SLOT_BITS;
}

static inline uint32_t rvi_index_slot(uint32_t index)
{
	return index & (RVI_SLOTS_MAX - 1);
}

#endif
