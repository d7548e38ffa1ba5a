/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous, inside: rank 0 serves, the others come. docs/WIRE.md, "Rendezvous", has the byte
 * tables.
 *
 *   worker                              rank 0
 *     HELLO  rank, world, nonce, MAC  -->      wrong version, wrong key: REFUSE, the one frame
 *                                              without proof
 *            <-- CHALLENGE  nonce, MAC         rank 0 holds the key
 *     JOIN   MAC, its own entry       -->      the worker holds it, and is no replay: it has its
 *                                              place
 *            <-- JOINED                        from here on each control frame of rank 0 has a tag:
 *                                              MAC over both nonces and a number
 *            <-- STATUS  ranks that are here,
 *                ranks that were here
 *            <-- MEMBER * world, END           END's tag covers all entries
 *            <-- FAILED  errno, text           instead of JOINED, or at any time before END
 *
 * Every frame is {magic, version, type, length} and a body of bounded length. HELLO keeps its form
 * and its MAC in all later versions. So a mixture of versions is told apart from garbage. Only a
 * worker that holds the key can make the group fail for such a mixture.
 *
 * Thread class: all of this runs inside rc_rendezvous, on its caller's thread; nothing is shared.
 */
#ifndef RC_RENDEZVOUS_H
#define RC_RENDEZVOUS_H

#include <netdb.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/util.h"
#include "core/group/group.h"
#include "core/wire/wire.h"

/* number of the protocol's version, one for all messages between workers */
#define RZ_VERSION RW_PROTOCOL_VERSION
#define RZ_WORLD_MAX 1024
#define RZ_TEXT_MAX 480                          /* bytes of a text in a frame */

enum rz_type {
	RZ_HELLO = 1,
	RZ_CHALLENGE,
	RZ_JOIN,
	RZ_JOINED,
	RZ_STATUS,
	RZ_MEMBER,
	RZ_END,
	RZ_FAILED,
	RZ_REFUSE,
};

#define RZ_HEAD_BYTES 12
#define RZ_HELLO_BODY (4 + 4 + 4 + RC_NONCE_BYTES + RC_MAC_BYTES)
#define RZ_ENTRY_HEAD (4 + 8 + RC_KEY_BYTES + 1)
#define RZ_ENTRY_MAX (RZ_ENTRY_HEAD + RREF_NAME_MAX + 1 + RV_NR_KINDS * (2 + RV_ADDR_MAX))
#define RZ_BODY_MAX (RC_MAC_BYTES + 4 + RZ_TEXT_MAX)
#define RZ_FRAME_MAX (RZ_HEAD_BYTES + RZ_BODY_MAX)

_Static_assert(RZ_BODY_MAX >= RC_MAC_BYTES + RZ_ENTRY_MAX &&
		       RZ_BODY_MAX >= RC_MAC_BYTES + 2 * (RZ_WORLD_MAX / 8),
	       "the longest body is a text's");

/* A set of ranks. */
struct rz_presence {
	uint8_t bits[RZ_WORLD_MAX / 8];
};

static inline bool rz_is_present(const struct rz_presence *p, uint32_t rank)
{
	return p->bits[rank / 8] >> (rank % 8) & 1;
}

/*
 * The ranks that a worker names when its time is up. Ranks that came and left may only have lost
 * patience before it did.
 */
struct rz_status {
	struct rz_presence present, came;
};

/* The secrets of a connection and its place in the order. Both ends fill it alike. */
struct rz_session {
	const struct rc_key *key;      /* const after create */
	uint32_t rank, world;          /* numbers that the worker gave */
	uint8_t client_nonce[RC_NONCE_BYTES], server_nonce[RC_NONCE_BYTES];
	uint32_t sequence;             /* number of rank 0's next tagged frame */
};

/* All entries, in rank order, folded into one MAC. */
struct rz_digest {
	uint8_t bytes[RC_MAC_BYTES];
};

struct rz_hello {
	uint16_t version;
	uint32_t rank, world;
	bool has_group_key;
	uint8_t nonce[RC_NONCE_BYTES];
	bool is_authentic;
};

/* A frame on its way in: never reads past the frame's end, never holds more than one. */
struct rz_reader {
	uint8_t frame[RZ_FRAME_MAX];
	size_t have;
};

/* ---- rendezvous_wire.c: pure functions on bytes, and the one that reads a frame */

/*
 * rz_read reads the bytes that the socket has. Returns 1 for a whole frame of this version or a
 * HELLO of any version. Returns 0 if the frame is not whole yet. Errors: -EPROTO not this protocol;
 * -EPROTONOSUPPORT another version; -ECONNRESET the other side closed; others of recv. No text.
 * rz_next forgets the frame. rz_type_of and rz_version_of read the head that has come.
 */
int rz_read(int fd, struct rz_reader *in);
void rz_next(struct rz_reader *in);
enum rz_type rz_type_of(const struct rz_reader *in);
uint16_t rz_version_of(const struct rz_reader *in);

/* Make a frame and return its length. out has room for RZ_FRAME_MAX. */
size_t rz_hello_make(const struct rz_session *s, uint8_t *out);
size_t rz_challenge_make(const struct rz_session *s, uint8_t *out);
size_t rz_join_make(const struct rz_session *s, const struct rc_member *me, uint8_t *out);
size_t rz_joined_make(struct rz_session *s, uint8_t *out);
size_t rz_status_make(struct rz_session *s, const struct rz_status *status, uint8_t *out);
size_t rz_member_make(const struct rc_member *m, uint8_t *out);
size_t rz_end_make(struct rz_session *s, const struct rz_digest *digest, uint8_t *out);
size_t rz_failed_make(struct rz_session *s, int err, const char *text, uint8_t *out);
size_t rz_refuse_make(int err, const char *text, uint8_t *out);

/* Take a frame. Return 0, -EPROTO (form), -EKEYREJECTED (MAC). No text. */
int rz_hello_take(const struct rz_reader *in, const struct rc_key *key, struct rz_hello *out);
int rz_challenge_take(const struct rz_reader *in, struct rz_session *s);
int rz_join_take(const struct rz_reader *in, const struct rz_session *s, struct rc_member *out);
int rz_joined_take(const struct rz_reader *in, struct rz_session *s);
int rz_status_take(const struct rz_reader *in, struct rz_session *s, struct rz_status *out);
int rz_member_take(const struct rz_reader *in, struct rc_member *out);
int rz_end_take(const struct rz_reader *in, struct rz_session *s, const struct rz_digest *digest);
int rz_failed_take(const struct rz_reader *in, struct rz_session *s, int *err, char *text,
		   size_t size);
int rz_refuse_take(const struct rz_reader *in, int *err, char *text, size_t size);

void rz_digest_start(struct rz_digest *d);
void rz_digest_add(struct rz_digest *d, const struct rc_key *key, const struct rc_member *m);

/* ---- rendezvous_addr.c */

#define RZ_HOST_MAX 255
struct rz_address {
	char text[RZ_HOST_MAX + 16];   /* as given, quoted */
	char host[RZ_HOST_MAX + 1];
	char port[6];
	bool is_number;                /* true: no name that would have to be looked up */
};

/* The times of the log lines about a wait. Begins as zeroes. */
struct rz_patience {
	int64_t said_at, step;
};

/* Parses an address. Returns 0, or -EINVAL with a text. */
int rz_address_parse(const char *text, struct rz_address *out);
/*
 * rz_resolve finds the addresses; freeaddrinfo *out. May block in the resolver. Tries again until
 * the deadline while a failure can pass by itself: then -ETIMEDOUT. Returns -EACCES for an address
 * that needs a group key. Returns -ENOMEM, -EMFILE or -EINVAL for a lasting failure.
 *
 * rz_resolve_again looks once for a name whose address may have changed. *list stays as it is if
 * there is no address.
 */
int rz_resolve(const struct rz_address *a, const struct rc_key *key, int64_t deadline,
	       struct rz_patience *patience, const struct rc_group_log *log, struct addrinfo **out);
void rz_resolve_again(const struct rz_address *a, const struct rc_key *key, struct addrinfo **list);
/* Logs a wait at level info: at once, and then at growing intervals. */
void rz_still(struct rz_patience *p, const struct rc_group_log *log, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
bool rz_is_loopback(const struct sockaddr *sa);
/* "10.0.0.1:29500", "[::1]:29500". Returns out. */
#define RZ_SOCKADDR_TEXT 72
const char *rz_sockaddr_text(const struct sockaddr *sa, socklen_t length,
			     char out[RZ_SOCKADDR_TEXT]);
/* Writes the ranks that are (or are not) present: "1, 3, 5-9 and 12 more". Returns their number. */
uint32_t rz_ranks_text(const struct rz_presence *p, uint32_t world, bool present, char *out,
		       size_t size);
/* Writes "2 of 4 workers came; missing ranks 1, 3", and the ranks that left again. Returns out. */
const char *rz_status_text(const struct rz_status *status, uint32_t world, char *out, size_t size);
/* Returns the time until then in ms for poll, rounded up; 0 if it is past. */
int rz_poll_ms(int64_t until);
void rz_log(const struct rc_group_log *log, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * The times at which a wait is logged, at level info. The first is half a second after the wait
 * began, the others follow at growing intervals. rz_say_due returns true once for each such time.
 */
struct rz_say {
	int64_t next, step;
};
static inline void rz_say_start(struct rz_say *say)
{
	*say = (struct rz_say){ .next = now_ns() + NSEC_PER_SEC / 2, .step = NSEC_PER_SEC };
}
static inline bool rz_say_due(struct rz_say *say)
{
	int64_t now = now_ns();

	if (now < say->next)
		return false;
	say->next = now + say->step;
	say->step = min_of(say->step * 2, 30 * NSEC_PER_SEC);
	return true;
}

/* ---- the two sides. As rc_rendezvous; members is written on success only. */

int rz_serve(const struct rz_address *a, uint32_t world, const struct rc_member *me,
	     const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
	     struct rc_member *members);
int rz_come(const struct rz_address *a, uint32_t world, const struct rc_member *me,
	    const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
	    struct rc_member *members);

#endif
