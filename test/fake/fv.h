/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fake verbs provider for tests: libibverbs and librdmacm, as far as verbs/ibv calls them, inside
 * one process. A program links test/fake/ in place of these libraries. It then has FV_DEVICES
 * devices, fake0, fake1 and so on, with the addresses 127.0.0.1, 127.0.0.2 and so on. Contexts of
 * librref in this process, one for each worker of a group, meet over them.
 *
 * A device follows the rules of reliable connections: order, keys, bounds, access bits, receivers
 * that are not ready, flushes, fences. It copies by memcpy. A request is over delay_ns after its
 * post. The completion is there for a poll from then on.
 *
 * No thread works for queues that are polled: a poll carries out what is due (work.c). For queues
 * that are armed a thread of the provider waits until something is due.
 *
 * A device behaves as its profile says. The profile is chosen before the device is opened: by
 * fv_use, or for all devices by RREF_FAKE_PROFILE. Its knobs may be turned at any time.
 * RREF_FAKE_DELAY_NS sets delay_ns of all devices.
 */
#ifndef FV_H
#define FV_H

#include <stdbool.h>
#include <stdint.h>

#define FV_DEVICES 8u

struct fv_profile {
	const char *name;
	int max_qp, max_qp_wr, max_sge, max_cqe;
	int max_srq_wr; /* 0: the device has no shared receive queues */
	int max_rd_atomic;
	uint32_t max_inline, max_msg;
	bool cleans_cq; /* a destroyed queue pair's completions vanish from the queues */
	bool tells_qp_errors; /* events: COMM_EST, QP_ACCESS_ERR, QP_REQ_ERR */
	bool tells_last_wqe; /* event when a queue pair in error takes no more of its SRQ */
	bool foreign_gid; /* GID 0 belongs to an interface of another network namespace */
};

/* connectx, rxe; srq-less and foreign-gid: connectx with that difference. NULL: no such profile. */
const struct fv_profile *fv_profile(const char *name);
/* Chooses the profile of a device that is not open. */
void fv_use(unsigned device, const struct fv_profile *profile);

/* Faults of one device and its times. A knob that counts falls by one each time it strikes. */
struct fv_knobs {
	_Atomic int64_t delay_ns; /* a request's time; 2 us by default */
	_Atomic int64_t ns_per_kib; /* time of 1 KiB on the way to this device; 0 by default */
	_Atomic int silent; /* 1: the device answers nothing and sends nothing */
	_Atomic int lose_requests; /* counts: connect requests of it that never arrive */
	_Atomic int refuse_requests; /* counts: connect requests of it that its CM rejects */
	_Atomic int refuse_status; /* the reject's status; 28 by default */
	_Atomic int fail_creates; /* counts: queue pairs that are not made */
	_Atomic int fail_stops; /* counts: moves of queue pairs to error that fail */
	_Atomic int fail_destroys; /* counts: destroys of queue pairs that fail */
	_Atomic int hold_creates; /* 1: queue pairs are not made before it is 0 */
	_Atomic int hold_destroys; /* 1: destroys of queue pairs wait until it is 0 */
	_Atomic int lose_flushes; /* 1: a request that is flushed makes no completion */
	_Atomic int no_room; /* counts: posts of messages that fail with ENOMEM */
	_Atomic int refuse_in_error; /* 1: a queue pair in error refuses requests */
	_Atomic int strand_reads; /* counts: READs that it neither ends nor repeats */
	_Atomic int lose_srq; /* SRQ entries that each destroyed queue pair takes along */
};
struct fv_knobs *fv_knobs(unsigned device);

/* Counts since the program's start. A request counts at the device that posted it. */
struct fv_counts {
	uint64_t reads, writes, sends; /* posted */
	uint64_t failed, flushed; /* completions with an error: a flush, or another one */
	uint64_t rnr, timeouts; /* receivers that were not ready; requests without an answer */
	/* strikes of the knobs */
	uint64_t lost_srq, lost_requests, refused_requests, held_destroys, held_creates;
};
struct fv_counts fv_count(unsigned device);

/* Raises an asynchronous event (enum ibv_event_type) of the port or device at its open contexts. */
void fv_raise(unsigned device, int event);

#endif
