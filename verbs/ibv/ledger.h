/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger of READs: the end of one. Shared by the files that post READs and take them in.
 *
 * A slot's generation tells its state by the lowest two bits: free, taken, posted. The step from
 * posted to free ends the READ, and begins the next generation. Pairs: the poster's store-release
 * of POSTED with the load-acquire of the thread that ends the READ (cookie).
 */
#ifndef RVI_LEDGER_H
#define RVI_LEDGER_H

#include "ibv.h"

#define RVI_READ_POSTED 1u /* bit of a READ that is under way */
#define RVI_READ_TAKEN 2u /* bit of a slot that a poster has; stays until the READ ends */
#define RVI_READ_BUSY 3u

/* Ends the READ of that generation. Returns true for one caller. */
static inline bool rvi_end_slot(struct rvi_read *s, uint32_t gen)
{
	rb_assert_with((gen & RVI_READ_BUSY) == RVI_READ_BUSY, "%u", gen);
	/* sc. Pairs with take_read_slot: the caller looks for reads that wait. */
	return at_cas_sc(&s->gen, &gen, gen + 1);
}

/*
 * Ends the READ of a token. Returns its connection, and fills in *out. Returns NULL if no such READ
 * is under way. A connection keeps its user while a READ is under way.
 */
static inline struct rv_conn *rvi_end_read(struct rv_dev *dev, struct rvi_token t,
					   struct rv_read_end *out)
{
	struct rv_conn *conn = rvi_conn_at(dev, rvi_index_conn(t.index));
	uint32_t slot = rvi_index_slot(t.index);
	struct rvi_read *s;

	/* Acquire. Pairs with rvi_reads_init. */
	if (unlikely(!conn || !(s = at_load_acq(&conn->reads)) || slot >= dev->max_reads))
		return NULL;
	s += slot;
	if (unlikely(at_load_acq(&s->gen) != t.gen))
		return NULL;
	/* Loaded before the READ ends. Behind its end both may be another's. */
	out->cookie = at_load(&s->cookie);
	out->user = at_load(&conn->user);
	return likely(rvi_end_slot(s, t.gen)) ? conn : NULL;
}

#endif
