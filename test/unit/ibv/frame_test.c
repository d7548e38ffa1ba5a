/* SPDX-License-Identifier: Apache-2.0 */
/* Frames, connection data and address blobs, from a hostile peer too. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "verbs/ibv/ibv.h"

static void frame__round_trip(void **state)
{
	struct rvi_frame in = { .type = RVI_FRAME_MSG, .grant = 0xfedc, .len = 77, .seq = 0x8001 },
			 out;
	uint8_t p[RVI_FRAME_BYTES];

	(void)state;
	rvi_frame_put(p, &in);
	assert_int_equal(rvi_frame_get(p, sizeof(p) + 77, &out), 0);
	assert_int_equal(out.type, in.type);
	assert_int_equal(out.grant, in.grant);
	assert_int_equal(out.len, in.len);
	assert_int_equal(out.seq, in.seq);
	in = (struct rvi_frame){ .type = RVI_FRAME_CREDITS, .grant = 1 };
	rvi_frame_put(p, &in);
	assert_int_equal(rvi_frame_get(p, sizeof(p), &out), 0);
}

static int get(struct rvi_frame f, size_t byte_len)
{
	uint8_t p[RVI_FRAME_BYTES];
	struct rvi_frame out = { .seq = 4711 };
	int rc;

	rvi_frame_put(p, &f);
	rc = rvi_frame_get(p, byte_len, &out);
	if (rc)
		assert_int_equal(out.seq, 4711); /* written on success only */
	return rc;
}

static void frame__length_must_match_the_bytes(void **state)
{
	struct rvi_frame f = { .type = RVI_FRAME_MSG, .len = 10 };

	(void)state;
	assert_int_equal(get(f, 18), 0);
	for (size_t n = 0; n < 40; n++)
		if (n != 18)
			assert_int_equal(get(f, n), -EPROTO);
	f.len = RV_MSG_MAX;
	assert_int_equal(get(f, RVI_FRAME_BYTES + RV_MSG_MAX), 0);
	f.len = RV_MSG_MAX + 1;
	assert_int_equal(get(f, RVI_FRAME_BYTES + RV_MSG_MAX + 1), -EPROTO);
	f.len = UINT16_MAX;
	assert_int_equal(get(f, RVI_FRAME_BYTES + UINT16_MAX), -EPROTO);
}

static bool is_length_of(unsigned type, uint16_t len)
{
	return (type == RVI_FRAME_MSG && len) || (type == RVI_FRAME_OFFER && len == 12) ||
	       (type == RVI_FRAME_READY && len == 4);
}

static void frame__types(void **state)
{
	(void)state;
	for (unsigned type = 0; type < 256; type++) {
		struct rvi_frame msg = { .type = (uint8_t)type, .len = 1 };
		struct rvi_frame credits = { .type = (uint8_t)type, .grant = 1 };

		assert_int_equal(get(msg, 9), type == RVI_FRAME_MSG ? 0 : -EPROTO);
		assert_int_equal(get(credits, 8), type == RVI_FRAME_CREDITS ? 0 : -EPROTO);
		for (uint16_t len = 0; len < 64; len++) {
			msg.len = len;
			assert_int_equal(get(msg, RVI_FRAME_BYTES + (size_t)len),
					 is_length_of(type, len) ? 0 : -EPROTO);
		}
	}
	/* Neither an empty message nor empty credits. */
	assert_int_equal(get((struct rvi_frame){ .type = RVI_FRAME_MSG }, 8), -EPROTO);
	assert_int_equal(get((struct rvi_frame){ .type = RVI_FRAME_CREDITS }, 8), -EPROTO);
}

static void frame__random_bytes_are_refused_or_in_bounds(void **state)
{
	(void)state;
	srandom(7);
	for (unsigned i = 0; i < 200000; i++) {
		uint8_t p[RVI_FRAME_BYTES];
		size_t n = (size_t)random() % (RVI_FRAME_BYTES + RV_MSG_MAX + 10);
		struct rvi_frame f;

		for (unsigned k = 0; k < sizeof(p); k++)
			p[k] = (uint8_t)random();
		if (i & 1)
			p[0] = RVI_FRAME_MAGIC;
		if (i & 2)
			p[1] = (uint8_t)(1 + (i >> 2 & 3));
		if (!rvi_frame_get(p, n, &f)) {
			assert_int_equal(f.len + RVI_FRAME_BYTES, n);
			assert_true(f.len <= RV_MSG_MAX);
		}
	}
}

/* ---- the MAC of a sealed connection's frames ---- */

#define SEALED_MAX (RVI_FRAME_BYTES + RV_MSG_MAX + RVI_SEAL_BYTES)

static const uint8_t seal_key[RV_SEAL_KEY_BYTES] = { 1, 2, 3 },
		     back_key[RV_SEAL_KEY_BYTES] = { 1, 2, 4 };

/* Seals a message of n bytes as the next frame of that direction. Returns the frame's length. */
static size_t sealed(struct rvi_seal *s, uint8_t mem[SEALED_MAX], uint32_t n)
{
	struct rvi_frame f = { .type = RVI_FRAME_MSG,
			       .len = (uint16_t)n,
			       .seq = (uint16_t)s->number };

	rvi_frame_put(mem, &f);
	for (uint32_t i = 0; i < n; i++)
		mem[RVI_FRAME_BYTES + i] = (uint8_t)(i * 7 + n);
	rvi_seal_put(s, mem, RVI_FRAME_BYTES + n);
	s->number++;
	return RVI_FRAME_BYTES + n + RVI_SEAL_BYTES;
}

/* Unseals a copy at the end of its allocation, as a receiver does. */
static int unseal(struct rvi_seal *s, const uint8_t *mem, size_t bytes, size_t *left)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	int rc;

	assert_non_null(copy);
	memcpy(copy, mem, bytes);
	*left = bytes;
	rc = rvi_seal_get(s, copy, left);
	if (!rc)
		assert_memory_equal(copy, mem, *left);
	free(copy);
	return rc;
}

static void seal__round_trip_of_every_length(void **state)
{
	struct rvi_seal out, in;
	uint8_t mem[SEALED_MAX];
	size_t left;

	(void)state;
	rvi_seal_init(&out, seal_key);
	rvi_seal_init(&in, seal_key);
	for (uint32_t n = 0; n <= RV_MSG_MAX; n++) {
		size_t bytes = sealed(&out, mem, n);

		assert_int_equal(unseal(&in, mem, bytes, &left), 0);
		assert_int_equal(left, RVI_FRAME_BYTES + n);
	}
	assert_int_equal(in.number, RV_MSG_MAX + 1);
}

static void seal__every_bit_counts(void **state)
{
	struct rvi_seal out, in;
	uint8_t mem[SEALED_MAX];
	size_t left, bytes;

	(void)state;
	rvi_seal_init(&out, seal_key);
	rvi_seal_init(&in, seal_key);
	bytes = sealed(&out, mem, 53);
	for (size_t bit = 0; bit < 8 * bytes; bit++) {
		mem[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_equal(unseal(&in, mem, bytes, &left), -EBADMSG);
		mem[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	/* A frame that did not fit has not taken the place of the right one. */
	assert_int_equal(unseal(&in, mem, bytes, &left), 0);
}

static void seal__every_other_length_is_refused(void **state)
{
	struct rvi_seal out, in;
	uint8_t mem[SEALED_MAX + 64] = { 0 };
	size_t left, bytes;

	(void)state;
	rvi_seal_init(&out, seal_key);
	rvi_seal_init(&in, seal_key);
	bytes = sealed(&out, mem, 21);
	for (size_t n = 0; n <= sizeof(mem); n++)
		if (n != bytes)
			assert_int_equal(unseal(&in, mem, n, &left), -EBADMSG);
	assert_int_equal(unseal(&in, mem, bytes, &left), 0);
}

static void seal__a_frame_fits_at_one_place_only(void **state)
{
	struct rvi_seal out, in, back, other;
	uint8_t first[SEALED_MAX], second[SEALED_MAX];
	size_t left, n, m;

	(void)state;
	rvi_seal_init(&out, seal_key);
	rvi_seal_init(&in, seal_key);
	rvi_seal_init(&back, back_key);
	rvi_seal_init(&other, (const uint8_t[RV_SEAL_KEY_BYTES]){ 9 });
	n = sealed(&out, first, 100);
	m = sealed(&out, second, 100);
	assert_int_equal(unseal(&in, second, m, &left), -EBADMSG); /* before its turn */
	assert_int_equal(unseal(&back, first, n, &left), -EBADMSG); /* to its sender */
	assert_int_equal(unseal(&other, first, n, &left), -EBADMSG); /* over another connection */
	assert_int_equal(unseal(&in, first, n, &left), 0);
	assert_int_equal(unseal(&in, first, n, &left), -EBADMSG); /* again */
	assert_int_equal(unseal(&in, second, m, &left), 0);
	/* The frame's own 16 bits wrap; the number under the MAC does not. */
	out.number = in.number = 65536;
	m = sealed(&out, second, 100);
	out.number = 0;
	n = sealed(&out, first, 100);
	assert_memory_equal(first, second, n - RVI_SEAL_BYTES);
	assert_int_equal(unseal(&in, first, n, &left), -EBADMSG);
	assert_int_equal(unseal(&in, second, m, &left), 0);
}

/* Refuses a frame without a MAC, which is as long as a frame with a shorter message. */
static void seal__no_mac_at_all_is_refused(void **state)
{
	struct rvi_frame f = { .type = RVI_FRAME_MSG, .len = 40 };
	uint8_t mem[RVI_FRAME_BYTES + 40] = { 0 };
	struct rvi_seal in;
	size_t left;

	(void)state;
	rvi_seal_init(&in, seal_key);
	rvi_frame_put(mem, &f);
	assert_int_equal(unseal(&in, mem, sizeof(mem), &left), -EBADMSG);
	assert_int_equal(in.number, 0);
}

static void pdata__round_trip_in_padding(void **state)
{
	static const size_t wire[] = { 56, 196, 148 },
			    max[] = { RV_HELLO_MAX, RV_ANSWER_MAX, RV_REASON_MAX };

	(void)state;
	for (unsigned kind = RVI_PD_REQUEST; kind <= RVI_PD_REASON; kind++)
		for (size_t len = 0; len <= max[kind]; len++) {
			uint8_t p[256] = { 0 }, data[256];
			struct rvi_pdata_view v;
			unsigned class = (unsigned)len & 3;

			memset(data, 0xa5, sizeof(data));
			assert_in_range(rvi_pdata_put((enum rvi_pdata)kind, p, data, len, class),
					len + 1, wire[kind]);
			assert_int_equal(rvi_pdata_get((enum rvi_pdata)kind, p, wire[kind], &v), 0);
			assert_int_equal(v.len, len);
			assert_memory_equal(v.data, data, len);
			if (kind != RVI_PD_REASON)
				assert_int_equal(v.class, class);
		}
}

static void pdata__every_first_two_bytes(void **state)
{
	static const size_t wire[] = { 56, 196, 148 };
	uint8_t p[256] = { 0 };

	(void)state;
	for (unsigned kind = RVI_PD_REQUEST; kind <= RVI_PD_REASON; kind++)
		for (unsigned word = 0; word < 65536; word++) {
			for (size_t size = 0; size <= wire[kind];
			     size += size < 4 ? 1 : wire[kind] - 4) {
				struct rvi_pdata_view v;

				p[0] = (uint8_t)word;
				p[1] = (uint8_t)(word >> 8);
				if (rvi_pdata_get((enum rvi_pdata)kind, p, size, &v))
					continue;
				assert_true(v.class <= 3);
				if (v.len)
					assert_true(v.data > p && v.data + v.len <= p + size);
			}
		}
}

static void pdata__nothing_is_no_request(void **state)
{
	struct rvi_pdata_view v;

	(void)state;
	assert_int_equal(rvi_pdata_get(RVI_PD_REQUEST, NULL, 0, &v), -EPROTO);
	assert_int_equal(rvi_pdata_get(RVI_PD_ANSWER, NULL, 0, &v), -EPROTO);
	assert_int_equal(rvi_pdata_get(RVI_PD_REASON, NULL, 0, &v), 0);
	assert_int_equal(v.len, 0);
}

static void credits__class_never_promises_more(void **state)
{
	(void)state;
	for (uint32_t c = RVI_CREDITS_MIN; c <= 16384; c++)
		assert_true(rvi_class_credits(rvi_credit_class(c)) <= c);
	assert_int_equal(rvi_class_credits(rvi_credit_class(64)), 64);
}

static struct rv_addr good_addr(int family)
{
	struct sockaddr_storage ip = { 0 };
	union ibv_gid gid = { 0 };
	struct rv_addr a;

	ip.ss_family = (sa_family_t)family;
	if (family == AF_INET)
		inet_pton(AF_INET, "10.77.0.1", &((struct sockaddr_in *)&ip)->sin_addr);
	else
		inet_pton(AF_INET6, "2001:db8::1", &((struct sockaddr_in6 *)&ip)->sin6_addr);
	rvi_addr_pack(&ip, 4711, &gid, &a);
	return a;
}

static void addr__round_trip(void **state)
{
	struct rv_addr a = good_addr(AF_INET);
	struct sockaddr_storage ip;
	char text[64];

	(void)state;
	assert_int_equal(rvi_addr_unpack(&a, &ip), 0);
	rvi_addr_text(&ip, text, sizeof(text));
	assert_string_equal(text, "10.77.0.1:4711");
	a = good_addr(AF_INET6);
	assert_int_equal(rvi_addr_unpack(&a, &ip), 0);
	rvi_addr_text(&ip, text, sizeof(text));
	assert_string_equal(text, "[2001:db8::1]:4711");
}

static void addr__malformed(void **state)
{
	struct rv_addr good = good_addr(AF_INET), a;
	struct sockaddr_storage ip;

	(void)state;
	for (unsigned len = 0; len < 200; len++) {
		a = good;
		a.len = (uint16_t)len;
		assert_int_equal(rvi_addr_unpack(&a, &ip), len == good.len ? 0 : -EINVAL);
	}
	a = good;
	a.bytes[0] = 2;
	assert_int_equal(rvi_addr_unpack(&a, &ip), -EPROTONOSUPPORT);
	for (unsigned family = 0; family < 256; family++) {
		a = good;
		a.bytes[1] = (uint8_t)family;
		assert_int_equal(rvi_addr_unpack(&a, &ip),
				 family == 4 || family == 6 ? 0 : -EINVAL);
	}
	a = good;
	memset(a.bytes + 2, 0, 2);
	assert_int_equal(rvi_addr_unpack(&a, &ip), -EINVAL);
	a = good;
	memset(a.bytes + 4, 0, 4);
	assert_int_equal(rvi_addr_unpack(&a, &ip), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(addr__malformed),
		cmocka_unit_test(addr__round_trip),
		cmocka_unit_test(credits__class_never_promises_more),
		cmocka_unit_test(frame__length_must_match_the_bytes),
		cmocka_unit_test(frame__random_bytes_are_refused_or_in_bounds),
		cmocka_unit_test(frame__round_trip),
		cmocka_unit_test(frame__types),
		cmocka_unit_test(pdata__every_first_two_bytes),
		cmocka_unit_test(pdata__nothing_is_no_request),
		cmocka_unit_test(pdata__round_trip_in_padding),
		cmocka_unit_test(seal__a_frame_fits_at_one_place_only),
		cmocka_unit_test(seal__every_bit_counts),
		cmocka_unit_test(seal__every_other_length_is_refused),
		cmocka_unit_test(seal__no_mac_at_all_is_refused),
		cmocka_unit_test(seal__round_trip_of_every_length),
	};

	return cmocka_run_group_tests_name("rv_ibv_frame", tests, NULL, NULL);
}
