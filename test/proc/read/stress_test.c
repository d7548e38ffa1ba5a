/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that is full or late: the provider's table is replaced by one that puts READs off. Also
 * many threads at once. White box, over shm with every device under test.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/engine.h"
#include "tg.h"

#define MS NSEC_PER_MSEC

static _Atomic int ran;

static void count(struct rref_future *f, void *arg)
{
	TG_IS(rref_future_test(f), 1);
	atomic_fetch_add((_Atomic int *)arg, 1);
}

static bool ran_enough(struct rref_ctx *ctx, void *arg)
{
	(void)ctx;
	return atomic_load(&ran) >= *(int *)arg;
}

static bool nothing_in_flight(struct rref_ctx *ctx, void *arg)
{
	struct rref_stats s = tg_stats(ctx);

	(void)arg;
	return s.ops_in_flight == 0 && s.landing_bytes == 0 && s.quarantined == 0;
}

static struct rref_ctx *join(int rank, const struct rref_function *fns, size_t nr)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.device = "shm";
	o.functions = fns ? fns : tg_functions;
	o.nr_functions = fns ? nr : tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

/* Returns a reference to a value of `length` bytes of rank 1, with its location known here. */
static struct rref *ready_ref(struct rref_ctx *ctx, size_t length, unsigned seed)
{
	unsigned char bytes[RW_INLINE_MAX];
	struct rref *r;

	tg_fill(bytes, length, seed);
	TG_OK(rref_remote(ctx, 1, "tg.echo", &(struct rref_args){ .data = bytes, .length = length },
			  RREF_DEFAULT, &r));
	tg_expect_bytes(r, bytes, length);
	return r;
}

/* ---- a device that puts READs off ---- */

/*
 * READs of a peer: `refuse` of them find no slot (-EAGAIN). With `late` set, their
 * completion is an event of a later poll, as on a NIC. At most `slots` are in
 * flight at once. No event comes while `hold` is set.
 */
#define SLOTS_MAX 64
static struct {
	const struct rv_ops *real;
	struct rv_ops ops;
	struct rc_peer *peer;
	struct ra_arena *landing;
	_Atomic int refuse, hold, slots;
	pthread_mutex_t lock;
	struct rv_event done[SLOTS_MAX]; /* guarded by lock */
	int nr_done;
} dev = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int post_or_refuse(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	if (atomic_load(&dev.refuse) > 0) {
		atomic_fetch_sub(&dev.refuse, 1);
		return -EAGAIN;
	}
	return dev.real->post_reads(conn, r, n);
}

static int post_late(struct rv_conn *conn, struct rv_read *r, unsigned n)
{
	unsigned i;

	if (atomic_load(&dev.refuse) > 0) {
		atomic_fetch_sub(&dev.refuse, 1);
		return -EAGAIN;
	}
	pthread_mutex_lock(&dev.lock);
	for (i = 0; i < n && dev.nr_done < atomic_load(&dev.slots); i++) {
		struct rv_event e = {
			.type = RV_EV_READ, .user = dev.peer, .cookie = r[i].cookie, .wc_status = -1
		};
		struct rv_read now = r[i];

		for (unsigned k = 0; k < now.nr_sge; k++) {
			void *base;
			struct rc_region *region = ra_lookup(dev.landing, now.sge[k].addr, &base);

			now.sge[k].lkey = region->mr[RV_SHM].lkey;
		}
		TG_IS(dev.real->post_reads(conn, &now, 1), 1);
		e.status = now.status;
		dev.done[dev.nr_done++] = e;
	}
	pthread_mutex_unlock(&dev.lock);
	return i ? (int)i : -EAGAIN;
}

static int poll_late(struct rv_dev *d, struct rv_event *ev, unsigned max, unsigned flags)
{
	int n = dev.real->poll(d, ev, max, flags);

	pthread_mutex_lock(&dev.lock);
	if (!atomic_load(&dev.hold))
		while (n >= 0 && n < (int)max && dev.nr_done > 0)
			ev[n++] = dev.done[--dev.nr_done];
	pthread_mutex_unlock(&dev.lock);
	return n;
}

static void put_off(struct rref_ctx *ctx, bool late)
{
	struct rc_peer *p = &ctx->peers[1];

	rc_lock(ctx);
	dev.real = p->ops;
	dev.ops = *p->ops;
	dev.peer = p;
	dev.landing = ctx->value.landing;
	dev.ops.post_reads = late ? post_late : post_or_refuse;
	if (late) {
		dev.ops.poll = poll_late;
		dev.slots = SLOTS_MAX;
		p->kind = RV_IBV;
		p->reads_inline = false;
		ctx->device[RV_SHM].ops = &dev.ops;
	}
	p->ops = &dev.ops;
	rc_unlock(ctx);
}

/* Puts the same keys under the other provider's number: the late device is shm in disguise. */
static void disguise(struct rref_ctx *ctx, struct rref *r)
{
	rc_lock(ctx);
	rc_remote(r)->loc.rkey[RV_IBV] = rc_remote(r)->loc.rkey[RV_SHM];
	rc_unlock(ctx);
}

TG_TEST(read__without_a_slot_is_tried_again, 2)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);

	if (rank == 0) {
		struct rref *r = ready_ref(ctx, 100, 7);
		struct rref_view *v;

		put_off(ctx, false);
		for (int n = 0; n < 5; n++) {
			atomic_store(&dev.refuse, n);
			TG_OK(rref_to_here(r, 5 * NSEC_PER_SEC, &v));
			TG_CHECK(tg_filled(rref_view_data(v), 100, 0, 7));
			rref_view_free(v);
		}
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(cancel__of_a_waiting_read_with_a_callback, 2)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);

	if (rank == 0) {
		struct rref *r = ready_ref(ctx, 100, 7);
		struct rref_future *f[4];
		int want = 4;

		put_off(ctx, false);
		atomic_store(&dev.refuse, INT32_MAX);
		for (int i = 0; i < 4; i++) {
			TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f[i]));
			TG_OK(rref_future_then(f[i], count, &ran));
		}
		TG_OK(rref_future_cancel(f[2]));
		TG_OK(rref_future_cancel(f[0]));
		want = 2;
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		TG_IS(rref_future_test(f[1]) + rref_future_test(f[3]), 0);
		atomic_store(&dev.refuse, 0);
		TG_OK(rref_future_wait(f[1], 5 * NSEC_PER_SEC));
		TG_OK(rref_future_wait(f[3], 5 * NSEC_PER_SEC));
		want = 4;
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		for (int i = 0; i < 4; i++)
			rref_future_free(f[i]);
		TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
		TG_IS(atomic_load(&ran), 4);
		TG_IS(at_load(&ctx->peers[1].nr_waiting), 0);
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

/* A read ends and its last completion comes under one hold of the
 * lock. Its callback is still to run. */
TG_TEST(cancel__of_a_read_with_its_completion_present, 2)
{
	struct rref_ctx *ctx = join(rank, NULL, 0);

	if (rank == 0) {
		struct rref *r = ready_ref(ctx, 100, 7);
		struct rref_future *f;
		int want = 1;

		put_off(ctx, true);
		disguise(ctx, r);
		atomic_store(&dev.hold, 1);
		TG_OK(rref_to_here_async(r, RREF_DEFAULT, &f));
		TG_OK(rref_future_then(f, count, &ran));
		TG_IS(rref_future_test(f), 0);
		rc_lock(ctx);
		rc_op_end(ctx, f, -ECANCELED, "cancelled");
		atomic_store(&dev.hold, 0);
		rc_progress_locked(ctx, true);
		rc_unlock(ctx);
		TG_CHECK(tg_eventually(ran_enough, ctx, &want));
		TG_IS(rref_future_wait(f, 0), -ECANCELED);
		rref_future_free(f);
		TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

static _Atomic int stop;

/* ---- everything at once ---- */

struct worker {
	struct rref_ctx *ctx;
	struct rref *ref[4];
	size_t length[4];
	unsigned seed;
	pthread_t thread;
};

static void *mix(void *arg)
{
	struct worker *w = arg;
	unsigned x = w->seed;

	while (!atomic_load(&stop)) {
		unsigned k = (x = x * 1664525 + 1013904223) >> 24, i = k & 3;
		struct rref_future *f, *g;
		struct rref_view *v;

		switch ((k >> 2) % 6) {
		case 0: /* never early, never other bytes */
			TG_OK(rref_to_here(w->ref[i], RREF_DEFAULT, &v));
			TG_IS(rref_view_length(v), w->length[i]);
			TG_CHECK(tg_filled(rref_view_data(v), w->length[i], 0, i));
			rref_view_free(v);
			break;
		case 1: /* times out, completes and is freed all at once */
			TG_OK(rref_to_here_async(w->ref[i], 1, &f));
			rref_future_free(f);
			break;
		case 2: {
			char word[16];

			memset(word, (int)k, sizeof(word));
			TG_OK(rref_rpc_sync(w->ctx, 1, "tg.echo",
					    &(struct rref_args){ .data = word, .length = 16 },
					    RREF_DEFAULT, &f));
			const void *data;
			size_t length;

			TG_OK(rref_future_data(f, &data, &length));
			TG_IS(length, 16);
			TG_CHECK(memcmp(data, word, 16) == 0);
			rref_future_free(f);
			break;
		}
		case 3: /* the answer finds no call, or another one in its place */
			TG_OK(rref_rpc_async(w->ctx, 1, "tg.echo", NULL, 1, &f));
			rref_future_wait(f, RREF_DEFAULT);
			rref_future_free(f);
			break;
		case 4:
			TG_OK(rref_to_here_async(w->ref[i], RREF_DEFAULT, &f));
			TG_OK(rref_to_here_async(w->ref[3 - i], RREF_DEFAULT, &g));
			rref_future_cancel(f);
			TG_OK(rref_future_wait(g, RREF_DEFAULT));
			TG_OK(rref_future_view(g, &v));
			TG_CHECK(tg_filled(rref_view_data(v), w->length[3 - i], 0, 3 - i));
			rref_view_free(v);
			rref_future_free(f);
			rref_future_free(g);
			break;
		case 5: {
			struct rref_view *vs[4];
			int status[4];

			TG_IS(rref_to_here_batch(w->ref, 4, RREF_DEFAULT, vs, status), 4);
			for (unsigned j = 0; j < 4; j++) {
				TG_CHECK(tg_filled(rref_view_data(vs[j]), w->length[j], 0, j));
				rref_view_free(vs[j]);
			}
			break;
		}
		}
	}
	return NULL;
}

static int mixed(int rank, bool late)
{
	static const size_t lengths[4] = { 0, 1, 500, RW_INLINE_MAX };
	struct rref_ctx *ctx = join(rank, NULL, 0);

	if (rank == 0) {
		struct worker w[3];
		struct rref *r[4];

		for (unsigned i = 0; i < 4; i++)
			r[i] = ready_ref(ctx, lengths[i], i);
		if (late) {
			put_off(ctx, true);
			dev.slots = 3;
			ctx->peers[1].max_msg = 1024; /* the last value is read in pieces */
			for (unsigned i = 0; i < 4; i++)
				disguise(ctx, r[i]);
		}
		for (unsigned i = 0; i < 3; i++) {
			w[i].ctx = ctx;
			w[i].seed = i + 1;
			memcpy(w[i].ref, r, sizeof(r));
			memcpy(w[i].length, lengths, sizeof(lengths));
			TG_IS(pthread_create(&w[i].thread, NULL, mix, &w[i]), 0);
		}
		usleep(1500000);
		atomic_store(&stop, 1);
		for (int i = 0; i < 3; i++)
			pthread_join(w[i].thread, NULL);
		TG_CHECK(tg_eventually(nothing_in_flight, ctx, NULL));
		for (int i = 0; i < 4; i++)
			rref_release(r[i]);
		tg_until_clean(ctx, 0);
	}
	tg_finish(ctx);
	return 0;
}

TG_TEST(mix__of_threads_time_outs_and_cancels, 2)
{
	return mixed(rank, false);
}

TG_TEST(mix__over_a_full_and_late_device, 2)
{
	return mixed(rank, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(read__without_a_slot_is_tried_again),
		cmocka_unit_test(cancel__of_a_waiting_read_with_a_callback),
		cmocka_unit_test(cancel__of_a_read_with_its_completion_present),
		cmocka_unit_test(mix__of_threads_time_outs_and_cancels),
		cmocka_unit_test(mix__over_a_full_and_late_device),
	};

	return cmocka_run_group_tests_name("stress", tests, NULL, NULL);
}
