/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rc: the runtime's own types: the parts of a context, and the threads that may touch them.
 *
 * One lock (ctx->lock, "the progress lock") guards all control state: the protocol machine,
 * sessions, queues, the devices' [progress] calls. A thread holds it for one step or a few looks,
 * and stops when another thread wants it. It is never held while a thread sleeps or runs the
 * program's code. That code is queued as hooks, and hook.c runs them.
 *
 * Starting a read of one message does not take the lock. A ready handle's location is constant
 * (published by handle->state). Operations come from a lock-free slab. peer->readers pins the
 * connection (see session/fence.c). Such a read also ends without the lock. Over shm it ends with
 * the post. Over ibv any thread that finds the completion ends it (read/take_in.c).
 *
 * Guards: under_lock, the progress lock (core/base/locked.h, which clang checks); [atomic]; [const]
 * after creation. [op]: the thread that completes the operation. Its state CAS won, or it completes
 * a call's answer under the lock.
 */
#ifndef RC_H
#define RC_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "alloc/ra.h"
#include "base/atomic.h"
#include "base/child.h"
#include "base/random.h"
#include "base/thread.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/hook.h"
#include "core/base/locked.h"
#include "core/base/slab.h"
#include "core/base/state.h"
#include "core/base/work.h"
#include "core/call/served.h"
#include "core/call/state.h"
#include "core/engine_state.h"
#include "core/group/group.h"
#include "core/group/state.h"
#include "core/op/future.h"
#include "core/op/state.h"
#include "core/protocol/protocol.h"
#include "core/session/events.h"
#include "core/session/peer.h"
#include "core/session/resume.h"
#include "core/session/state.h"
#include "core/value/ref.h"
#include "core/value/state.h"
#include "core/wire/wire.h"
#include "rref.h"
#include "verbs/rv.h"

#define RC_BATCH_MAX 32u /* reads posted with one doorbell */
/* bytes of a piece of a READ over hardware; see read/split.c */
#define RC_PIECE_MAX (UINT64_C(256) << 10)

enum rc_ctx_state { RC_CTX_STARTING, RC_CTX_RUNNING, RC_CTX_CLOSING, RC_CTX_SHUT };

struct rc_counters {
	_Atomic uint64_t reads, read_bytes, doorbells, sent, received, calls, quarantined, dropped,
		rejected, dead;
	_Atomic uint64_t retries, fenced;
	_Atomic uint64_t reads_again, reads_joined;
	uint64_t resumed under_lock, reads_resumed under_lock;
	uint64_t sent_again under_lock, not_again under_lock;
	_Atomic uint64_t landing_bytes, value_bytes, payload_bytes, nested;
	_Atomic uint64_t mems, mem_bytes, wrapped_bytes, looks;
	uint64_t views_left under_lock;
	_Atomic uint64_t views_left_bytes; /* written under the lock */
	/* plain calls of inline functions, not in `calls`; written under the lock */
	_Atomic uint64_t inline_calls;
	uint64_t sent_by_kind[RW_NR_KINDS] under_lock, received_by_kind[RW_NR_KINDS] under_lock;
	uint64_t sent_bytes under_lock, received_bytes under_lock;
	uint64_t sessions under_lock;
};

struct rref_ctx {
	/* [const] number that no other context of this process has; addresses are used again */
	uint64_t serial;
	_Atomic uint32_t state;           /* enum rc_ctx_state */
	uint32_t rank, world;
	struct rc_guard guard; /* not beside counters: every read looks at it */
	struct rc_scopes *scopes;         /* [const] NULL = off; scope.c */
	struct rc_peer *peers;            /* [const] array of world */
	struct rc_member *members;        /* [const] */
	_Atomic int64_t timeout;          /* rref_set_timeout */
	struct rc_device device[RV_NR_KINDS];
	struct rc_counters n;

	struct rc_value_state value;
	struct rc_session_state session;
	struct rc_lock_state lock;
	struct rc_op_state op;
	struct rc_works works;
	struct rc_hooks hooks;
	struct rc_log_state log;
	struct rc_sleep sleep;
	struct rc_turns turns;
	struct rc_call_state call;
	struct rc_end end;
	struct rc_group_state group;
};

#endif
