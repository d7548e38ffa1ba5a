/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of two members. Both compute the same key, a third member
 * cannot compute it, and their words are secret. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/group/group.h"

#define NR 3

static const struct rc_key group_key = { .bytes = { 1, 2, 3 }, .is_group = true };
static const struct rc_key other_group = { .bytes = { 1, 2, 4 }, .is_group = true };

static struct rc_identity identity[NR];
static struct rc_member member[NR];

static int setup(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < NR; i++) {
		rc_identity_make(&identity[i]);
		member[i] = (struct rc_member){ .rank = i, .incarnation = 1000 + i };
		snprintf(member[i].name, sizeof(member[i].name), "w:%u", i);
		memcpy(member[i].public, identity[i].public, RC_KEY_BYTES);
	}
	return 0;
}

/* Returns the key that self computes for its pair with peer. */
static struct rc_key pair(uint32_t self, uint32_t peer)
{
	struct rc_key key;

	assert_int_equal(
		rc_pair_key(&group_key, &identity[self], &member[self], &member[peer], &key), 0);
	return key;
}

static bool is_same(const struct rc_key *a, const struct rc_key *b)
{
	return memcmp(a->bytes, b->bytes, RC_KEY_BYTES) == 0;
}

static void identity__is_new_each_time(void **state)
{
	struct rc_identity again;

	(void)state;
	rc_identity_make(&again);
	assert_memory_not_equal(again.public, identity[0].public, RC_KEY_BYTES);
	assert_memory_not_equal(again.secret, identity[0].secret, RC_KEY_BYTES);
	assert_memory_not_equal(identity[0].public, identity[1].public, RC_KEY_BYTES);
	rc_identity_wipe(&again);
	for (size_t i = 0; i < RC_KEY_BYTES; i++)
		assert_int_equal(again.secret[i] | again.public[i], 0);
}

static void pair__both_compute_the_same(void **state)
{
	(void)state;
	for (uint32_t a = 0; a < NR; a++)
		for (uint32_t b = 0; b < NR; b++) {
			struct rc_key ab, ba;

			if (a == b)
				continue;
			ab = pair(a, b);
			ba = pair(b, a);
			assert_true(is_same(&ab, &ba));
			assert_true(ab.is_group);
			assert_false(is_same(&ab, &group_key));
		}
}

static void pair__is_of_no_other_two(void **state)
{
	struct rc_key k[] = { pair(0, 1), pair(0, 2), pair(1, 2) };

	(void)state;
	assert_false(is_same(&k[0], &k[1]));
	assert_false(is_same(&k[0], &k[2]));
	assert_false(is_same(&k[1], &k[2]));
}

/* Computes with the knowledge of member 2: all public data of 0 and 1, and the group's key. */
static void pair__a_third_member_cannot_compute_it(void **state)
{
	struct rc_key want = pair(0, 1), got;
	struct rc_member me = member[2];

	(void)state;
	me.rank = 0;
	me.incarnation = member[0].incarnation;
	assert_int_equal(rc_pair_key(&group_key, &identity[2], &me, &member[1], &got), 0);
	assert_false(is_same(&want, &got));
	memcpy(me.public, member[0].public, RC_KEY_BYTES);
	assert_int_equal(rc_pair_key(&group_key, &identity[2], &me, &member[1], &got), 0);
	assert_false(is_same(&want, &got));
}

static void pair__is_bound_to_group_rank_and_incarnation(void **state)
{
	struct rc_key want = pair(0, 1), got;
	struct rc_member me = member[0], peer = member[1];

	(void)state;
	assert_int_equal(rc_pair_key(&other_group, &identity[0], &me, &peer, &got), 0);
	assert_false(is_same(&want, &got));
	me.incarnation++;
	assert_int_equal(rc_pair_key(&group_key, &identity[0], &me, &peer, &got), 0);
	assert_false(is_same(&want, &got));
	me = member[0];
	peer.incarnation++;
	assert_int_equal(rc_pair_key(&group_key, &identity[0], &me, &peer, &got), 0);
	assert_false(is_same(&want, &got));
	peer = member[1];
	peer.rank = 5;
	assert_int_equal(rc_pair_key(&group_key, &identity[0], &me, &peer, &got), 0);
	assert_false(is_same(&want, &got));
}

/* Checks points of low order, whose secret everybody knows. */
static void pair__an_invalid_public_key_is_refused(void **state)
{
	static const uint8_t low[][RC_KEY_BYTES] = {
		{ 0 },
		{ 1 },
		{ 0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3,
		  0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32,
		  0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00 },
		{ 0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
		  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f },
	};
	struct rc_key got = { .bytes = { 0x77 } };

	(void)state;
	for (size_t i = 0; i < sizeof(low) / sizeof(low[0]); i++) {
		struct rc_member peer = member[1];

		memcpy(peer.public, low[i], RC_KEY_BYTES);
		assert_int_equal(rc_pair_key(&group_key, &identity[0], &member[0], &peer, &got),
				 -EKEYREJECTED);
		assert_non_null(strstr(rc_error_text(), "w:1 (rank 1)"));
		assert_int_equal(got.bytes[0], 0x77);
	}
}

/* ---- words of a third member for another ---- */

static struct rc_handshake client_of(uint32_t self, uint32_t peer, bool resumes)
{
	return (struct rc_handshake){ .resumes = resumes,
				      .self_rank = self,
				      .peer_rank = peer,
				      .epoch = resumes ? 41 : 0,
				      .self_incarnation = member[self].incarnation,
				      .peer_incarnation = member[peer].incarnation };
}

/* Tries each key that member 2 has, or could make, to speak as member 0 to member 1. */
static void hello__of_a_third_member_is_refused(void **state)
{
	struct rc_key real = pair(0, 1), own = pair(2, 1), with_victim = pair(2, 0);
	const struct rc_key *tried[] = { &group_key, &own, &with_victim };
	uint8_t hello[RV_HELLO_MAX];
	uint32_t from;

	(void)state;
	for (int resumes = 0; resumes < 2; resumes++) {
		struct rc_handshake s = { .self_rank = 1,
					  .self_incarnation = member[1].incarnation },
				    c;
		size_t n;

		for (size_t i = 0; i < sizeof(tried) / sizeof(tried[0]); i++) {
			c = client_of(0, 1, resumes);
			n = rc_hello_make(tried[i], &c, hello);
			assert_int_equal(rc_hello_from(hello, n, 1, &from), 0);
			assert_int_equal(from, 0);
			assert_int_equal(rc_hello_check(&real, hello, n, &s), -EKEYREJECTED);
		}
		c = client_of(0, 1, resumes);
		n = rc_hello_make(&real, &c, hello);
		assert_int_equal(rc_hello_check(&real, hello, n, &s), 0);
	}
}

static void answer__of_a_third_member_is_refused(void **state)
{
	struct rc_key real = pair(0, 1), own = pair(2, 0);
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];

	(void)state;
	for (int resumes = 0; resumes < 2; resumes++) {
		struct rc_handshake s = { .self_rank = 1,
					  .self_incarnation = member[1].incarnation };
		struct rc_handshake c = client_of(0, 1, resumes);
		size_t n = rc_hello_make(&real, &c, hello);

		assert_int_equal(rc_hello_check(&real, hello, n, &s), 0);
		n = rc_answer_make(&own, &s, answer);
		assert_int_equal(rc_answer_check(&real, answer, n, &c, proof), -EKEYREJECTED);
		n = rc_answer_make(&group_key, &s, answer);
		assert_int_equal(rc_answer_check(&real, answer, n, &c, proof), -EKEYREJECTED);
		n = rc_answer_make(&real, &s, answer);
		assert_int_equal(rc_answer_check(&real, answer, n, &c, proof), 0);
		assert_int_equal(rc_proof_check(&own, &s, proof), -EKEYREJECTED);
		assert_int_equal(rc_proof_check(&real, &s, proof), 0);
	}
}

/* ---- the keys of a connection's messages ---- */

struct ends {
	struct rc_handshake c, s;
	uint8_t c_out[RV_SEAL_KEY_BYTES], c_in[RV_SEAL_KEY_BYTES], s_out[RV_SEAL_KEY_BYTES],
		s_in[RV_SEAL_KEY_BYTES];
};

static void connect_ends(struct ends *e, const struct rc_key *key, bool resumes)
{
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];
	size_t n;

	e->c = client_of(0, 1, resumes);
	e->s = (struct rc_handshake){ .self_rank = 1,
				      .self_incarnation = member[1].incarnation,
				      .epoch = 41 };
	n = rc_hello_make(key, &e->c, hello);
	assert_int_equal(rc_hello_check(key, hello, n, &e->s), 0);
	n = rc_answer_make(key, &e->s, answer);
	assert_int_equal(rc_answer_check(key, answer, n, &e->c, proof), 0);
	rc_handshake_seals(key, &e->c, true, e->c_out, e->c_in);
	rc_handshake_seals(key, &e->s, false, e->s_out, e->s_in);
}

static void seals__both_ends_agree(void **state)
{
	struct rc_key key = pair(0, 1);
	struct ends e;

	(void)state;
	for (int resumes = 0; resumes < 2; resumes++) {
		connect_ends(&e, &key, resumes);
		assert_memory_equal(e.c_out, e.s_in, RV_SEAL_KEY_BYTES);
		assert_memory_equal(e.c_in, e.s_out, RV_SEAL_KEY_BYTES);
		assert_memory_not_equal(e.c_in, e.c_out, RV_SEAL_KEY_BYTES);
	}
}

static void seals__are_of_one_connection(void **state)
{
	struct rc_key key = pair(0, 1), third = pair(0, 2);
	struct ends first, second;
	uint8_t out[RV_SEAL_KEY_BYTES], in[RV_SEAL_KEY_BYTES];

	(void)state;
	connect_ends(&first, &key, true);
	connect_ends(&second, &key, true); /* the same session, over another connection */
	assert_memory_not_equal(first.c_out, second.c_out, RV_SEAL_KEY_BYTES);
	assert_memory_not_equal(first.c_in, second.c_in, RV_SEAL_KEY_BYTES);
	rc_handshake_seals(&third, &first.c, true, out, in);
	assert_memory_not_equal(first.c_out, out, RV_SEAL_KEY_BYTES);
	first.c.epoch++;
	rc_handshake_seals(&key, &first.c, true, out, in);
	assert_memory_not_equal(first.c_out, out, RV_SEAL_KEY_BYTES);
}

/* ---- hellos that an answer makes void ---- */

static void answer__voids_the_hellos_of_its_server(void **state)
{
	struct rc_key key = pair(0, 1);
	uint8_t hello[RV_HELLO_MAX], answer[RV_ANSWER_MAX], proof[RC_MAC_BYTES];

	(void)state;
	for (int resumes = 0; resumes < 2; resumes++) {
		struct rc_handshake lost = client_of(1, 0, resumes),
				    later = client_of(1, 0, resumes);
		struct rc_handshake s = { .self_rank = 1,
					  .self_incarnation = member[1].incarnation };
		struct rc_handshake c = client_of(0, 1, resumes);
		size_t n;

		rc_hello_make(&key, &lost, hello); /* the server's own attempt, still on its way */
		n = rc_hello_make(&key, &c, hello);
		assert_int_equal(rc_hello_check(&key, hello, n, &s), 0);
		n = rc_answer_make(&key, &s, answer);
		assert_int_equal(rc_answer_check(&key, answer, n, &c, proof), 0);
		assert_true(rc_hello_number(&lost) <= c.server_hellos);
		rc_hello_make(&key, &later, hello);
		assert_true(rc_hello_number(&later) > c.server_hellos);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answer__of_a_third_member_is_refused),
		cmocka_unit_test(answer__voids_the_hellos_of_its_server),
		cmocka_unit_test(hello__of_a_third_member_is_refused),
		cmocka_unit_test(identity__is_new_each_time),
		cmocka_unit_test(pair__an_invalid_public_key_is_refused),
		cmocka_unit_test(pair__a_third_member_cannot_compute_it),
		cmocka_unit_test(pair__both_compute_the_same),
		cmocka_unit_test(pair__is_bound_to_group_rank_and_incarnation),
		cmocka_unit_test(pair__is_of_no_other_two),
		cmocka_unit_test(seals__are_of_one_connection),
		cmocka_unit_test(seals__both_ends_agree),
	};

	return cmocka_run_group_tests_name("pair", tests, setup, NULL);
}
