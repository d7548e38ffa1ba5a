/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The group: its workers, the proof that each belongs to it, and their first meeting. Design:
 * docs/design/group.md.
 *
 * Key. Every handshake (rendezvous and each peer connection) is a challenge-response MAC (libsodium
 * crypto_generichash, keyed BLAKE2b, 32 bytes) over both nonces, both roles, ranks, incarnations
 * and the protocol version. With a key file, its bytes are hashed to the 32-byte group key. Without
 * one, the key is a random secret of this user on this machine ($XDG_RUNTIME_DIR/librref.key, else
 * /tmp/librref-<uid>/key, or where another user has taken that directory's name,
 * /tmp/librref-<uid>.<n>/key: directory 0700 and file 0600, both checked for owner and mode once
 * open, created O_EXCL|O_NOFOLLOW and atomically by link/rename), which only processes of the same
 * user here can read: that is how "only peers of the same user on the same machine" is enforced on
 * TCP. Then rank 0 listens on loopback only; another address is refused (-EACCES) with a text that
 * says to set a key.
 *
 * Between two workers the key is that of the pair (rc_pair_key): what one member says, no other
 * member can say for it.
 */
#ifndef RC_GROUP_H
#define RC_GROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "rref.h"
#include "verbs/rv.h"

#define RC_KEY_BYTES 32
#define RC_NONCE_BYTES 16
#define RC_MAC_BYTES 32
#define RC_SHORT_MAC_BYTES 16    /* where only RV_HELLO_MAX bytes fit */

struct rc_key {
	uint8_t bytes[RC_KEY_BYTES];
	bool is_group;               /* from a key file; false = the user's own on this machine */
};

/*
 * 0; -EACCES mode or owner of the file; -EINVAL length; -ENOENT. Sets the thread's error text
 * (rc_fail).
 */
int rc_key_load(const char *key_file, struct rc_key *out);
void rc_key_wipe(struct rc_key *key);

/* Constant time. mac: RC_MAC_BYTES. label separates the uses ("rref rendezvous join 1", ...). */
void rc_mac(const struct rc_key *key, const char *label, const void *data, size_t length,
	    uint8_t *mac);
bool rc_mac_equal(const uint8_t *a, const uint8_t *b, size_t length);
void rc_random(void *buf, size_t length);

/* A worker's own pair of X25519 keys. Each rref_init makes one, and the rendezvous tells the
 * public half to all. */
struct rc_identity {
	uint8_t secret[RC_KEY_BYTES], public[RC_KEY_BYTES];
};
void rc_identity_make(struct rc_identity *out);
void rc_identity_wipe(struct rc_identity *id);

struct rc_member {
	uint32_t rank;
	uint64_t incarnation;
	uint8_t public[RC_KEY_BYTES];
	char name[RREF_NAME_MAX + 1];
	struct rv_addr addr[RV_NR_KINDS];  /* len 0 = this worker has no such device */
};

/*
 * rc_pair_key: the key of two members, derived from the group's key and from the secret that the
 * two alone share. Both compute the same; a third member cannot. -EKEYREJECTED: the peer's public
 * key is none.
 */
int rc_pair_key(const struct rc_key *group, const struct rc_identity *self,
		const struct rc_member *me, const struct rc_member *peer, struct rc_key *out);

/*
 * rc_rendezvous: makes the whole group known to every member. Blocking; one TCP connection per
 * worker to rank 0, gone at the end. me: own entry. On success members[0..world) is filled, in rank
 * order. deadline: CLOCK_MONOTONIC ns. text of failures: see rref_init.
 *   -EEXIST rank or name twice; -EINVAL address text; -ETIMEDOUT; -ECONNREFUSED; -EADDRINUSE;
 *   -EACCES; -EKEYREJECTED;
 *   -EPROTONOSUPPORT; -EPROTO; -ENOMEM; others from the socket calls.
 * A world of 1 needs no address and no socket. Rank 0 survives garbage, slow, silent and hostile
 * connections: each only ends itself (bounded number of half-open connections, each with its own
 * deadline); a worker that joined and died before the group was complete frees its place again. A
 * failure that concerns the group (a rank or name twice) is told to both workers involved, with the
 * text.
 */
struct rc_group_log {
	void (*fn)(void *ctx, int level, const char *text);
	void *ctx;
};
int rc_rendezvous(const char *address, uint32_t world, const struct rc_member *me,
		  const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
		  struct rc_member *members);

/*
 * The peer connection's handshake, as pure functions on blobs (the provider carries them). key is
 * that of the pair:
 *   hello   (<= RV_HELLO_MAX)   client -> server: version, rank, incarnations of both, client
 *           nonce, short MAC
 *   answer  (<= RV_ANSWER_MAX)  server -> client: version, rank, epoch, server nonce, MAC over both
 *           nonces
 *   proof   (32 bytes, RW_AUTH) client -> server: MAC over both nonces: it is alive and no replay
 *   reason  (<= RV_REASON_MAX)  server -> client on refusal: version, errno code, text
 * No remote access is given, and no message accepted, before the proof.
 */
struct rc_handshake {
	/* the session stands and its connection broke: see below */
	bool resumes;
	uint32_t self_rank, peer_rank;
	uint64_t self_incarnation, peer_incarnation;
	/* of the session; chosen by the server, grows; when it resumes, by the client's hello */
	uint32_t epoch;
	/* resumes: number of the last message of the other that came */
	uint64_t client_received, server_received;
	uint64_t server_hellos; /* its own hellos up to it are void: see rc_hello_number */
	uint8_t client_nonce[RC_NONCE_BYTES], server_nonce[RC_NONCE_BYTES];
};

/*
 * To resume, the same four steps under other labels: the hello names the epoch; the answer says how
 * far the client's messages came, the proof how far the server's. self: client_received is set by
 * the client before its hello, server_received by the server before its answer; the server sets
 * client_received before it checks the proof.
 */
/* Client: fills client_nonce; returns the blob's length. */
size_t rc_hello_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_HELLO_MAX]);
/* Server: whom a hello names as its maker, before anything proves it. -EPROTO, -EPROTONOSUPPORT,
 * -EKEYREJECTED (self_rank). */
int rc_hello_from(const void *blob, size_t length, uint32_t self_rank, uint32_t *from);
/* Server: checks; h->self_* set by the caller, the rest filled. -EPROTO, -EPROTONOSUPPORT,
 * -EKEYREJECTED, -ESTALE (meant for another incarnation of us). The caller then checks that
 * peer_rank/incarnation are who the group says. */
int rc_hello_check(const struct rc_key *key, const void *blob, size_t length,
		   struct rc_handshake *h);
/* The hello's number, larger than any before of that incarnation: the caller refuses one that is
 * not. A server that answers has given up its own attempts: its answer voids all hellos that it
 * made before (server_hellos). */
uint64_t rc_hello_number(const struct rc_handshake *h);
/* Server: h->epoch set, unless it resumes; fills server_nonce; returns the length. */
size_t rc_answer_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_ANSWER_MAX]);
/* Client: checks, fills epoch and server_nonce, and the proof to send. */
int rc_answer_check(const struct rc_key *key, const void *blob, size_t length,
		    struct rc_handshake *h, uint8_t proof[RC_MAC_BYTES]);
/* Server. 0 or -EKEYREJECTED. */
int rc_proof_check(const struct rc_key *key, const struct rc_handshake *h,
		   const uint8_t proof[RC_MAC_BYTES]);
/* Either side, after the answer: the keys of the connection's messages, for rv_ops.seal. */
void rc_handshake_seals(const struct rc_key *key, const struct rc_handshake *h, bool is_client,
			uint8_t out[RV_SEAL_KEY_BYTES], uint8_t in[RV_SEAL_KEY_BYTES]);
size_t rc_reason_make(int err, const char *text, uint8_t out[RV_REASON_MAX]);
/*
 * Returns the errno code (negative) and the text; -ECONNREFUSED and "" for an empty or malformed
 * reason.
 */
int rc_reason_parse(const void *blob, size_t length, char *text, size_t size);

/* Names and device texts: pure checks with a text. */
int rc_name_check(const char *name);      /* worker names: 1..127 of A-Za-z0-9_:- ; -EINVAL */
int rc_function_check(const char *name);  /* function names: the same and '.' */
int rc_function_length(const char *name); /* and of a good one the length */
struct rc_device_choice {
	bool use_shm, use_ibv;            /* auto: both, each if there is a device */
	bool must;                        /* a named device must open; with auto, at least one */
	char device[64];                  /* ibv, "" = any */
	int port, gid_index;              /* 0, -1 = choose */
};
int rc_device_parse(const char *text, struct rc_device_choice *out);

/*
 * options.c: a program's options, whatever version it was built for, as this library's struct.
 * Those of version 0.1 end with flags, and no later struct is shorter.
 */
#define RC_OPTIONS_MIN (offsetof(struct rref_options, flags) + sizeof(unsigned))
#define RC_OPTIONS_MAX ((size_t)4096)
int rc_options_read(const struct rref_options *opt, struct rref_options *out);
/* log_stderr.c: the log function of options that have none while RREF_LOG is set. ctx: struct
 * rref_ctx; rref_init sees to it. */
void rc_log_stderr(void *ctx, enum rref_log_level level, const char *text);

#endif
