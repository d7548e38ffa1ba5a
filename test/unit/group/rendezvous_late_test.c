/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A rendezvous whose surroundings come late or change: names that are not known yet, addresses that
 * are missing at first, a rank 0 that is killed and started again. Each wait is logged; lasting
 * errors are refused at once. The test has its own resolver.
 */
#include "rendezvous_test.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

#define NAME "rank0.job.test"

/* The resolver's answers for NAME. */
static struct {
	atomic_int left; /* looks left that give the first answer */
	atomic_int looks;
	int code, error;   /* the first answer: an EAI_ code and an errno, ... */
	const char *first; /* ... or an address */
} names;

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
		struct addrinfo **out)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (!host || strcmp(host, NAME) != 0)
		return real(host, service, hints, out);
	atomic_fetch_add(&names.looks, 1);
	if (atomic_load(&names.left) <= 0)
		return real("127.0.0.1", service, hints, out);
	atomic_fetch_sub(&names.left, 1);
	if (names.first)
		return real(names.first, service, hints, out);
	errno = names.error;
	return names.code;
}

static void expect_names(int left, int code, int error, const char *first)
{
	atomic_store(&names.left, left);
	atomic_store(&names.looks, 0);
	names.code = code;
	names.error = error;
	names.first = first;
}

static void pair_new(struct worker **w, int port)
{
	for (uint32_t i = 0; i < 2; i++) {
		w[i] = worker_new(port, i, 2);
		snprintf(w[i]->address, sizeof(w[i]->address), "%s:%d", NAME, port);
	}
}

static void pair_meets(struct worker **w)
{
	for (int i = 0; i < 2; i++)
		worker_start(w[i]);
	for (int i = 0; i < 2; i++) {
		worker_join(w[i]);
		assert_joined(w[i]);
	}
}

static void pair_free(struct worker **w)
{
	worker_free(w[0]);
	worker_free(w[1]);
}

static void late__a_name(void **state)
{
	static const struct {
		int code, error;
	} answers[] = { { EAI_NONAME, 0 },	     { EAI_AGAIN, 0 },
			{ EAI_NODATA, 0 },	     { EAI_FAIL, 0 },
			{ EAI_ADDRFAMILY, 0 },	     { EAI_SYSTEM, ENETDOWN },
			{ EAI_SYSTEM, ECONNREFUSED } };
	struct worker *w[2];

	(void)state;
	for (size_t i = 0; i < array_size(answers); i++) {
		pair_new(w, free_port());
		expect_names(8, answers[i].code, answers[i].error, NULL);
		pair_meets(w);
		for (int k = 0; k < 2; k++)
			assert_true(worker_logged(w[k], "cannot resolve the host yet"));
		pair_free(w);
	}
}

static void late__a_name_that_never_comes(void **state)
{
	(void)state;
	for (uint32_t rank = 0; rank < 2; rank++) {
		struct worker *w = worker_new(1, rank, 2);

		snprintf(w->address, sizeof(w->address), "%s:1", NAME);
		w->timeout_ms = 1200;
		expect_names(1000, EAI_NONAME, 0, NULL);
		worker_run(w);
		assert_int_equal(w->result, -ETIMEDOUT);
		assert_text(w, "cannot resolve the host");
		assert_text(w, NAME);
		assert_true(atomic_load(&names.looks) > 3);
		worker_free(w);
	}
}

static void at_once__lasting_errors(void **state)
{
	static const struct {
		int code, error, result;
	} answers[] = { { EAI_MEMORY, 0, -ENOMEM },
			{ EAI_SYSTEM, EMFILE, -EMFILE },
			{ EAI_SERVICE, 0, -EINVAL } };

	(void)state;
	for (size_t i = 0; i < array_size(answers); i++) {
		struct worker *w = worker_new(1, i % 2, 2);

		snprintf(w->address, sizeof(w->address), "%s:1", NAME);
		expect_names(1000, answers[i].code, answers[i].error, NULL);
		worker_run(w);
		assert_int_equal(w->result, answers[i].result);
		assert_int_equal(atomic_load(&names.looks), 1);
		worker_free(w);
	}
}

/* Listens at an address of 192.0.2.0/24, which no host has. The second look finds this host. */
static void late__the_listeners_address(void **state)
{
	struct worker *w[2];

	(void)state;
	pair_new(w, free_port());
	expect_names(3, 0, 0, "192.0.2.1");
	worker_start(w[0]);
	worker_await_log(w[0], "it is no address of this host; trying again");
	worker_start(w[1]);
	for (int i = 0; i < 2; i++) {
		worker_join(w[i]);
		assert_joined(w[i]);
	}
	pair_free(w);
}

/* Resolves to an address without a listener first, and to another one later. */
static void late__another_address_of_the_name(void **state)
{
	struct worker *w[2];

	(void)state;
	pair_new(w, free_port());
	expect_names(1, 0, 0, "127.0.0.2");
	worker_start(w[1]);
	worker_await_log(w[1], "not there yet");
	worker_start(w[0]);
	for (int i = 0; i < 2; i++) {
		worker_join(w[i]);
		assert_joined(w[i]);
	}
	pair_free(w);
}

/* Checks the lines about a wait: soon, far fewer than tries, and each thing in one line. */
static void late__is_told_at_growing_intervals(void **state)
{
	struct worker *w = worker_new(free_port(), 1, 2);
	unsigned lines = 0, all = 0;

	(void)state;
	w->timeout_ms = 4000;
	worker_run(w);
	assert_int_equal(w->result, -ECONNREFUSED);
	assert_text(w, "A group that has started is closed");
	for (const char *p = w->lines; (p = strstr(p, "not there yet")); p++)
		lines++;
	assert_in_range(lines, 2, 5);
	for (const char *p = w->lines; (p = strchr(p, '\n')); p++)
		all++;
	assert_int_equal(all, lines);
	worker_free(w);
}

/* Kills rank 0 when two other workers have their places. All of them
 * meet with the rank 0 that is started again. */
static void restarted__rank_0_before_the_group_is_complete(void **state)
{
	int port = free_port(), told[2], status;
	struct worker *w[4];
	char byte;
	pid_t pid;

	(void)state;
	for (uint32_t i = 0; i < 4; i++)
		w[i] = worker_new(port, i, 4);
	assert_int_equal(pipe(told), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		alarm(LONG_MS / 1000);
		close(told[0]);
		worker_start(w[0]);
		worker_await_log(w[0], "rank 1 \"w:1\"");
		worker_await_log(w[0], "rank 2 \"w:2\"");
		(void)!write(told[1], "x", 1);
		pause();
		_exit(0);
	}
	close(told[1]);
	worker_start(w[1]);
	worker_start(w[2]);
	assert_int_equal(read(told[0], &byte, 1), 1);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	for (int i = 1; i < 3; i++)
		worker_await_log(w[i], "joining again when it is back");
	rc_random(&w[0]->me.incarnation, sizeof(w[0]->me.incarnation));
	worker_start(w[0]);
	worker_start(w[3]);
	for (int i = 0; i < 4; i++) {
		worker_join(w[i]);
		assert_joined(w[i]);
		assert_true(w[i]->members[0].incarnation == w[0]->me.incarnation);
	}
	for (int i = 0; i < 4; i++)
		worker_free(w[i]);
	close(told[0]);
}

/* ---- valid addresses ---- */

static void address__valid(void **state)
{
	static const struct {
		const char *text, *host, *port;
		bool is_number;
	} good[] = {
		{ "host:29500", "host", "29500", false },
		{ "job-0.job.ns.svc.cluster.local.:1", "job-0.job.ns.svc.cluster.local.", "1",
		  false },
		{ "my_host:00080", "my_host", "80", false },
		{ "10.0.0.1:65535", "10.0.0.1", "65535", true },
		{ "[::1]:80", "::1", "80", true },
		{ "[::]:80", "::", "80", true },
		{ "[fe80::1%eth0]:80", "fe80::1%eth0", "80", true },
		{ "[::ffff:10.0.0.1]:80", "10.0.0.1", "80", true },
		{ "[::FFFF:7f00:1]:80", "127.0.0.1", "80", true },
	};
	struct rz_address a;

	(void)state;
	for (size_t i = 0; i < array_size(good); i++) {
		assert_int_equal(rz_address_parse(good[i].text, &a), 0);
		assert_string_equal(a.host, good[i].host);
		assert_string_equal(a.port, good[i].port);
		assert_int_equal(a.is_number, good[i].is_number);
	}
}

static void address__invalid(void **state)
{
	static const struct {
		const char *text, *words;
	} bad[] = {
		{ "tcp://host:80", "no URL; it must be host:port" },
		{ "http://10.0.0.1:80/", "no URL; it must be host:port" },
		{ "host:80/", "the port must be a number" },
		{ "host:0", "1 to 65535" },
		{ "host:65536", "1 to 65535" },
		{ "host", "no port" },
		{ "ho st:80", "a space" },
		{ " host:80", "a space" },
		{ "host:80\n", "the end of a line" },
		{ "::ffff:10.0.0.1:80", "must stand in brackets" },
		{ "fe80::1%eth0:80", "must stand in brackets" },
		{ "256.0.0.1:80", "four numbers" },
		{ "10.0.1:80", "four numbers" },
		{ "10.0.0.0.1:80", "four numbers" },
		{ "[10.0.0.1]:80", "no IPv6 address" },
		{ "[:::1]:80", "no IPv6 address" },
		{ "[host]:80", "no IPv6 address" },
		{ "[fe80::1]:80", "needs its network interface" },
		{ "[fe80::1%]:80", "network interface" },
		{ "[ff02::1]:80", "multicast" },
		{ "[ff02::1%eth0]:80", "multicast" },
		{ "224.0.0.1:80", "multicast" },
		{ "239.255.255.255:80", "multicast" },
		{ "255.255.255.255:80", "broadcast" },
		{ "[::ffff:224.0.0.1]:80", "multicast" },
		{ "[::1%lo]:80", "only a link-local address" },
		{ "[2001:db8::1%eth0]:80", "only a link-local address" },
		{ "[::ffff:10.0.0.1%eth0]:80", "only a link-local address" },
		{ "host..net:80", "each part" },
		{ ".host:80", "each part" },
		{ "a12345678901234567890123456789012345678901234567890123456789abcd.net:80",
		  "each part" },
		{ "h\xc3\xb6st:80", "letters, digits" },
		{ "*:80", "letters, digits" },
		{ "host%eth0:80", "letters, digits" },
	};
	struct rz_address a;

	(void)state;
	for (size_t i = 0; i < array_size(bad); i++) {
		assert_int_equal(rz_address_parse(bad[i].text, &a), -EINVAL);
		if (!strstr(rc_error_text(), bad[i].words))
			fail_msg("\"%s\": %s", bad[i].text, rc_error_text());
	}
}

/* Checks that both forms of one address are one place, for rank 0 and for the others. */
static void address__an_ipv4_address_in_disguise(void **state)
{
	(void)state;
	for (int which = 0; which < 2; which++) {
		int port = free_port();
		struct worker *w[2];

		pair_new(w, port);
		for (int i = 0; i < 2; i++)
			snprintf(w[i]->address, sizeof(w[i]->address),
				 i == which ? "[::ffff:127.0.0.1]:%d" : "127.0.0.1:%d", port);
		pair_meets(w);
		pair_free(w);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		COUNTED(address__an_ipv4_address_in_disguise),
		COUNTED(address__invalid),
		COUNTED(address__valid),
		COUNTED(at_once__lasting_errors),
		COUNTED(late__a_name),
		COUNTED(late__a_name_that_never_comes),
		COUNTED(late__another_address_of_the_name),
		COUNTED(late__is_told_at_growing_intervals),
		COUNTED(late__the_listeners_address),
		COUNTED(restarted__rank_0_before_the_group_is_complete),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("rendezvous_late", tests, NULL, NULL);
}
