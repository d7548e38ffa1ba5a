/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake provider's objects. Private to test/fake/.
 *
 * Locks, in the order in which one thread may take them:
 *   control      making and ending objects, moves of queue pairs; never taken by posts and polls
 *   qp.engine    the requests of a queue pair are carried out by one thread at a time
 *   qp.serve     a peer is served by this queue pair, or it changes its state
 *   queue.lock   a receive queue's entries
 *   cq.lock      a completion queue's entries
 *   bell.lock    what wakes a descriptor
 * qp.posting stands alone. The connection manager has a lock of its own, cm_lock. Under it only
 * bell.lock is taken.
 *
 * All but control and cm_lock are held for short: spinlocks, as those of real drivers. A thread may
 * be stopped while it runs code of librref, and such a thread holds none of them.
 *
 * Queue pairs and completion queues are never freed, only used again. So a pointer may be old. An
 * old one does no harm: numbers and states are checked under the locks.
 */
#ifndef FV_OWN_H
#define FV_OWN_H

#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <sched.h>

#include "base/atomic.h"
#include "base/util.h"
#include "fv.h"

#define FV_QPS 4096u
#define FV_SLOTS 4096u /* queue pairs of one completion queue, and their peers */
#define FV_MRS 65536u
#define FV_SGE_MAX 32
#define FV_RD_MAX 128u
#define FV_EVENTS 256u
#define FV_NEVER INT64_MAX

/* ---- spinlocks ---- */

struct fv_lock {
	_Atomic int taken;
};

static inline bool fv_try(struct fv_lock *l)
{
	return !at_load(&l->taken) && !at_xchg_acq(&l->taken, 1);
}

static inline void fv_take(struct fv_lock *l)
{
	for (unsigned i = 1; !fv_try(l); i++) {
		if (i % 64)
			cpu_relax();
		else
			sched_yield(); /* the holder may have no processor */
	}
}

static inline void fv_give(struct fv_lock *l)
{
	at_store_rel(&l->taken, 0);
}

/* ---- a descriptor that is readable while something waits (bell.c) ---- */

struct fv_bell {
	int fd;
	bool rung;
	pthread_mutex_t lock;
};

int fv_bell_init(struct fv_bell *b);
void fv_bell_fini(struct fv_bell *b);
/* Take place under the bell's lock. */
void fv_bell_ring(struct fv_bell *b);
void fv_bell_quiet(struct fv_bell *b);
/* Waits until it rings, or fails with EAGAIN if the descriptor is non-blocking. */
int fv_bell_wait(struct fv_bell *b);

/* ---- devices (device.c) ---- */

struct fv_device;

struct fv_context {
	struct fv_device *device;
	struct fv_context *next; /* control */
	struct fv_bell bell; /* context.async_fd */
	struct ibv_async_event events[FV_EVENTS]; /* bell.lock, as the next two */
	uint32_t head, tail;
	struct verbs_context v; /* last: ibv_context is its end */
};

/* Places in struct fv_counts. Living queue pairs have the first three of them. */
enum fv_count_of {
	FV_READS,
	FV_WRITES,
	FV_SENDS,
	FV_FAILED,
	FV_FLUSHED,
	FV_RNR,
	FV_TIMEOUTS,
	FV_LOST_SRQ,
	FV_LOST_REQUESTS,
	FV_REFUSED_REQUESTS,
	FV_HELD_DESTROYS,
	FV_HELD_CREATES,
	FV_NR_COUNTS,
};
_Static_assert(sizeof(struct fv_counts) == FV_NR_COUNTS * sizeof(uint64_t), "counts");

struct fv_device {
	struct ibv_device base;
	unsigned index;
	struct fv_profile profile;
	struct fv_knobs knobs;
	_Atomic uint64_t counts[FV_NR_COUNTS];
	struct fv_context *contexts; /* control */
	struct fv_context *cm; /* the connection manager's own; control */
	_Atomic int64_t wire_free_ns; /* ns_per_kib: the time at which the last byte has come */
};

extern pthread_mutex_t fv_control;
extern struct fv_device fv_devices[FV_DEVICES];

void fv_devices_init(void);
struct fv_context *fv_context_of(struct ibv_context *context);
static inline struct fv_device *fv_device_of(struct ibv_context *context)
{
	return fv_context_of(context)->device;
}
struct fv_context *fv_context_new(struct fv_device *device);
void fv_context_free(struct fv_context *c);
/* element: the queue pair of the event, or NULL for the port or device. */
void fv_event_add(struct fv_context *c, enum ibv_event_type type, void *element);
/* Takes the events of a queue pair that is going out of the list. */
void fv_events_forget(struct fv_context *c, const void *element);
/* Takes one of a knob that counts. */
static inline bool fv_strikes(_Atomic int *knob)
{
	int n = at_load(knob);

	while (n > 0)
		if (at_cas_weak_ar(knob, &n, n - 1))
			return true;
	return false;
}

/* ---- memory (memory.c) ---- */

struct fv_pd {
	struct ibv_pd base;
	_Atomic uint32_t nr_mrs;
};

struct fv_mr {
	struct ibv_mr base;
	uint64_t iova;
	unsigned access;
};

/*
 * Returns the memory of [at, at + length) under that key. NULL: the key does not give this access
 * to all of it. Good as long as the caller holds the engine of any queue pair.
 */
uint8_t *fv_memory(uint32_t key, const struct ibv_pd *pd, unsigned access, uint64_t at,
		   uint64_t length);
/* Copies as a device does, while the owner may write. */
void fv_dma(void *to, const void *from, size_t n);

/* ---- completion queues (queue.c) ---- */

enum fv_armed { FV_ASLEEP = 0,
		FV_SOLICITED,
		FV_ANY };

struct fv_channel {
	struct ibv_comp_channel base;
	struct fv_bell bell;
	struct fv_cq *head, *tail; /* bell.lock: queues with news */
	_Atomic unsigned nr_cqs;
};

struct fv_cq {
	struct ibv_cq base;
	struct fv_cq *all_next; /* const */
	bool used; /* control */
	unsigned nr_qps; /* control */
	struct fv_channel *channel;
	struct fv_cq *next; /* channel's bell.lock, as the next two */
	bool listed; /* set: in the channel's list, an event is not yet taken */
	uint32_t events_out; /* events taken */

	cache_aligned _Atomic int armed;
	_Atomic int broken;
	_Atomic uint32_t nr_words;
	cache_aligned struct fv_lock lock;
	_Atomic uint32_t nr;
	uint32_t head, tail, max; /* lock */
	struct ibv_wc *ring;
	/* Bit i: something may be due for queue pair i. See fv_mark. */
	cache_aligned _Atomic uint64_t bits[FV_SLOTS / 64];
	_Atomic uintptr_t attached[FV_SLOTS];
};

/* A queue pair in attached: its own requests complete here, or with this bit its peer's arrive. */
#define FV_INCOMING ((uintptr_t)1)

void fv_cq_push(struct fv_cq *cq, const struct ibv_wc *wc, bool solicited);
/* Attaches a queue pair. Returns its slot, or -1. [control] */
int fv_cq_attach(struct fv_cq *cq, uintptr_t qp);
void fv_cq_detach(struct fv_cq *cq, uint32_t slot);
/* Notes that something may be due for that queue pair. Returns true if a thread may sleep. */
bool fv_mark(struct fv_cq *cq, uint32_t slot);
/* Drops the completions of a queue pair. */
void fv_cq_clean(struct fv_cq *cq, uint32_t qpn);
int fv_poll_cq(struct ibv_cq *base, int max, struct ibv_wc *wc);
int fv_req_notify_cq(struct ibv_cq *base, int solicited_only);

/* timer.c: carries out what is due for armed queues, at that time or soon after. */
void fv_wake_at(int64_t ns);
void fv_timer_stop(void);
/* Carries it out for all armed queues. Returns the time of the next. */
int64_t fv_run_armed(void);

/* ---- queue pairs (pair.c) ---- */

struct fv_recv {
	uint64_t wr_id;
	uint32_t nr_sge;
};

/* A receive queue: of a queue pair, or shared. */
struct fv_queue {
	struct fv_lock lock;
	uint32_t head, tail, max, mask, max_sge;
	struct fv_recv *ring;
	struct ibv_sge *sges; /* max_sge of each entry */
};

struct fv_srq {
	struct ibv_srq base;
	struct fv_queue queue;
	unsigned nr_qps; /* control */
};

uint32_t fv_ring_size(uint32_t max);
int fv_queue_init(struct fv_queue *q, uint32_t max, uint32_t max_sge);
void fv_queue_fini(struct fv_queue *q);
int fv_queue_post(struct fv_queue *q, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);

struct fv_wqe {
	uint64_t wr_id, remote;
	int64_t due_ns; /* 0: at once */
	uint32_t rkey, length, nr_sge, flags;
	enum ibv_wr_opcode opcode;
	uint32_t imm;
	unsigned tries, rnr;
};

struct fv_qp {
	struct ibv_qp base;
	struct fv_device *device;
	struct fv_cq *send_cq, *recv_cq;
	struct fv_srq *srq;
	uint32_t send_slot, recv_slot;
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr; /* control */
	bool sig_all;
	uint32_t max_sq, sq_mask; /* entries that may wait; the ring's size less 1 */
	_Atomic uint32_t num; /* 0: not in use */
	_Atomic int state; /* enum ibv_qp_state; changes under serve */
	_Atomic unsigned access;
	_Atomic uint32_t dest; /* number of the peer; 0 = none yet */
	_Atomic(struct fv_qp *) peer; /* the last one that had this number */
	_Atomic uint32_t rd_atomic, dest_rd_atomic, min_rnr, timeout, retry, rnr_retry;

	cache_aligned struct fv_lock posting;
	_Atomic uint32_t tail;
	_Atomic uint64_t posted[3]; /* FV_READS, FV_WRITES, FV_SENDS; posting */
	uint32_t nr_reads; /* posting, as the next */
	int64_t read_due_ns[FV_RD_MAX];

	cache_aligned struct fv_lock engine;
	_Atomic uint32_t head;
	uint32_t events_out; /* events taken; the context's bell.lock */
	bool told; /* engine: the error is told */
	struct fv_wqe *sq;
	struct ibv_sge *sges; /* init.cap.max_send_sge of each entry */
	uint8_t *small; /* init.cap.max_inline_data of each entry */

	cache_aligned struct fv_lock serve;
	bool heard; /* serve: a message came in RTR */
	struct fv_queue queue; /* without srq */
};

static inline struct fv_qp *fv_qp_of(struct ibv_qp *qp)
{
	return container_of(qp, struct fv_qp, base);
}
extern _Atomic(struct fv_qp *) fv_qps[FV_QPS];
struct fv_qp *fv_qp_find(uint32_t num);
/* Returns the peer, if there is one; the caller checks its number under its lock. */
struct fv_qp *fv_peer(struct fv_qp *q);

/* ---- requests (work.c) ---- */

#define FV_BUSY INT64_C(1) /* another thread is at it */

int fv_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fv_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int fv_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
/* Carries out what is due of a queue pair's requests. Returns the time of the next, FV_NEVER or
 * FV_BUSY. */
int64_t fv_run(struct fv_qp *q);
/* Does the same, and waits for another thread that is at it. */
void fv_run_all(struct fv_qp *q);
/* Puts a queue pair into error, [serve]. The rest follows when its requests are run. */
void fv_set_error(struct fv_qp *q);
/* Carries one request out, [engine] (carry.c). Returns enum ibv_wc_status, or FV_LATER: due_ns is
 * another. */
#define FV_LATER (-1)
int fv_carry_out(struct fv_qp *q, struct fv_wqe *e, uint32_t i);

#endif
