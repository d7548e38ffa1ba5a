/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member whose calls lie about the place or the shape of their arguments.
 * It never reads its results, or says DONE for foreign offers. It harms its
 * own calls or its own session, and nothing else.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_rig.h"

#define MIB ((size_t)1 << 20)
#define REGION_BYTES ((size_t)262144)

/* ---- functions of worker 1 ---- */

/* Answers with so many bytes. */
static int give(struct rref_call *call, void *arg)
{
	uint32_t length;
	void *data;
	int err;

	(void)arg;
	memcpy(&length, rref_call_data(call), sizeof(length));
	data = calloc(1, length);
	TG_CHECK(data);
	err = rref_call_reply(call, &(struct rref_args){ .data = data, .length = length });
	free(data);
	return err;
}

/* Answers with an error that carries the sum, so that the foe need not READ it. */
static int sum(struct rref_call *call, void *arg)
{
	const unsigned char *data = rref_call_data(call);
	uint32_t s = 0;

	(void)arg;
	for (size_t i = 0; i < rref_call_length(call); i++)
		s += data[i];
	return rref_call_error(call, -EDOM, "%zu bytes, sum %u, %zu references",
			       rref_call_length(call), s, rref_call_nr_refs(call));
}

static const struct rref_function served[] = {
	{ .name = "give", .handler = give }, { .name = "sum", .handler = sum },
	RIG_PAYLOAD_BYTES,
};

/* ---- the foe's memory ---- */

/* Makes a correct call with a payload: `length` bytes of 1, and references of the foe's own. */
static struct rw_message put_call(struct foe *f, struct rig *r, uint32_t length, uint32_t nr)
{
	struct rw_message m = { .frame.type = RW_CALL };
	struct rp_location loc =
		rig_header(f, r, 0, length + (uint64_t)nr * RW_FORK_BYTES, 0, 1, 0);
	unsigned char *data = r->memory + 64;
	uint64_t call_id = 1000 + r->next++;

	memset(data, 1, length);
	for (uint32_t i = 0; i < nr; i++) {
		struct rp_fork rec = foe_record(f, FOE, foe_id_of(FOE, call_id * 100 + i),
						1000000 + call_id * 100 + i);

		rec.loc = (struct rp_location){ .addr = 4096,
						.length = 1,
						.nonce = 9,
						.rkey = { 77, 77 },
						.version = 1,
						.nr_segments = 1 };
		TG_OK(rw_put_forks(&rec, 1, data + length + i * RW_FORK_BYTES));
	}
	m.u.call = (struct rw_call){ .call_id = call_id,
				     .kind = RW_CALL_RPC,
				     .name = "sum",
				     .name_length = 3,
				     .data_length = length,
				     .nr_refs = (uint16_t)nr,
				     .loc = loc };
	return m;
}

/* Returns the status of its reply, or -ENOTCONN if the session ended. */
static int answer(struct foe *f, const struct rw_message *m)
{
	uint64_t before = f->nr_recv[RW_REPLY];

	if (foe_say(f, m))
		return -ENOTCONN;
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] > before || f->ended);
	return f->nr_recv[RW_REPLY] > before ? f->reply_status : -ENOTCONN;
}

FOE_TEST(payload__in_order)
{
	struct rw_message m;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	for (uint32_t nr = 0; nr < 50; nr += 10) {
		uint64_t done = f->nr_recv[RW_DONE];

		m = put_call(f, &r, 5000, nr);
		TG_IS(answer(f, &m), -EDOM);
		char want[64];

		snprintf(want, sizeof(want), "5000 bytes, sum 5000, %u references", nr);
		TG_CHECK(strcmp(f->reply_text, want) == 0);
		TG_IS(f->nr_recv[RW_DONE], done + 1); /* before the answer */
	}
	rig_close(f, &r);
}

/* Offers another place, another key, another nonce, another length. */
FOE_TEST(location__forged)
{
	struct rw_message m;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	m = put_call(f, &r, 5000, 0);
	m.u.call.loc.nonce++;
	TG_IS(answer(f, &m), -ESTALE);
	m = put_call(f, &r, 5000, 10);
	put_le64(r.memory, 0);
	TG_IS(answer(f, &m), -ESTALE);
	m = put_call(f, &r, 5000, 10);
	put_le64(r.memory + 24, 5001);
	TG_IS(answer(f, &m), -EBADMSG);
	m = put_call(f, &r, 5000, 10);
	put_le32(r.memory + 20, 2);
	TG_IS(answer(f, &m), -EBADMSG);
	foe_still_served(f);
	/* A wrong key may now end the foe's own session, on hardware. */
	m = put_call(f, &r, 5000, 0);
	m.u.call.loc.rkey[f->ops->kind] ^= 0x5500;
	TG_CHECK(answer(f, &m) < 0);
	foe_others_work();
	foe_meet(f, 1);
	m = put_call(f, &r, 5000, 0);
	m.u.call.loc.addr += REGION_BYTES;
	TG_CHECK(answer(f, &m) < 0);
	foe_others_work();
	foe_meet(f, 1);
	m = put_call(f, &r, 5000, 0);
	m.u.call.data_length = REGION_BYTES; /* the range ends after the region */
	m.u.call.loc.length = REGION_BYTES;
	TG_CHECK(answer(f, &m) < 0);
	foe_others_work();
	foe_meet(f, 1);
	m = put_call(f, &r, 5000, 0);
	m.u.call.data_length = RREF_ARGS_MAX;
	m.u.call.loc.length = RREF_ARGS_MAX;
	TG_CHECK(answer(f, &m) < 0);
	foe_meet(f, 1);
	m = put_call(f, &r, 5000, 0);
	TG_IS(answer(f, &m), -EDOM);
	rig_close(f, &r);
}

/* Records in a payload are checked as records in a message are. */
FOE_TEST(records__malformed)
{
	static const struct { unsigned at; uint8_t value; } bad[] = {
		{ 8, 200 }, { 20, 200 }, { 24, 200 }, { 28, 200 }, { 48, 7 }, { 92, 0 },
	};
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	for (size_t i = 0; i < array_size(bad); i++) {
		uint64_t before = foe_rejected(1);

		foe_meet(f, 1);
		struct rw_message m = put_call(f, &r, 4001, 12);

		r.memory[64 + 4001 + 5 * RW_FORK_BYTES + bad[i].at] = bad[i].value;
		TG_OK(foe_say(f, &m));
		foe_must_end(f, 1, before, "malformed records");
	}
	rig_close(f, &r);
}

static _Atomic int flipping;

static void *flip(void *arg)
{
	volatile unsigned char *at = (volatile unsigned char *)arg;

	for (unsigned i = 0; atomic_load(&flipping); i++)
		at[i * 7919 % (64 + 5000 + 20 * RW_FORK_BYTES)] ^= (unsigned char)(1u << i % 8);
	return NULL;
}

/* Checks that each byte is read once: the one copy is judged. */
FOE_TEST(bytes__that_change_while_they_are_read)
{
	pthread_t thread;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	for (int i = 0; i < (tg_is_shm() ? 200 : 10); i++) {
		struct rw_message m = put_call(f, &r, 5000, 20);

		atomic_store(&flipping, 1);
		TG_IS(pthread_create(&thread, NULL, flip, r.memory), 0);
		int err = answer(f, &m);

		atomic_store(&flipping, 0);
		pthread_join(thread, NULL);
		if (f->ended || err == -ENOTCONN)
			foe_meet(f, 1);
	}
	foe_others_work();
	struct rw_message m = put_call(f, &r, 5000, 20);

	TG_IS(answer(f, &m), -EDOM);
	rig_close(f, &r);
}

/* Asks for much and reads nothing of it. The waiting bytes are bounded, and the others go on. The
 * session's end frees all. */
FOE_TEST(results__never_read)
{
	uint32_t length = tg_is_shm() ? 16 * MIB : MIB / 4;
	struct rw_message m = { .frame.type = RW_CALL };
	int n = tg_is_shm() ? 20 : 10;

	foe_meet(f, 1);
	m.u.call = (struct rw_call){ .kind = RW_CALL_RPC,
				     .name = "give",
				     .name_length = 4,
				     .data = &length,
				     .data_length = sizeof(length) };
	for (int i = 0; i < n; i++) {
		m.u.call.call_id = 7000 + (uint64_t)i;
		TG_OK(foe_say(f, &m));
	}
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] == (uint64_t)(tg_is_shm() ? 16 : n));
	TG_CHECK(rig_offered(f) == (tg_is_shm() ? (size_t)RREF_ARGS_MAX : (size_t)n * length));
	foe_others_work();
	foe_still_served(f);
	/* Giving one offer back lets the next of the waiting replies go. */
	uint64_t replies = f->nr_recv[RW_REPLY];
	struct rw_message done = { .frame.type = RW_DONE };

	done.u.done = (struct rw_done){ .call_id = 7000, .what = RW_PAYLOAD_REPLY };
	TG_OK(foe_say(f, &done));
	if (tg_is_shm())
		FOE_UNTIL(f, f->nr_recv[RW_REPLY] > replies);
	else
		TG_IS(rig_offered(f), (size_t)(n - 1) * length);
	foe_hang_up(f);
	foe_meet(f, 1);
	FOE_UNTIL(f, rig_offered(f) == 0);
}

/* Says DONE of an offer that never was, that is another worker's, or
 * that was given back. Nothing happens. */
FOE_TEST(done__of_anything)
{
	uint32_t length = 100000;
	struct rw_message m = { .frame.type = RW_CALL }, done = { .frame.type = RW_DONE };
	uint64_t dropped = foe_dropped(1);

	foe_meet(f, 1);
	m.u.call = (struct rw_call){ .call_id = 5555,
				     .kind = RW_CALL_RPC,
				     .name = "give",
				     .name_length = 4,
				     .data = &length,
				     .data_length = sizeof(length) };
	TG_IS(answer(f, &m), 0);
	for (uint64_t id = 5500; id < 5600; id++) {
		done.u.done = (struct rw_done){ .call_id = id,
						.what = id == 5555 ? RW_PAYLOAD_CALL
								   : RW_PAYLOAD_REPLY,
						.status = id & 1 ? -EIO : 0 };
		TG_OK(foe_say(f, &done));
	}
	for (uint64_t i = 0; i < 300; i++) {
		/* The ids that worker 0's calls have there. */
		done.u.done = (struct rw_done){ .call_id = i << 32 | i % 8,
						.what = 1 + i % 2,
						.status = -EIO };
		TG_OK(foe_say(f, &done));
	}
	TG_IS(rig_offered(f), length);
	foe_others_work();
	done.u.done = (struct rw_done){ .call_id = 5555, .what = RW_PAYLOAD_REPLY };
	TG_OK(foe_say(f, &done));
	TG_IS(rig_offered(f), 0);
	TG_OK(foe_say(f, &done));
	foe_still_served(f);
	TG_CHECK(foe_dropped(1) >= dropped + 401);
}

/* Calls given up before, while and after their arguments are read, and unknown ids. */
FOE_TEST(cancel__of_anything)
{
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	for (int i = 0; i < 50; i++) {
		struct rw_message m = put_call(f, &r, 200000, 20);
		uint64_t replies = f->nr_recv[RW_REPLY], done = f->nr_recv[RW_DONE];

		TG_OK(foe_say_number(f, RW_CANCEL, m.u.call.call_id));
		TG_OK(foe_say(f, &m));
		for (int k = i; k & 7; k--)
			foe_pump(f);
		TG_OK(foe_say_number(f, RW_CANCEL, m.u.call.call_id));
		/* In each case one DONE and one reply come. */
		FOE_UNTIL(f, f->nr_recv[RW_DONE] > done && f->nr_recv[RW_REPLY] > replies);
		TG_CHECK(f->reply_status == -EDOM || f->reply_status == -ECANCELED);
	}
	foe_still_served(f);
	foe_others_work();
	rig_close(f, &r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(payload__in_order),
		cmocka_unit_test(location__forged),
		cmocka_unit_test(records__malformed),
		cmocka_unit_test(bytes__that_change_while_they_are_read),
		cmocka_unit_test(results__never_read),
		cmocka_unit_test(done__of_anything),
		cmocka_unit_test(cancel__of_anything),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
