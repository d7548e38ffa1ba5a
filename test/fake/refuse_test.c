/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of strangers that are refused while the thread that destroys ids stands in a destroy.
 * The refusal does not wait for that thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <arpa/inet.h>
#include <poll.h>
#include <cmocka.h>

#include "core/base/lock.h"
#include "core/ctx.h"
#include "core/session/session.h"
#include "fg.h"
#include "verbs/ibv/ibv.h"

static atomic_bool hold_next, stands, may_go_on;

int __real_rdma_destroy_id(struct rdma_cm_id *id);
int __wrap_rdma_destroy_id(struct rdma_cm_id *id);

static in_addr_t address(unsigned device)
{
	return htonl(INADDR_LOOPBACK + device);
}

/* Stands still in the next destroy of an id of device 0. */
int __wrap_rdma_destroy_id(struct rdma_cm_id *id)
{
	const struct sockaddr_in *a = (const void *)rdma_get_local_addr(id);

	if (a->sin_addr.s_addr == address(0) && atomic_exchange(&hold_next, false)) {
		atomic_store(&stands, true);
		while (!atomic_load(&may_go_on))
			tg_pause();
	}
	return __real_rdma_destroy_id(id);
}

/* Breaks the connection of workers 0 and 1. Its id at device 0 is then being destroyed. */
static void have_the_reaper_stand(struct rref_ctx *ctx)
{
	atomic_store(&hold_next, true);
	rc_lock(ctx);
	rc_resume_break(ctx, &ctx->peers[1], -ECONNRESET, "the test breaks it");
	rc_unlock(ctx);
	for (int64_t end = tg_deadline(); !atomic_load(&stands); tg_pause())
		TG_CHECK(now_ns() < end);
}

static void take_event(struct rdma_event_channel *ch, enum rdma_cm_event_type type)
{
	struct pollfd p = { .fd = ch->fd, .events = POLLIN };
	struct rdma_cm_event *e;

	TG_IS(poll(&p, 1, (int)(5000 * tg_slow())), 1);
	TG_IS(rdma_get_cm_event(ch, &e), 0);
	TG_IS(e->event, type);
	rdma_ack_cm_event(e);
}

/* Asks device 0 for a connection, with a hello that makes no sense. Returns when it is refused. */
static void ask_as_a_stranger(struct rref_ctx *ctx)
{
	struct rdma_cm_id *listener = ctx->device[RV_IBV].dev->listener, *id;
	struct sockaddr_in from = { .sin_family = AF_INET }, to = from;
	struct rdma_conn_param p = { .private_data = "hello",
				     .private_data_len = 5,
				     .responder_resources = 3,
				     .initiator_depth = 5,
				     .qp_num = 77 };
	struct rdma_event_channel *ch = rdma_create_event_channel();

	from.sin_addr.s_addr = address(2);
	to.sin_addr.s_addr = address(0);
	to.sin_port = rdma_get_src_port(listener);
	TG_IS(rdma_create_id(ch, &id, NULL, RDMA_PS_TCP), 0);
	TG_IS(rdma_resolve_addr(id, (struct sockaddr *)&from, (struct sockaddr *)&to, 1000), 0);
	take_event(ch, RDMA_CM_EVENT_ADDR_RESOLVED);
	TG_IS(rdma_resolve_route(id, 1000), 0);
	take_event(ch, RDMA_CM_EVENT_ROUTE_RESOLVED);
	TG_IS(rdma_connect(id, &p), 0);
	take_event(ch, RDMA_CM_EVENT_REJECTED);
	rdma_destroy_id(id);
	rdma_destroy_event_channel(ch);
}

static void stranger__is_refused_at_once(void **state)
{
	struct fg g = { .world = 2, .mode = RREF_PROGRESS_AUTO };
	struct rref *ref;

	(void)state;
	fg_join(&g);
	ref = fg_value(&g, 1, 0, 64, 1);
	have_the_reaper_stand(g.ctx[0]);
	for (int i = 0; i < 3; i++)
		ask_as_a_stranger(g.ctx[0]);
	TG_CHECK(!atomic_load(&may_go_on));
	atomic_store(&may_go_on, true);
	fg_read(ref, 64, 1);
	rref_release(ref);
	fg_leave(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stranger__is_refused_at_once),
	};

	return cmocka_run_group_tests_name("refuse", tests, NULL, NULL);
}
