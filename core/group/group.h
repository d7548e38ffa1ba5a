/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The group: its workers, the proof that each belongs to it, and their first meeting. Design:
 * docs/design/group.md.
 *
 * Key. Every handshake (rendezvous and each peer connection) is a challenge-response MAC: libsodium
 * crypto_generichash, keyed BLAKE2b, 32 bytes. The MAC covers both nonces, both roles, ranks,
 * incarnations and the protocol version.
 *
 * With a key file, its bytes are hashed to the 32-byte group key. Without a key file, the key is a
 * random secret of this user on this machine. Only processes of the same user here can read the
 * secret. So TCP too serves only peers of the same user on the same machine. The secret is in the
 * first of these places that serves:
 *
 *   $XDG_RUNTIME_DIR/librref.key
 *   /tmp/librref-<uid>/key
 *   /tmp/librref-<uid>.<n>/key   if another user has taken the name of that directory
 *
 * The directory has mode 0700, the file 0600. Both are checked for owner and mode once open. The
 * file is created O_EXCL|O_NOFOLLOW and atomically by link/rename. With such a secret rank 0
 * listens on loopback only. Another address is refused (-EACCES) with a text that says to set a
 * key.
 *
 * Between two workers the key is that of the pair (rc_pair_key). So no member can speak for another
 * member.
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
#define RC_SHORT_MAC_BYTES 16    /* size of a MAC where only RV_HELLO_MAX bytes fit */

struct rc_key {
	uint8_t bytes[RC_KEY_BYTES];
	/* key is from a key file; false = the user's own on this machine */
	bool is_group;
};

/*
 * Reads the key. Returns 0; -EACCES mode or owner of the file; -EINVAL length; -ENOENT. Sets the
 * thread's error text (rc_fail).
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
 * Derives the key of two members from the group's key and from the secret that the two alone share.
 * Both compute the same key; a third member cannot. Returns -EKEYREJECTED if the peer's public key
 * is not a key.
 */
int rc_pair_key(const struct rc_key *group, const struct rc_identity *self,
		const struct rc_member *me, const struct rc_member *peer, struct rc_key *out);

/*
 * rc_rendezvous makes the whole group known to every member. Blocking; one TCP connection per
 * worker to rank 0, gone at the end. me: own entry. On success members[0..world) is filled, in rank
 * order. deadline: CLOCK_MONOTONIC ns. text of failures: see rref_init. Returns 0 or a negative
 * errno.
 *   -EEXIST  rank or name twice
 *   -EINVAL  address text
 *   others   of the socket calls; -ETIMEDOUT, -ECONNREFUSED, -EADDRINUSE, -EACCES, -EKEYREJECTED,
 *            -EPROTONOSUPPORT, -EPROTO, -ENOMEM
 *
 * A world of 1 needs no address and no socket. Rank 0 survives garbage, slow, silent and hostile
 * connections: each only ends itself. The number of half-open connections is bounded, and each has
 * its own deadline. A worker that joined and died before the group was complete frees its place
 * again. A failure that concerns the group (a rank or name twice) is told to both workers involved,
 * with the text.
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
 *
 * No remote access is given, and no message accepted, before the proof.
 */
struct rc_handshake {
	/* true if the session stands and its connection broke: see below */
	bool resumes;
	uint32_t self_rank, peer_rank;
	uint64_t self_incarnation, peer_incarnation;
	/*
	 * epoch of the session; the server chooses it, and it grows; on a resume the client's hello
	 * names it
	 */
	uint32_t epoch;
	/* resumes: number of the last message of the other that came */
	uint64_t client_received, server_received;
	/* number up to which the server's own hellos are void: see rc_hello_number */
	uint64_t server_hellos;
	uint8_t client_nonce[RC_NONCE_BYTES], server_nonce[RC_NONCE_BYTES];
};

/*
 * A session resumes in the same four steps under other labels. The hello names the epoch. The
 * answer says how far the client's messages came, the proof how far the server's came. self: the
 * client sets client_received before its hello; the server sets server_received before its answer.
 * The server sets client_received before it checks the proof.
 */
/* Makes the client's hello: fills client_nonce. Returns the blob's length. */
size_t rc_hello_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_HELLO_MAX]);
/*
 * Reads (server) the maker that a hello names, before anything proves it. Returns 0, -EPROTO,
 * -EPROTONOSUPPORT, -EKEYREJECTED (self_rank).
 */
int rc_hello_from(const void *blob, size_t length, uint32_t self_rank, uint32_t *from);
/*
 * Checks a hello (server). The caller has set h->self_*; this fills the rest. Returns 0, -EPROTO,
 * -EPROTONOSUPPORT, -EKEYREJECTED, -ESTALE (meant for another incarnation of this worker). The
 * caller then checks that peer_rank and incarnation are as the group says.
 */
int rc_hello_check(const struct rc_key *key, const void *blob, size_t length,
		   struct rc_handshake *h);
/*
 * Returns the hello's number, larger than any before of that incarnation. The caller refuses a
 * hello whose number is not larger. A server that answers has given up its own attempts. So its
 * answer voids all hellos that it made before (server_hellos).
 */
uint64_t rc_hello_number(const struct rc_handshake *h);
/*
 * Makes the server's answer; h->epoch is set, unless it resumes. Fills server_nonce. Returns the
 * length.
 */
size_t rc_answer_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_ANSWER_MAX]);
/* Checks the answer (client). Fills epoch and server_nonce, and the proof to send. */
int rc_answer_check(const struct rc_key *key, const void *blob, size_t length,
		    struct rc_handshake *h, uint8_t proof[RC_MAC_BYTES]);
/* Checks the proof (server). Returns 0 or -EKEYREJECTED. */
int rc_proof_check(const struct rc_key *key, const struct rc_handshake *h,
		   const uint8_t proof[RC_MAC_BYTES]);
/*
 * Makes the keys of the connection's messages, for rv_ops.seal. For either side, after the answer.
 */
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
/* rc_function_check, and returns the length of a good name */
int rc_function_length(const char *name);
struct rc_device_choice {
	bool use_shm, use_ibv;            /* auto: both, each if there is a device */
	bool must;                        /* a named device must open; with auto, at least one */
	char device[64];                  /* ibv, "" = any */
	int port, gid_index;              /* 0, -1 = choose */
};
int rc_device_parse(const char *text, struct rc_device_choice *out);

/*
 * options.c: copies a program's options of any version to this library's struct. Options of version
 * 0.1 end with flags, and no later struct is shorter.
 */
#define RC_OPTIONS_MIN (offsetof(struct rref_options, flags) + sizeof(unsigned))
#define RC_OPTIONS_MAX ((size_t)4096)
int rc_options_read(const struct rref_options *opt, struct rref_options *out);
/*
 * Writes log lines to standard error (log_stderr.c). It serves options without a log function while
 * RREF_LOG is set. ctx: struct rref_ctx; rref_init sees to it.
 */
void rc_log_stderr(void *ctx, enum rref_log_level level, const char *text);

#endif
