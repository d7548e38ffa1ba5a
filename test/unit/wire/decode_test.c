/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes become messages again, and wrong bytes are refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "messages.h"

static void rw__round_trip(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX], *copy;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		int n;

		any_message(&m, 1 + below(RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n >= (int)RW_FRAME_BYTES);
		assert_int_equal(decode_tight(buf, (size_t)n, &out, &copy), 0);
		assert_int_equal(out.frame.length, n);
		assert_message(&m, &out);
		assert_refused_or_exact(buf, (size_t)n);
		free(copy);
	}
}

static void rw__truncated_or_extended(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX + 1], *copy;

	(void)state;
	for (unsigned i = 0; i < 40 * (RW_NR_TYPES - 1); i++) {
		int n;

		any_message(&m, 1 + i % (RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n > 0);
		buf[n] = 0;
		for (int k = 0; k <= n + 1; k++) {
			if (k == n)
				continue;
			assert_int_equal(decode_tight(buf, (size_t)k, &out, &copy), -EPROTO);
			free(copy);
			/* The same with the right length in the frame. */
			if (k >= (int)RW_FRAME_BYTES) {
				put_le32(buf + 4, (uint32_t)k);
				assert_int_equal(decode_tight(buf, (size_t)k, &out, &copy),
						 -EPROTO);
				free(copy);
				put_le32(buf + 4, (uint32_t)n);
			}
		}
	}
}

static void rw__bit_flips(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];

	(void)state;
	for (unsigned i = 0; i < 20 * (RW_NR_TYPES - 1); i++) {
		int n;

		any_message(&m, 1 + i % (RW_NR_TYPES - 1));
		n = rw_encode(&m, buf, sizeof(buf));
		assert_true(n > 0);
		for (int bit = 0; bit < 8 * n; bit++) {
			buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
			assert_refused_or_exact(buf, (size_t)n);
			buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
	}
}

static void rw__random_bytes(void **state)
{
	static struct rw_message m;
	uint8_t buf[RV_MSG_MAX];

	(void)state;
	for (int i = 0; i < 100000; i++) {
		size_t n = below(400);

		for (size_t k = 0; k < n; k++)
			buf[k] = (uint8_t)(below(3) ? rnd() : rnd() & 3);
		/* Half of them pass the frame. */
		if (n >= RW_FRAME_BYTES && below(2)) {
			any_message(&m, RW_GOODBYE);
			assert_int_equal(rw_encode(&m, buf, RW_FRAME_BYTES), RW_FRAME_BYTES);
			buf[0] = (uint8_t)(1 + below(RW_NR_TYPES - 1));
			put_le32(buf + 4, (uint32_t)n);
		}
		assert_refused_or_exact(buf, n);
	}
}

/* Decodes the same records after a payload's data, by themselves. */
static void rw__forks_of_a_payload(void **state)
{
	static struct rp_fork refs[RREF_REFS_MAX], out[RREF_REFS_MAX];
	static uint8_t buf[RREF_REFS_MAX * RW_FORK_BYTES];

	(void)state;
	any_forks(refs, RREF_REFS_MAX);
	assert_int_equal(rw_put_forks(refs, RREF_REFS_MAX, buf), 0);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, WORLD, out), 0);
	assert_forks(refs, out, RREF_REFS_MAX);
	/* ranks of a larger group */
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, 1, out), -EPROTO);
	/* the last one's flags */
	put_le32(buf + (RREF_REFS_MAX - 1) * RW_FORK_BYTES + 48, 2);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX, WORLD, out), -EPROTO);
	assert_int_equal(rw_get_forks(buf, RREF_REFS_MAX - 1, WORLD, out), 0);
	refs[3].flags = 2;
	assert_int_equal(rw_put_forks(refs, 4, buf), -EINVAL);
	/* Bytes with a wrong bit. */
	for (int i = 0; i < 2000; i++) {
		assert_int_equal(rw_put_forks(out, 2, buf), 0);
		buf[below(2 * RW_FORK_BYTES)] ^= (uint8_t)(1 << below(8));
		if (rw_get_forks(buf, 2, WORLD, refs) == 0) {
			static uint8_t again[2 * RW_FORK_BYTES];

			assert_int_equal(rw_put_forks(refs, 2, again), 0);
			assert_memory_equal(again, buf, sizeof(again));
		}
	}
}

static void rw__decoder_refuses(void **state)
{
	static struct rw_message m, out;
	uint8_t buf[RV_MSG_MAX];
	int n;

#define REFUSED(change) do { \
		n = rw_encode(&m, buf, sizeof(buf)); \
		assert_true(n > 0); \
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), 0); \
		change; \
		assert_int_equal(rw_decode(buf, (size_t)n, WORLD, &out), -EPROTO); \
	} while (0)
	(void)state;
	any_message(&m, RW_CALL);
	m.u.call.kind = RW_CALL_REMOTE;
	m.u.call.id = any_id();
	m.u.call.fork = any_id();
	m.u.call.name_length = 5;
	m.u.call.loc = none;
	m.u.call.nr_refs = 1;
	m.u.call.meta_length = 3;
	m.u.call.data_length = 7;
	m.u.call.data = words;
	any_forks(m.u.call.refs, 1);
	m.u.call.refs[0].loc = any_location();
	m.u.call.refs[0].loc.data_addr = 0x2000;
	m.u.call.refs[0].loc.data_rkey[0] = 1;
	REFUSED(buf[24 + 8] = 3);                        /* kind */
	REFUSED(buf[24 + 9] = 1);                        /* located */
	REFUSED(buf[24 + 9] = 2);
	REFUSED(buf[24 + 10] = 128);                     /* name */
	REFUSED(buf[24 + 11] = 1);                       /* reserved */
	REFUSED(put_le16(buf + 24 + 12, RW_REFS_MAX + 1));
	REFUSED(put_le16(buf + 24 + 14, RREF_META_MAX + 1));
	REFUSED(put_le32(buf + 24 + 16, RW_INLINE_MAX + 1));
	REFUSED(put_le64(buf + 44, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 52, WORLD));              /* its rank */
	REFUSED(put_le32(buf + 64, WORLD));              /* the fork's */
	REFUSED(put_le64(buf + 76 + 12, 0));
	REFUSED(put_le32(buf + 76 + 24, WORLD));         /* owner */
	REFUSED(put_le32(buf + 76 + 28, 0xffffffffu));   /* parent */
	REFUSED(put_le32(buf + 76 + 48, 2));             /* flags */
	REFUSED(put_le32(buf + 76 + 92, 0));             /* version 0 with a location */
	REFUSED(put_le64(buf + 76 + 52, UINT64_MAX));    /* wraps */
	REFUSED(put_le64(buf + 76 + 60, UINT64_MAX));
	REFUSED(put_le64(buf + 76 + 68, 0));             /* local only, with an address */
	REFUSED(put_le16(buf + 76 + 96, RREF_SEGMENTS_MAX + 1));
	REFUSED(put_le16(buf + 76 + 98, RREF_REFS_MAX + 1));
	/* keys of a payload that has no address */
	REFUSED(put_le64(buf + 76 + 100, 0));
	REFUSED(put_le64(buf + 76 + 100, UINT64_MAX));    /* wraps */
	REFUSED(buf[76 + 116] = '\0');                   /* in the name */
	m.u.call.kind = RW_CALL_RPC;
	m.u.call.id = m.u.call.fork = (struct rref_id){ 0 };
	m.u.call.loc = located(5000, 1);
	m.u.call.data_length = 5000;
	REFUSED(buf[24 + 9] = 0);                        /* not located */
	REFUSED(put_le16(buf + 24 + 12, 2));             /* more records than the payload holds */
	REFUSED(put_le16(buf + 24 + 12, 0));
	REFUSED(put_le32(buf + 24 + 16, 4999));          /* a wrong length */
	REFUSED(put_le32(buf + 24 + 16, 5001));
	REFUSED(put_le64(buf + 44 + 8, UINT64_MAX - 64));
	REFUSED(put_le64(buf + 44, UINT64_MAX - 64));    /* wraps */
	REFUSED(put_le32(buf + 44 + 40, 0));             /* version 0 */
	REFUSED(put_le64(buf + 44 + 16, 0));             /* no nonce */
	REFUSED(put_le16(buf + 44 + 44, 2));             /* segments */
	REFUSED(put_le16(buf + 44 + 46, 1));             /* references */
	REFUSED(put_le64(buf + 44 + 48, 0x2000));        /* away from its header */
	m.u.call.loc = located(5000, 0);
	m.u.call.nr_refs = 0;
	REFUSED(buf[44 + 64] = 1);                       /* a key without records */
	REFUSED(buf[44 + 79] = 0x80);
	memset(&m.u, 0, sizeof(m.u));
	m.u.call.kind = RW_CALL_TAKE;
	any_take(&m.u.call);
	REFUSED(buf[24 + 8] = RW_CALL_RPC);
	REFUSED(buf[24 + 8] = RW_CALL_REMOTE);
	REFUSED(buf[24 + 9] = 1);
	REFUSED(buf[24 + 10] = 1);
	REFUSED(put_le16(buf + 24 + 12, 1));
	REFUSED(put_le16(buf + 24 + 14, 1));
	REFUSED(put_le32(buf + 24 + 16, 4));
	REFUSED(put_le64(buf + 44, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 64, WORLD));              /* the fork's rank */
	REFUSED(put_le32(buf + 68, RREF_REFS_MAX));      /* first */
	REFUSED(put_le32(buf + 72, 0));                  /* count */
	REFUSED(put_le32(buf + 72, RREF_REFS_MAX + 1));
	m.frame.type = RW_DONE;
	memset(&m.u, 0, sizeof(m.u));
	m.u.done = (struct rw_done){ .call_id = 5, .what = RW_PAYLOAD_REPLY, .status = -ENOMEM };
	REFUSED(put_le32(buf + 24 + 8, 0));
	REFUSED(put_le32(buf + 24 + 8, 3));
	REFUSED(put_le32(buf + 24 + 12, 1));
	REFUSED(put_le32(buf + 24 + 12, 0x80000000u));
	m.frame.type = RW_PROTO;
	memset(&m.u, 0, sizeof(m.u));
	m.u.proto = (struct rp_msg){ .type = RP_MSG_FORK_ACK,
				     .id = any_id(),
				     .fork = any_id(),
				     .status = -ESTALE,
				     .text = "gone" };
	REFUSED(buf[24] = 0);
	REFUSED(buf[24] = RP_MSG_NR_TYPES);
	REFUSED(buf[24] = RP_MSG_DELETE);                /* has no status */
	REFUSED(buf[25] = 1);                            /* a location with an error */
	REFUSED(put_le32(buf + 28, 1));                  /* status > 0 */
	REFUSED(put_le32(buf + 28, 0x80000000u));
	REFUSED(put_le32(buf + 28, 0));                  /* text with success */
	REFUSED(put_le16(buf + 26, 5));                  /* text without its bytes */
	REFUSED(put_le16(buf + 26, 3));
	REFUSED(put_le16(buf + 24 + 32, WORLD + 1));     /* an unknown rank */
	REFUSED(buf[24 + 32 + 2 + 1] = '\0');            /* in the text */
	m.frame.type = RW_TYPE_QUERY;
	memset(&m.u, 0, sizeof(m.u));
	m.u.type = (struct rw_type_info){ .number = 1, .id = any_id(), .fork = any_id() };
	REFUSED(put_le64(buf + 32, 0));                  /* id 0 */
	REFUSED(put_le32(buf + 40, WORLD));              /* its rank */
	REFUSED(put_le64(buf + 44, 0));
	REFUSED(put_le32(buf + 52, WORLD));
	m.frame.type = RW_TYPE_ANSWER;
	memset(&m.u, 0, sizeof(m.u));
	m.u.type = (struct rw_type_info){
		.number = 1, .element_size = 4, .flags = 1, .name_length = 3, .name = "i32"
	};
	REFUSED(buf[24 + 20] = 128);                     /* name */
	REFUSED(buf[24 + 20] = 2);
	REFUSED(buf[24 + 20] = 0);
	REFUSED(buf[24 + 21] = 1);                       /* reserved */
	REFUSED(put_le16(buf + 24 + 22, 1));
	REFUSED(buf[24 + 25] = '\0');                    /* in the name */
	m.u.type = (struct rw_type_info){ .number = 1 };
	REFUSED(put_le64(buf + 24 + 8, 4));              /* without a type */
	REFUSED(put_le32(buf + 24 + 16, 1));
#undef REFUSED
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rw__bit_flips),
		cmocka_unit_test(rw__decoder_refuses),
		cmocka_unit_test(rw__forks_of_a_payload),
		cmocka_unit_test(rw__random_bytes),
		cmocka_unit_test(rw__round_trip),
		cmocka_unit_test(rw__truncated_or_extended),
	};

	for (size_t i = 0; i < sizeof(words); i++)
		words[i] = (char)('a' + i % 26);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
