/* SPDX-License-Identifier: Apache-2.0 */
/* The rules that fake devices follow, as real ones do: keys, order, receivers, errors, wake-ups. */
#include "fr.h"

#include <pthread.h>
#include <sched.h>

static const struct fr_times usual = { .timeout = 14, .retry = 6, .rnr_retry = 7 };

static int ready(void **state)
{
	static struct fr_pair p;

	fv_knobs(0)->delay_ns = fv_knobs(1)->delay_ns = 2000;
	fr_pair_up(&p, false, usual);
	*state = &p;
	return 0;
}

static int done(void **state)
{
	fr_pair_down(*state);
	return 0;
}

static void read__brings_the_bytes(void **state)
{
	struct fr_pair *p = *state;

	memcpy(p->b.mem + 100, "remote", 7);
	assert_int_equal(fr_read(&p->a, &p->b, 1, 96, 16), 0);
	fr_expect(&p->a, 1, IBV_WC_SUCCESS);
	assert_string_equal((char *)p->a.mem + 100, "remote");
	/* No bytes need no key. */
	p->b.mr->rkey ^= 1;
	assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 0), 0);
	fr_expect(&p->a, 2, IBV_WC_SUCCESS);
	p->b.mr->rkey ^= 1;
}

/* Expects that the first request failed so, that the second was flushed, and both ends are over. */
static void ended_both(struct fr_pair *p, enum ibv_wc_status status, enum ibv_event_type event)
{
	fr_expect(&p->a, 1, status);
	fr_expect(&p->a, 2, IBV_WC_WR_FLUSH_ERR);
	assert_int_equal(fr_state(&p->a), IBV_QPS_ERR);
	assert_int_equal(fr_state(&p->b), IBV_QPS_ERR);
	fr_expect_event(&p->b, event);
	/* A request that is posted now is flushed, too. */
	assert_int_equal(fr_read(&p->a, &p->b, 3, 0, 8), 0);
	fr_expect(&p->a, 3, IBV_WC_WR_FLUSH_ERR);
	assert_int_equal(p->a.mem[0], 0);
}

static void read__with_a_wrong_key_ends_both_queue_pairs(void **state)
{
	struct fr_pair *p = *state;

	p->b.mem[0] = 1;
	p->b.mr->rkey ^= 1;
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	p->b.mr->rkey ^= 1;
	assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 8), 0);
	ended_both(p, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
}

static void read__beyond_the_region_is_refused(void **state)
{
	struct fr_pair *p = *state;

	p->a.iova -= 8; /* the landing place stays within */
	p->b.mem[0] = 1;
	assert_int_equal(fr_read(&p->a, &p->b, 1, FR_BYTES - 8, 16), 0);
	p->a.iova += 8;
	assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 8), 0);
	ended_both(p, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
}

static void read__of_a_region_that_is_gone_is_refused(void **state)
{
	struct fr_pair *p = *state;
	struct ibv_mr gone = *p->b.mr;

	p->b.mem[0] = 1;
	fv_knobs(0)->delay_ns = 5 * NSEC_PER_MSEC;
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 8), 0);
	assert_int_equal(ibv_dereg_mr(p->b.mr), 0);
	p->b.mr = &gone;
	ended_both(p, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
	p->b.mr = NULL;
}

static void read__must_be_allowed_by_the_queue_pair(void **state)
{
	struct fr_pair *p = *state;
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_RTS, .qp_access_flags = 0 };

	p->b.mem[0] = 1;
	assert_int_equal(ibv_modify_qp(p->b.qp, &a, IBV_QP_STATE | IBV_QP_ACCESS_FLAGS), 0);
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 8), 0);
	ended_both(p, IBV_WC_REM_INV_REQ_ERR, IBV_EVENT_QP_REQ_ERR);
}

static void read__needs_a_landing_place(void **state)
{
	struct fr_pair *p = *state;

	p->a.mr->lkey ^= 1;
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	p->a.mr->lkey ^= 1;
	fr_expect(&p->a, 1, IBV_WC_LOC_PROT_ERR);
	assert_int_equal(fr_state(&p->a), IBV_QPS_ERR);
	assert_int_equal(fr_state(&p->b), IBV_QPS_RTS);
}

static void completion__comes_when_it_is_due(void **state)
{
	struct fr_pair *p = *state;
	int64_t start = now_ns();

	p->b.mem[0] = 1;
	fv_knobs(0)->delay_ns = 20 * NSEC_PER_MSEC;
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	fr_expect_none(&p->a);
	assert_int_equal(p->a.mem[0], 0);
	fr_expect(&p->a, 1, IBV_WC_SUCCESS);
	assert_true(now_ns() - start >= 20 * NSEC_PER_MSEC);
	assert_int_equal(p->a.mem[0], 1);
}

static void reads__beyond_the_depth_wait_for_the_first(void **state)
{
	struct fr_pair *p = *state;
	int64_t start = now_ns();

	fv_knobs(0)->delay_ns = 20 * NSEC_PER_MSEC;
	for (uint64_t i = 0; i < 17; i++) /* the device has 16 under way at once */
		assert_int_equal(fr_read(&p->a, &p->b, i, 0, 8), 0);
	for (uint64_t i = 0; i < 17; i++)
		fr_expect(&p->a, i, IBV_WC_SUCCESS);
	assert_true(now_ns() - start >= 40 * NSEC_PER_MSEC);
}

static void requests__end_in_order(void **state)
{
	struct fr_pair *p = *state;

	for (uint64_t i = 0; i < 20; i++)
		fr_buffer(&p->b, 100 + i, 64 * i, 64);
	for (uint64_t i = 0; i < 40; i += 2) {
		/* Later ones are due earlier, but must not overtake. */
		fv_knobs(0)->delay_ns = 1000 * (40 - (int64_t)i);
		p->a.mem[0] = (uint8_t)i;
		assert_int_equal(fr_send(&p->a, i, 8, i % 4 ? 0 : IBV_SEND_INLINE), 0);
		fr_expect(&p->a, i, IBV_WC_SUCCESS);
		assert_int_equal(fr_read(&p->a, &p->b, i + 1, 4096, 8), 0);
		fr_expect(&p->a, i + 1, IBV_WC_SUCCESS);
	}
	for (uint64_t i = 0; i < 20; i++) {
		struct ibv_wc wc = fr_next(&p->b);

		assert_int_equal(wc.wr_id, 100 + i);
		assert_int_equal(wc.imm_data, 2 * i);
		assert_int_equal(wc.byte_len, 8);
		assert_int_equal(p->b.mem[64 * i], 2 * i);
	}
}

static void requests__do_not_overtake(void **state)
{
	struct fr_pair *p = *state;

	fr_buffer(&p->b, 100, 0, 64);
	fv_knobs(0)->delay_ns = 10 * NSEC_PER_MSEC;
	assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
	fv_knobs(0)->delay_ns = 0;
	assert_int_equal(fr_send(&p->a, 2, 8, IBV_SEND_INLINE), 0);
	fr_expect_none(&p->b);
	fr_expect(&p->b, 100, IBV_WC_SUCCESS); /* the receiver's poll carries both out */
	fr_expect(&p->a, 1, IBV_WC_SUCCESS);
	fr_expect(&p->a, 2, IBV_WC_SUCCESS);
}

static void queue__that_is_full_takes_no_more(void **state)
{
	struct fr_pair *p = *state;
	uint64_t i = 0;

	fv_knobs(0)->delay_ns = NSEC_PER_MSEC;
	while (!fr_read(&p->a, &p->b, i, 0, 8))
		i++;
	assert_int_equal(i, 64);
	for (uint64_t k = 0; k < i; k++)
		fr_expect(&p->a, k, IBV_WC_SUCCESS);
	assert_int_equal(fr_read(&p->a, &p->b, i, 0, 8), 0);
	fr_expect(&p->a, i, IBV_WC_SUCCESS);
}

static void message__waits_for_a_buffer(void **state)
{
	struct fr_pair *p = *state;
	uint64_t rnr = fv_count(0).rnr;

	assert_int_equal(fr_send(&p->a, 1, 8, 0), 0);
	while (fv_count(0).rnr < rnr + 10) /* more often than a bounded sender tries */
		fr_expect_none(&p->a);
	fr_buffer(&p->b, 100, 0, 64);
	fr_expect(&p->a, 1, IBV_WC_SUCCESS);
	fr_expect(&p->b, 100, IBV_WC_SUCCESS);
}

static void message__that_is_too_long_ends_both(void **state)
{
	struct fr_pair *p = *state;

	fr_buffer(&p->b, 100, 0, 8);
	fr_buffer(&p->b, 101, 0, 64);
	assert_int_equal(fr_send(&p->a, 1, 16, 0), 0);
	fr_expect(&p->a, 1, IBV_WC_REM_INV_REQ_ERR);
	fr_expect(&p->b, 100, IBV_WC_LOC_LEN_ERR);
	fr_expect(&p->b, 101, IBV_WC_WR_FLUSH_ERR);
}

static void error__flushes_both_queues(void **state)
{
	struct fr_pair *p = *state;
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_ERR };

	fv_knobs(0)->delay_ns = 10 * NSEC_PER_SEC;
	fr_buffer(&p->a, 100, 0, 64);
	for (uint64_t i = 1; i <= 3; i++)
		assert_int_equal(fr_read(&p->a, &p->b, i, 0, 8), 0);
	assert_int_equal(ibv_modify_qp(p->a.qp, &a, IBV_QP_STATE), 0);
	fr_expect(&p->a, 100, IBV_WC_WR_FLUSH_ERR);
	for (uint64_t i = 1; i <= 3; i++)
		fr_expect(&p->a, i, IBV_WC_WR_FLUSH_ERR);
	fr_expect_none(&p->a);
}

/* Expects a notification, or that there is not any. */
static void expect_news(struct fr_end *e, bool news)
{
	struct ibv_cq *cq;
	void *context;

	assert_int_equal(fr_is_readable(e->channel->fd, news ? 5000 : 20), news);
	if (!news)
		return;
	assert_int_equal(ibv_get_cq_event(e->channel, &cq, &context), 0);
	assert_ptr_equal(cq, e->cq);
	ibv_ack_cq_events(cq, 1);
	assert_false(fr_is_readable(e->channel->fd, 0));
}

static void sleeper__is_woken_once_if_it_armed(void **state)
{
	struct fr_pair *p = *state;
	static const int64_t delays[] = { 0, 2000, NSEC_PER_MSEC };

	for (size_t i = 0; i < array_size(delays); i++) {
		fv_knobs(0)->delay_ns = delays[i];
		assert_int_equal(fr_read(&p->a, &p->b, 1, 0, 8), 0);
		expect_news(&p->a, false);
		fr_expect(&p->a, 1, IBV_WC_SUCCESS);
		/* Armed before the post, and after it. */
		assert_int_equal(ibv_req_notify_cq(p->a.cq, 0), 0);
		assert_int_equal(fr_read(&p->a, &p->b, 2, 0, 8), 0);
		expect_news(&p->a, true);
		assert_int_equal(fr_read(&p->a, &p->b, 3, 0, 8), 0);
		assert_int_equal(ibv_req_notify_cq(p->a.cq, 0), 0);
		expect_news(&p->a, true);
		assert_int_equal(fr_read(&p->a, &p->b, 4, 0, 8), 0);
		expect_news(&p->a, false);
		for (uint64_t k = 2; k <= 4; k++)
			fr_expect(&p->a, k, IBV_WC_SUCCESS);
	}
}

static void sleeper__is_woken_by_what_it_waits_for(void **state)
{
	struct fr_pair *p = *state;

	for (uint64_t i = 0; i < 3; i++)
		fr_buffer(&p->b, 100 + i, 0, 64);
	assert_int_equal(ibv_req_notify_cq(p->b.cq, 1), 0);
	assert_int_equal(fr_send(&p->a, 1, 8, 0), 0);
	fr_expect(&p->a, 1, IBV_WC_SUCCESS);
	expect_news(&p->b, false);
	assert_int_equal(fr_send(&p->a, 2, 8, IBV_SEND_SOLICITED), 0);
	expect_news(&p->b, true);
	/* A failure wakes, too. */
	assert_int_equal(ibv_req_notify_cq(p->b.cq, 1), 0);
	p->a.mr->rkey ^= 1;
	assert_int_equal(fr_read(&p->b, &p->a, 3, 0, 8), 0);
	p->a.mr->rkey ^= 1;
	expect_news(&p->b, true);
}

/* ---- several threads ---- */

#define THREADS 4
#define EACH 5000

static struct fr_pair *shared;
static _Atomic uint32_t seen[THREADS * EACH];
static _Atomic uint32_t total, wrong;

/* Posts its share, and takes completions of all. */
static void *post_and_poll(void *arg)
{
	uint64_t next = (uintptr_t)arg * EACH, end = next + EACH;
	struct ibv_wc wc[4];

	while (total < THREADS * EACH) {
		int n;

		if (next < end && !fr_read(&shared->a, &shared->b, next, 0, 8))
			next++;
		n = ibv_poll_cq(shared->a.cq, 4, wc);
		for (int i = 0; i < n; i++) {
			if (wc[i].status != IBV_WC_SUCCESS || seen[wc[i].wr_id]++)
				wrong++;
			total++;
		}
		if (n < 0 || (!n && next == end))
			sched_yield();
	}
	return NULL;
}

static void polls__of_several_threads_see_each_completion_once(void **state)
{
	pthread_t threads[THREADS];

	shared = *state;
	for (int d = 0; d < 2; d++) {
		total = wrong = 0;
		for (int i = 0; i < THREADS * EACH; i++)
			seen[i] = 0;
		fv_knobs(0)->delay_ns = d * 2000;
		for (uintptr_t i = 0; i < THREADS; i++)
			pthread_create(&threads[i], NULL, post_and_poll, (void *)i);
		for (int i = 0; i < THREADS; i++)
			pthread_join(threads[i], NULL);
		assert_int_equal(total, THREADS * EACH);
		assert_int_equal(wrong, 0);
		fr_expect_none(&shared->a);
	}
}

#define RULE(name) cmocka_unit_test_setup_teardown(name, ready, done)

int main(void)
{
	const struct CMUnitTest tests[] = {
		RULE(completion__comes_when_it_is_due),
		RULE(error__flushes_both_queues),
		RULE(message__that_is_too_long_ends_both),
		RULE(message__waits_for_a_buffer),
		RULE(polls__of_several_threads_see_each_completion_once),
		RULE(queue__that_is_full_takes_no_more),
		RULE(read__beyond_the_region_is_refused),
		RULE(read__brings_the_bytes),
		RULE(read__must_be_allowed_by_the_queue_pair),
		RULE(read__needs_a_landing_place),
		RULE(read__of_a_region_that_is_gone_is_refused),
		RULE(read__with_a_wrong_key_ends_both_queue_pairs),
		RULE(reads__beyond_the_depth_wait_for_the_first),
		RULE(requests__do_not_overtake),
		RULE(requests__end_in_order),
		RULE(sleeper__is_woken_by_what_it_waits_for),
		RULE(sleeper__is_woken_once_if_it_armed),
	};

	return cmocka_run_group_tests_name("rules", tests, NULL, NULL);
}
