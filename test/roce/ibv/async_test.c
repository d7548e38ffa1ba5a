/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every asynchronous event of a device, even if rdma_rxe never raises it. Mere news changes
 * nothing. An event that ends a queue pair ends a connection and no session. An event that ends the
 * device ends every operation over it with -ENODEV.
 */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/session/session.h"
#include "tg_refs.h"
#include "verbs/ibv/ibv.h"

/* The next event, instead of the device's own; only one thread looks at a time. */
static struct ibv_async_event forged;
static bool is_forged, is_ours;

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
	static int (*real)(struct ibv_context *, struct ibv_async_event *);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "ibv_get_async_event");
	if (!is_forged)
		return real(context, event);
	is_forged = false;
	is_ours = true;
	*event = forged;
	return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
	static void (*real)(struct ibv_async_event *);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "ibv_ack_async_event");
	if (!is_ours)
		real(event);
	is_ours = false;
}

/* Raises the event, at the queue pair of worker 1 if it concerns one. */
static void raise_event(struct rref_ctx *ctx, int type)
{
	struct rc_device *d = &ctx->device[RV_IBV];
	struct rv_event ev[8];
	struct rvi_sink sink = { .dev = d->dev, .ev = ev, .max = 8 };

	rc_lock(ctx);
	TG_CHECK(ctx->peers[1].link);
	forged = (struct ibv_async_event){ .event_type = (enum ibv_event_type)type,
					   .element.qp = ctx->peers[1].link->qp };
	is_forged = true;
	rvi_async_events(d->dev, &sink);
	TG_CHECK(!is_forged && !is_ours);
	for (unsigned i = 0; i < sink.n; i++)
		rc_peer_event(ctx, d, &ev[i]);
	rc_unlock(ctx);
}

static bool ends_queue_pair(int type)
{
	return type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR ||
	       type == IBV_EVENT_QP_ACCESS_ERR || type == IBV_EVENT_PATH_MIG_ERR;
}

static bool ends_device(int type)
{
	return type == IBV_EVENT_CQ_ERR || type == IBV_EVENT_DEVICE_FATAL ||
	       type == IBV_EVENT_SRQ_ERR || type == IBV_EVENT_WQ_FATAL;
}

static struct rref_ctx *join(int rank)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.peer_timeout = 20 * NSEC_PER_SEC;
	ctx = tg_join_by(&o);
	ctx->session.score_limit = UINT32_MAX;
	return ctx;
}

static struct rref *value(struct rref_ctx *ctx)
{
	return tg_ask(ctx, 1, "pub.make", (struct tg_make){ .length = 100, .seed = 3 });
}

static bool has_resumed(struct rref_ctx *ctx, void *nr)
{
	rref_progress(ctx);
	return tg_stats(ctx).resumed_sessions >= *(uint64_t *)nr;
}

/* The last number is beyond all known events. */
#define LAST_EVENT (IBV_EVENT_WQ_FATAL + 1)

TG_TEST(event__ends_no_device, 2)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = value(ctx);
		uint64_t nr = 0;

		for (int type = 0; type <= LAST_EVENT; type++) {
			struct rref_view *v;

			if (ends_device(type))
				continue;
			raise_event(ctx, type);
			nr += ends_queue_pair(type);
			TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
			TG_CHECK(tg_filled(rref_view_data(v), 100, 0, 3));
			rref_view_free(v);
			TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
			TG_CHECK(tg_eventually(has_resumed, ctx, &nr));
			TG_IS(tg_stats(ctx).resumed_sessions, nr);
			TG_IS(tg_stats(ctx).dead_peers, 0);
		}
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

static int lost_worker(int rank, void *arg)
{
	struct rref_ctx *ctx = join(rank);

	if (rank == 0) {
		struct rref *r = value(ctx);
		struct rref_future *held;
		struct rref_view *v;

		/* A call is under way, and another begins after it. */
		TG_OK(rref_rpc_async(ctx, 1, "tg.hold", NULL, RREF_FOREVER, &held));
		tg_until_held(ctx, 1, 1);
		raise_event(ctx, *(int *)arg);
		TG_IS(rref_future_wait(held, RREF_FOREVER), -ENODEV);
		rref_future_free(held);
		TG_IS(rref_to_here(r, RREF_FOREVER, &v), -ENODEV);
		TG_CHECK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_FOREVER, NULL) < 0);
		rref_release(r);
		tg_set_flag(0, 1);
	}
	tg_wait_flag_serving(ctx, 0, 1);
	rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT);
	tg_drop_held();
	rref_free_ctx(ctx);
	return 0;
}

static void event__ends_the_device(void **state)
{
	(void)state;
	for (int type = 0; type <= LAST_EVENT; type++)
		if (ends_device(type))
			assert_int_equal(tg_run(2, lost_worker, &type), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(event__ends_no_device),
		cmocka_unit_test(event__ends_the_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
