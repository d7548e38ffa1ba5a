/* SPDX-License-Identifier: Apache-2.0 */
/* Each profile and each knob of the fake devices does what fv.h says. */
#include "fr.h"

#include <errno.h>

static const struct fr_times usual = { .timeout = 14, .retry = 6, .rnr_retry = 7 };

static int normal(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		fv_use(i, fv_profile("connectx"));
		fv_knobs(i)->delay_ns = 2000;
	}
	return 0;
}

/* ---- knobs ---- */

static void silence__ends_in_a_timeout(void **state)
{
	struct fr_pair p;

	(void)state;
	for (unsigned silent = 0; silent < 2; silent++) {
		uint64_t timeouts = fv_count(0).timeouts;

		fr_pair_up(&p, false, (struct fr_times){ .timeout = 1, .retry = 2 });
		fv_knobs(silent)->silent = 1;
		assert_int_equal(fr_read(&p.a, &p.b, 1, 0, 8), 0);
		fr_expect(&p.a, 1, IBV_WC_RETRY_EXC_ERR);
		fv_knobs(silent)->silent = 0;
		assert_int_equal(fv_count(0).timeouts, timeouts + 1);
		assert_int_equal(fr_state(&p.a), IBV_QPS_ERR);
		assert_int_equal(fr_state(&p.b), IBV_QPS_RTS);
		fr_pair_down(&p);
	}
}

static void silence__that_ends_in_time_does_no_harm(void **state)
{
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, (struct fr_times){ .timeout = 12, .retry = 255, .rnr_retry = 7 });
	p.b.mem[0] = 1;
	fv_knobs(1)->silent = 1;
	assert_int_equal(fr_read(&p.a, &p.b, 1, 0, 8), 0);
	for (int64_t end = now_ns() + 40 * NSEC_PER_MSEC; now_ns() < end;)
		fr_expect_none(&p.a);
	fv_knobs(1)->silent = 0;
	fr_expect(&p.a, 1, IBV_WC_SUCCESS);
	assert_int_equal(p.a.mem[0], 1);
	fr_pair_down(&p);
}

static void receiver__without_buffers_ends_the_sender(void **state)
{
	uint64_t rnr = fv_count(0).rnr;
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, (struct fr_times){ .timeout = 14, .retry = 6, .rnr_retry = 2 });
	assert_int_equal(fr_send(&p.a, 1, 8, 0), 0);
	fr_expect(&p.a, 1, IBV_WC_RNR_RETRY_EXC_ERR);
	assert_int_equal(fv_count(0).rnr, rnr + 3);
	fr_pair_down(&p);
}

static void create__that_fails_makes_none(void **state)
{
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr;
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, usual);
	assert_int_equal(ibv_query_qp(p.a.qp, &attr, IBV_QP_STATE, &init), 0);
	fv_knobs(0)->fail_creates = 1;
	errno = 0;
	assert_null(ibv_create_qp(p.a.qp->pd, &init));
	assert_int_equal(errno, ENOMEM);
	assert_int_equal(fv_knobs(0)->fail_creates, 0);
	fr_pair_down(&p);
}

static void destroy__that_fails_leaves_the_queue_pair(void **state)
{
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, usual);
	fv_knobs(1)->fail_destroys = 1;
	assert_int_equal(ibv_destroy_qp(p.b.qp), EBUSY);
	assert_int_equal(fr_read(&p.a, &p.b, 1, 0, 8), 0);
	fr_expect(&p.a, 1, IBV_WC_SUCCESS);
	fr_pair_down(&p); /* now it succeeds */
}

static void destroy__stops_service(void **state)
{
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, (struct fr_times){ .timeout = 1, .retry = 1, .rnr_retry = 7 });
	fv_knobs(0)->delay_ns = 5 * NSEC_PER_MSEC;
	p.b.mem[0] = 1;
	assert_int_equal(fr_read(&p.a, &p.b, 1, 0, 8), 0);
	assert_int_equal(ibv_destroy_qp(p.b.qp), 0);
	p.b.qp = NULL;
	fr_expect(&p.a, 1, IBV_WC_RETRY_EXC_ERR);
	assert_int_equal(p.a.mem[0], 0);
	fr_pair_down(&p);
}

static void destroy__loses_srq_entries(void **state)
{
	uint64_t lost = fv_count(1).lost_srq;
	struct ibv_recv_wr wr = { .wr_id = 9 }, *bad;
	struct fr_pair p;
	int room = 0;

	(void)state;
	fr_pair_up(&p, true, usual);
	for (uint64_t i = 0; i < 4; i++)
		fr_buffer(&p.b, i, 0, 64);
	fv_knobs(1)->lose_srq = 3;
	assert_int_equal(ibv_destroy_qp(p.b.qp), 0);
	fv_knobs(1)->lose_srq = 0;
	p.b.qp = NULL;
	assert_int_equal(fv_count(1).lost_srq, lost + 3);
	/* Three of four are gone, so a queue of 64 has room for 63. */
	while (!ibv_post_srq_recv(p.b.srq, &wr, &bad))
		room++;
	assert_int_equal(room, 63);
	fr_pair_down(&p);
}

static void events__are_raised_at_each_context(void **state)
{
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, usual);
	fv_raise(0, IBV_EVENT_PORT_ERR);
	assert_false(fr_is_readable(p.b.context->async_fd, 0));
	fr_expect_event(&p.a, IBV_EVENT_PORT_ERR);
	assert_false(fr_is_readable(p.a.context->async_fd, 0));
	fr_pair_down(&p);
}

/* ---- profiles ---- */

static void connectx__tells_the_last_entry_of_a_shared_queue(void **state)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, true, usual);
	fr_buffer(&p.b, 1, 0, 64);
	assert_int_equal(ibv_modify_qp(p.b.qp, &a, IBV_QP_STATE), 0);
	fr_expect_event(&p.b, IBV_EVENT_QP_LAST_WQE_REACHED);
	fr_expect_none(&p.b); /* entries of a shared queue are not flushed */
	fr_pair_down(&p);
}

static void completions__outlive_their_queue_pair_on_rxe_alone(void **state)
{
	static const char *const names[] = { "connectx", "rxe" };
	struct ibv_wc wc;
	struct fr_pair p;

	(void)state;
	for (int i = 0; i < 2; i++) {
		fv_use(0, fv_profile(names[i]));
		fr_pair_up(&p, false, usual);
		fv_knobs(0)->delay_ns = 0;
		assert_int_equal(fr_read(&p.a, &p.b, 1, 0, 8), 0);
		assert_int_equal(ibv_poll_cq(p.a.cq, 0, &wc), 0);
		assert_int_equal(ibv_destroy_qp(p.a.qp), 0);
		p.a.qp = NULL;
		assert_int_equal(ibv_poll_cq(p.a.cq, 1, &wc), i);
		fr_pair_down(&p);
	}
}

static void completion_queue__that_is_overrun_is_broken(void **state)
{
	struct ibv_wc wc;
	struct fr_pair p;

	(void)state;
	fr_pair_up(&p, false, usual);
	fv_knobs(0)->delay_ns = 0;
	for (uint64_t i = 0; i < 129; i++) {
		assert_int_equal(fr_read(&p.a, &p.b, i, 0, 8), 0);
		assert_int_equal(ibv_poll_cq(p.a.cq, 0, &wc), i == 128 ? -1 : 0);
	}
	fr_expect_event(&p.a, IBV_EVENT_CQ_ERR);
	fr_pair_down(&p);
}

static struct ibv_context *open_as(const char *profile)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_context *c;

	fv_use(0, fv_profile(profile));
	c = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	assert_non_null(c);
	return c;
}

static void connectx__has_its_limits(void **state)
{
	struct ibv_context *c = open_as("connectx");
	struct ibv_device_attr a;

	(void)state;
	assert_int_equal(ibv_query_device(c, &a), 0);
	assert_int_equal(a.max_srq_wr, 32767);
	assert_int_equal(a.max_qp_rd_atom, 16);
	assert_int_equal(a.max_cqe, 4194303);
	ibv_close_device(c);
}

static void srq_less__has_no_shared_queue(void **state)
{
	struct ibv_srq_init_attr s = { .attr = { .max_wr = 1, .max_sge = 1 } };
	struct ibv_context *c = open_as("srq-less");
	struct ibv_pd *pd = ibv_alloc_pd(c);
	struct ibv_device_attr a;

	(void)state;
	assert_int_equal(ibv_query_device(c, &a), 0);
	assert_int_equal(a.max_srq, 0);
	errno = 0;
	assert_null(ibv_create_srq(pd, &s));
	assert_int_equal(errno, EOPNOTSUPP);
	ibv_dealloc_pd(pd);
	ibv_close_device(c);
}

static void foreign_gid__comes_first(void **state)
{
	struct ibv_context *c = open_as("foreign-gid");
	struct ibv_gid_entry rows[4];

	(void)state;
	assert_int_equal(ibv_query_gid_table(c, rows, 4, 0), 2);
	assert_int_equal(rows[0].ndev_ifindex, 4242);
	assert_int_equal(rows[0].gid.raw[12], 10);
	assert_int_equal(rows[1].gid.raw[12], 127);
	ibv_close_device(c);
}

#define FAULT(name) cmocka_unit_test_setup(name, normal)

int main(void)
{
	const struct CMUnitTest tests[] = {
		FAULT(completion_queue__that_is_overrun_is_broken),
		FAULT(completions__outlive_their_queue_pair_on_rxe_alone),
		FAULT(connectx__has_its_limits),
		FAULT(connectx__tells_the_last_entry_of_a_shared_queue),
		FAULT(create__that_fails_makes_none),
		FAULT(destroy__loses_srq_entries),
		FAULT(destroy__stops_service),
		FAULT(destroy__that_fails_leaves_the_queue_pair),
		FAULT(events__are_raised_at_each_context),
		FAULT(foreign_gid__comes_first),
		FAULT(receiver__without_buffers_ends_the_sender),
		FAULT(silence__ends_in_a_timeout),
		FAULT(silence__that_ends_in_time_does_no_harm),
		FAULT(srq_less__has_no_shared_queue),
	};

	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
