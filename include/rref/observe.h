/* SPDX-License-Identifier: Apache-2.0 */
/* Counters, dumps, leaks and places: the inside of a context, to look at. */
#ifndef RREF_OBSERVE_H
#define RREF_OBSERVE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RREF_MESSAGE_KINDS 32

struct rref_stats {
	size_t size;               /* sizeof(struct rref_stats), set by the caller */
	uint64_t owners;           /* values (and pending ones) owned here */
	uint64_t forks;            /* references of other workers to them */
	uint64_t users;            /* references held here to values of others */
	uint64_t pending_users;    /* users that their owner has not confirmed yet */
	uint64_t pending_children; /* shares that the owner has not confirmed yet */
	uint64_t parked;           /* reads waiting for a value that is not ready */
	uint64_t value_bytes;      /* memory of live values, headers included */
	uint64_t landing_bytes;    /* memory of views and reads in flight */
	/*
	 * large arguments and results that their receivers have not read yet; they count as
	 * value_bytes too
	 */
	uint64_t payload_bytes;
	uint64_t registered_bytes; /* registered with the devices, by the program too */
	uint64_t nr_regions;
	uint64_t reads;            /* one-sided READs posted */
	uint64_t read_bytes;
	uint64_t doorbells;        /* postings that carried them */
	uint64_t messages_sent, messages_received;
	uint64_t calls_served;
	uint64_t ops_in_flight;
	/* landing buffers of operations that timed out and that the device may still write */
	uint64_t quarantined;
	uint64_t dropped_messages; /* malformed, late or of another session */
	uint64_t rejected_peers;   /* connections refused or closed for breaking the protocol */
	uint64_t dead_peers;
	/* messages that the device failed to send, and that were tried again */
	uint64_t retries;
	uint64_t pending_owners;   /* owners whose value is not set yet */
	/* kept of references that ended, so that a late message does not revive them */
	uint64_t tombstones;
	uint64_t calls_open;       /* calls being served here, or waiting to be */
	uint64_t waiting_reads;    /* reads that wait for a connection, or for a place in one */
	/* sessions that came up: more than there are peers means that some broke */
	uint64_t sessions;
	uint64_t queued_messages, queued_bytes; /* messages that wait for their peer */
	/* bytes of control messages; reads are in read_bytes */
	uint64_t sent_bytes, received_bytes;
	/* messages by kind: rref_message_kind */
	uint64_t sent[RREF_MESSAGE_KINDS], received[RREF_MESSAGE_KINDS];
	uint64_t nested;           /* references that values owned here hold */
	/* bytes of the program that values wrap; their headers count as value_bytes */
	uint64_t wrapped_bytes;
	uint64_t stalled_peers;    /* now: see struct rref_worker_info */
	/* sessions that ended because their peer stood still for longer than stall_timeout */
	uint64_t fenced_peers;
	/* connections that broke and were made again, within their session */
	uint64_t resumed_sessions;
	/* sent again over such a connection, since the peer had not got them */
	uint64_t messages_again;
	/* not acknowledged when it broke, and not sent again: the peer had got them */
	uint64_t messages_not_again;
	/* reads that were begun again: such a break cut off their READs, or these took too long */
	uint64_t reads_again;
	/* values of a batch that came with the READ of another: they lie side by side */
	uint64_t reads_joined;
	/* reads that copied nothing: views of values where they lie, over shared memory */
	uint64_t looks;
	/* views that workers still have of values here, though their session ended; and their
	 * bytes, whose memory waits for them */
	uint64_t views_left, views_left_bytes;
	/* times that a refused READ cut off the READs of a connection, and they were made possible
	 * again within it */
	uint64_t resumed_reads;
};

/*
 * Tells the counters of this worker.
 *
 *   ctx   the context; also after rref_shutdown
 *   out   written up to out->size, which the caller has set
 *
 * Returns 0, or
 *   -EINVAL           ctx or out is NULL, or out->size is not set
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_get_stats(struct rref_ctx *ctx, struct rref_stats *out);

/*
 * Returns the name of a kind of message ("call", "fork-request" ...), "" for one that is not used.
 * Static. Never fails.
 *
 *   kind   0 .. RREF_MESSAGE_KINDS - 1
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API const char *rref_message_kind(unsigned kind);

/*
 * Writes counters as lines "name value", messages by kind as "sent.call 12". Zeros of kinds are
 * left out.
 *
 *   stats   filled in by rref_get_stats
 *   buf     size bytes, always terminated if size is not 0; may be NULL if size is 0
 *   size    bytes
 *
 * Returns the length that the text has, as snprintf does, or
 *   -EINVAL   stats is NULL, or its size is not set; or buf is NULL and size is not 0
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API int rref_stats_format(const struct rref_stats *stats, char *buf, size_t size);

struct rref_peer_stats {
	size_t size;               /* sizeof(struct rref_peer_stats), set by the caller */
	int rank;
	uint32_t epoch;            /* number of the current or last session */
	/*
	 * "self", "down", "connecting", "accepting", "up", "broken" (its connection is being made
	 * again) or "gone"; static
	 */
	const char *state;
	uint64_t sessions;         /* that came up */
	uint64_t forks;            /* references it holds to values owned here */
	uint64_t users;            /* references held here to its values */
	uint64_t pending_children; /* shared with it, not confirmed by their owners yet */
	uint64_t tombstones;
	uint64_t messages_sent, messages_received, sent_bytes, received_bytes;
	/* messages that wait for it: it is slow, stopped, or not connected */
	uint64_t queued_messages, queued_bytes;
	uint64_t waiting_reads;
	uint64_t call_bytes;       /* bytes of its calls that are open here */
	/* ns since its last message, or since its device answered; -1 = never */
	int64_t heard;
	int64_t stalled;           /* see struct rref_worker_info */
	uint64_t resumed;          /* connections of its sessions that broke and were made again */
	uint64_t unacked_messages; /* sent to it, and kept until it says that they came */
};

/*
 * Tells the counters of what this worker has with another one, or with itself: messages to itself.
 *
 *   ctx    the context; also after rref_shutdown
 *   rank   of the other worker, or its own
 *   out    written up to out->size, which the caller has set
 *
 * Returns 0, or
 *   -EINVAL           ctx or out is NULL, out->size is not set, or no such rank
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_get_peer_stats(struct rref_ctx *ctx, int rank, struct rref_peer_stats *out);

/*
 * Dumps: the holder of each reference, since when it holds it, and the worker that shared it. One
 * record is on one line. As text it is a kind, then key=value. With RREF_DUMP_JSON it is a JSON
 * object with the same keys and "kind". docs/OBSERVING.md explains each record.
 *   worker  this one                     peer   each other one: its session and its counts
 *   owner   a value owned here           fork   a reference to it: holder, epoch, shared by whom
 *   user    a reference held here        child  one that it was shared as, not confirmed yet
 *   nested  a reference that a value holds
 *   op      an operation in flight       stats  the counters, with RREF_DUMP_STATS
 *
 * A worker with many references goes on meanwhile: a change during the dump may be in it or not.
 */
#define RREF_DUMP_JSON 1u
#define RREF_DUMP_STATS 2u
typedef int (*rref_writer)(void *arg, const char *text, size_t length);

/*
 * Writes a dump by a function of the program.
 *
 *   ctx     the context; also after rref_shutdown
 *   flags   RREF_DUMP_JSON, RREF_DUMP_STATS
 *   write   called with whole records, on the calling thread, with no lock held. A result other
 *           than 0 ends the dump
 *   arg     given to write
 *
 * Returns 0, or write's result, or
 *   -EINVAL           ctx or write is NULL, or unknown flags
 *   -ENOMEM           no memory
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_dump_to(struct rref_ctx *ctx, unsigned flags, rref_writer write, void *arg);

/*
 * Writes a dump as text, without counters, into a buffer. Ages have a constant width.
 *
 *   ctx    the context; also after rref_shutdown
 *   buf    size bytes, always terminated if size is not 0; may be NULL if size is 0
 *   size   bytes
 *
 * Returns the length that the text has, as snprintf does, or
 *   -EINVAL           ctx is NULL, or buf is and size is not 0
 *   -ENOMEM           no memory
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_dump(struct rref_ctx *ctx, char *buf, size_t size);

/*
 * Writes the finds of the graceful shutdown, as text records; "" if there are none. "unreleased": a
 * handle that the program still held. "view": a handle that only views held, where the value lies
 * (rref_to_here_with). "leak": a reference of others to a value owned here that was not given back.
 * "stuck": a reference held here that could not be ended in time. At most about 1 MiB.
 *
 *   ctx    the context; until rref_free_ctx
 *   buf    size bytes, always terminated if size is not 0; may be NULL if size is 0
 *   size   bytes
 *
 * Returns the length that the text has, as snprintf does, or
 *   -EINVAL           ctx is NULL, or buf is and size is not 0
 *   -ECHILD -EDEADLK  as of any call
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_leak_report(struct rref_ctx *ctx, char *buf, size_t size);

/*
 * Names the place where the calling thread's next call makes a reference. Macros call it if the
 * program defines RREF_DEBUG before it includes rref.h. Records and dumps then say where a
 * reference was made (site=file:line). Never fails.
 *
 *   site   a static text, or NULL
 *
 * Threads: any. Progress: wait-free.
 */
RREF_API void rref_site(const char *site);

#ifdef __cplusplus
}
#endif

#endif
