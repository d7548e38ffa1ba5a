/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines of a worker that waits for its group, and their times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "rendezvous_test.h"

static unsigned lines_with(struct worker *w, const char *part)
{
	unsigned n = 0;

	pthread_mutex_lock(&w->lock);
	for (const char *p = w->lines; (p = strstr(p, part)); p += strlen(part))
		n++;
	pthread_mutex_unlock(&w->lock);
	return n;
}

/* Checks that rank 0 and each worker that has joined know the missing ranks. */
static void waits__for_missing_ranks(void **state)
{
	int port = free_port();
	struct worker *w[4];

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		w[i] = worker_new(port, i, 4);
	worker_start(w[0]);
	worker_start(w[3]);
	for (unsigned i = 0; i < 4; i += 3) {
		worker_await_log(w[i], "waiting for");
		worker_await_log(w[i], "2 of 4 workers came; missing ranks 1, 2");
		assert_true(worker_logged(w[i], w[0]->address));
	}
	/* The next line tells the news again. */
	worker_start(w[2]);
	worker_await_log(w[0], "3 of 4 workers came; missing rank 1");
	worker_await_log(w[3], "3 of 4 workers came; missing rank 1");
	worker_start(w[1]);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(worker_join(w[i]), 0);
	for (unsigned i = 0; i < 4; i++)
		worker_free(w[i]);
}

static void waits__for_a_missing_rank_0(void **state)
{
	struct worker *w = worker_new(free_port(), 2, 3);
	unsigned said;

	(void)state;
	w->timeout_ms = 4000;
	worker_start(w);
	worker_await_log(w, "rank 2 has waited");
	assert_true(worker_logged(w, w->address));
	assert_true(worker_logged(w, "the last: connection refused"));
	assert_int_equal(worker_join(w), -ECONNREFUSED);
	/* Lines come after 0.5, 1.5 and 3.5 s of the 4; a machine that stands still misses some.
	 * Dozens of tries do not mean dozens of lines. */
	said = lines_with(w, "rank 2 has waited");
	assert_true(said >= 1 && said <= 3);
	assert_true(lines_with(w, "is not there yet") <= 4);
	worker_free(w);
}

/* Connects to a port that never answers: neither the connecting
 * nor the waiting returns by itself. */
static void waits__for_a_silent_rank_0(void **state)
{
	int port = free_port(), fd = stranger_listen(port);
	struct worker *w = worker_new(port, 1, 2);

	(void)state;
	w->timeout_ms = 2000;
	worker_start(w);
	worker_await_log(w, "connected, but rank 0 did not answer yet");
	assert_int_equal(worker_join(w), -ETIMEDOUT);
	assert_true(lines_with(w, "did not answer yet") <= 2);
	close(fd);
	worker_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(waits__for_a_silent_rank_0),
		cmocka_unit_test(waits__for_a_missing_rank_0),
		cmocka_unit_test(waits__for_missing_ranks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
