/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer connection's handshake, of a new session and of one that resumes. Four blobs, pure
 * functions, no allocation; docs/WIRE.md has the byte tables.
 *
 * Each blob starts {kind, version}: the version must be found before anything else is believed, the
 * length included. These three bytes, and the whole of the reason, stay as they are in every later
 * version.
 *
 * The MACs bind both ranks, both incarnations, both nonces, the epoch and the version. The label of
 * a MAC binds the role and the step. So no blob serves twice: not in another direction, step,
 * session, nor against a restarted worker.
 *
 * The hello comes before the server's nonce, but carries a number that grows. A server takes no
 * number twice (rc_hello_number). For a hello alone, before any proof, ends the session that it is
 * to replace. A client refuses a hello that its server made before the answer. Such a hello lost a
 * crossing, and may still be on its way.
 *
 * The key is the pair's, not the group's. The messages that follow are sealed by keys of this very
 * connection.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/atomic.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/group/group.h"
#include "core/wire/wire.h"

enum {
	KIND_HELLO = 0xa1,
	KIND_ANSWER = 0xa2,
	KIND_REASON = 0xa3,
	KIND_RESUME = 0xa4,
	KIND_RESUMED = 0xa5
};

#define OFF_KIND 0
#define OFF_VERSION 1
#define HEAD_BYTES 3

#define HELLO_RANK 3
#define HELLO_CLIENT_INCARNATION 7
#define HELLO_SERVER_INCARNATION 15
#define HELLO_NONCE 23
/* RESUME: in the nonce, whose number already makes it unique */
#define HELLO_EPOCH (HELLO_NONCE + 8)
#define HELLO_MAC (HELLO_NONCE + RC_NONCE_BYTES)
#define HELLO_BYTES (HELLO_MAC + RC_SHORT_MAC_BYTES)

#define ANSWER_RANK 3
#define ANSWER_EPOCH 7
#define ANSWER_NONCE 11
#define ANSWER_HELLOS (ANSWER_NONCE + RC_NONCE_BYTES)
#define ANSWER_MAC (ANSWER_HELLOS + 8)
#define ANSWER_BYTES (ANSWER_MAC + RC_MAC_BYTES)
#define RESUMED_RECEIVED ANSWER_MAC
#define RESUMED_MAC (RESUMED_RECEIVED + 8)
#define RESUMED_BYTES (RESUMED_MAC + RC_MAC_BYTES)

#define REASON_ERR 3
#define REASON_TEXT 7
#define REASON_ERR_MAX 4095 /* the kernel's own bound on errno values */

_Static_assert(HELLO_BYTES <= RV_HELLO_MAX, "the hello fits a connect request");
_Static_assert(RESUMED_BYTES <= RV_ANSWER_MAX, "the answer fits an accept");
_Static_assert(RV_SEAL_KEY_BYTES <= RC_MAC_BYTES, "a seal's key is a cut MAC");
_Static_assert(REASON_TEXT < RV_REASON_MAX, "the reason fits a reject");

/* The transcript of a handshake, alike as seen from both ends. */
struct transcript {
	uint8_t bytes[2 + 4 + 4 + 8 + 8 + 4 + RC_NONCE_BYTES + RC_NONCE_BYTES];
};

static void handshake_transcript_make(struct transcript *t, const struct rc_handshake *h,
				      bool is_client)
{
	uint8_t *p = t->bytes;

	put_le16(p, RW_PROTOCOL_VERSION);
	put_le32(p + 2, is_client ? h->self_rank : h->peer_rank);
	put_le32(p + 6, is_client ? h->peer_rank : h->self_rank);
	put_le64(p + 10, is_client ? h->self_incarnation : h->peer_incarnation);
	put_le64(p + 18, is_client ? h->peer_incarnation : h->self_incarnation);
	put_le32(p + 26, h->epoch);
	memcpy(p + 30, h->client_nonce, RC_NONCE_BYTES);
	memcpy(p + 30 + RC_NONCE_BYTES, h->server_nonce, RC_NONCE_BYTES);
}

static void handshake_hello_mac(const struct rc_key *key, const uint8_t *blob, uint32_t server_rank,
				uint8_t mac[RC_MAC_BYTES])
{
	uint8_t data[HELLO_MAC + 4];

	memcpy(data, blob, HELLO_MAC);
	put_le32(data + HELLO_MAC, server_rank);
	rc_mac(key, blob[OFF_KIND] == KIND_RESUME ? "rref peer resume 1" : "rref peer hello 1",
	       data, sizeof(data), mac);
}

static size_t answer_mac_at(bool resumes)
{
	return resumes ? RESUMED_MAC : ANSWER_MAC;
}

static void answer_mac(const struct rc_key *key, const uint8_t *blob, const struct transcript *t,
		       bool resumes, uint8_t mac[RC_MAC_BYTES])
{
	uint8_t data[RESUMED_MAC + sizeof(t->bytes)];
	size_t at = answer_mac_at(resumes);

	memcpy(data, blob, at);
	memcpy(data + at, t->bytes, sizeof(t->bytes));
	rc_mac(key, resumes ? "rref peer resumed 1" : "rref peer answer 1", data,
	       at + sizeof(t->bytes), mac);
}

static void proof_mac(const struct rc_key *key, const struct rc_handshake *h,
		      const struct transcript *t, uint8_t mac[RC_MAC_BYTES])
{
	uint8_t data[sizeof(t->bytes) + 8];

	memcpy(data, t->bytes, sizeof(t->bytes));
	put_le64(data + sizeof(t->bytes), h->client_received);
	if (h->resumes)
		rc_mac(key, "rref peer resume proof 1", data, sizeof(data), mac);
	else
		rc_mac(key, "rref peer proof 1", t->bytes, sizeof(t->bytes), mac);
}

/* Checks the kind, then the version, then the length: another version may have another length. */
static int head_check(const char *what, const uint8_t *b, size_t length, uint8_t kind, size_t want)
{
	if (length < HEAD_BYTES || b[OFF_KIND] != kind)
		return rc_fail(EPROTO, "%s: the %zu bytes that came are no %s of this protocol",
			       what, length, what);
	if (get_le16(b + OFF_VERSION) != RW_PROTOCOL_VERSION)
		return rc_fail(EPROTONOSUPPORT,
			       "%s: the peer speaks protocol version %u, this worker version %u",
			       what, (unsigned)get_le16(b + OFF_VERSION), RW_PROTOCOL_VERSION);
	if (length != want)
		return rc_fail(EPROTO, "%s: %zu bytes instead of %zu", what, length, want);
	return 0;
}

static void handshake_head_make(uint8_t *b, uint8_t kind)
{
	b[OFF_KIND] = kind;
	put_le16(b + OFF_VERSION, RW_PROTOCOL_VERSION);
}

static _Atomic uint64_t hellos; /* made by this process */

size_t rc_hello_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_HELLO_MAX])
{
	uint8_t mac[RC_MAC_BYTES];

	/*
	 * Takes a number once per process, hence once per incarnation: so a server knows a
	 * repetition.
	 */
	put_le64(h->client_nonce, at_add(&hellos, 1) + 1);
	rc_random(h->client_nonce + 8, RC_NONCE_BYTES - 8);
	if (h->resumes)
		put_le32(h->client_nonce + 8, h->epoch);
	handshake_head_make(out, h->resumes ? KIND_RESUME : KIND_HELLO);
	put_le32(out + HELLO_RANK, h->self_rank);
	put_le64(out + HELLO_CLIENT_INCARNATION, h->self_incarnation);
	put_le64(out + HELLO_SERVER_INCARNATION, h->peer_incarnation);
	memcpy(out + HELLO_NONCE, h->client_nonce, RC_NONCE_BYTES);
	handshake_hello_mac(key, out, h->peer_rank, mac);
	memcpy(out + HELLO_MAC, mac, RC_SHORT_MAC_BYTES);
	return HELLO_BYTES;
}

int rc_hello_from(const void *blob, size_t length, uint32_t self_rank, uint32_t *from)
{
	const uint8_t *b = blob;
	int r = head_check("hello", b, length,
			   length && b[OFF_KIND] == KIND_RESUME ? KIND_RESUME : KIND_HELLO,
			   HELLO_BYTES);

	if (r)
		return r;
	if (get_le32(b + HELLO_RANK) == self_rank)
		return rc_fail(EKEYREJECTED,
			       "hello: the peer claims to be this very worker (rank %u)",
			       self_rank);
	*from = get_le32(b + HELLO_RANK);
	return 0;
}

int rc_hello_check(const struct rc_key *key, const void *blob, size_t length,
		   struct rc_handshake *h)
{
	const uint8_t *b = blob;
	uint8_t mac[RC_MAC_BYTES];
	bool resumes = length && b[OFF_KIND] == KIND_RESUME;
	uint32_t from;
	int r = rc_hello_from(blob, length, h->self_rank, &from);

	if (r)
		return r;
	handshake_hello_mac(key, b, h->self_rank, mac);
	if (!rc_mac_equal(mac, b + HELLO_MAC, RC_SHORT_MAC_BYTES))
		return rc_fail(
			EKEYREJECTED,
			"hello: the peer does not hold the group's key, is not rank %u, or takes "
			"this worker (rank %u) for another",
			from, h->self_rank);
	if (get_le64(b + HELLO_SERVER_INCARNATION) != h->self_incarnation)
		return rc_fail(
			ESTALE,
			"hello: rank %u looks for another incarnation of this worker (rank %u), "
			"which has ended",
			from, h->self_rank);
	h->peer_rank = from;
	h->peer_incarnation = get_le64(b + HELLO_CLIENT_INCARNATION);
	memcpy(h->client_nonce, b + HELLO_NONCE, RC_NONCE_BYTES);
	h->resumes = resumes;
	if (resumes)
		h->epoch = get_le32(b + HELLO_EPOCH);
	return 0;
}

uint64_t rc_hello_number(const struct rc_handshake *h)
{
	return get_le64(h->client_nonce);
}

size_t rc_answer_make(const struct rc_key *key, struct rc_handshake *h, uint8_t out[RV_ANSWER_MAX])
{
	struct transcript t;

	rc_random(h->server_nonce, RC_NONCE_BYTES);
	h->server_hellos = at_load(&hellos);
	handshake_head_make(out, h->resumes ? KIND_RESUMED : KIND_ANSWER);
	put_le32(out + ANSWER_RANK, h->self_rank);
	put_le32(out + ANSWER_EPOCH, h->epoch);
	memcpy(out + ANSWER_NONCE, h->server_nonce, RC_NONCE_BYTES);
	put_le64(out + ANSWER_HELLOS, h->server_hellos);
	if (h->resumes)
		put_le64(out + RESUMED_RECEIVED, h->server_received);
	handshake_transcript_make(&t, h, false);
	answer_mac(key, out, &t, h->resumes, out + answer_mac_at(h->resumes));
	return answer_mac_at(h->resumes) + RC_MAC_BYTES;
}

int rc_answer_check(const struct rc_key *key, const void *blob, size_t length,
		    struct rc_handshake *h, uint8_t proof[RC_MAC_BYTES])
{
	const uint8_t *b = blob;
	struct rc_handshake seen = *h;
	uint8_t mac[RC_MAC_BYTES];
	struct transcript t;
	int r = head_check("answer", b, length, h->resumes ? KIND_RESUMED : KIND_ANSWER,
			   h->resumes ? RESUMED_BYTES : ANSWER_BYTES);

	if (r)
		return r;
	seen.epoch = get_le32(b + ANSWER_EPOCH);
	memcpy(seen.server_nonce, b + ANSWER_NONCE, RC_NONCE_BYTES);
	seen.server_hellos = get_le64(b + ANSWER_HELLOS);
	if (h->resumes)
		seen.server_received = get_le64(b + RESUMED_RECEIVED);
	handshake_transcript_make(&t, &seen, true);
	answer_mac(key, b, &t, h->resumes, mac);
	if (!rc_mac_equal(mac, b + answer_mac_at(h->resumes), RC_MAC_BYTES) ||
	    get_le32(b + ANSWER_RANK) != h->peer_rank || (h->resumes && seen.epoch != h->epoch))
		return rc_fail(EKEYREJECTED,
			       "answer: the peer does not hold the group's key, or is not rank %u",
			       h->peer_rank);
	proof_mac(key, &seen, &t, proof);
	*h = seen;
	return 0;
}

int rc_proof_check(const struct rc_key *key, const struct rc_handshake *h,
		   const uint8_t proof[RC_MAC_BYTES])
{
	uint8_t mac[RC_MAC_BYTES];
	struct transcript t;
	bool equal;

	handshake_transcript_make(&t, h, false);
	proof_mac(key, h, &t, mac);
	equal = rc_mac_equal(mac, proof, RC_MAC_BYTES);
	/*
	 * Wipes the expected MAC, which is the proof itself: a later leak of the stack must not
	 * show it.
	 */
	explicit_bzero(mac, sizeof(mac));
	return equal ? 0
		     : rc_fail(EKEYREJECTED,
			       "proof: rank %u could not prove that it holds the group's key",
			       h->peer_rank);
}

/*
 * Makes the keys from fresh nonces of both sides, for this connection alone. No message of another
 * connection, nor of the other side, fits.
 */
void rc_handshake_seals(const struct rc_key *key, const struct rc_handshake *h, bool is_client,
			uint8_t out[RV_SEAL_KEY_BYTES], uint8_t in[RV_SEAL_KEY_BYTES])
{
	uint8_t *of_client = is_client ? out : in, *of_server = is_client ? in : out;
	uint8_t mac[RC_MAC_BYTES];
	struct transcript t;

	handshake_transcript_make(&t, h, is_client);
	rc_mac(key, "rref peer messages of the client 1", t.bytes, sizeof(t.bytes), mac);
	memcpy(of_client, mac, RV_SEAL_KEY_BYTES);
	rc_mac(key, "rref peer messages of the server 1", t.bytes, sizeof(t.bytes), mac);
	memcpy(of_server, mac, RV_SEAL_KEY_BYTES);
	explicit_bzero(mac, sizeof(mac));
}

size_t rc_reason_make(int err, const char *text, uint8_t out[RV_REASON_MAX])
{
	size_t length = strnlen(text, RV_REASON_MAX - REASON_TEXT);

	handshake_head_make(out, KIND_REASON);
	put_le32(out + REASON_ERR, (uint32_t)abs(err));
	memcpy(out + REASON_TEXT, text, length);
	return REASON_TEXT + length;
}

static char shown(uint8_t byte)
{
	return byte >= 0x20 && byte < 0x7f ? (char)byte : '?';
}

/*
 * Reads a reason, which no proof supports yet. So the code is only a code. The text is only words,
 * and cannot steer a terminal.
 */
int rc_reason_parse(const void *blob, size_t length, char *text, size_t size)
{
	const uint8_t *b = blob;
	uint32_t err;
	size_t n;

	if (size)
		text[0] = '\0';
	if (length < REASON_TEXT || length > RV_REASON_MAX || b[OFF_KIND] != KIND_REASON)
		return -ECONNREFUSED;
	err = get_le32(b + REASON_ERR);
	if (err == 0 || err > REASON_ERR_MAX)
		return -ECONNREFUSED;
	if (size) {
		n = min_of(length - REASON_TEXT, size - 1);
		for (size_t i = 0; i < n; i++)
			text[i] = shown(b[REASON_TEXT + i]);
		text[n] = '\0';
	}
	return -(int)err;
}
