/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A member that lies about its values, or wants values that stay with another worker. Its segments
 * and types are checked before their first use. It learns no place of a local-only value.
 */
#include <pthread.h>
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "tg_rig.h"

#define REGION_BYTES ((size_t)65536)

/* ---- functions of worker 1 ---- */

static pthread_mutex_t last_lock = PTHREAD_MUTEX_INITIALIZER;
static char last[RP_TEXT_MAX];   /* result of "ask", for an asker that cannot be told at once */

static int64_t patience(const struct rref_call *call)
{
	return rref_call_length(call) == 1 ? 100 * NSEC_PER_MSEC : RREF_DEFAULT;
}

/* Reads its reference. Returns the number of segments and the sum of
 * their bytes, or the reason for a failure. */
static int inspect(struct rref_call *call, void *arg)
{
	struct iovec seg[RREF_SEGMENTS_MAX];
	uint32_t sum = 0;
	struct rref_view *v;
	int err = rref_to_here(rref_call_ref(call, 0), RREF_DEFAULT, &v);

	(void)arg;
	if (err)
		return rref_call_error(call, err, "%s", rref_last_error());
	size_t n = rref_view_segments(v, seg, RREF_SEGMENTS_MAX);

	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < seg[i].iov_len; k++)
			sum += ((unsigned char *)seg[i].iov_base)[k];
	rref_view_free(v);
	return rref_call_error(call, -EDOM, "%zu segments, sum %u", n, sum);
}

static int ask(struct rref_call *call, void *arg)
{
	struct rref_type t = { .size = sizeof(t) };
	int err = rref_get_type(rref_call_ref(call, 0), patience(call), &t);

	(void)arg;
	pthread_mutex_lock(&last_lock);
	snprintf(last, sizeof(last), "%d %s", err, err ? rref_last_error() : t.name);
	pthread_mutex_unlock(&last_lock);
	return rref_call_error(call, err ? err : -EDOM, "%s", err ? rref_last_error() : t.name);
}

static int tell_last(struct rref_call *call, void *arg)
{
	char text[sizeof(last)];

	(void)arg;
	pthread_mutex_lock(&last_lock);
	snprintf(text, sizeof(text), "%s", last);
	pthread_mutex_unlock(&last_lock);
	return rref_call_error(call, *text ? -EDOM : -ENOENT, "%s", text);
}

/* Creates a value of 32 bytes that stays here. */
static int secret(struct rref_call *call, void *arg)
{
	static const struct rref_type type = { sizeof(type), "secret", 0, RREF_LOCAL_ONLY };

	(void)arg;
	return rref_call_reply_value(call, TG_VALUE(.data = "0123456789abcdef0123456789abcdef",
						    .length = 32, .type = &type));
}

static const struct rref_function served[] = {
	{ .name = "inspect", .handler = inspect }, { .name = "ask", .handler = ask },
	{ .name = "last", .handler = tell_last },
	{ .name = "secret", .handler = secret },
};

/* ---- the foe's values ---- */

/* Returns the hash as docs/WIRE.md defines it, without the library. */
static uint64_t type_hash(const char *name, uint64_t element_size, uint32_t flags)
{
	unsigned char in[11 + 128 + 12 + 1], out[16];
	size_t n = 0;

	memcpy(in, "rref type 1", 12);
	n += 12;
	memcpy(in + n, name, strlen(name) + 1);
	n += strlen(name) + 1;
	put_le64(in + n, element_size);
	put_le32(in + n + 8, flags);
	TG_IS(crypto_generichash(out, sizeof(out), in, n + 12, NULL, 0), 0);
	return get_le64(out);
}

/* Offers a value with a correct header, `length` bytes of 1, and a table of `nr` lengths. */
static struct rp_fork put_value(struct foe *f, struct rig *r, uint64_t length, uint64_t hash,
				uint16_t nr, const uint64_t *table)
{
	struct rp_fork rec = foe_record(f, FOE, foe_id_of(FOE, r->next), 100000 + r->next);
	unsigned char *h = r->memory;

	r->next++;
	memset(h, 0, REGION_BYTES);
	rec.loc = rig_header(f, r, rec.id.local_id, length, hash, nr, 0);
	memset(h + 64, 1, length);
	for (uint32_t i = 0; nr > 1 && i < nr; i++)
		put_le64(h + 64 + ((length + 7) & ~UINT64_C(7)) + 8 * i, table[i]);
	return rec;
}

#define IS(f, name, rec, status, words) \
	do { \
		TG_IS(foe_reply_to(f, name, rec), status); \
		if (!strstr((f)->reply_text, words)) { \
			fprintf(stderr, "%s:%d: \"%s\" does not say \"%s\"\n", __FILE__, __LINE__, \
				(f)->reply_text, words); \
			_exit(1); \
		} \
	} while (0)

FOE_TEST(segments__with_a_wrong_sum)
{
	static const struct { uint64_t length; uint32_t nr; uint64_t table[4]; } bad[] = {
		{ 134, 2, { 5, 71 } }, { 134, 2, { 5, 69 } }, { 134, 2, { 134, 0 } },
		{ 134, 2, { 135, 0 } }, { 134, 2, { 0, 0 } },
		{ 134, 2, { UINT64_MAX, 70 } }, { 134, 2, { 5, UINT64_MAX } },
		{ 134, 2, { UINT64_MAX - 4, 5 } },
		{ 134, 2, { UINT64_C(1) << 63, UINT64_C(1) << 63 } }, { 134, 3, { 5, 70, 0 } },
		{ 134, 3, { 5, 1, 70 } },
		{ 64, 3, { 64, UINT64_MAX - 63, 64 } }, { 0, 2, { 1, 0 } }, { 0, 2, { 0, 1 } },
	};
	uint64_t plain = type_hash("bytes", 1, 0);
	struct rp_fork rec;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	rec = put_value(f, &r, 64 + 70, plain, 2, (const uint64_t[]){ 5, 70 });
	IS(f, "inspect", &rec, -EDOM, "2 segments, sum 75");
	rec = put_value(f, &r, 134, plain, 1, NULL);
	IS(f, "inspect", &rec, -EDOM, "1 segments, sum 134");
	for (size_t i = 0; i < array_size(bad); i++) {
		rec = put_value(f, &r, bad[i].length, plain, bad[i].nr, bad[i].table);
		IS(f, "inspect", &rec, -EBADMSG, "segments contradict");
	}
	rec = put_value(f, &r, 134, plain, 0, NULL);
	IS(f, "inspect", &rec, -EPROTO, "location that cannot be");
	rec = put_value(f, &r, 0, plain, 0, NULL);
	IS(f, "inspect", &rec, -EDOM, "0 segments, sum 0");
	/* Header and location must agree. */
	for (unsigned at = 16; at < 52; at++) {
		if (at == 40 + 4)
			at += 4; /* the CRC, which is not used */
		rec = put_value(f, &r, 134, plain, 2, (const uint64_t[]){ 5, 70 });
		r.memory[at] ^= 0x81;
		if (at >= 40 && at < 44)
			IS(f, "inspect", &rec, -ESTALE,
			   "the value of UserRRef(rref_id=GloballyUniqueId(created_on=2");
		else
			IS(f, "inspect", &rec, -EBADMSG, "contradicts");
	}
	foe_still_served(f);
	rig_close(f, &r);
}

FOE_TEST(location__malformed)
{
	uint8_t buf[RV_MSG_MAX];
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	for (int i = 0; i < 3; i++) {
		uint64_t before = foe_rejected(1);
		struct rp_fork rec = put_value(f, &r, 8, type_hash("bytes", 1, 0), 1, NULL);
		size_t n;

		foe_meet(f, 1);
		if (i == 0)
			rec.loc.nr_segments = RREF_SEGMENTS_MAX + 1;
		else if (i == 1)
			rec.loc.nonce = 0; /* local only, but with a place */
		else
			rec.loc.addr = UINT64_MAX - 64 - 8 - 7, rec.loc.nr_segments = 2;
		n = foe_a_call(buf, "inspect", 7, &rec, 1);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		foe_send_bytes(f, buf, n);
		foe_must_end(f, 1, before, "malformed location");
	}
	rig_close(f, &r);
}

FOE_TEST(elements__cut_off)
{
	struct rp_fork rec;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	rec = put_value(f, &r, 8, type_hash("int32[]", 4, 0), 1, NULL);
	IS(f, "inspect", &rec, -EDOM, "1 segments, sum 8");
	rec = put_value(f, &r, 7, type_hash("int32[]", 4, 0), 1, NULL);
	IS(f, "inspect", &rec, -EBADMSG, "its type");
	rec = put_value(f, &r, 64 + 4, type_hash("int32[]", 4, 0), 2, (const uint64_t[]){ 6, 4 });
	IS(f, "inspect", &rec, -EBADMSG, "its type");
	rec = put_value(f, &r, 8, type_hash("int32", 4, 0), 1, NULL);
	IS(f, "inspect", &rec, -EBADMSG, "its type");
	rec = put_value(f, &r, 64 + 4, type_hash("int32", 4, 0), 2, (const uint64_t[]){ 4, 4 });
	IS(f, "inspect", &rec, -EBADMSG, "its type");
	rec = put_value(f, &r, 0, type_hash("int32", 4, 0), 0, NULL);
	IS(f, "inspect", &rec, -EBADMSG, "its type");
	/* Nothing can be said of a type that worker 1 does not know. */
	rec = put_value(f, &r, 7, type_hash("foes", 4, 0), 1, NULL);
	IS(f, "inspect", &rec, -EDOM, "1 segments, sum 7");
	foe_still_served(f);
	rig_close(f, &r);
}

/* ---- types ---- */

static struct rw_type_info answer;  /* the foe's answer */
static int answers;                 /* how often */
static uint64_t asked_number;

static void on_query(struct foe *f, const struct rw_type_info *q)
{
	struct rw_message m = { .frame.type = RW_TYPE_ANSWER, .u.type = answer };

	asked_number = m.u.type.number = q->number;
	for (int i = 0; i < answers; i++)
		foe_say(f, &m);
}

FOE_TEST(type_answer__lies)
{
	static const struct { uint64_t element_size; uint32_t flags; const char *name; } lies[] = {
		{ 4, 0, "Foes" }, { 4, 0, "foe" }, { 4, 0, "foess" }, { 8, 0, "foes" },
		{ 4, 1, "foes" }, { 4, 2, "foes" },
		{ 4, 0, "fo es" }, { 4, 0, "bytes" }, { 0, 0, "" },
	};
	struct rp_fork rec;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	f->on_query = on_query;
	answers = 1;
	for (size_t i = 0; i < array_size(lies); i++) {
		answer = (struct rw_type_info){ .element_size = lies[i].element_size,
						.flags = lies[i].flags,
						.name = lies[i].name,
						.name_length = (uint8_t)strlen(lies[i].name) };
		rec = put_value(f, &r, 8, type_hash("foes", 4, 0), 1, NULL);
		IS(f, "ask", &rec, -EBADMSG, "foe told a type that its value does not have");
	}
	foe_still_served(f);
	/* The truth, twice: the first is taken, the second dropped. */
	uint64_t dropped = foe_dropped(1);

	answers = 2;
	answer = (struct rw_type_info){ .element_size = 4, .name = "foes", .name_length = 4 };
	rec = put_value(f, &r, 8, type_hash("foes", 4, 0), 1, NULL);
	IS(f, "ask", &rec, -EDOM, "foes");
	foe_still_served(f);
	TG_IS(foe_dropped(1), dropped + 1);
	/* The type is known now: no question is sent. */
	uint64_t queries = f->nr_recv[RW_TYPE_QUERY];

	rec = put_value(f, &r, 8, type_hash("foes", 4, 0), 1, NULL);
	IS(f, "ask", &rec, -EDOM, "foes");
	TG_IS(f->nr_recv[RW_TYPE_QUERY], queries);
	rig_close(f, &r);
}

FOE_TEST(type_answer__late_unasked_or_never)
{
	struct rw_message m = { .frame.type = RW_TYPE_ANSWER };
	uint64_t dropped = foe_dropped(1);
	struct rp_fork rec;
	uint8_t buf[RV_MSG_MAX];
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	f->on_query = on_query;
	answers = 0;
	/* No answer comes: its time runs out. */
	rec = put_value(f, &r, 8, type_hash("late", 4, 0), 1, NULL);
	m.frame.type = RW_CALL;
	m.u.call = (struct rw_call){ .call_id = 5,
				     .kind = RW_CALL_RPC,
				     .nr_refs = 1,
				     .name = "ask",
				     .name_length = 3,
				     .data = "x",
				     .data_length = 1,
				     .refs = { rec } };
	TG_OK(foe_say(f, &m));
	FOE_UNTIL(f, f->nr_recv[RW_REPLY]);
	TG_IS(f->reply_status, -ETIMEDOUT);
	TG_CHECK(f->nr_recv[RW_TYPE_QUERY] == 1);
	/* Late, and for unknown numbers. */
	m.frame.type = RW_TYPE_ANSWER;
	m.u.type = (struct rw_type_info){
		.number = asked_number, .element_size = 4, .name = "late", .name_length = 4
	};
	TG_OK(foe_say(f, &m));
	for (uint64_t i = 0; i < 1000; i++) {
		m.u.type.number = i << 32 | (i & 7);
		TG_OK(foe_say(f, &m));
	}
	foe_still_served(f);
	TG_CHECK(foe_dropped(1) >= dropped + 1001);
	/* The foe dies with the question unanswered. */
	rec = put_value(f, &r, 8, type_hash("never", 4, 0), 1, NULL);
	size_t n = foe_a_call(buf, "ask", 6, &rec, 1);

	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	TG_OK(foe_send_bytes(f, buf, n));
	FOE_UNTIL(f, f->nr_recv[RW_TYPE_QUERY] == 2);
	foe_hang_up(f);
	foe_meet(f, 1);
	char dead[16], reset[16];

	/* The foe may come back before worker 1 sees that it went. */
	snprintf(dead, sizeof(dead), "%d ", -EOWNERDEAD);
	snprintf(reset, sizeof(reset), "%d ", -ENETRESET);
	for (int64_t end = tg_deadline();
	     !strstr(f->reply_text, dead) && !strstr(f->reply_text, reset);) {
		TG_CHECK(now_ns() < end);
		foe_reply_to(f, "last", NULL);
	}
	rig_close(f, &r);
}

static void query(struct foe *f, uint64_t number, struct rref_id id, struct rref_id fork)
{
	uint64_t before = f->nr_recv[RW_TYPE_ANSWER];
	struct rw_message m = { .frame.type = RW_TYPE_QUERY,
				.u.type = { .number = number, .id = id, .fork = fork } };

	TG_OK(foe_say(f, &m));
	FOE_UNTIL(f, f->nr_recv[RW_TYPE_ANSWER] > before || f->ended);
	TG_IS(f->told.number, number);
}

static void create(struct foe *f, const char *function, uint64_t n)
{
	struct rw_message m = { .frame.type = RW_CALL };

	m.u.call = (struct rw_call){ .call_id = n, .kind = RW_CALL_REMOTE, .name = function,
				     .name_length = (uint8_t)strlen(function),
				     .id = foe_id_of(FOE, n), .fork = foe_id_of(FOE, n + 1000) };
	TG_OK(foe_say(f, &m));
}

/* Checks that the owner tells the type of a value that the asker holds, and of no other. */
FOE_TEST(type_query__of_a_held_value)
{
	struct rref_id id = foe_id_of(FOE, 1), fork = foe_id_of(FOE, 1001);

	foe_meet(f, 1);
	create(f, "secret", 1);
	create(f, "tg.echo", 2);
	create(f, "keep", 3);
	FOE_UNTIL(f, f->nr_proto[RP_MSG_CREATED] == 2);
	query(f, 77, id, fork);
	TG_CHECK(f->told.flags == RREF_LOCAL_ONLY && strcmp(f->told_name, "secret") == 0);
	query(f, 78, foe_id_of(FOE, 2), foe_id_of(FOE, 1002));
	TG_CHECK(f->told.element_size == 1 && strcmp(f->told_name, "bytes") == 0);
	/* Another value by this fork, this one by another, one
	 * not made yet, and the good workers'. */
	query(f, 79, id, foe_id_of(FOE, 1002));
	TG_CHECK(!*f->told_name);
	query(f, 80, foe_id_of(FOE, 2), fork);
	TG_CHECK(!*f->told_name);
	query(f, 81, foe_id_of(FOE, 3), foe_id_of(FOE, 1003));
	TG_CHECK(!*f->told_name);
	for (uint64_t i = 1; i <= 50; i++)
		for (uint32_t k = 0; k < 2; k++) {
			query(f, 100 + i, foe_id_of(0, i), foe_id_of(k, i + k));
			TG_CHECK(!f->told.element_size && !f->told.flags && !*f->told_name);
		}
	TG_OK(foe_say_proto(f, RP_MSG_DELETE, id, fork));
	query(f, 82, id, fork);
	TG_CHECK(!*f->told_name);
	tg_set_flag(F_ANSWER, 1);
	foe_still_served(f);
}

/* ---- values that stay with their owner ---- */

/* Checks that the value is ready, and that nothing allows a read of it. */
static void has_no_place(const struct rp_location *l)
{
	TG_CHECK(l->version == 1 && l->length == 32 &&
		 l->type_hash == type_hash("secret", 0, RREF_LOCAL_ONLY));
	TG_CHECK(!l->addr && !l->nonce && !l->rkey[0] && !l->rkey[1]);
}

FOE_TEST(local_only__tells_no_place)
{
	struct rw_message m = { .frame.type = RW_CALL };
	struct rref_id id = foe_id_of(FOE, 1), fork = foe_id_of(FOE, 2);

	foe_meet(f, 1);
	m.u.call = (struct rw_call){ .call_id = 1, .kind = RW_CALL_REMOTE, .name = "secret",
				     .name_length = 6, .id = id, .fork = fork, .word = 4711 };
	TG_OK(foe_say(f, &m));
	FOE_UNTIL(f, f->nr_proto[RP_MSG_CREATED]);
	TG_IS(f->proto_status, 0);
	has_no_place(&f->proto.loc);
	for (uint64_t i = 1; i <= 3; i++) {
		TG_OK(foe_say_proto(f, RP_MSG_FETCH, id, fork));
		FOE_UNTIL(f, f->nr_proto[RP_MSG_FETCH_REPLY] == i);
		TG_IS(f->proto_status, 0);
		has_no_place(&f->proto.loc);
	}
	f->word = m.u.call.word;
	TG_OK(foe_say_proto(f, RP_MSG_FORK_REQUEST, id, foe_id_of(FOE, 3)));
	FOE_UNTIL(f, f->nr_proto[RP_MSG_FORK_ACK]);
	TG_IS(f->proto_status, 0);
	has_no_place(&f->proto.loc);
	foe_still_served(f);
}

/* Claims that a value is the foe's own. Nothing is read, and the reader learns the owner. */
FOE_TEST(local_only__of_the_foe)
{
	struct rp_fork rec;
	struct rig r;

	rig_open(f, &r, REGION_BYTES);
	foe_meet(f, 1);
	rec = put_value(f, &r, 8, type_hash("theirs", 0, RREF_LOCAL_ONLY), 1, NULL);
	rec.loc.addr = rec.loc.nonce = rec.loc.rkey[0] = rec.loc.rkey[1] = 0;
	IS(f, "inspect", &rec, -EPERM, "owner foe");
	foe_still_served(f);
	rig_close(f, &r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(elements__cut_off),
		cmocka_unit_test(local_only__of_the_foe),
		cmocka_unit_test(local_only__tells_no_place),
		cmocka_unit_test(location__malformed),
		cmocka_unit_test(segments__with_a_wrong_sum),
		cmocka_unit_test(type_answer__late_unasked_or_never),
		cmocka_unit_test(type_answer__lies),
		cmocka_unit_test(type_query__of_a_held_value),
	};

	foe_functions = served;
	foe_nr_functions = array_size(served);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
