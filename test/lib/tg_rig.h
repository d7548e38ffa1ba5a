/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the foe (tg_foe.h) that its victims READ: values and payloads, right or wrong. */
#ifndef TG_RIG_H
#define TG_RIG_H

#include "tg_foe.h"

struct rig {
	unsigned char *memory;
	size_t bytes;
	struct rv_mr mr;
	uint64_t next;              /* number of the next value or call; begins at 1 */
};

/* Registers memory for READs of the foe's peers. rig_close ends the foe's session first. */
void rig_open(struct foe *f, struct rig *r, size_t bytes);
void rig_close(struct foe *f, struct rig *r);

/*
 * Writes a correct header at the beginning of the memory. The value, `length` bytes, lies after it.
 * local_id: 0 for a payload. Returns the value's location.
 */
struct rp_location rig_header(struct foe *f, struct rig *r, uint64_t local_id, uint64_t length,
			      uint64_t hash, uint16_t nr_segments, uint16_t nr_refs);

/* Answers with an error that says how many bytes of payloads worker 1 offers. */
int rig_payload_bytes(struct rref_call *call, void *arg);
#define RIG_PAYLOAD_BYTES \
	{ .name = "payload_bytes", .handler = rig_payload_bytes, .flags = RREF_INLINE }
/* Returns that number. */
unsigned long rig_offered(struct foe *f);

#endif
