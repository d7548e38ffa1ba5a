/* SPDX-License-Identifier: Apache-2.0 */
/* The peer handshake: its agreements, and the refusal of all other bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/error.h"
#include "core/group/group.h"
#include "core/wire/wire.h"

#define CLIENT 3
#define SERVER 7
#define CLIENT_INCARNATION UINT64_C(0x1122334455667788)
#define SERVER_INCARNATION UINT64_C(0x99aabbccddeeff00)

static const struct rc_key key = { .bytes = { 1, 2, 3 }, .is_group = true };
static const struct rc_key other_key = { .bytes = { 1, 2, 4 }, .is_group = true };

static struct rc_handshake new_client(void)
{
	return (struct rc_handshake){ .self_rank = CLIENT,
				      .peer_rank = SERVER,
				      .self_incarnation = CLIENT_INCARNATION,
				      .peer_incarnation = SERVER_INCARNATION };
}

static struct rc_handshake new_server(void)
{
	return (struct rc_handshake){ .self_rank = SERVER,
				      .self_incarnation = SERVER_INCARNATION,
				      .epoch = 41 };
}

static void handshake__both_sides_agree(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n;

	(void)state;
	n = rc_hello_make(&key, &c, hello);
	assert_in_range(n, 1, RV_HELLO_MAX);
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	assert_int_equal(s.peer_rank, CLIENT);
	assert_int_equal(s.peer_incarnation, CLIENT_INCARNATION);
	assert_memory_equal(s.client_nonce, c.client_nonce, RC_NONCE_BYTES);
	n = rc_answer_make(&key, &s, answer);
	assert_in_range(n, 1, RV_ANSWER_MAX);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
	assert_int_equal(c.epoch, 41);
	assert_memory_equal(s.server_nonce, c.server_nonce, RC_NONCE_BYTES);
	assert_int_equal(rc_proof_check(&key, &s, proof), 0);
}

static void handshake__wrong_key_is_refused_at_each_step(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, &c, hello);

	(void)state;
	assert_int_equal(rc_hello_check(&other_key, hello, n, &s), -EKEYREJECTED);
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	n = rc_answer_make(&other_key, &s, answer);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), -EKEYREJECTED);
	n = rc_answer_make(&key, &s, answer);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
	assert_int_equal(rc_proof_check(&other_key, &s, proof), -EKEYREJECTED);
	assert_int_equal(rc_proof_check(&key, &s, proof), 0);
}

/* Flips every bit that is sent: each one matters. Version bits have their own error, and all others
 * concern the form or the key. */
static void handshake__every_bit_flip_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server(), before;
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, &c, hello);

	(void)state;
	for (size_t bit = 0; bit < n * 8; bit++) {
		int r;

		before = s;
		hello[bit / 8] ^= (uint8_t)(1u << bit % 8);
		r = rc_hello_check(&key, hello, n, &s);
		assert_true(r == -EPROTO || r == -EPROTONOSUPPORT || r == -EKEYREJECTED);
		assert_memory_equal(&s, &before, sizeof(s));
		hello[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	n = rc_answer_make(&key, &s, answer);
	for (size_t bit = 0; bit < n * 8; bit++) {
		int r;

		before = c;
		answer[bit / 8] ^= (uint8_t)(1u << bit % 8);
		r = rc_answer_check(&key, answer, n, &c, proof);
		assert_true(r == -EPROTO || r == -EPROTONOSUPPORT || r == -EKEYREJECTED);
		assert_memory_equal(&c, &before, sizeof(c));
		answer[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
	for (size_t bit = 0; bit < sizeof(proof) * 8; bit++) {
		proof[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_equal(rc_proof_check(&key, &s, proof), -EKEYREJECTED);
		proof[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	assert_int_equal(rc_proof_check(&key, &s, proof), 0);
}

/* Checks every other length. The blob ends with its allocation, so that a sanitizer sees a read
 * past the given length. */
static void handshake__every_other_length_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX] = { 0 }, answer[RV_ANSWER_MAX] = { 0 }, proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, &c, hello), m;

	(void)state;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	m = rc_answer_make(&key, &s, answer);
	for (size_t length = 0; length <= 300; length++) {
		uint8_t *copy = malloc(length + 1);

		assert_non_null(copy);
		memset(copy, 0, length + 1);
		copy = realloc(copy, length ? length : 1);
		memcpy(copy, hello, length < n ? length : n);
		if (length != n)
			assert_int_equal(rc_hello_check(&key, copy, length, &s), -EPROTO);
		memset(copy, 0, length);
		memcpy(copy, answer, length < m ? length : m);
		if (length != m)
			assert_int_equal(rc_answer_check(&key, copy, length, &c, proof), -EPROTO);
		free(copy);
	}
}

static void handshake__random_bytes_are_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t bytes[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	uint32_t x = 12345;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		size_t length;

		for (size_t i = 0; i < sizeof(bytes); i++) {
			x = x * 1664525 + 1013904223;
			bytes[i] = (uint8_t)(x >> 24);
		}
		length = bytes[0] % (sizeof(bytes) + 1);
		assert_true(rc_hello_check(&key, bytes, length, &s) < 0);
		assert_true(rc_answer_check(&key, bytes, length, &c, proof) < 0);
		assert_true(rc_proof_check(&key, &s, bytes) < 0);
	}
}

static void handshake__other_version_names_both(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX];
	size_t n = rc_hello_make(&key, &c, hello);
	char own[32];

	(void)state;
	hello[1] = 0x39;
	hello[2] = 0x30;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -EPROTONOSUPPORT);
	assert_non_null(strstr(rc_error_text(), "12345"));
	snprintf(own, sizeof(own), "version %u", RW_PROTOCOL_VERSION);
	assert_non_null(strstr(rc_error_text(), own));
	/* Another version may have another length. */
	assert_int_equal(rc_hello_check(&key, hello, 3, &s), -EPROTONOSUPPORT);
	assert_int_equal(rc_hello_check(&key, hello, 2, &s), -EPROTO);
}

static void handshake__hello_replayed_to_another_worker_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX];
	size_t n = rc_hello_make(&key, &c, hello);

	(void)state;
	s.self_incarnation++;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -ESTALE);
	s = new_server();
	s.self_rank++;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -EKEYREJECTED);
	/* Back to its sender. */
	s = new_client();
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -EKEYREJECTED);
}

static void handshake__hello_of_our_own_rank_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX];
	uint32_t from;
	size_t n;

	(void)state;
	n = rc_hello_make(&key, &c, hello);
	assert_int_equal(rc_hello_from(hello, n, SERVER, &from), 0);
	assert_int_equal(from, CLIENT);
	assert_int_equal(rc_hello_from(hello, n, CLIENT, &from), -EKEYREJECTED);
	c.self_rank = SERVER;
	n = rc_hello_make(&key, &c, hello);
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -EKEYREJECTED);
}

/* Replays a recorded hello, which gets an answer with a new nonce. The recorded proof does not fit
 * it, and no other epoch does. */
static void handshake__replayed_session_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server(), replay = new_server(), late;
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES],
		again[RV_ANSWER_MAX];
	size_t n = rc_hello_make(&key, &c, hello), m;

	(void)state;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	m = rc_answer_make(&key, &s, answer);
	late = c;
	assert_int_equal(rc_answer_check(&key, answer, m, &c, proof), 0);
	assert_int_equal(rc_hello_check(&key, hello, n, &replay), 0);
	rc_answer_make(&key, &replay, again);
	assert_int_equal(rc_proof_check(&key, &replay, proof), -EKEYREJECTED);
	late.self_incarnation++;
	assert_int_equal(rc_answer_check(&key, answer, m, &late, proof), -EKEYREJECTED);
	late = new_client();
	rc_hello_make(&key, &late, hello);
	assert_int_equal(rc_answer_check(&key, answer, m, &late, proof), -EKEYREJECTED);
	s.epoch++;
	assert_int_equal(rc_proof_check(&key, &s, proof), -EKEYREJECTED);
}

static void handshake__answer_of_another_worker_is_refused(void **state)
{
	struct rc_handshake c = new_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, &c, hello);

	(void)state;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	s.self_rank = SERVER + 1;
	n = rc_answer_make(&key, &s, answer);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), -EKEYREJECTED);
}

/* ---- a session that resumes ---- */

static struct rc_handshake resuming_client(void)
{
	struct rc_handshake h = new_client();

	h.resumes = true;
	h.epoch = 41;
	h.client_received = UINT64_C(0x123456789a);
	return h;
}

/* Resumes up to the proof, with this count in the server's view.
 * Returns the result of rc_proof_check. */
static int resume(struct rc_handshake *c, struct rc_handshake *s, uint64_t client_received)
{
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, c, hello);

	assert_in_range(n, 1, RV_HELLO_MAX);
	s->epoch = 0;
	assert_int_equal(rc_hello_check(&key, hello, n, s), 0);
	assert_true(s->resumes);
	assert_int_equal(s->epoch, 41);
	s->server_received = 77;
	n = rc_answer_make(&key, s, answer);
	assert_in_range(n, 1, RV_ANSWER_MAX);
	assert_int_equal(rc_answer_check(&key, answer, n, c, proof), 0);
	assert_int_equal(c->server_received, 77);
	s->client_received = client_received;
	return rc_proof_check(&key, s, proof);
}

static void resume__both_sides_agree(void **state)
{
	struct rc_handshake c = resuming_client(), s = new_server();

	(void)state;
	assert_int_equal(resume(&c, &s, c.client_received), 0);
}

/* Changes the count of messages, which is under the MAC in both directions. */
static void resume__another_count_is_refused(void **state)
{
	struct rc_handshake c = resuming_client(), s = new_server();
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n;

	(void)state;
	assert_int_equal(resume(&c, &s, c.client_received + 1), -EKEYREJECTED);
	c = resuming_client();
	n = rc_hello_make(&key, &c, hello);
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	n = rc_answer_make(&key, &s, answer);
	for (size_t bit = 0; bit < 8 * n; bit++) {
		struct rc_handshake seen = c;

		answer[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_not_equal(rc_answer_check(&key, answer, n, &seen, proof), 0);
		answer[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
}

/* Checks that bytes of a new session do not pass for a resumed one, and the reverse. */
static void resume__is_not_a_new_session(void **state)
{
	struct rc_handshake c = resuming_client(), s = new_server(), fresh = new_client();
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n = rc_hello_make(&key, &c, hello);

	(void)state;
	hello[0] = 0xa1; /* the kind of a new session's */
	assert_int_equal(rc_hello_check(&key, hello, n, &s), -EKEYREJECTED);
	hello[0] = 0xa4;
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	n = rc_answer_make(&key, &s, answer);
	memcpy(fresh.client_nonce, c.client_nonce, RC_NONCE_BYTES);
	assert_int_equal(rc_answer_check(&key, answer, n, &fresh, proof), -EPROTO);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
	s.resumes = false;
	s.client_received = c.client_received;
	assert_int_equal(rc_proof_check(&key, &s, proof), -EKEYREJECTED);
	/* An answer with another epoch than the hello asked for. */
	c = resuming_client();
	s = new_server();
	n = rc_hello_make(&key, &c, hello);
	assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
	s.epoch++;
	n = rc_answer_make(&key, &s, answer);
	assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), -EKEYREJECTED);
}

static void reason__comes_back(void **state)
{
	uint8_t blob[RV_REASON_MAX];
	char text[RV_REASON_MAX], longer[400];
	size_t n = rc_reason_make(-EPROTONOSUPPORT, "version 2, not 1", blob);

	(void)state;
	assert_in_range(n, 1, RV_REASON_MAX);
	assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -EPROTONOSUPPORT);
	assert_string_equal(text, "version 2, not 1");
	n = rc_reason_make(ESTALE, "", blob);
	assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -ESTALE);
	assert_string_equal(text, "");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	n = rc_reason_make(EINVAL, longer, blob);
	assert_int_equal(n, RV_REASON_MAX);
	assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -EINVAL);
	assert_true(strlen(text) > 100);
	/* A small place cuts the text; no place is fine, too. */
	assert_int_equal(rc_reason_parse(blob, n, text, 4), -EINVAL);
	assert_string_equal(text, "xxx");
	assert_int_equal(rc_reason_parse(blob, n, text, 0), -EINVAL);
}

static void reason__malformed_is_a_plain_refusal(void **state)
{
	uint8_t blob[RV_REASON_MAX + 100] = { 0 };
	char text[64];
	size_t n = rc_reason_make(EINVAL, "words", blob);

	(void)state;
	for (size_t length = 0; length < n - strlen("words"); length++) {
		memset(text, 'z', sizeof(text));
		assert_int_equal(rc_reason_parse(blob, length, text, sizeof(text)), -ECONNREFUSED);
		assert_string_equal(text, "");
	}
	assert_int_equal(rc_reason_parse(NULL, 0, text, sizeof(text)), -ECONNREFUSED);
	assert_int_equal(rc_reason_parse(blob, sizeof(blob), text, sizeof(text)), -ECONNREFUSED);
	/* Invalid codes. */
	memset(blob + 3, 0, 4);
	assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -ECONNREFUSED);
	memset(blob + 3, 0xff, 4);
	assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -ECONNREFUSED);
}

static void reason__hostile_text_is_printable(void **state)
{
	uint8_t blob[RV_REASON_MAX];
	char text[200];
	size_t n = rc_reason_make(EINVAL, "aaaaaaaaaaaaaaaa", blob);

	(void)state;
	for (int start = 0; start < 256; start += 16) {
		for (int i = 0; i < 16; i++)
			blob[n - 16 + (size_t)i] = (uint8_t)(start + i);
		assert_int_equal(rc_reason_parse(blob, n, text, sizeof(text)), -EINVAL);
		assert_int_equal(strlen(text), 16);
		for (const char *p = text; *p; p++)
			assert_true(*p >= 0x20 && *p < 0x7f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(handshake__answer_of_another_worker_is_refused),
		cmocka_unit_test(handshake__both_sides_agree),
		cmocka_unit_test(handshake__every_bit_flip_is_refused),
		cmocka_unit_test(handshake__every_other_length_is_refused),
		cmocka_unit_test(handshake__hello_of_our_own_rank_is_refused),
		cmocka_unit_test(handshake__hello_replayed_to_another_worker_is_refused),
		cmocka_unit_test(handshake__other_version_names_both),
		cmocka_unit_test(handshake__random_bytes_are_refused),
		cmocka_unit_test(handshake__replayed_session_is_refused),
		cmocka_unit_test(handshake__wrong_key_is_refused_at_each_step),
		cmocka_unit_test(resume__another_count_is_refused),
		cmocka_unit_test(resume__both_sides_agree),
		cmocka_unit_test(resume__is_not_a_new_session),
		cmocka_unit_test(reason__comes_back),
		cmocka_unit_test(reason__hostile_text_is_printable),
		cmocka_unit_test(reason__malformed_is_a_plain_refusal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
