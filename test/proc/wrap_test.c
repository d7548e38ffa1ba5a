/* SPDX-License-Identifier: Apache-2.0 */
/* Values that wrap memory which the program registered: read in place, and given back exactly once, however they end. */
#include <linux/capability.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <cmocka.h>

#include "core/rc.h"
#include "tg_death.h"

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

/* Memory that is wrapped, and how often it came back. own: not the library's, at an odd address; not over shm. */
struct lent {
	struct rref_mem *mem;
	unsigned char *at;
	void *block;
	size_t length;
	_Atomic int back;
	bool give_up; /* the callback deregisters it */
};

static void lend(struct rref_ctx *ctx, struct lent *l, size_t length, bool own, unsigned seed)
{
	void *at;

	*l = (struct lent){ .length = length };
	if (own) {
		l->block = malloc(length + 100);
		TG_CHECK(l->block);
		l->at = (unsigned char *)l->block + 13;
		TG_OK(rref_mem_register(ctx, l->at, length, &l->mem));
	} else {
		TG_OK(rref_mem_alloc(ctx, length, &l->mem, &at));
		l->at = at;
		TG_IS((uintptr_t)at % 4096, 0);
		TG_IS(l->at[0] | l->at[length - 1], 0);
	}
	tg_fill(l->at, length, seed);
}

static void give_up(struct lent *l)
{
	TG_IS(rref_mem_deregister(l->mem), 0);
	free(l->block);
}

static void came_back(void *arg)
{
	struct lent *l = arg;

	if (l->give_up)
		give_up(l);
	atomic_fetch_add(&l->back, 1);
}

static bool is_back(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&((struct lent *)arg)->back) == 1;
}

/* Of one value of all of it. */
static void until_back(struct rref_ctx *ctx, struct lent *l)
{
	TG_CHECK(tg_eventually(is_back, ctx, l));
	usleep(1000);
	TG_IS(atomic_load(&l->back), 1);
}

static struct rref *wrap(struct lent *l, size_t offset, size_t length)
{
	struct rref *r;

	TG_OK(rref_wrap(l->mem, offset, length, NULL, came_back, l, &r));
	return r;
}

/* ---- the reader ---- */

struct range {
	uint64_t offset, length;
	uint32_t seed, by; /* by: 0 all, 1 a range, 2 batch */
};

static int read_range(struct rref_call *call, void *arg)
{
	const struct range *w = rref_call_data(call);
	struct rref *r = rref_call_ref(call, 0), *twice[3] = { r, r, r };
	struct rref_ctx *ctx = rref_call_context(call);
	struct rref_view *v[3];
	int status[3];
	size_t got, from = w->length / 3, n = w->length - from - w->length / 7;

	(void)arg;
	if (w->by == 1) {
		char *buf = malloc(n + 1);

		TG_CHECK(buf);
		TG_OK(rref_to_here_into(r, buf, from, n, RREF_DEFAULT, &got));
		TG_IS(got, n);
		TG_CHECK(tg_filled(buf, n, w->offset + from, w->seed));
		TG_OK(rref_to_here_into(r, buf, w->length, 1, RREF_DEFAULT, &got));
		TG_IS(got, 0);
		free(buf);
		return 0;
	}
	if (w->by == 2) {
		TG_IS(rref_to_here_batch(twice, 3, RREF_DEFAULT, v, status), 3);
		for (int i = 0; i < 3; i++) {
			TG_IS(rref_view_length(v[i]), w->length);
			TG_CHECK(tg_filled(rref_view_data(v[i]), w->length, w->offset, w->seed));
			rref_view_free(v[i]);
		}
		return 0;
	}
	struct rref_stats a = tg_stats(ctx), b;

	TG_OK(rref_to_here(r, RREF_DEFAULT, v));
	b = tg_stats(ctx);
	TG_IS(rref_view_length(v[0]), w->length);
	TG_CHECK(rref_is_owner(r) || (uintptr_t)rref_view_data(v[0]) % 64 == 0);
	TG_CHECK(tg_filled(rref_view_data(v[0]), w->length, w->offset, w->seed));
	/* The payload and its header, with one doorbell; more pieces only above what is one message. */
	if (w->length <= 128 * KIB && !rref_is_owner(r)) {
		TG_IS(b.reads - a.reads, 2);
		TG_IS(b.doorbells - a.doorbells, 1);
		TG_IS(b.messages_sent - a.messages_sent, 0);
	}
	rref_view_free(v[0]);
	return 0;
}

static struct rref_ctx *join(int rank)
{
	struct rref_ctx *ctx = tg_join(rank);

	tg_add_refs(ctx);
	tg_add(ctx, "range", read_range, 0);
	tg_meet_serving(ctx, 15);
	return ctx;
}

static void read_there(struct rref_ctx *ctx, int to, struct rref *r, struct range w)
{
	TG_OK(rref_rpc_sync(ctx, to, "range", &(struct rref_args){ .data = &w, .length = sizeof(w), .refs = &r, .nr_refs = 1 },
			    RREF_DEFAULT, NULL));
}

static const size_t sizes[] = {
	1, 7, 8, 63, 64, 65, 1000, 4096, 64 * KIB - 64, 64 * KIB, 128 * KIB - 64, 128 * KIB, 128 * KIB + 1, 256 * KIB, 300001,
	MIB + 3, 5 * MIB - 1,
};

static void all_sizes(struct rref_ctx *ctx, bool own)
{
	struct lent l;

	lend(ctx, &l, 6 * MIB, own, 3);
	for (size_t i = 0; i < array_size(sizes); i++) {
		struct range w = { .offset = i * 37 + 1, .length = sizes[i], .seed = 3 };
		struct rref *r = wrap(&l, w.offset, w.length);
		struct rref_view *v;

		/* Here it is the memory itself. */
		TG_OK(rref_local_value(r, RREF_DEFAULT, &v));
		TG_CHECK(rref_view_data(v) == l.at + w.offset && rref_view_length(v) == w.length);
		rref_view_free(v);
		for (w.by = 0; w.by < 3; w.by++) {
			read_there(ctx, 1, r, w);
			read_there(ctx, 0, r, w); /* by a call to itself */
		}
		TG_IS(tg_stats(ctx).wrapped_bytes, w.length);
		TG_IS(tg_stats(ctx).value_bytes, 64);
		rref_release(r);
		until_back(ctx, &l);
		atomic_store(&l.back, 0);
	}
	TG_IS(tg_stats(ctx).wrapped_bytes, 0);
	give_up(&l);
}

TG_TEST(wrap__sizes_and_ways_of_reading, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		uint64_t regions = tg_stats(ctx).nr_regions, bytes = tg_stats(ctx).registered_bytes;

		for (int own = 0; own <= !tg_is_shm(); own++)
			all_sizes(ctx, own);
		/* Headers and landing memory came from the library's own regions. */
		TG_CHECK(tg_stats(ctx).nr_regions - regions <= 3);
		TG_CHECK(tg_stats(ctx).registered_bytes >= bytes);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Over shm a read is bounded by a gigabyte; this makes it small, so that wrapped memory is read in pieces there too. */
TG_TEST(wrap__in_pieces_above_the_largest_message, 2)
{
	TG_IS(setenv("RREF_SHM_MAX_MSG", "5000", 1), 0);
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l;

		lend(ctx, &l, MIB, !tg_is_shm(), 9);
		struct rref *r = wrap(&l, 5, MIB - 5);

		for (uint32_t by = 1; by < 3; by++)
			read_there(ctx, 1, r, (struct range){ .offset = 5, .length = MIB - 5, .seed = 9, .by = by });
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* Many values of one registration, parts wrapped twice and overlapping, beside values of the usual kind; read in one batch. */
TG_TEST(wrap__many_in_one_registration, 2)
{
	enum { NR = 210 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		static struct rref *refs[NR];
		struct lent l;

		lend(ctx, &l, 400 * KIB, !tg_is_shm(), 5);
		for (size_t i = 0; i < NR; i++) {
			if (i % 3 == 2) {
				unsigned char bytes[100];

				tg_fill(bytes, sizeof(bytes), (unsigned)i);
				TG_OK(rref_new(ctx, bytes, sizeof(bytes), &refs[i]));
			} else {
				refs[i] = wrap(&l, i / 3 * 500, 1 + i * 701 % 40000);
			}
		}
		for (size_t i = 0; i < NR; i += RREF_REFS_MAX)
			TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs + i, min_of((size_t)NR - i, (size_t)RREF_REFS_MAX)),
					    RREF_DEFAULT, NULL));
		for (int i = 0; i < NR; i++)
			rref_release(refs[i]);
		TG_IS(rref_mem_deregister(l.mem), -EBUSY);
		TG_TEXT("140 values");
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		TG_IS(rref_mem_deregister(l.mem), -EBUSY);
		TG_IS(atomic_load(&l.back), 0);
		tg_set_flag(0, 3);
		for (int64_t end = now_ns() + TG_LONG_NS; atomic_load(&l.back) != 140; usleep(1000)) {
			TG_CHECK(now_ns() < end);
			rref_progress(ctx);
		}
		give_up(&l);
		TG_IS(atomic_load(&l.back), 140);
		tg_all_clean(ctx);
	} else {
		static struct rref *refs[NR];
		static struct rref_view *v[NR];
		static int status[NR];

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0; i < NR; i++)
			refs[i] = tg_kept(i);
		for (int round = 0; round < 5; round++) {
			TG_IS(rref_to_here_batch(refs, NR, RREF_DEFAULT, v, status), NR);
			for (size_t i = 0; i < NR; i++) {
				if (i % 3 == 2)
					TG_CHECK(tg_filled(rref_view_data(v[i]), 100, 0, (unsigned)i));
				else
					TG_CHECK(rref_view_length(v[i]) == 1 + i * 701 % 40000 &&
						 tg_filled(rref_view_data(v[i]), 1 + i * 701 % 40000, i / 3 * 500, 5));
				rref_view_free(v[i]);
			}
		}
		tg_set_flag(0, 2);
		tg_wait_flag_serving(ctx, 0, 3);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* Its type travels with it, and its shape is checked where it is made. */
TG_TEST(wrap__a_typed_one, 2)
{
	static const struct rref_type floats = { sizeof(floats), "float32[]", 0, 0 }, wrong = { sizeof(wrong), "int64[]", 0, 0 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r;
		struct lent l;

		lend(ctx, &l, 4096, false, 1);
		TG_IS(rref_wrap(l.mem, 0, 1023, &floats, came_back, &l, &r), -EINVAL);
		TG_OK(rref_wrap(l.mem, 64, 1024, &floats, came_back, &l, &r));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_set_flag(0, 1);
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	} else {
		struct rref_type t = { .size = sizeof(t) };
		struct rref_view *v;
		struct iovec seg[2];

		tg_wait_flag_serving(ctx, 0, 1);
		TG_OK(rref_expect_type(tg_kept(0), &floats, RREF_DEFAULT));
		TG_IS(rref_expect_type(tg_kept(0), &wrong, RREF_DEFAULT), -EPROTOTYPE);
		TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
		TG_IS(rref_view_segments(v, seg, 2), 1);
		TG_IS(seg[0].iov_len, 1024);
		TG_CHECK(tg_filled(seg[0].iov_base, 1024, 64, 1));
		TG_OK(rref_view_type(v, &t));
		TG_IS(strcmp(t.name, "float32[]"), 0);
		rref_view_free(v);
		tg_drop_kept();
	}
	tg_finish(ctx);
	return 0;
}

/* ---- the way back ---- */

/* A view of the owner itself is the memory: it comes back after the last of them, and the callback may give it up. */
TG_TEST(given_back__after_the_last_view, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_view *a, *b;
	struct lent l;

	lend(ctx, &l, 1000, true, 2); /* a group of one: any memory will do */
	struct rref *r = wrap(&l, 0, 1000), *more = rref_dup(r);

	l.give_up = true;
	TG_OK(rref_to_here(r, RREF_DEFAULT, &a));
	TG_OK(rref_local_value(r, RREF_DEFAULT, &b));
	rref_release(r);
	rref_release(more);
	rref_view_free(a);
	for (int i = 0; i < 50; i++)
		rref_progress(ctx);
	TG_IS(atomic_load(&l.back), 0);
	TG_CHECK(tg_filled(rref_view_data(b), 1000, 0, 2));
	TG_IS(rref_mem_deregister(l.mem), -EBUSY);
	rref_view_free(b);
	until_back(ctx, &l);
	TG_IS(tg_stats(ctx).value_bytes, 0);
	tg_finish(ctx);
	TG_IS(atomic_load(&l.back), 1);
	return 0;
}

/* The owner gave its handle up; the user shares it on, and gives up its own. */
TG_TEST(given_back__after_the_last_user_of_a_chain, 3)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l;

		lend(ctx, &l, 200 * KIB, !tg_is_shm(), 8);
		struct rref *r = wrap(&l, 0, l.length);

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		rref_release(r);
		tg_set_flag(0, 1);
		tg_wait_flag_serving(ctx, 0, 2);
		tg_until_clean(ctx, 1);
		TG_IS(atomic_load(&l.back), 0);
		r = tg_ask(ctx, 2, "pub.get", (struct tg_make){ 0 });
		read_there(ctx, 2, r, (struct range){ .length = l.length, .seed = 8 });
		rref_release(r);
		tg_until_clean(ctx, 1);
		TG_IS(atomic_load(&l.back), 0);
		TG_OK(rref_rpc_sync(ctx, 2, "pub.drop", NULL, RREF_DEFAULT, NULL));
		until_back(ctx, &l);
		give_up(&l);
		tg_all_clean(ctx);
	}
	if (rank == 1) {
		struct rref *r;

		tg_wait_flag_serving(ctx, 0, 1);
		r = tg_kept(0);
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
		tg_drop_kept();
		tg_set_flag(0, 2);
	}
	tg_finish(ctx);
	return 0;
}

/* The last holder dies: after the fence and the grace it is back, once; who lives reads on meanwhile. */
DEATH_TEST(given_back__when_the_user_is_killed, 3, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1)
		tg_serve_and_die(ctx, 0);
	if (rank == 0) {
		struct lent one, both;

		lend(ctx, &one, 300 * KIB, !tg_is_shm(), 1);
		lend(ctx, &both, 300 * KIB, false, 2);
		struct rref *refs[2] = { wrap(&one, 0, one.length), wrap(&both, 0, both.length) };

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 2), RREF_DEFAULT, NULL));
		TG_OK(rref_rpc_sync(ctx, 2, "keep", tg_with(refs + 1, 1), RREF_DEFAULT, NULL));
		rref_release(refs[0]);
		rref_release(refs[1]);
		tg_set_flag(0, 1);
		until_back(ctx, &one);
		give_up(&one);
		TG_IS(atomic_load(&both.back), 0);
		tg_set_flag(1, 1);
		until_back(ctx, &both);
		give_up(&both);
		tg_until_clean(ctx, 0);
	} else {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 1, 1);
		TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 300 * KIB, 0, 2));
		rref_view_free(v);
		tg_drop_kept();
	}
	tg_leave(ctx);
	return 0;
}

/* Killed in the middle of its reads, again and again posted. */
DEATH_TEST(given_back__when_a_reading_user_is_killed, 2, 1 << 1)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 1) {
		struct rref_view *v;

		tg_wait_flag_serving(ctx, 0, 1);
		for (int i = 0;; i++) {
			TG_OK(rref_to_here(tg_kept(0), RREF_DEFAULT, &v));
			rref_view_free(v);
			if (i == 3)
				tg_set_flag(0, 2);
		}
	}
	struct lent l;

	lend(ctx, &l, 2 * MIB, !tg_is_shm(), 4);
	struct rref *r = wrap(&l, 0, l.length);

	TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(&r, 1), RREF_DEFAULT, NULL));
	rref_release(r);
	tg_set_flag(0, 1);
	tg_wait_flag_serving(ctx, 0, 2);
	TG_IS(kill(tg_current->shared->pid[1], SIGKILL), 0);
	until_back(ctx, &l);
	give_up(&l);
	tg_until_clean(ctx, 0);
	tg_leave(ctx);
	return 0;
}

/* Graceful: users' references end; the owner's handle and its view are the program's until it frees the context. */
TG_TEST(given_back__at_a_graceful_shutdown, 2)
{
	struct rref_ctx *ctx = join(rank);
	struct lent held = { 0 }, gone = { 0 }, viewed = { 0 };
	struct rref_view *v = NULL;

	if (rank == 0) {
		lend(ctx, &held, 5000, false, 1);
		lend(ctx, &gone, 5000, false, 1);
		lend(ctx, &viewed, 5000, false, 1);
		struct rref *refs[3] = { wrap(&held, 0, 5000), wrap(&gone, 0, 5000), wrap(&viewed, 0, 5000) };

		TG_OK(rref_to_here(refs[2], RREF_DEFAULT, &v));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 3), RREF_DEFAULT, NULL));
		rref_release(refs[1]);
		rref_release(refs[2]);
	}
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS));
	if (rank == 0) {
		TG_IS(atomic_load(&held.back), 0);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&viewed.back), 0);
		TG_IS(rref_mem_deregister(held.mem), -EBUSY);
		give_up(&gone);
		TG_CHECK(tg_filled(rref_view_data(v), 5000, 0, 1));
		rref_view_free(v);
		TG_IS(atomic_load(&viewed.back), 1);
		held.give_up = true;
	}
	rref_free_ctx(ctx);
	if (rank == 0) {
		TG_IS(atomic_load(&held.back), 1);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&viewed.back), 1);
	}
	return 0;
}

/* At once: the user holds it and is told nothing. A view and a registration that the program forgot go with the context. */
TG_TEST(given_back__at_an_immediate_shutdown, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent held, gone, forgotten;
		struct rref_view *v;

		lend(ctx, &held, 5000, false, 1);
		lend(ctx, &gone, 5000, !tg_is_shm(), 1);
		lend(ctx, &forgotten, 5000, false, 1);
		struct rref *refs[3] = { wrap(&held, 0, 5000), wrap(&gone, 0, 5000), wrap(&forgotten, 0, 5000) };

		TG_OK(rref_to_here(refs[2], RREF_DEFAULT, &v));
		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with(refs, 3), RREF_DEFAULT, NULL));
		rref_release(refs[1]);
		rref_release(refs[2]);
		TG_IS(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0), 0);
		TG_IS(atomic_load(&gone.back), 1);
		give_up(&gone);
		TG_IS(atomic_load(&held.back), 0);
		rref_release(refs[0]);
		TG_IS(atomic_load(&held.back), 1);
		give_up(&held);
		TG_IS(atomic_load(&forgotten.back), 0);
		rref_free_ctx(ctx);
		TG_IS(atomic_load(&held.back), 1);
		TG_IS(atomic_load(&gone.back), 1);
		TG_IS(atomic_load(&forgotten.back), 1);
		return 0;
	}
	int zero = 0;

	TG_CHECK(tg_eventually(tg_is_dead, ctx, &zero));
	tg_leave(ctx);
	return 0;
}

/* Its place, after it came back and was written over: never those bytes. */
TG_TEST(given_back__an_old_place_is_stale, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct lent l, other;

		lend(ctx, &l, 100 * KIB, false, 1);
		lend(ctx, &other, 100 * KIB, false, 2);
		struct rref *r = wrap(&l, 0, l.length), *s = wrap(&other, 0, other.length);

		TG_OK(rref_rpc_sync(ctx, 1, "keep", tg_with((struct rref *[]){ r, s }, 2), RREF_DEFAULT, NULL));
		rref_release(r);
		rref_release(s);
		tg_set_flag(0, 1);
		until_back(ctx, &l);
		tg_fill(l.at, l.length, 77);
		tg_set_flag(0, 2);
		until_back(ctx, &other);
		give_up(&l);
		give_up(&other);
		tg_all_clean(ctx);
	} else {
		struct rp_location old, real;
		struct rref_view *v;
		struct rref *r, *s;

		tg_wait_flag_serving(ctx, 0, 1);
		r = rref_dup(tg_kept(0));
		s = rref_dup(tg_kept(1));
		TG_CHECK(rp_apart(&r->loc));
		old = r->loc;
		tg_drop_kept();
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 100 * KIB, 0, 1));
		rref_view_free(v);
		rref_release(r);
		tg_wait_flag_serving(ctx, 0, 2);
		real = s->loc;
		s->loc = old;
		int err = rref_to_here(s, RREF_DEFAULT, &v);

		TG_CHECK(err == -ESTALE || err == -EBADMSG); /* the header's place may be scrubbed still, and reads as no data */
		s->loc = real;
		/* A nonce that is not this one's. */
		s->loc.nonce ^= 1;
		TG_IS(rref_to_here(s, RREF_DEFAULT, &v), -ESTALE);
		s->loc = real;
		TG_OK(rref_to_here(s, RREF_DEFAULT, &v));
		TG_CHECK(tg_filled(rref_view_data(v), 100 * KIB, 0, 2));
		rref_view_free(v);
		rref_release(s);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- many threads ---- */

struct maker {
	struct rref_ctx *ctx;
	struct lent *l;
	int rounds;
	unsigned index;
	_Atomic int back;
};

static void one_back(void *arg)
{
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static void *make_many(void *arg)
{
	struct maker *m = arg;

	for (int i = 0; i < m->rounds; i++) {
		size_t at = m->index * 4096 + (size_t)i % 100;
		struct rref_view *v;
		struct rref *r;

		TG_OK(rref_wrap(m->l->mem, at, 1000, NULL, one_back, &m->back, &r));
		if (i % 3 == 0)
			TG_IS(tg_sum_there(m->ctx, 1, &r, 1), tg_byte(at, 6));
		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		rref_release(r);
		TG_CHECK(tg_filled(rref_view_data(v), 1000, at, 6));
		rref_view_free(v);
	}
	return NULL;
}

static void *make_memory(void *arg)
{
	struct maker *m = arg;

	for (int i = 0; i < m->rounds; i++) {
		struct rref *r;
		struct lent l;

		lend(m->ctx, &l, 10000, i % 2 && !tg_is_shm(), 1);
		r = wrap(&l, 1, 9999);
		TG_IS(tg_sum_there(m->ctx, 1, &r, 1), tg_byte(1, 1));
		rref_release(r);
		until_back(m->ctx, &l);
		give_up(&l);
		atomic_fetch_add(&m->back, 1);
	}
	return NULL;
}

TG_TEST(wrap__by_many_threads, 2)
{
	enum { NR = 4 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct maker m[NR];
		pthread_t t[NR];
		struct lent l;

		lend(ctx, &l, NR * 4096 + 4096, false, 6);
		for (unsigned i = 0; i < NR; i++) {
			m[i] = (struct maker){ .ctx = ctx, .l = &l, .rounds = tg_scale(i ? 300 : 60), .index = i };
			TG_IS(pthread_create(&t[i], NULL, i ? make_many : make_memory, &m[i]), 0);
		}
		for (unsigned i = 0; i < NR; i++)
			pthread_join(t[i], NULL);
		tg_all_clean(ctx);
		for (unsigned i = 0; i < NR; i++)
			for (int64_t end = now_ns() + TG_LONG_NS; atomic_load(&m[i].back) != m[i].rounds; usleep(1000)) {
				TG_CHECK(now_ns() < end);
				rref_progress(ctx);
			}
		give_up(&l);
		TG_IS(tg_stats(ctx).wrapped_bytes, 0);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- fork(2) ---- */

TG_TEST(wrap__fork_of_the_process, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_view *v;
		struct lent l;
		int status;
		void *at;

		lend(ctx, &l, 9000, !tg_is_shm(), 1);
		struct rref *r = wrap(&l, 0, 9000), *other;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 1 });
		pid_t pid = fork();

		if (pid == 0) {
			struct rref_mem *m;

			alarm(20);
			TG_IS(rref_mem_alloc(ctx, 1, &m, &at), -ECHILD);
			TG_IS(rref_mem_register(ctx, &l, 1, &m), -ECHILD);
			TG_IS(rref_wrap(l.mem, 0, 1, NULL, came_back, &l, &other), -ECHILD);
			TG_IS(rref_mem_deregister(l.mem), -ECHILD);
			rref_view_free(v);
			rref_release(r);
			rref_free_ctx(ctx);
			TG_IS(atomic_load(&l.back), 0);
			_exit(0);
		}
		TG_CHECK(pid > 0);
		TG_IS(waitpid(pid, &status, 0), pid);
		TG_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 1 });
		rref_view_free(v);
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		/* What the parent writes after a fork is what readers see. */
		lend(ctx, &l, 9000, !tg_is_shm(), 1);
		pid = fork();
		if (pid == 0) {
			usleep(100000);
			_exit(0);
		}
		tg_fill(l.at, 9000, 50);
		r = wrap(&l, 0, 9000);
		read_there(ctx, 1, r, (struct range){ .length = 9000, .seed = 50 });
		rref_release(r);
		until_back(ctx, &l);
		give_up(&l);
		TG_IS(waitpid(pid, &status, 0), pid);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

/* ---- what is refused ---- */

TG_TEST(refused__arguments, 2)
{
	static const struct rref_type local = { sizeof(local), "here", 0, RREF_LOCAL_ONLY }, bad = { sizeof(bad), "", 0, 0 };
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats before = tg_stats(ctx);
		struct rref *r = NULL;
		struct rref_mem *m = NULL;
		void *at = NULL;
		char byte;

		TG_IS(rref_mem_register(NULL, &byte, 1, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, NULL, 1, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, 0, &m), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, 1, NULL), -EINVAL);
		TG_IS(rref_mem_register(ctx, &byte, SIZE_MAX, &m), -EINVAL);
		TG_TEXT("address space");
		TG_IS(rref_mem_alloc(NULL, 1, &m, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 0, &m, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 1, NULL, &at), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, 1, &m, NULL), -EINVAL);
		TG_IS(rref_mem_alloc(ctx, SIZE_MAX, &m, &at), -ENOMEM);
		TG_IS(rref_mem_alloc(ctx, SIZE_MAX / 4, &m, &at), -ENOMEM);
		TG_IS(rref_mem_deregister(NULL), 0);
		TG_CHECK(!m && !at);
		if (tg_is_shm()) {
			TG_IS(rref_mem_register(ctx, &byte, 1, &m), -EOPNOTSUPP);
			TG_TEXT("rref_mem_alloc");
		} else {
			char *map = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

			TG_CHECK(map != MAP_FAILED);
			TG_IS(munmap(map + 4096, 4096), 0);
			TG_IS(rref_mem_register(ctx, map + 4000, 200, &m), -EFAULT);
			TG_TEXT("not all mapped");
			TG_IS(munmap(map, 4096) | munmap(map + 8192, 4096), 0);
			/* Nothing is written to it: it need not be writable. */
			map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			TG_CHECK(map != MAP_FAILED);
			tg_fill(map, 4096, 7);
			TG_IS(mprotect(map, 4096, PROT_READ), 0);
			TG_OK(rref_mem_register(ctx, map, 4096, &m));
			TG_OK(rref_wrap(m, 1, 4000, NULL, NULL, NULL, &r));
			read_there(ctx, 1, r, (struct range){ .offset = 1, .length = 4000, .seed = 7 });
			rref_release(r);
			for (int64_t end = now_ns() + TG_LONG_NS; rref_mem_deregister(m); usleep(1000)) {
				TG_CHECK(now_ns() < end);
				rref_progress(ctx);
			}
			munmap(map, 4096);
		}
		TG_OK(rref_mem_alloc(ctx, 100, &m, &at));
		r = NULL;
		TG_IS(rref_wrap(NULL, 0, 1, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 0, 1, NULL, NULL, NULL, NULL), -EINVAL);
		TG_IS(rref_wrap(m, 0, 0, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 0, 101, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 100, 1, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 101, SIZE_MAX - 50, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, SIZE_MAX, 1, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 50, SIZE_MAX, NULL, NULL, NULL, &r), -EINVAL);
		TG_IS(rref_wrap(m, 0, 1, &local, NULL, NULL, &r), -EINVAL);
		TG_TEXT("local only");
		TG_IS(rref_wrap(m, 0, 1, &bad, NULL, NULL, &r), -EINVAL);
		TG_CHECK(!r);
		TG_IS(rref_mem_deregister(m), 0);
		TG_IS(tg_stats(ctx).registered_bytes >= before.registered_bytes, 1);
		tg_all_clean(ctx);
	}
	tg_finish(ctx);
	return 0;
}

static void no_more_locked_memory(void)
{
	struct __user_cap_header_struct h = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct d[2] = { { 0 } };
	struct rlimit lim = { 64 << 10, 64 << 10 };

	TG_IS(syscall(SYS_capget, &h, d), 0);
	d[CAP_IPC_LOCK / 32].effective &= ~(1u << CAP_IPC_LOCK % 32);
	TG_IS(syscall(SYS_capset, &h, d), 0);
	TG_IS(setrlimit(RLIMIT_MEMLOCK, &lim), 0);
}

/* The limit on locked memory: the words have it, and nothing is left behind. Over shm nothing is locked. */
TG_TEST(refused__locked_memory, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref_stats before = tg_stats(ctx);
		struct rref_mem *m = NULL;
		void *at;

		no_more_locked_memory();
		if (tg_is_shm()) {
			TG_OK(rref_mem_alloc(ctx, 4 * MIB, &m, &at));
			TG_IS(rref_mem_deregister(m), 0);
		} else {
			char *mine = malloc(4 * MIB);

			TG_IS(rref_mem_alloc(ctx, 4 * MIB, &m, &at), -ENOMEM);
			TG_TEXT("RLIMIT_MEMLOCK");
			TG_IS(rref_mem_register(ctx, mine, 4 * MIB, &m), -ENOMEM);
			TG_TEXT("4194304");
			free(mine);
		}
		TG_IS(tg_stats(ctx).registered_bytes, before.registered_bytes);
		TG_IS(tg_stats(ctx).nr_regions, before.nr_regions);
		read_there(ctx, 1, tg_remote(ctx, 1, "tg.echo", "\0", 1), (struct range){ .length = 1, .by = 3 });
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(refused__after_the_shutdown, 1)
{
	struct rref_ctx *ctx = join(rank);
	struct rref_mem *m, *more;
	struct rref *r;
	void *at;
	char byte;

	TG_OK(rref_mem_alloc(ctx, 10, &m, &at));
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, RREF_DEFAULT));
	TG_IS(rref_mem_alloc(ctx, 10, &more, &at), -ESHUTDOWN);
	TG_IS(rref_mem_register(ctx, &byte, 1, &more), -ESHUTDOWN);
	TG_IS(rref_wrap(m, 0, 10, NULL, NULL, NULL, &r), -ESHUTDOWN);
	TG_IS(rref_mem_deregister(m), 0);
	rref_free_ctx(ctx);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(wrap__sizes_and_ways_of_reading),
		cmocka_unit_test(wrap__in_pieces_above_the_largest_message),
		cmocka_unit_test(wrap__many_in_one_registration),
		cmocka_unit_test(wrap__a_typed_one),
		cmocka_unit_test(wrap__by_many_threads),
		cmocka_unit_test(wrap__fork_of_the_process),
		cmocka_unit_test(given_back__after_the_last_view),
		cmocka_unit_test(given_back__after_the_last_user_of_a_chain),
		cmocka_unit_test(given_back__when_the_user_is_killed),
		cmocka_unit_test(given_back__when_a_reading_user_is_killed),
		cmocka_unit_test(given_back__at_a_graceful_shutdown),
		cmocka_unit_test(given_back__at_an_immediate_shutdown),
		cmocka_unit_test(given_back__an_old_place_is_stale),
		cmocka_unit_test(refused__arguments),
		cmocka_unit_test(refused__locked_memory),
		cmocka_unit_test(refused__after_the_shutdown),
	};

	return cmocka_run_group_tests_name("wrap", tests, NULL, NULL);
}
