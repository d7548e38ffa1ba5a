/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The completions of the send queues: READs and messages that the device has done. Any thread takes
 * them in, at any time, without the core's lock. READs that ended well are handed to the caller.
 * All other completions need the lock. They wait in a list until its holder polls (poll.c).
 *
 * The ticket keeps threads from crowding at the queue. It is a hint, and only ever tried. A thread
 * that finds it taken again and again polls beside its holder, which may stand still. ibv_poll_cq
 * is safe for threads. And a READ's generation decides its end (read.c), however many threads look.
 *
 * The list is a stack of nodes, linked by number. A push is one compare-and-swap, and the holder of
 * the lock takes all by one exchange. So a thread that stops in the middle holds up nobody. The
 * free nodes are a stack too, whose word {tag, number} makes ABA visible.
 */
#include <stdlib.h>

#include "ibv.h"
#include "ledger.h"

#define BESIDE 64u     /* refused looks of a thread before it polls beside the ticket's holder */
#define ODD_MORE 1024u /* nodes beyond the queue's size, for completions of closed connections */

struct rvi_odd {
	_Atomic uint32_t next;
	uint32_t status;
	uint64_t wr_id;
};

int rvi_sent_init(struct rv_dev *dev, uint32_t queue)
{
	uint32_t n = queue + ODD_MORE;

	dev->odd = calloc(n, sizeof(*dev->odd));
	if (!dev->odd)
		return rv_fail(ENOMEM, "no memory for %u completions", n);
	for (uint32_t i = 0; i < n; i++)
		at_store(&dev->odd[i].next, i + 1 < n ? i + 1 : RVI_NIL);
	dev->odd_due = RVI_NIL;
	at_store(&dev->odd_came, RVI_NIL);
	at_store_rel(&dev->odd_free, 0);
	return 0;
}

static uint32_t take_node(struct rv_dev *dev)
{
	uint64_t old = at_load_acq(&dev->odd_free);
	uint32_t i;

	do {
		i = rvi_stack_head(old);
		rb_require(i != RVI_NIL); /* the queue itself holds no more than these */
	} while (!at_cas_weak_ar(&dev->odd_free, &old,
				 rvi_stack_word(old, at_load(&dev->odd[i].next))));
	return i;
}

static void give_node(struct rv_dev *dev, uint32_t i)
{
	uint64_t old = at_load(&dev->odd_free);

	do
		at_store(&dev->odd[i].next, rvi_stack_head(old));
	while (!at_cas_weak_ar(&dev->odd_free, &old, rvi_stack_word(old, i)));
}

/* Leaves a completion to the holder of the lock. */
static __attribute__((noinline, cold)) void leave_to_poll(struct rv_dev *dev,
							  const struct ibv_wc *wc)
{
	uint32_t i = take_node(dev), old = at_load(&dev->odd_came);

	dev->odd[i].wr_id = wc->wr_id;
	dev->odd[i].status = wc->status;
	do
		at_store(&dev->odd[i].next, old);
	while (!at_cas_weak_sc(&dev->odd_came, &old, i));
}

/* Takes what was left, in the order in which it came. [progress] */
static void gather(struct rv_dev *dev)
{
	uint32_t i = at_xchg_acq(&dev->odd_came, RVI_NIL), next;

	for (; i != RVI_NIL; i = next) {
		next = at_load(&dev->odd[i].next);
		at_store(&dev->odd[i].next, dev->odd_due);
		dev->odd_due = i;
	}
}

bool rvi_sent_next(struct rv_dev *dev, struct ibv_wc *out)
{
	uint32_t i;

	if (dev->odd_due == RVI_NIL && at_load_sc(&dev->odd_came) != RVI_NIL)
		gather(dev);
	i = dev->odd_due;
	if (likely(i == RVI_NIL))
		return false;
	dev->odd_due = at_load(&dev->odd[i].next);
	memset(out, 0, sizeof(*out));
	out->wr_id = dev->odd[i].wr_id;
	out->status = dev->odd[i].status;
	give_node(dev, i);
	return true;
}

/*
 * Takes out all that is there, for the holder of the lock. A queue pair is about to be made, whose
 * completions need the room. Closed connections may have left some there, if nobody looked since.
 */
void rvi_sent_drain(struct rv_dev *dev)
{
	struct ibv_wc wc[RVI_BATCH];
	int n;

	do {
		n = rvi_poll_cq(dev, dev->send_cq, RVI_BATCH, wc);
		for (int i = 0; i < n; i++)
			leave_to_poll(dev, &wc[i]);
	} while (n == RVI_BATCH);
}

static inline bool take_ticket(struct rv_dev *dev)
{
	static __attribute__((tls_model("initial-exec"))) _Thread_local unsigned refused;

	if (likely(!at_load(&dev->ticket) && !at_xchg_acq(&dev->ticket, 1)))
		return true;
	return ++refused % BESIDE == 0;
}

/* Takes in a completion. Returns 1 if it was a READ's that ended well, and fills in *out. */
static inline unsigned take_one(struct rv_dev *dev, const struct ibv_wc *wc,
				struct rv_read_end *out, bool *more)
{
	struct rvi_token t = rvi_token_unpack(wc->wr_id);

	if (likely(t.kind == RVI_READ && wc->status == IBV_WC_SUCCESS))
		return rvi_end_read(dev, t, out) != NULL;
	leave_to_poll(dev, wc);
	*more = true;
	return 0;
}

/*
 * Takes in got completions, and more of them until the queue is empty. Completions may make no
 * READ's end. Without a look behind them a sleeper would miss what is there.
 */
static __attribute__((noinline)) unsigned take_many(struct rv_dev *dev, struct ibv_wc *wc, int got,
						    struct rv_read_end *out, unsigned max,
						    bool *more)
{
	unsigned n = 0;

	while (got > 0) {
		bool full = (unsigned)got == max - n;

		for (int i = 0; i < got; i++)
			n += take_one(dev, &wc[i], &out[n], more);
		if (!full || n == max)
			return n;
		got = ibv_poll_cq(dev->send_cq, (int)(max - n), wc);
	}
	if (got < 0) {
		at_store(&dev->cq_broken, true);
		*more = true;
	}
	return n;
}

int rvi_reads(struct rv_dev *dev, struct rv_read_end *out, unsigned max, bool *more)
{
	struct ibv_wc wc[RVI_BATCH];
	unsigned n = 0;
	int got;

	if (unlikely(!take_ticket(dev)))
		return -EAGAIN;
	max = min_of(max, (unsigned)RVI_BATCH);
	got = ibv_poll_cq(dev->send_cq, (int)max, wc);
	if (likely(got == 1 && max > 1))
		n = take_one(dev, wc, out, more);
	else if (unlikely(got))
		n = take_many(dev, wc, got, out, max, more);
	at_store_rel(&dev->ticket, 0);
	return (int)n;
}
