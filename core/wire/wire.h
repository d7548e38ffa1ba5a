/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rw: the wire format of control messages. Little-endian, packed byte by byte, bounds-checked; no
 * struct is ever copied to or from the wire. The parser is a pure function: no allocation, no I/O,
 * safe on any bytes (fuzzed). docs/WIRE.md holds the byte tables; a test keeps the two in step.
 *
 * Every message begins with the frame (24 bytes):
 *   0 u8 type   1 u8 flags   2 u16 reserved (0)   4 u32 length (frame included)
 *   8 u64 seq   16 u32 epoch   20 u32 ack
 */
#ifndef RW_H
#define RW_H

#include <string.h>

#include "base/util.h"
#include "core/protocol/protocol.h"

#define RW_PROTOCOL_VERSION 3u
#define RW_FRAME_BYTES 24u
#define RW_ID_BYTES 12u         /* local id, rank */
#define RW_LOCATION_BYTES 64u
#define RW_FORK_BYTES 116u      /* one fork record */
#define RW_KEY_BYTES 16u        /* hides the words of a payload's fork records */
#define RW_REFS_MAX 7u          /* fork records in a message itself; more travel in its payload */
#define RW_INLINE_MAX 3072u     /* bytes of data in a message itself */

enum rw_type {
	/*
	 * first message of the connecting side: its MAC proves that the side is alive and holds the
	 * key
	 */
	RW_AUTH = 1,
	RW_CALL,           /* a call or a remote creation */
	RW_REPLY,          /* the answer to a call (to a creation: RW_PROTO with RP_MSG_CREATED) */
	RW_PROTO,          /* a message of the reference protocol */
	RW_BARRIER,        /* tells rank 0: arrived at barrier n */
	RW_BARRIER_DONE,   /* from rank 0 */
	RW_PING,           /* wants a PONG with the same number */
	RW_PONG,
	RW_GOODBYE,        /* orderly end: a close behind it is not a death */
	RW_CANCEL,         /* the caller gave up call n */
	RW_TYPE_QUERY,     /* asks for the type of a value that the sender holds */
	RW_TYPE_ANSWER,    /* name, element size and flags of that type */
	/* a payload was read, or will not be: its memory is its sender's again */
	RW_DONE,
	/* tells the peer: you stood still for n ns, and this session ends for it */
	RW_FENCED,
	/* number of the peer's last message that came; to resume a session also a proof */
	RW_RECEIVED,
	RW_NR_TYPES
};

struct rw_frame {
	uint8_t type, flags;        /* flags: none yet, 0 */
	uint32_t length, epoch;
	uint64_t seq;               /* number of the message; 0 in RECEIVED, which is not counted */
	uint32_t ack;               /* low bits of the seq up to which the peer's messages came */
};

/*
 * TAKE: a reader of a value asks its owner for references that the value holds; the reply brings
 * them.
 */
enum rw_call_kind { RW_CALL_RPC = 1, RW_CALL_REMOTE = 2, RW_CALL_TAKE = 3 };
/* TAKE's data: u32 first, u32 count (1..RREF_REFS_MAX; no reference lies beyond RREF_REFS_MAX) */
#define RW_TAKE_BYTES 8u

/*
 * A call. Data and fork records of a call or reply are in the message if they fit (RW_INLINE_MAX,
 * RW_REFS_MAX). Otherwise they are in a payload: memory of the sender, laid out like a value. The
 * receiver READs it. Then loc tells its place. It holds the data, and behind the data nr_refs fork
 * records in the form of a message (rw_put_forks, rw_get_forks). Others than the receiver may READ
 * that memory, but not the message. So a key in the message hides the records' words in the payload
 * (payload.c).
 */
struct rw_call {
	uint64_t call_id;           /* unique per caller's incarnation */
	uint8_t kind;               /* enum rw_call_kind */
	/* 1..RREF_NAME_MAX; TAKE: 0, and neither references, metadata nor payload */
	uint8_t name_length;
	uint16_t nr_refs;           /* <= RW_REFS_MAX; with a payload RREF_REFS_MAX */
	uint16_t meta_length;       /* <= RREF_META_MAX */
	uint32_t data_length;       /* <= RW_INLINE_MAX; with a payload RREF_ARGS_MAX */
	/* REMOTE: the reference to make, and the creator's fork; TAKE: the value and the
	 * caller's fork of it; RPC: zero */
	struct rref_id id, fork;
	struct rp_location loc;     /* place of the payload; version 0 = no payload */
	const char *name;           /* decode: points into the message, not terminated */
	const void *meta;           /* decode: points into the message */
	const void *data;           /* decode: points into the message; with a payload NULL */
	/* Not cleared by rw_call_init. */
	struct rp_fork refs[RW_REFS_MAX];
	uint64_t word;              /* REMOTE: of the reference to make */
	uint8_t key[RW_KEY_BYTES];  /* key of a payload with references */
};

struct rw_reply {
	uint64_t call_id;
	int32_t status;             /* 0 or -errno */
	uint16_t text_length;       /* < RP_TEXT_MAX; 0 without an error */
	uint16_t nr_refs;           /* limits as a call's; 0 with an error */
	/* rank + 1 of the worker that an error is about; 0: the sender */
	uint16_t about;
	uint32_t data_length;       /* limits as a call's; 0 with an error */
	struct rp_location loc;     /* location as a call's; version 0 with an error */
	const char *text;           /* decode: points into the message, not terminated */
	const void *data;
	/* Not cleared by rw_reply_init. */
	struct rp_fork refs[RW_REFS_MAX];
	uint8_t key[RW_KEY_BYTES];  /* key of a payload with references */
};

/* The kind of a payload that its receiver is done with. */
enum rw_payload { RW_PAYLOAD_CALL = 1, RW_PAYLOAD_REPLY = 2 };

struct rw_done {
	uint64_t call_id;
	uint32_t what;              /* enum rw_payload: the call's payload, or its reply's */
	/* error of the read, or 0; with an error the fork records were not looked at */
	int32_t status;
};

/*
 * AUTH: the client's proof, and the server's answer to it (MAC all zero). Each side tells where its
 * beacon is: 8 bytes that the other side may READ at any time. A READ shows whether this device
 * still answers, without waking any thread. The side's progress counts there, so it also shows
 * whether the process runs.
 */
struct rw_auth {
	uint8_t mac[32];
	uint64_t beacon_addr;
	uint32_t beacon_rkey;
};

/* RECEIVED: mac is zero but in the first message of the side that resumes a session. */
struct rw_received {
	uint8_t mac[32];
	uint64_t seq;               /* number of the peer's last message that came */
};

/*
 * TYPE_QUERY: number, id, fork. TYPE_ANSWER: the query's number, and the type. A name of no bytes
 * means that the value is not held so.
 */
struct rw_type_info {
	uint64_t number;
	struct rref_id id, fork;    /* query: the value, and the asker's fork of it */
	uint64_t element_size;
	uint32_t flags;
	uint8_t name_length;        /* <= RREF_NAME_MAX */
	const char *name;           /* decode: points into the message, not terminated */
};

/*
 * A decoded message; frame.type tells which member is valid. number: BARRIER*, PING, PONG, CANCEL,
 * FENCED.
 */
struct rw_message {
	struct rw_frame frame;
	union {
		struct rw_call call;
		struct rw_reply reply;
		struct rp_msg proto;
		struct rw_auth auth;
		struct rw_type_info type;
		struct rw_done done;
		struct rw_received received;
		uint64_t number;
	} u;
};

/*
 * Begin a call or a reply: all zero but for word, key and the records. Only nr_refs records are
 * ever looked at.
 */
static inline void rw_call_init(struct rw_message *m)
{
	memset(&m->frame, 0, sizeof(m->frame));
	m->frame.type = RW_CALL;
	memset(&m->u.call, 0, offsetof(struct rw_call, refs));
}

static inline void rw_reply_init(struct rw_message *m)
{
	memset(&m->frame, 0, sizeof(m->frame));
	m->frame.type = RW_REPLY;
	memset(&m->u.reply, 0, offsetof(struct rw_reply, refs));
}

/*
 * rw_encode writes m to buf; it computes frame.length, and takes seq and epoch. Returns the length,
 * or -EMSGSIZE if it does not fit size. Returns -EINVAL if a count or length of m is out of range.
 *
 * rw_decode reads one message that fills buf exactly. Returns 0, or -EPROTO if the message is not
 * well-formed; *out is then unspecified. Faults of form: short, long, reserved bits set, unknown
 * type, counts, lengths. Faults of values: ranks >= world, zero ids, a location that wraps, text
 * with NULs. Faults of status: status > 0, an error with references or data. Pointers in *out
 * borrow from buf.
 *
 * Both leave out the location of a message whose status is not 0. They leave out the text of a
 * message whose status is 0, and id and fork of an RPC. rw_encode would write a decoded message
 * byte for byte as it came.
 *
 * rw_set_seq patches seq and epoch of an encoded message: they are known only when it is really
 * sent. rw_set_ack patches its ack.
 */
int rw_encode(const struct rw_message *m, void *buf, size_t size);
int rw_decode(const void *buf, size_t length, uint32_t world, struct rw_message *out);
static inline void rw_set_seq(void *buf, uint64_t seq, uint32_t epoch)
{
	put_le64((uint8_t *)buf + 8, seq);
	put_le32((uint8_t *)buf + 16, epoch);
}
static inline void rw_set_ack(void *buf, uint32_t ack)
{
	put_le32((uint8_t *)buf + 20, ack);
}

/*
 * Fork records outside a message. rw_put_forks writes nr of them, nr * RW_FORK_BYTES bytes, and
 * returns 0 or -EINVAL. rw_get_forks reads them back, and returns 0. It returns -EPROTO for records
 * that a message may not hold either.
 */
int rw_put_forks(const struct rp_fork *refs, unsigned nr, void *buf);
int rw_get_forks(const void *buf, unsigned nr, uint32_t world, struct rp_fork *refs);

const char *rw_type_name(unsigned type);

/*
 * Kinds, for counting: frame.type, and 16 + the protocol's type for RW_PROTO. rw_kind returns the
 * kind of an encoded message of at least a frame. It returns 0 if the message is too short for its
 * kind or of no kind. rw_kind_name returns a static name, "" for a number that is no kind.
 */
#define RW_NR_KINDS 32u
#define RW_KIND_PROTO 16u
static inline unsigned rw_kind(const void *message, size_t length)
{
	const uint8_t *p = (const uint8_t *)message;

	if (length < RW_FRAME_BYTES || p[0] >= RW_NR_TYPES)
		return 0;
	if (p[0] != RW_PROTO)
		return p[0];
	if (length <= RW_FRAME_BYTES || !p[RW_FRAME_BYTES] || p[RW_FRAME_BYTES] >= RP_MSG_NR_TYPES)
		return 0;
	return RW_KIND_PROTO + p[RW_FRAME_BYTES];
}
const char *rw_kind_name(unsigned kind);

#endif
