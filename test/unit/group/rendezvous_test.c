/* SPDX-License-Identifier: Apache-2.0 */
/* The rendezvous among honest workers: meetings, missing and
 * double workers, and the texts for each. */
#include "rendezvous_test.h"

#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#define NR_PROCESSES 64
#define MAX_WORKERS 8

/* One worker per given rank, all started; the tests change them before run_all. */
struct team {
	int port;
	unsigned nr;
	struct worker *w[MAX_WORKERS];
};

static struct team team_new(uint32_t world, unsigned nr, const uint32_t *ranks)
{
	struct team t = { .port = free_port(), .nr = nr };

	for (unsigned i = 0; i < nr; i++)
		t.w[i] = worker_new(t.port, ranks ? ranks[i] : i, world);
	return t;
}

static void team_run(struct team *t)
{
	for (unsigned i = 0; i < t->nr; i++)
		worker_start(t->w[i]);
	for (unsigned i = 0; i < t->nr; i++)
		worker_join(t->w[i]);
}

static void team_free(struct team *t)
{
	for (unsigned i = 0; i < t->nr; i++)
		worker_free(t->w[i]);
}

static void assert_same_table(const struct team *t)
{
	for (unsigned i = 0; i < t->nr; i++) {
		assert_joined(t->w[i]);
		assert_memory_equal(t->w[i]->members, t->w[0]->members,
				    t->w[0]->world * sizeof(struct rc_member));
	}
}

static void rendezvous__group_of_one_needs_no_address(void **state)
{
	struct worker *w = worker_new(1, 0, 1);

	(void)state;
	assert_int_equal(rc_rendezvous(NULL, 1, &w->me, &user_key, now_ns(), NULL, w->members), 0);
	assert_joined(w);
	worker_free(w);
}

static void rendezvous__four_meet(void **state)
{
	struct team t = team_new(4, 4, NULL);

	(void)state;
	team_run(&t);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__four_meet_with_the_users_key(void **state)
{
	struct team t = team_new(4, 4, NULL);
	struct addrinfo *found = NULL;
	/* A fresh system has no /etc/hosts yet. */
	bool named = getaddrinfo("localhost", NULL, NULL, &found) == 0;

	(void)state;
	if (named)
		freeaddrinfo(found);
	for (unsigned i = 0; i < t.nr; i++) {
		t.w[i]->key = &user_key;
		snprintf(t.w[i]->address, sizeof(t.w[i]->address), "%s:%d",
			 named ? "localhost" : "127.0.0.1", t.port);
	}
	team_run(&t);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__longest_names_and_addresses(void **state)
{
	struct team t = team_new(3, 3, NULL);

	(void)state;
	for (unsigned i = 0; i < t.nr; i++) {
		memset(t.w[i]->me.name, 'a' + (int)i, RREF_NAME_MAX);
		for (int k = 0; k < RV_NR_KINDS; k++) {
			t.w[i]->me.addr[k].len = RV_ADDR_MAX;
			memset(t.w[i]->me.addr[k].bytes, 0xff - k, RV_ADDR_MAX);
		}
	}
	team_run(&t);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__over_ipv6(void **state)
{
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0),
	    bound = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&in6, sizeof(in6));
	struct team t;

	(void)state;
	if (fd >= 0)
		close(fd);
	if (bound < 0) {
		print_message("skipped: this machine has no IPv6\n");
		skip();
	}
	t = team_new(2, 2, NULL);
	for (unsigned i = 0; i < t.nr; i++)
		snprintf(t.w[i]->address, sizeof(t.w[i]->address), "[::1]:%d", t.port);
	t.w[0]->key = t.w[1]->key = &user_key;
	team_run(&t);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__rank_0_may_listen_at_any_address_with_a_group_key(void **state)
{
	struct team t = team_new(2, 2, NULL);

	(void)state;
	snprintf(t.w[0]->address, sizeof(t.w[0]->address), "0.0.0.0:%d", t.port);
	team_run(&t);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__rank_0_starts_late(void **state)
{
	struct team t = team_new(4, 4, NULL);

	(void)state;
	for (unsigned i = 1; i < t.nr; i++)
		worker_start(t.w[i]);
	for (unsigned i = 1; i < t.nr; i++)
		worker_await_log(t.w[i], "not there yet");
	poll(NULL, 0, 1000);
	worker_start(t.w[0]);
	for (unsigned i = 0; i < t.nr; i++)
		worker_join(t.w[i]);
	assert_same_table(&t);
	team_free(&t);
}

/* Runs real processes: each checks its own table. */
static void rendezvous__sixty_four_processes_meet(void **state)
{
	int port = free_port(), failed = 0;

	(void)state;
	for (uint32_t rank = 0; rank < NR_PROCESSES; rank++) {
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0) {
			static struct rc_member members[NR_PROCESSES];
			struct rc_member me, want;
			char address[64];
			int bad = 0;

			member_init(&me, rank);
			snprintf(address, sizeof(address), "127.0.0.1:%d", port);
			if (rc_rendezvous(address, NR_PROCESSES, &me, &group_key,
					  now_ns() + LONG_MS * NSEC_PER_MSEC, NULL, members)) {
				fprintf(stderr, "rank %u: %s\n", rank, rc_error_text());
				_exit(1);
			}
			for (uint32_t i = 0; i < NR_PROCESSES; i++) {
				member_init(&want, i);
				bad |= members[i].rank != i ||
				       strcmp(members[i].name, want.name) != 0 ||
				       memcmp(members[i].addr, want.addr, sizeof(want.addr)) != 0 ||
				       memcmp(members[i].public, want.public,
					      sizeof(want.public)) != 0;
			}
			_exit(bad);
		}
	}
	for (int i = 0; i < NR_PROCESSES; i++) {
		int status;

		assert_true(wait(&status) > 0);
		failed += status != 0;
	}
	assert_int_equal(failed, 0);
}

static void on_alarm(int signal)
{
	(void)signal;
}

/* Sends timer signals to any thread, without SA_RESTART. */
static void rendezvous__signals_change_nothing(void **state)
{
	struct sigaction act = { .sa_handler = on_alarm }, old;
	struct itimerval storm = { { 0, 500 }, { 0, 500 } }, calm = { { 0, 0 }, { 0, 0 } };
	struct team t = team_new(6, 6, NULL);

	(void)state;
	assert_int_equal(sigaction(SIGALRM, &act, &old), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &storm, NULL), 0);
	for (unsigned i = 1; i < t.nr; i++)
		worker_start(t.w[i]);
	poll(NULL, 0, 300);
	worker_start(t.w[0]);
	for (unsigned i = 0; i < t.nr; i++)
		worker_join(t.w[i]);
	setitimer(ITIMER_REAL, &calm, NULL);
	sigaction(SIGALRM, &old, NULL);
	assert_same_table(&t);
	team_free(&t);
}

static void rendezvous__missing_workers_are_named_to_all(void **state)
{
	struct team t = team_new(4, 2, (const uint32_t[]){ 0, 2 });

	(void)state;
	t.w[0]->timeout_ms = 2000;
	team_run(&t);
	for (unsigned i = 0; i < t.nr; i++) {
		assert_int_equal(t.w[i]->result, -ETIMEDOUT);
		assert_text(t.w[i], "2 of 4 workers came; missing ranks 1, 3");
		assert_text(t.w[i], t.w[0]->address);
	}
	team_free(&t);
}

/* Lets a worker's own time end before rank 0's: the worker knows as much. */
static void rendezvous__impatient_worker_knows_the_missing_ranks(void **state)
{
	struct team t = team_new(3, 2, NULL);

	(void)state;
	t.w[0]->timeout_ms = 4000;
	t.w[1]->timeout_ms = 2000;
	team_run(&t);
	assert_int_equal(t.w[1]->result, -ETIMEDOUT);
	assert_text(t.w[1], "2 of 3 workers came; missing rank 2");
	assert_int_equal(t.w[0]->result, -ETIMEDOUT);
	assert_text(t.w[0], "2 of 3 workers came; missing rank 2; left again: rank 1");
	team_free(&t);
}

static void rendezvous__no_listener(void **state)
{
	struct worker *w = worker_new(free_port(), 1, 2);

	(void)state;
	w->timeout_ms = 300;
	worker_run(w);
	assert_int_equal(w->result, -ECONNREFUSED);
	assert_text(w, w->address);
	assert_text(w, "tries in");
	assert_text(w, "refused");
	worker_free(w);
}

static void rendezvous__deadline_in_the_past(void **state)
{
	struct worker *w = worker_new(free_port(), 1, 2), *zero = worker_new(free_port(), 0, 2);

	(void)state;
	w->timeout_ms = zero->timeout_ms = -1000;
	worker_run(w);
	assert_true(w->result == -ECONNREFUSED || w->result == -ETIMEDOUT);
	worker_run(zero);
	assert_int_equal(zero->result, -ETIMEDOUT);
	assert_text(zero, "1 of 2 workers came; missing rank 1");
	worker_free(w);
	worker_free(zero);
}

static void rendezvous__wrong_key_is_refused_and_the_group_goes_on(void **state)
{
	struct team t = team_new(3, 3, NULL);
	struct worker *bad = worker_new(t.port, 1, 3), *none = worker_new(t.port, 2, 3);

	(void)state;
	bad->key = &other_key;
	none->key = &user_key;
	worker_start(t.w[0]);
	worker_start(bad);
	worker_start(none);
	assert_int_equal(worker_join(bad), -EKEYREJECTED);
	assert_text(bad, "another key file");
	assert_int_equal(worker_join(none), -EKEYREJECTED);
	assert_text(none, "no key file");
	worker_start(t.w[1]);
	worker_start(t.w[2]);
	for (unsigned i = 0; i < t.nr; i++)
		worker_join(t.w[i]);
	assert_same_table(&t);
	assert_true(worker_logged(t.w[0], "refused connection 2"));
	worker_free(bad);
	worker_free(none);
	team_free(&t);
}

static void rendezvous__wrong_key_is_named_when_time_is_up(void **state)
{
	struct team t = team_new(2, 2, NULL);

	(void)state;
	t.w[0]->timeout_ms = 2500;
	t.w[1]->key = &other_key;
	team_run(&t);
	assert_int_equal(t.w[1]->result, -EKEYREJECTED);
	assert_int_equal(t.w[0]->result, -ETIMEDOUT);
	assert_text(t.w[0], "1 connection was refused, the last: ");
	assert_text(t.w[0], "rank 1 has another key file");
	team_free(&t);
}

static void assert_all_failed(const struct team *t, int result, const char *part)
{
	for (unsigned i = 0; i < t->nr; i++) {
		assert_int_equal(t->w[i]->result, result);
		assert_text(t->w[i], part);
	}
}

static void rendezvous__rank_twice_fails_all(void **state)
{
	struct team t = team_new(4, 4, (const uint32_t[]){ 0, 1, 2, 2 });

	(void)state;
	snprintf(t.w[3]->me.name, NAME_SIZE, "other");
	team_run(&t);
	assert_all_failed(&t, -EEXIST, "rank 2 is there twice");
	assert_all_failed(&t, -EEXIST, "\"other\"");
	assert_all_failed(&t, -EEXIST, "\"w:2\"");
	team_free(&t);
}

static void rendezvous__name_twice_fails_all(void **state)
{
	struct team t = team_new(5, 5, NULL);

	(void)state;
	snprintf(t.w[1]->me.name, NAME_SIZE, "same");
	snprintf(t.w[4]->me.name, NAME_SIZE, "same");
	team_run(&t);
	assert_all_failed(&t, -EEXIST, "the name \"same\" is there twice");
	assert_all_failed(&t, -EEXIST, "rank 1");
	assert_all_failed(&t, -EEXIST, "rank 4");
	team_free(&t);
}

static void rendezvous__name_of_rank_0_twice_fails_all(void **state)
{
	struct team t = team_new(2, 2, NULL);

	(void)state;
	snprintf(t.w[1]->me.name, NAME_SIZE, "%s", t.w[0]->me.name);
	team_run(&t);
	assert_all_failed(&t, -EEXIST, "the name \"w:0\" is there twice");
	team_free(&t);
}

/* Sends the second of two workers with one rank when all others
 * have come: rank 0 waits for no more. */
static void rendezvous__rank_twice_with_others_still_missing(void **state)
{
	struct team t = team_new(6, 3, (const uint32_t[]){ 0, 4, 4 });

	(void)state;
	snprintf(t.w[2]->me.name, NAME_SIZE, "other");
	team_run(&t);
	assert_all_failed(&t, -EEXIST, "rank 4 is there twice");
	team_free(&t);
}

static void rendezvous__other_world_size_fails_all(void **state)
{
	struct team t = team_new(3, 3, NULL);

	(void)state;
	t.w[2]->world = 5;
	free(t.w[2]->members);
	t.w[2]->members = calloc(5, sizeof(*t.w[2]->members));
	team_run(&t);
	assert_all_failed(&t, -EINVAL, "world size 5");
	assert_all_failed(&t, -EINVAL, "rank 0 with 3");
	assert_all_failed(&t, -EINVAL, "rank 2");
	team_free(&t);
}

static void rendezvous__rank_past_the_world_fails_all(void **state)
{
	struct team t = team_new(2, 2, NULL);

	(void)state;
	t.w[1]->world = 9;
	t.w[1]->me.rank = 8;
	free(t.w[1]->members);
	t.w[1]->members = calloc(9, sizeof(*t.w[1]->members));
	team_run(&t);
	assert_all_failed(&t, -EINVAL, "world size 9");
	team_free(&t);
}

/* Kills a process that has joined; another one takes its rank and its name. */
static void rendezvous__killed_worker_frees_its_place(void **state)
{
	struct team t = team_new(3, 3, NULL);
	pid_t pid = fork();
	int status;

	(void)state;
	assert_true(pid >= 0);
	if (pid == 0) {
		/* Else a failing parent would leave this process. */
		alarm(LONG_MS / 1000);
		worker_run(t.w[2]);
		_exit(0);
	}
	worker_start(t.w[0]);
	worker_await_log(t.w[0], "rank 2 \"w:2\"");
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	t.w[2]->me.incarnation++;
	worker_start(t.w[2]);
	worker_start(t.w[1]);
	for (unsigned i = 0; i < t.nr; i++)
		worker_join(t.w[i]);
	assert_same_table(&t);
	assert_true(worker_logged(t.w[0], "rank 2"));
	team_free(&t);
}

static void rendezvous__killed_rank_0_is_noticed(void **state)
{
	struct team t = team_new(3, 2, NULL);
	int told[2], status;
	char byte;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(told), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		alarm(LONG_MS / 1000);
		close(told[0]);
		worker_start(t.w[0]);
		worker_await_log(t.w[0], "rank 1 \"w:1\"");
		(void)!write(told[1], "x", 1);
		pause();
		_exit(0);
	}
	close(told[1]);
	t.w[1]->timeout_ms = 3000; /* rank 0 might be started again */
	worker_start(t.w[1]);
	assert_int_equal(read(told[0], &byte, 1), 1);
	/* The place is given; a moment for the message to reach it. */
	poll(NULL, 0, 300);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(worker_join(t.w[1]), -ECONNREFUSED);
	assert_text(t.w[1], "lost rank 0");
	close(told[0]);
	team_free(&t);
}

static void rendezvous__address_in_use(void **state)
{
	struct worker *w = worker_new(free_port(), 0, 2);
	int fd = stranger_listen(atoi(strchr(w->address, ':') + 1));

	(void)state;
	worker_run(w);
	assert_int_equal(w->result, -EADDRINUSE);
	assert_text(w, w->address);
	close(fd);
	worker_free(w);
}

static void rendezvous__not_an_address_of_this_host(void **state)
{
	struct worker *w = worker_new(free_port(), 0, 2);
	bool may_listen;

	(void)state;
	snprintf(w->address, sizeof(w->address), "192.0.2.1:1234");
	w->timeout_ms = 500;
	worker_run(w);
	may_listen = w->result == -ETIMEDOUT;
	if (!may_listen) {
		assert_int_equal(w->result, -EADDRNOTAVAIL);
		assert_text(w, "192.0.2.1");
	}
	worker_free(w);
	if (may_listen) {
		print_message("skipped: this machine lets programs listen at foreign addresses\n");
		skip();
	}
}

static void rendezvous__other_address_than_loopback_needs_a_key(void **state)
{
	static const char *const addresses[] = { "0.0.0.0:1234", "192.0.2.1:1234", "[::]:1234",
						 "[2001:db8::1]:1234", "[::ffff:192.0.2.1]:1234" };

	(void)state;
	for (size_t i = 0; i < array_size(addresses); i++)
		for (uint32_t rank = 0; rank < 2; rank++) {
			struct worker *w = worker_new(1, rank, 2);

			snprintf(w->address, sizeof(w->address), "%s", addresses[i]);
			w->key = &user_key;
			worker_run(w);
			assert_int_equal(w->result, -EACCES);
			assert_text(w, "RREF_KEY_FILE");
			assert_text(w, addresses[i]);
			worker_free(w);
		}
}

static void rendezvous__bad_addresses(void **state)
{
	static const char *const bad[] = {
		"", ":", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:+1",
		"host: 1", "host:1 ", "host:http",
		"host:99999999999999999999", "::1:80", "[::1]", "[::1]:", "[::1]80", "[::1:80",
		"[]:80", "[::1]:0", "host:1:2",
		"\x1b[31m:1x", "%s%n:y",
	};
	char longest[400];

	(void)state;
	for (size_t i = 0; i < array_size(bad); i++)
		for (uint32_t rank = 0; rank < 2; rank++) {
			struct worker *w = worker_new(1, rank, 2);

			snprintf(w->address, sizeof(w->address), "%s", bad[i]);
			worker_run(w);
			assert_int_equal(w->result, -EINVAL);
			assert_text(w, "rendezvous");
			worker_free(w);
		}
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct worker *w = worker_new(1, rank, 2);

		assert_int_equal(rc_rendezvous(NULL, 2, &w->me, w->key, now_ns(), NULL, w->members),
				 -EINVAL);
		memset(longest, 'h', sizeof(longest));
		memcpy(longest + sizeof(longest) - 3, ":1", 3);
		assert_int_equal(rc_rendezvous(longest, 2, &w->me, w->key, now_ns(), NULL,
					       w->members),
				 -EINVAL);
		worker_free(w);
	}
}

static void rendezvous__unknown_host(void **state)
{
	struct worker *w = worker_new(1, 1, 2);

	(void)state;
	/* The name may become known. */
	snprintf(w->address, sizeof(w->address), "nosuchhost.invalid:1");
	w->timeout_ms = 500;
	worker_run(w);
	assert_int_equal(w->result, -ETIMEDOUT);
	assert_text(w, "cannot resolve");
	assert_text(w, "nosuchhost.invalid:1");
	worker_free(w);
}

static void rendezvous__bad_own_entry(void **state)
{
	struct worker *w = worker_new(1, 0, 2);

	(void)state;
	w->me.rank = 2;
	worker_run(w);
	assert_int_equal(w->result, -EINVAL);
	w->me.rank = 0;
	snprintf(w->me.name, NAME_SIZE, "a b");
	worker_run(w);
	assert_int_equal(w->result, -EINVAL);
	snprintf(w->me.name, NAME_SIZE, "ok");
	w->me.addr[0].len = RV_ADDR_MAX + 1;
	worker_run(w);
	assert_int_equal(w->result, -EINVAL);
	w->me.addr[0].len = 0;
	w->world = 0;
	worker_run(w);
	assert_int_equal(w->result, -EINVAL);
	w->world = RZ_WORLD_MAX + 1;
	worker_run(w);
	assert_int_equal(w->result, -EINVAL);
	worker_free(w);
}

static void ranks__are_listed_as_ranges_and_bounded(void **state)
{
	struct rz_presence p;
	char text[160];

	(void)state;
	memset(&p, 0, sizeof(p));
	assert_int_equal(rz_ranks_text(&p, 1024, false, text, sizeof(text)), 1024);
	assert_string_equal(text, "0-1023");
	assert_int_equal(rz_ranks_text(&p, 1024, true, text, sizeof(text)), 0);
	assert_string_equal(text, "");
	p.bits[0] = 0x35; /* 0, 2, 4, 5 */
	assert_int_equal(rz_ranks_text(&p, 8, true, text, sizeof(text)), 4);
	assert_string_equal(text, "0, 2, 4, 5");
	assert_int_equal(rz_ranks_text(&p, 8, false, text, sizeof(text)), 4);
	assert_string_equal(text, "1, 3, 6, 7");
	memset(&p, 0x55, sizeof(p));
	assert_int_equal(rz_ranks_text(&p, 1024, true, text, sizeof(text)), 512);
	assert_string_equal(text,
			    "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30 and 496 "
			    "more");
	for (size_t size = 1; size < 20; size++) {
		memset(text, 'z', sizeof(text));
		rz_ranks_text(&p, 1024, true, text, size);
		assert_true(strlen(text) < size);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(ranks__are_listed_as_ranges_and_bounded),
		COUNTED(rendezvous__address_in_use),
		COUNTED(rendezvous__bad_addresses),
		COUNTED(rendezvous__bad_own_entry),
		COUNTED(rendezvous__deadline_in_the_past),
		COUNTED(rendezvous__four_meet),
		COUNTED(rendezvous__four_meet_with_the_users_key),
		COUNTED(rendezvous__group_of_one_needs_no_address),
		COUNTED(rendezvous__impatient_worker_knows_the_missing_ranks),
		COUNTED(rendezvous__killed_rank_0_is_noticed),
		COUNTED(rendezvous__killed_worker_frees_its_place),
		COUNTED(rendezvous__longest_names_and_addresses),
		COUNTED(rendezvous__missing_workers_are_named_to_all),
		COUNTED(rendezvous__name_of_rank_0_twice_fails_all),
		COUNTED(rendezvous__name_twice_fails_all),
		COUNTED(rendezvous__no_listener),
		COUNTED(rendezvous__not_an_address_of_this_host),
		COUNTED(rendezvous__other_address_than_loopback_needs_a_key),
		COUNTED(rendezvous__other_world_size_fails_all),
		COUNTED(rendezvous__over_ipv6),
		COUNTED(rendezvous__rank_0_may_listen_at_any_address_with_a_group_key),
		COUNTED(rendezvous__rank_0_starts_late),
		COUNTED(rendezvous__rank_past_the_world_fails_all),
		COUNTED(rendezvous__rank_twice_fails_all),
		COUNTED(rendezvous__rank_twice_with_others_still_missing),
		COUNTED(rendezvous__signals_change_nothing),
		COUNTED(rendezvous__sixty_four_processes_meet),
		COUNTED(rendezvous__unknown_host),
		COUNTED(rendezvous__wrong_key_is_named_when_time_is_up),
		COUNTED(rendezvous__wrong_key_is_refused_and_the_group_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
