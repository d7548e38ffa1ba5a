/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of the demo, and the conditions that must hold after each.
 * The launcher alone gives the verdict. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "show.h"
#include "team.h"

#define SLOW (10 * DEMO_SEC) /* time for all users to read the file once */

enum { STOPPED = DEMO_NR_WAYS, NR_RATES };

static const char *const way_texts[DEMO_NR_WAYS] = {
	"sync: chunks one by one, rref_to_here",
	"async: rref_to_here_async, rref_wait_all",
	"batch: rref_to_here_batch",
	"whole: one reference, rref_to_here",
};

static const struct demo_job *job;
static unsigned nr_checks;
static struct demo_report reports[1 + DEMO_USERS_MAX];
static struct {
	double mb_per_s[NR_RATES];
	int64_t p50_ns, p99_ns, stopped_p50_ns;
} results[1 + DEMO_USERS_MAX];

/* Counts once per place: the number of runs depends on the machine's speed. */
#define check(cond, ...) \
	do { \
		static bool counted; \
\
		if (!(cond)) \
			team_fail(__VA_ARGS__); \
		nr_checks += !counted; \
		counted = true; \
	} while (0)

const char *demo_name(int rank)
{
	static const char *const names[1 + DEMO_USERS_MAX] = { "owner", "u1",  "u2",  "u3",  "u4",
							       "u5",	"u6",  "u7",  "u8",  "u9",
							       "u10",	"u11", "u12", "u13", "u14",
							       "u15",	"u16" };

	return names[rank];
}

/*
 * Reserves a free loopback port until the owner listens there, and returns our socket. The socket
 * is bound, so that the port is given to no other program. It does not listen, so that the owner
 * can bind the port too.
 */
static int reserve_port(char *rendezvous, size_t size)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(a);
	const int on = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&a, sizeof(a)) ||
	    getsockname(fd, (struct sockaddr *)&a, &length)) {
		show_failed(strerror(errno));
		exit(1);
	}
	snprintf(rendezvous, size, "127.0.0.1:%d", ntohs(a.sin_port));
	return fd;
}

static struct demo_report *tell(int rank, enum demo_op op, uint64_t expect, const char *what)
{
	const struct demo_command c = { .op = op };

	team_run(rank, rank + 1, &c, expect, what, &reports[rank]);
	return &reports[rank];
}

static void tell_users(const struct demo_command *c, uint64_t expect, const char *what)
{
	team_run(1, 1 + job->users, c, expect * (uint64_t)job->users, what, &reports[1]);
}

static void join(void)
{
	char pids[16 * (1 + DEMO_USERS_MAX)];
	size_t used = 0;

	show_step("join");
	team_start(job);
	team_run(0, 1 + job->users, NULL, 0, "", reports);
	for (int i = 0; i <= job->users; i++) {
		used += (size_t)snprintf(pids + used, sizeof(pids) - used, "%s%s %d", i ? ", " : "",
					 demo_name(i), (int)team_pid(i));
		check(strcmp(reports[i].device, reports[0].device) == 0,
		      "%s goes over %s, owner over %s", demo_name(i), reports[i].device,
		      reports[0].device);
	}
	show_done("%d processes (%s)", 1 + job->users,
		  job->users > 3 ? "1 owner, the others users" : pids);
	show_fact("device", "%s (asked for: %s)", reports[0].device, job->device);
}

static void publish_and_share(void)
{
	const uint32_t nr_refs = demo_nr_refs(job->file_bytes);
	struct demo_report *r;

	show_step("publish");
	r = tell(0, DEMO_PUBLISH, 2 * job->file_bytes,
		 "owner reads the file into registered memory");
	check(r->nr_refs == nr_refs, "owner published %u references", (unsigned)r->nr_refs);
	show_done("%u chunks, the whole, 8 bytes: in registered memory", nr_refs - 2);

	show_step("get");
	r = tell(1, DEMO_GET, 0, "");
	check(r->nr_refs == nr_refs, "u1 got %u references of %u", (unsigned)r->nr_refs, nr_refs);
	show_done("owner -> u1: %u references in %u calls", nr_refs, (unsigned)r->nr_calls);

	if (job->users > 1)
		show_step("share");
	for (int i = 1; i < job->users; i++) {
		r = tell(i, DEMO_SHARE, 0, "");
		check(r->nr_refs == nr_refs, "%s handed on %u references of %u", demo_name(i),
		      (unsigned)r->nr_refs, nr_refs);
		show_done("%s -> %s: %u references in %u calls, user to user", demo_name(i),
			  demo_name(i + 1), nr_refs, (unsigned)r->nr_calls);
	}
	r = tell(0, DEMO_STATS, 0, "");
	check(r->stats.owners == nr_refs, "the owner counts %llu values, not %u",
	      (unsigned long long)r->stats.owners, nr_refs);
	check(r->stats.forks == (uint64_t)nr_refs * (uint64_t)job->users,
	      "the owner counts %llu references of users, not %u x %d",
	      (unsigned long long)r->stats.forks, nr_refs, job->users);
}

/* Returns the owner's counters at rest, after the last messages about sharing have arrived. */
static struct demo_report owner_at_rest(void)
{
	int64_t end = demo_now() + 10 * DEMO_SEC;
	struct demo_report before, now = *tell(0, DEMO_STATS, 0, "");

	do {
		if (demo_now() > end)
			team_fail("the owner does not come to rest: it received %llu messages",
				  (unsigned long long)now.stats.messages_received);
		usleep(50000);
		before = now;
		now = *tell(0, DEMO_STATS, 0, "");
	} while (now.stats.messages_received != before.stats.messages_received ||
		 now.stats.messages_sent != before.stats.messages_sent);
	return now;
}

static void owner_took_no_part(const struct demo_report *before, const struct demo_report *after,
			       const char *when)
{
	const struct rref_stats *a = &before->stats, *b = &after->stats;

	check(b->calls_served == a->calls_served, "%s the owner served %llu calls", when,
	      (unsigned long long)(b->calls_served - a->calls_served));
	check(b->messages_received == a->messages_received, "%s the owner received %llu messages",
	      when, (unsigned long long)(b->messages_received - a->messages_received));
}

static void check_reads(int first, int end, int rate, const char *what)
{
	for (int i = first; i < end; i++) {
		const struct demo_report *r = &reports[i];

		check(r->bytes == job->file_bytes, "%s: %s read %llu bytes", what, demo_name(i),
		      (unsigned long long)r->bytes);
		check(memcmp(r->sha, job->sha, sizeof(job->sha)) == 0,
		      "%s: what %s read has SHA-256 %s (or did the file change?)", what,
		      demo_name(i), show_hex(r->sha, sizeof(r->sha)));
		results[i].mb_per_s[rate] = (double)r->bytes * 1e3 /
			(double)(r->read_ns > 0 ? r->read_ns : 1);
	}
}

static void check_small(const char *what)
{
	for (int i = 1; i <= job->users; i++)
		check(memcmp(reports[i].small, job->sha, DEMO_SMALL_BYTES) == 0,
		      "%s: the small value that %s read is wrong", what, demo_name(i));
}

/* Lets users [first, end) read all in one way. They read one after the
 * other, so that each has the machine for itself. */
static void read_one_way(enum demo_way way, int first, int end)
{
	const struct demo_command c = { .op = DEMO_READ, .way = way };
	char text[256];

	for (int i = first; i < end; i++) {
		snprintf(text, sizeof(text), "%s, %s", way_texts[way], demo_name(i));
		team_run(i, i + 1, &c, job->file_bytes, text, &reports[i]);
	}
	check_reads(first, end, (int)way, way_texts[way]);
	if (end - first < job->users)
		show_done("%s, %s only: SHA-256 equal", way_texts[way], demo_name(first));
	else
		show_done("%s: SHA-256 equal", way_texts[way]);
}

static void read_in_turn(void)
{
	struct demo_report before = owner_at_rest(), after;
	int64_t begun = demo_now(), reading;
	bool slow;

	show_step("read");
	read_one_way(DEMO_SYNC, 1, 1 + job->users);
	slow = job->users > 1 && demo_now() - begun > SLOW;
	if (slow)
		show_done("slow here: the other ways are read by one user each, in turn");
	for (int way = DEMO_SYNC + 1; way < DEMO_NR_WAYS; way++) {
		int one = 1 + (way - 1) % job->users;

		read_one_way((enum demo_way)way, slow ? one : 1, slow ? one + 1 : 1 + job->users);
	}
	for (int i = 1; i <= job->users; i++) {
		tell(i, DEMO_SMALL, 0, "small: 8 bytes, again and again");
		results[i].p50_ns = reports[i].p50_ns;
		results[i].p99_ns = reports[i].p99_ns;
	}
	check_small("small");
	show_done("small: 8 bytes, %llu times each, all equal",
		  (unsigned long long)reports[1].nr_reads);

	reading = demo_now() - begun;
	show_step("owner");
	after = *tell(0, DEMO_STATS, 0, "");
	owner_took_no_part(&before, &after, "while users read");
	show_done("took no part: 0 calls, 0 messages; ran for %s of %s",
		  show_time(after.cpu_ns - before.cpu_ns), show_time(reading));
}

/* Lets all users read at once while the owner's process is stopped. */
static void read_from_stopped(void)
{
	const struct demo_command all = { .op = DEMO_READ, .way = DEMO_SYNC },
				  small = { .op = DEMO_SMALL };
	struct demo_report before = owner_at_rest(), after;

	show_step("stop");
	team_stop(0);
	check(team_is_stopped(0), "the owner is not stopped");
	show_done("owner stopped by SIGSTOP: state T in /proc/%d/stat", (int)team_pid(0));

	show_step("read");
	tell_users(&all, job->file_bytes, "all users at once, owner stopped");
	check(team_is_stopped(0), "the owner did not stay stopped while users read");
	check_reads(1, 1 + job->users, STOPPED, "owner stopped");
	show_done("all users at once, owner stopped: SHA-256 equal");
	tell_users(&small, 0, "small: 8 bytes, owner stopped");
	check(team_is_stopped(0), "the owner did not stay stopped while users read");
	for (int i = 1; i <= job->users; i++)
		results[i].stopped_p50_ns = reports[i].p50_ns;
	check_small("small, owner stopped");
	show_done("small: 8 bytes, %llu times each, owner stopped",
		  (unsigned long long)reports[1].nr_reads);

	show_step("continue");
	team_continue(0);
	after = *tell(0, DEMO_STATS, 0, "");
	owner_took_no_part(&before, &after, "while it was stopped");
	show_done("owner continued: SIGCONT; nothing had waited for it");
}

static void release_and_leave(void)
{
	const struct demo_command release = { .op = DEMO_RELEASE }, leave = { .op = DEMO_LEAVE };
	const struct rref_stats *s;

	show_step("release");
	tell_users(&release, 0, "users");
	for (int i = 1; i <= job->users; i++)
		check(reports[i].stats.users == 0 &&
			      reports[i].nr_refs == demo_nr_refs(job->file_bytes),
		      "%s kept references", demo_name(i));
	show_done("users released all: each holds 0 references");
	s = &tell(0, DEMO_RELEASE, 0, "owner")->stats;
	check(s->owners == 0 && s->forks == 0 && s->value_bytes == 0,
	      "the owner still counts %llu values, %llu references of users, %llu bytes",
	      (unsigned long long)s->owners,
	      (unsigned long long)s->forks, (unsigned long long)s->value_bytes);
	show_done("owner released all: 0 values, 0 forks, 0 bytes");

	show_step("leave");
	team_run(0, 1 + job->users, &leave, 0, "", reports);
	nr_checks++; /* a leak is a failed shutdown */
	team_finish();
	show_done("all left gracefully, no leak, all processes ended");
}

static void show_results(void)
{
	static const char *const rates[] = { "sync", "async", "batch", "whole", "stopped" };
	static const char *const delays[] = { "p50", "p99", "stopped" };
	char title[64], small[64];
	const struct show_group groups[] = {
		{ title, sizeof(rates) / sizeof(rates[0]), rates },
		{ small, sizeof(delays) / sizeof(delays[0]), delays },
	};

	snprintf(title, sizeof(title), "%s, MB/s", show_bytes(job->file_bytes));
	snprintf(small, sizeof(small), "8 bytes, %s", show_us());
	putchar('\n');
	show_table_top(reports[0].device, groups, 2);
	for (int i = 1; i <= job->users; i++) {
		const int64_t ns[] = { results[i].p50_ns, results[i].p99_ns,
				       results[i].stopped_p50_ns };
		char text[NR_RATES + 3][16];
		const char *cells[NR_RATES + 3];

		for (int k = 0; k < NR_RATES; k++) {
			double rate = results[i].mb_per_s[k];

			snprintf(text[k], sizeof(text[k]), rate > 0 ? "%.*f" : "-",
				 rate < 99.95 ? 1 : 0, rate);
		}
		for (int k = 0; k < 3; k++)
			snprintf(text[NR_RATES + k], sizeof(text[0]), "%.*f",
				 ns[k] < 999950 ? 2 : 0, (double)ns[k] / 1e3);
		for (int k = 0; k < NR_RATES + 3; k++)
			cells[k] = text[k];
		show_table_row(demo_name(i), cells);
	}
	show_table_end();
	printf("  stopped: all users at once, the owner stopped (8 bytes: p50); others: one user\n"
	       "  at a time. Without hashing; the better of two where reading takes under 1 "
	       "s.\n\n");
}

int demo_launch(struct demo_job *the_job)
{
	int64_t begun = demo_now();
	int fd = reserve_port(the_job->rendezvous, sizeof(the_job->rendezvous));

	job = the_job;
	show_fact("file", "%s", job->path);
	show_fact("size", "%s in %u chunks of up to 1 MiB", show_bytes(job->file_bytes),
		  demo_nr_chunks(job->file_bytes));
	show_fact("SHA-256", "%s", show_hex(job->sha, sizeof(job->sha)));
	show_fact("rendezvous", "%s", job->rendezvous);
	putchar('\n');
	join();
	close(fd);
	publish_and_share();
	read_in_turn();
	read_from_stopped();
	release_and_leave();
	show_results();
	show_passed(nr_checks, demo_now() - begun);
	return 0;
}
