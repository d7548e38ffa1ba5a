/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target of a stranger's bytes, before it has proved anything. These are frames of the
 * rendezvous, and sealed frames of the ibv provider. They are also hellos, answers and reasons of
 * the peer handshake. No input may crash the code, or pass without the key.
 *
 *   clang -g -O1 -D_GNU_SOURCE -Iinclude -I. -fsanitize=fuzzer,address,undefined \
 *       test/fuzz/handshake_fuzz.c core/group/handshake.c core/group/key.c core/base/error.c \
 *       core/group/names.c core/group/rendezvous_wire.c verbs/rv_error.c \
 *       -lsodium -pthread -o build/handshake_fuzz
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/group/group.h"
#include "core/group/rendezvous.h"
#include "verbs/ibv/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct rc_key key = { .bytes = { 1, 2, 3 } };

static void must(bool is_so)
{
	if (!is_so)
		abort();
}

/* Feeds a blob of exactly this length on the heap, so that a read past either end is seen. */
static void peer_handshake(const uint8_t *blob, size_t size)
{
	struct rc_handshake h = {
		.self_rank = 7, .self_incarnation = 77, .peer_rank = 3, .resumes = size & 1
	};
	uint8_t proof[RC_MAC_BYTES];
	char text[40];
	uint32_t from;

	if (!rc_hello_from(blob, size, 7, &from))
		must(from != 7);
	must(rc_hello_check(&key, blob, size, &h) < 0);
	must(rc_answer_check(&key, blob, size, &h, proof) < 0);
	must(rc_reason_parse(blob, size, text, sizeof(text)) < 0 && strlen(text) < sizeof(text));
}

static void rendezvous(const uint8_t *bytes, size_t size)
{
	struct rz_session s = { .key = &key, .rank = 1, .world = 64 };
	struct rz_digest digest = { { 0 } };
	struct rz_reader in = { .have = size };
	struct rz_status status;
	struct rz_hello hello;
	struct rc_member m;
	char text[64];
	int err;

	/* rz_read passes no others. */
	if (size < RZ_HEAD_BYTES || size > sizeof(in.frame))
		return;
	memcpy(in.frame, bytes, size);
	put_le32(in.frame + 8, (uint32_t)(size - RZ_HEAD_BYTES));
	if (!rz_hello_take(&in, &key, &hello))
		must(!hello.is_authentic);
	must(rz_challenge_take(&in, &s) < 0);
	must(rz_join_take(&in, &s, &m) < 0);
	must(rz_joined_take(&in, &s) < 0);
	must(rz_status_take(&in, &s, &status) < 0);
	must(rz_end_take(&in, &s, &digest) < 0);
	must(rz_failed_take(&in, &s, &err, text, sizeof(text)) < 0);
	rz_refuse_take(&in, &err, text, sizeof(text));
	/* An entry is read before END vouches for it: each has one form. */
	if (!rz_member_take(&in, &m)) {
		uint8_t again[RZ_FRAME_MAX];

		must(rz_member_make(&m, again) == size);
		must(memcmp(again + RZ_HEAD_BYTES, in.frame + RZ_HEAD_BYTES,
			    size - RZ_HEAD_BYTES) == 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rvi_seal seal = { .key = { 1, 2, 3 } };
	uint8_t *fixed = malloc(size ? size : 1);
	size_t left = size;

	must(fixed != NULL);
	memcpy(fixed, data, size);
	peer_handshake(fixed, size);
	rendezvous(fixed, size);
	must(rvi_seal_get(&seal, fixed, &left) == -EBADMSG && left == size);
	free(fixed);
	return 0;
}
