/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that asks for references that were not given to it. Ids are
 * counters, so it knows them all. It gets the same answer for each without a
 * value's word. No function runs with a value of its choice.
 */
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "tg_foe.h"

#define MANY (RW_REFS_MAX + 1)

/* ---- functions of the good workers ---- */

/* Gives references to new values: one, or as many as the argument says, which go into a payload. */
static int give(struct rref_call *call, void *arg)
{
	struct rref *refs[MANY];
	size_t nr = arg ? (size_t)*(int *)arg : 1;
	int err;

	for (size_t i = 0; i < nr; i++)
		TG_OK(rref_new(rref_call_context(call), "given", 6, &refs[i]));
	err = rref_call_reply(call, &(struct rref_args){ .refs = refs, .nr_refs = nr });
	for (size_t i = 0; i < nr; i++)
		rref_release(refs[i]);
	return err;
}

static int are_equal(struct rref_call *call, void *arg)
{
	int equal = rref_equal(rref_call_ref(call, 0), rref_call_ref(call, 1));

	(void)arg;
	return rref_call_error(call, -EDOM, "%d", equal);
}

static int nr_many = MANY;

static const struct rref_function served[] = {
	{ .name = "give", .handler = give },
	{ .name = "give_many", .handler = give, .arg = &nr_many },
	{ .name = "are_equal", .handler = are_equal },
};

/* ---- asking ---- */

/* Returns the answer to a FORK_REQUEST with f->word; the fork is the foe's n-th. */
static int request(struct foe *f, struct rref_id id, uint64_t n)
{
	uint64_t before = f->nr_proto[RP_MSG_FORK_ACK];

	TG_OK(foe_say_proto(f, RP_MSG_FORK_REQUEST, id, foe_id_of(FOE, n)));
	FOE_UNTIL(f, f->nr_proto[RP_MSG_FORK_ACK] > before || f->ended);
	TG_CHECK(!f->ended && f->proto.type == RP_MSG_FORK_ACK);
	return f->proto_status;
}

static void refused(struct foe *f, struct rref_id id, uint64_t n)
{
	TG_IS(request(f, id, n), -ESTALE);
	TG_IS(f->proto.loc.version, 0);
	TG_CHECK(strcmp(f->proto.text, "the value is not there any more") == 0);
}

/* Guesses words. Worker 0 made (0,2) at worker 1, and reads it all
 * the while. (0,1) is worker 0's own. */
FOE_TEST(request__without_the_word)
{
	static const uint64_t words[] = { 0, 1, 2, UINT64_MAX, UINT64_C(0x1122334455667788) };
	uint64_t n = 1;

	for (int to = 0; to < 2; to++) {
		foe_meet(f, to);
		for (uint64_t i = 1; i <= 40; i++)
			for (unsigned k = 0; k < array_size(words); k++) {
				f->word = words[k];
				refused(f, foe_id_of(0, i), n++);
				refused(f, foe_id_of(1, i), n++);
			}
		foe_still_served(f);
		foe_others_work();
	}
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), 1);
	TG_IS(foe_fresh_look(0, &foe_shown()->of[0].forks), 0);
}

/* Uses a right word: it opens its value to any worker, and no other value.
 * The location's nonce is another number. */
FOE_TEST(request__with_the_word)
{
	struct rp_fork given = foe_be_given(f);

	foe_meet(f, 0);
	TG_CHECK(given.word && given.loc.version && given.word != given.loc.nonce);
	for (unsigned bit = 0; bit < 64; bit++) {
		f->word = given.word ^ UINT64_C(1) << bit;
		refused(f, given.id, 100 + bit);
	}
	f->word = given.loc.nonce;
	refused(f, given.id, 200);
	f->word = given.word;
	TG_IS(request(f, given.id, 201), 0);
	TG_CHECK(f->proto.loc.nonce == given.loc.nonce);
	TG_IS(request(f, given.id, 201), 0); /* repeated */
	foe_hang_up(f);
	foe_meet(f, 1);
	for (uint64_t i = 2; i <= 40; i++)
		refused(f, foe_id_of(0, i), 300 + i);
	foe_others_work();
}

/* Requests a value after the foe and all others have released it: late,
 * or repeated, the request finds nothing. */
FOE_TEST(request__after_the_value_died)
{
	struct rp_fork given;

	foe_meet(f, 1);
	TG_IS(foe_reply_to(f, "give", NULL), 0);
	given = f->reply_refs[0];
	f->word = given.word;
	TG_IS(request(f, given.id, 1), 0);
	TG_OK(foe_say_proto(f, RP_MSG_DELETE, given.id, given.fork));
	TG_IS(request(f, given.id, 2), 0); /* the foe's other fork keeps it */
	for (uint64_t n = 1; n <= 2; n++)
		TG_OK(foe_say_proto(f, RP_MSG_DELETE, given.id, foe_id_of(FOE, n)));
	for (uint64_t n = 1; n <= 3; n++)
		refused(f, given.id, n);
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), 1);
	foe_still_served(f);
}

/* Calls tg.read, which reads its reference and would tell. */
static int read_by(struct foe *f, uint32_t owner, struct rref_id id, uint64_t n, uint32_t flags)
{
	struct rp_fork rec = foe_record(f, owner, id, n);
	uint8_t buf[RV_MSG_MAX];
	uint64_t replies = f->nr_recv[RW_REPLY], asked = f->nr_proto[RP_MSG_PARENT_REQUEST];
	size_t length;

	rec.flags = flags;
	length = foe_a_call(buf, "tg.read", n, &rec, 1);
	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	TG_OK(foe_send_bytes(f, buf, length));
	if (flags & RP_FORK_EARLY) {
		FOE_UNTIL(f, f->nr_proto[RP_MSG_PARENT_REQUEST] > asked ||
			     f->nr_recv[RW_REPLY] > replies || f->ended);
		/* Neither a question to the parent nor its absence may
		 * tell that the value is there. */
		TG_IS(f->nr_proto[RP_MSG_PARENT_REQUEST], asked + 1);
		TG_IS(f->nr_recv[RW_REPLY], replies);
		TG_OK(foe_say_proto(f, RP_MSG_PARENT_ACK, id, rec.fork));
	}
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] > replies || f->ended);
	TG_CHECK(!f->ended);
	return f->reply_status;
}

FOE_TEST(record__without_the_word)
{
	uint64_t accepts, n = 1;

	foe_meet(f, 1);
	for (uint32_t owner = 0; owner < 2; owner++)
		for (uint64_t i = 1; i <= 10; i++)
			for (uint32_t flags = 0; flags < 2; flags++) {
				f->word = i % 3 ? i : 0;
				accepts = f->nr_proto[RP_MSG_CHILD_ACCEPT];
				TG_IS(read_by(f, owner, foe_id_of(0, i), n++, flags), -ESTALE);
				TG_IS(f->nr_proto[RP_MSG_CHILD_ACCEPT], accepts + 1);
			}
	foe_others_work();
	TG_IS(foe_fresh_look(1, &foe_shown()->of[1].forks), 1);
	f->word = foe_be_given(f).word;
	foe_meet(f, 1);
	TG_IS(read_by(f, 0, foe_id_of(0, 1), n++, 0), 0);
	TG_IS(read_by(f, 0, foe_id_of(0, 1), n++, RP_FORK_EARLY), 0);
	TG_IS(read_by(f, 1, foe_id_of(0, 2), n++, 0), -ESTALE);
}

/* Gives a record of the foe's own value under another worker's id: that is another reference. */
FOE_TEST(record__under_anothers_id)
{
	struct rp_fork recs[2];
	uint8_t buf[RV_MSG_MAX];
	uint64_t before;
	size_t length;

	f->word = foe_be_given(f).word;
	foe_meet(f, 1);
	for (uint32_t owner = 0; owner <= FOE; owner += FOE) {
		before = f->nr_recv[RW_REPLY];
		recs[0] = foe_record(f, 0, foe_id_of(0, 1), 10 + 2 * owner);
		recs[1] = foe_record(f, owner, foe_id_of(0, 1), 11 + 2 * owner);
		length = foe_a_call(buf, "are_equal", 5 + owner, recs, 2);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		TG_OK(foe_send_bytes(f, buf, length));
		FOE_UNTIL(f, f->nr_recv[RW_REPLY] > before || f->ended);
		TG_IS(f->reply_status, -EDOM);
		TG_CHECK(strcmp(f->reply_text, owner == 0 ? "1" : "0") == 0);
	}
}

/* Returns the mask as docs/WIRE.md defines it, without the library. */
static uint64_t mask(const uint8_t *key, uint64_t n)
{
	uint8_t number[8], out[8];

	put_le64(number, n);
	TG_IS(crypto_shorthash(out, number, sizeof(number), key), 0);
	return get_le64(out);
}

/*
 * Reads payloads. A holder of one value can READ all payloads of that worker, also those offered to
 * others. The words there open nothing without the key, which is in the receiver's message alone.
 */
FOE_TEST(payload__hides_words)
{
	uint8_t buf[RV_MSG_MAX], other[RW_KEY_BYTES] = { 0 };
	size_t bytes = 64 + MANY * RW_FORK_BYTES, length;
	struct rv_read r = { .cookie = 1, .nr_sge = 1 };
	struct rp_fork recs[MANY];
	struct rv_mr mr;
	unsigned char *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	TG_CHECK(memory != MAP_FAILED);
	TG_OK(f->ops->reg(f->dev, memory, 65536, -1, UINT64_C(0x1a9d) << 32, RV_ACCESS_LOCAL, &mr));
	foe_meet(f, 1);
	for (int round = 0; round < 3; round++) {
		uint64_t reads = f->nr_read, replies = f->nr_recv[RW_REPLY];

		length = foe_a_call(buf, "give_many", 1 + (uint64_t)round, NULL, 0);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		TG_OK(foe_send_bytes(f, buf, length));
		FOE_UNTIL(f, f->nr_recv[RW_REPLY] > replies || f->ended);
		TG_IS(f->reply_status, 0);
		TG_IS(f->reply_nr_refs, MANY);
		TG_CHECK(f->reply_loc.version && f->reply_loc.length == MANY * RW_FORK_BYTES);
		TG_CHECK(memcmp(f->reply_key, other, sizeof(other)) != 0);
		memcpy(other, f->reply_key, sizeof(other)); /* each has its own */
		r.addr = f->reply_loc.addr;
		r.rkey = f->reply_loc.rkey[f->ops->kind];
		r.sge[0] = (struct rv_sge){ memory, (uint32_t)bytes, mr.lkey };
		FOE_UNTIL(f, f->reads_up || f->ops == &rv_shm_ops || f->ended);
		TG_IS(f->ops->post_reads(f->conn, &r, 1), 1);
		if (f->ops == &rv_shm_ops)
			TG_OK(r.status);
		else
			FOE_UNTIL(f, f->nr_read > reads || f->ended);
		TG_OK(f->read_status);
		TG_OK(rw_get_forks(memory + 64, MANY, FOE_WORLD, recs));
		for (unsigned i = 0; i < MANY; i++) {
			TG_IS(recs[i].owner, 1);
			f->word = recs[i].word;
			refused(f, recs[i].id, 1000 * (uint64_t)round + 2 * i + 1);
			f->word = recs[i].word ^ mask(f->reply_key, i);
			TG_IS(request(f, recs[i].id, 1000 * (uint64_t)round + 2 * i + 2), 0);
		}
	}
	foe_hang_up(f);
	f->ops->dereg(f->dev, &mr);
	munmap(memory, 65536);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(payload__hides_words),
		cmocka_unit_test(record__under_anothers_id),
		cmocka_unit_test(record__without_the_word),
		cmocka_unit_test(request__after_the_value_died),
		cmocka_unit_test(request__with_the_word),
		cmocka_unit_test(request__without_the_word),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests_name("words", tests, NULL, NULL);
}
