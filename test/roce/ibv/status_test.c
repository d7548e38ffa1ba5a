/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every completion status at every moment, over a real device. The work is done as always, but one
 * completion has another status. The read is made again, or the message sent again, or there is an
 * error that the header lists.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/read/internal.h"
#include "tg_refs.h"
#include "verbs/ibv/ibv.h"
#include "verbs/ibv/status.h"

#define NR_STATUS (IBV_WC_TM_RNDV_INCOMPLETE + 2) /* plus an unknown one */
#define SMALL	  100u
#define LARGE	  (((size_t)1 << 20) + 5)
#define NR_BATCH  8u
#define VALUES	  (NR_BATCH + 1)

static int (*real_poll)(struct ibv_cq *cq, int n, struct ibv_wc *wc);
static atomic_int spoilt_kind, spoilt_status;
static atomic_int to_pass;  /* so many more of that kind stay unspoilt */
static atomic_int to_spoil; /* the number to spoil after those */

static int spoil(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	int got = real_poll(cq, n, wc);

	for (int i = 0; i < got; i++) {
		if (wc[i].status != IBV_WC_SUCCESS ||
		    (int)rvi_token_unpack(wc[i].wr_id).kind != atomic_load(&spoilt_kind) ||
		    !atomic_load(&to_spoil))
			continue;
		if (atomic_load(&to_pass)) {
			atomic_fetch_sub(&to_pass, 1);
			continue;
		}
		atomic_fetch_sub(&to_spoil, 1);
		wc[i].status = (enum ibv_wc_status)atomic_load(&spoilt_status);
		/* Nothing else counts in a failed completion. */
		wc[i].opcode = (enum ibv_wc_opcode)77;
		wc[i].byte_len = UINT32_MAX;
		wc[i].wc_flags = UINT32_MAX;
	}
	return got;
}

static void spoil_next(int kind, int status, int pass, int nr)
{
	atomic_store(&to_spoil, 0);
	atomic_store(&spoilt_kind, kind);
	atomic_store(&spoilt_status, status);
	atomic_store(&to_pass, pass);
	atomic_store(&to_spoil, nr);
}

static struct rref_ctx *join(int rank)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	at_store(&rc_never_again, true); /* each read tells its own end, on a slow machine too */
	o.peer_timeout =
		60 * NSEC_PER_SEC; /* looks at the beacon are READs too: this leaves them out */
	ctx = tg_join_by(&o);
	ctx->session.score_limit = UINT32_MAX;
	return ctx;
}

/* Gets values of worker 1, each read once. It waits, because a session that has just ended is not
 * begun again at once. */
static void get_values(struct rref_ctx *ctx, struct rref **r)
{
	while (rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL)) {
		TG_CHECK(now_ns() < tg_deadline());
		tg_pause();
	}
	for (unsigned i = 0; i < VALUES; i++) {
		struct rref_view *v;

		r[i] = tg_ask(
			ctx, 1, "pub.make",
			(struct tg_make){ .length = i < NR_BATCH ? SMALL : LARGE, .seed = 3 });
		TG_OK(rref_to_here(r[i], RREF_DEFAULT, &v));
		rref_view_free(v);
	}
}

static void give_values(struct rref **r)
{
	for (unsigned i = 0; i < VALUES; i++)
		rref_release(r[i]);
}

static int seen(int err, struct rref_view *v, size_t length)
{
	if (!err) {
		TG_IS(rref_view_length(v), length);
		TG_CHECK(tg_filled(rref_view_data(v), length, 0, 3));
		rref_view_free(v);
	}
	return err;
}

/* The moments. Each gives the error of the operation whose completion is spoilt. */

static int read_at_once(struct rref_ctx *ctx, struct rref **r)
{
	struct rref_view *v = NULL;
	int err = rref_to_here(r[0], RREF_DEFAULT, &v);

	(void)ctx;
	return seen(err, v, SMALL);
}

static int read_later(struct rref_ctx *ctx, struct rref **r)
{
	struct rref_view *v = NULL;
	struct rref_future *f;
	int err;

	(void)ctx;
	TG_OK(rref_to_here_async(r[0], RREF_DEFAULT, &f));
	err = rref_future_wait(f, RREF_FOREVER);
	if (!err)
		TG_OK(rref_future_view(f, &v));
	rref_future_free(f);
	return seen(err, v, SMALL);
}

static int read_in_pieces(struct rref_ctx *ctx, struct rref **r)
{
	struct rref_view *v = NULL;
	int err = rref_to_here(r[NR_BATCH], RREF_DEFAULT, &v);

	(void)ctx;
	return seen(err, v, LARGE);
}

/* Returns the first error: the others may have been read before the connection went. */
static int read_a_batch(struct rref_ctx *ctx, struct rref **r)
{
	struct rref_view *v[NR_BATCH] = { NULL };
	int status[NR_BATCH], first = 0;

	(void)ctx;
	(void)rref_to_here_batch(r, NR_BATCH, RREF_DEFAULT, v,
				 status); /* each with its own status */
	for (unsigned i = 0; i < NR_BATCH; i++) {
		int err = seen(status[i], v[i], SMALL);

		first = first ? first : err;
	}
	return first;
}

static int call(struct rref_ctx *ctx, struct rref **r)
{
	(void)r;
	return rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL);
}

static const struct moment {
	const char *name;
	int kind, pass, nr;
	int (*run)(struct rref_ctx *ctx, struct rref **r);
} moments[] = {
	{ "a small read", RVI_READ, 0, 1, read_at_once },
	{ "a small read, and again when it is resumed", RVI_READ, 0, 2, read_at_once },
	{ "a read that is waited for later", RVI_READ, 0, 1, read_later },
	{ "the first piece", RVI_READ, 0, 1, read_in_pieces },
	{ "a piece in the middle", RVI_READ, 2, 1, read_in_pieces },
	{ "a batch", RVI_READ, 0, 1, read_a_batch },
	{ "a message that is sent", RVI_SEND, 0, 1, call },
	{ "a message that comes", RVI_RECV, 0, 1, call },
};

/* Returns the expected errno. */
static int expected(const struct moment *m, int status)
{
	/* Any sender may have made this message, although each has a
	 * MAC: the session goes on without it. */
	if (m->kind == RVI_RECV)
		return 0;
	switch (rvi_wc_errno(status)) {
	case -ETIMEDOUT:
	case -ECONNRESET:
		return 0;
	case -EACCES:
		return m->kind == RVI_READ ? -ESTALE : 0;
	case -EFAULT:
		if (m->run == read_at_once && m->nr == 1)
			return 0; /* another way of reading brings the value */
		return m->kind == RVI_READ ? -EIO : 0;
	default:
		return m->kind == RVI_READ ? -EPROTO : -EOWNERDEAD;
	}
}

/* Returns whether this ends the session: the peer broke the rules. */
static bool ends_session(const struct moment *m, int status)
{
	return m->kind != RVI_RECV && rvi_wc_errno(status) == -EPROTO;
}

/* Returns whether a session has ended or was resumed since that count of both. */
static bool was_noticed(struct rref_ctx *ctx, void *before)
{
	struct rref_stats s = tg_stats(ctx);

	return s.resumed_sessions + s.resumed_reads + s.dead_peers > *(const uint64_t *)before;
}

TG_TEST(status__each_at_every_moment, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct ibv_context *device = ctx->device[RV_IBV].dev->ctx;
		struct rref *r[VALUES];
		uint64_t before;

		get_values(ctx, r);
		rc_lock(ctx);
		real_poll = device->ops.poll_cq;
		device->ops.poll_cq = spoil;
		rc_unlock(ctx);
		for (unsigned i = 0; i < array_size(moments); i++) {
			for (int status = IBV_WC_SUCCESS + 1; status < NR_STATUS; status++) {
				const struct moment *m = &moments[i];
				bool ends = ends_session(m, status);
				int want = expected(m, status), got;

				before = tg_stats(ctx).resumed_sessions +
					 tg_stats(ctx).resumed_reads + tg_stats(ctx).dead_peers;
				spoil_next(m->kind, status, m->pass, m->nr);
				got = m->run(ctx, r);
				/* Values that came with one READ are read again, each alone. */
				if (m->run == read_a_batch && !got && !ends)
					want = 0;
				/* A read that begins again, in another way or
				 * alone, finds the session over. */
				if (ends && got == -EOWNERDEAD)
					want = got;
				/* The answer may come before the completion of the request. */
				if (m->kind == RVI_SEND && !got)
					want = 0;
				if (got != want)
					fprintf(stderr, "%s, status %d (%s): %d, not %d (%s)\n",
						m->name, status, rvi_wc_text(status), got, want,
						rref_last_error());
				TG_IS(got, want);
				/* Wait until all of it is over: a message's completion
				 * may come after the answer. */
				while (!was_noticed(ctx, &before)) {
					TG_CHECK(now_ns() < tg_deadline());
					if (ends)
						rref_progress(ctx);
					else
						call(ctx, r);
				}
				spoil_next(-1, 0, 0, 0);
				if (ends) {
					give_values(r);
					get_values(ctx, r);
				}
			}
		}
		give_values(r);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0,
			     1); /* some sessions end meanwhile, and would end a barrier */
	tg_finish(ctx);
	return 0;
}

static void spoilt(void **state)
{
	struct tg_group g = { .world = 2, .timeout_s = 600 };

	(void)state;
	assert_int_equal(tg_run_group(&g, status__each_at_every_moment_worker, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		{ "status__each_at_every_moment", spoilt, NULL, NULL, NULL },
	};

	(void)status__each_at_every_moment;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
