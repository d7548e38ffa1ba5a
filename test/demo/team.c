/* SPDX-License-Identifier: Apache-2.0 */
/* Worker processes: start, command, stop, continue, end. All of them end with the launcher. */
#include "team.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "show.h"
#include "worker.h"

#define AFTERMATH (300 * DEMO_MSEC) /* time for messages of others that fail for the same reason */

static struct {
	const struct demo_job *job;
	int nr;
	struct {
		pid_t pid;              /* 0 = none, or reaped */
		int fd;                 /* -1 = closed */
		bool reported;          /* answered the present command */
		uint64_t bytes;
	} worker[1 + DEMO_USERS_MAX];
	bool failed;                    /* set: only failures of other workers count now */
	bool leaving;                   /* a worker may end after its report */
	int signals;                    /* signalfd: signals that would end the launcher */
} team = { .signals = -1 };

/* Waits for a worker's exit; returns true when it has come. No
 * other process can have its pid before. */
static bool reap(int rank, int64_t end, int *status)
{
	pid_t got;

	while ((got = waitpid(team.worker[rank].pid, status, WNOHANG)) == 0 && demo_now() < end)
		usleep(1000);
	if (got == 0 || (got < 0 && errno == EINTR))
		return false;
	team.worker[rank].pid = 0;
	return true;
}

/* Kills all workers: SIGKILL ends a stopped process too. */
static void end_all(void)
{
	int status;

	for (int i = 0; i < team.nr; i++)
		if (team.worker[i].pid)
			kill(team.worker[i].pid, SIGKILL);
	for (int i = 0; i < team.nr; i++)
		if (team.worker[i].pid)
			reap(i, demo_now() + 10 * DEMO_SEC, &status);
}

_Noreturn static void end_demo(const char *why, int status)
{
	end_all();
	show_failed(why);
	exit(status);
}

static void describe_exit(int rank, char *text, size_t size)
{
	pid_t pid = team.worker[rank].pid;
	int status = 0;

	if (pid == 0 || !reap(rank, demo_now() + DEMO_SEC, &status))
		snprintf(text, size, "its connection to the launcher is closed");
	else if (WIFSIGNALED(status))
		snprintf(text, size, "pid %d was ended by signal %d (%s)", (int)pid,
			 WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(text, size, "pid %d ended with status %d", (int)pid, WEXITSTATUS(status));
}

/* Takes one message of a worker, if there is one. Returns true
 * when it is a failure, which is shown. */
static bool listen_to(int rank, struct demo_report *r)
{
	ssize_t n = recv(team.worker[rank].fd, r, sizeof(*r), MSG_DONTWAIT);
	char text[DEMO_TEXT_SIZE];

	r->text[sizeof(r->text) - 1] = 0;
	if (n == (ssize_t)sizeof(*r)) {
		if (r->kind == DEMO_NOTE && !team.failed)
			show_note(demo_name(rank), r->text);
		if (r->kind != DEMO_FAILED)
			return false;
		show_error(demo_name(rank), r->text);
	} else {
		r->kind = DEMO_NOTE;
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return false;
	}
	close(team.worker[rank].fd);
	team.worker[rank].fd = -1;
	if (r->kind == DEMO_FAILED)
		return true;
	if (team.leaving && team.worker[rank].reported)
		return false;
	describe_exit(rank, text, sizeof(text));
	show_error(demo_name(rank), text);
	return true;
}

/* Fails after a moment, in which it hears all workers: several often tell the cause. */
_Noreturn static void fail_with_all(int rank)
{
	int64_t end = demo_now() + AFTERMATH;
	struct demo_report r;
	char why[64];

	team.failed = true;
	while (demo_now() < end) {
		for (int i = 0; i < team.nr; i++) {
			struct pollfd p = { .fd = team.worker[i].fd, .events = POLLIN };

			if (p.fd >= 0 && poll(&p, 1, 0) > 0)
				listen_to(i, &r);
		}
		usleep(5000);
	}
	snprintf(why, sizeof(why), "%s failed", demo_name(rank));
	end_demo(why, 1);
}

_Noreturn void team_fail(const char *fmt, ...)
{
	char text[DEMO_TEXT_SIZE];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	end_demo(text, 1);
}

static void check_signals(void)
{
	struct signalfd_siginfo s;
	char text[64];

	if (read(team.signals, &s, sizeof(s)) != (ssize_t)sizeof(s))
		return;
	snprintf(text, sizeof(text), "interrupted (%s)", strsignal((int)s.ssi_signo));
	end_demo(text, 128 + (int)s.ssi_signo);
}

static void catch_signals(sigset_t *before)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_BLOCK, &set, before);
	team.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	if (team.signals < 0)
		team_fail("signalfd: %s", strerror(errno));
}

_Noreturn static void be_worker(int rank, int fd, pid_t launcher, const sigset_t *before)
{
	/* A launcher that dies in any way takes its workers along, also stopped ones. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != launcher)
		_exit(1);
	/* Control-C goes to all, and the launcher ends us. */
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	sigprocmask(SIG_SETMASK, before, NULL);
	close(team.signals);
	for (int i = 0; i < rank; i++)
		close(team.worker[i].fd);
	exit(demo_work(team.job, rank, fd));
}

void team_start(const struct demo_job *job)
{
	pid_t launcher = getpid();
	sigset_t before;

	team.job = job;
	catch_signals(&before);
	fflush(NULL);
	for (int rank = 0; rank < 1 + job->users; rank++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			team_fail("socketpair: %s", strerror(errno));
		pid_t pid = fork();

		if (pid < 0)
			team_fail("fork: %s", strerror(errno));
		if (pid == 0) {
			close(pair[0]);
			be_worker(rank, pair[1], launcher, &before);
		}
		close(pair[1]);
		team.worker[rank].pid = pid;
		team.worker[rank].fd = pair[0];
		team.nr = rank + 1;
	}
}

pid_t team_pid(int rank)
{
	return team.worker[rank].pid;
}

static void show_share(uint64_t expect, const char *what)
{
	uint64_t sum = 0;

	for (int i = 0; i < team.nr; i++)
		sum += team.worker[i].bytes;
	show_progress(what, expect ? (double)sum / (double)expect : -1);
}

/* Lists the workers that have not reported, for the message that time is up. */
static void list_silent(int first, int end, char *text, size_t size)
{
	size_t used = 0;

	text[0] = 0;
	for (int i = first; i < end && used < size; i++)
		if (!team.worker[i].reported)
			used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "",
						 demo_name(i));
}

void team_run(int first, int end, const struct demo_command *c, uint64_t expect, const char *what,
	      struct demo_report *out)
{
	/* The workers' own deadlines come first, and know more. Progress starts this one anew. */
	const int64_t patience = team.job->patience + 20 * DEMO_SEC;
	int64_t deadline = demo_now() + patience;
	int missing = end - first;

	for (int i = 0; i < team.nr; i++) {
		team.worker[i].reported = i < first || i >= end;
		team.worker[i].bytes = 0;
	}
	team.leaving = c && c->op == DEMO_LEAVE;
	for (int i = first; c && i < end; i++)
		if (send(team.worker[i].fd, c, sizeof(*c), MSG_NOSIGNAL) != (ssize_t)sizeof(*c))
			fail_with_all(i);
	while (missing) {
		struct pollfd p[2 + DEMO_USERS_MAX];
		struct demo_report r;
		char text[DEMO_TEXT_SIZE];

		for (int i = 0; i < team.nr; i++)
			p[i] = (struct pollfd){ .fd = team.worker[i].fd, .events = POLLIN };
		p[team.nr] = (struct pollfd){ .fd = team.signals, .events = POLLIN };
		if (poll(p, (nfds_t)team.nr + 1, 100) < 0 && errno != EINTR)
			team_fail("poll: %s", strerror(errno));
		check_signals();
		for (int i = 0; i < team.nr; i++) {
			if (!(p[i].revents & (POLLIN | POLLHUP | POLLERR)))
				continue;
			if (listen_to(i, &r))
				fail_with_all(i);
			if (r.kind == DEMO_PROGRESS)
				team.worker[i].bytes = r.bytes;
			if (r.kind == DEMO_DONE && !team.worker[i].reported) {
				team.worker[i].reported = true;
				team.worker[i].bytes = r.bytes;
				out[i - first] = r;
				missing--;
			}
			deadline = demo_now() + patience;
		}
		show_share(expect, what);
		if (missing && demo_now() > deadline) {
			list_silent(first, end, text, sizeof(text));
			team_fail("%s: no word from %s for %lld s", what, text,
				  (long long)(patience / DEMO_SEC));
		}
	}
}

/* Returns the state letter in /proc/PID/stat, or 0 when there is none. */
static char state_of(pid_t pid)
{
	char path[64], text[512];
	const char *end;
	FILE *f;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(text, 1, sizeof(text) - 1, f);
	fclose(f);
	text[n] = 0;
	end = strrchr(text, ')'); /* the name before it may hold anything */
	return end && end[1] == ' ' ? end[2] : 0;
}

bool team_is_stopped(int rank)
{
	return state_of(team.worker[rank].pid) == 'T';
}

static void signal_and_see(int rank, int sig, bool stopped, const char *what)
{
	int64_t end = demo_now() + 5 * DEMO_SEC;

	if (kill(team.worker[rank].pid, sig))
		team_fail("%s of %s: %s", what, demo_name(rank), strerror(errno));
	while (team_is_stopped(rank) != stopped) {
		if (demo_now() > end)
			team_fail("%s of %s has no effect: its state is %c", what, demo_name(rank),
				  state_of(team.worker[rank].pid));
		check_signals();
		usleep(1000);
	}
}

void team_stop(int rank)
{
	signal_and_see(rank, SIGSTOP, true, "SIGSTOP");
}

void team_continue(int rank)
{
	signal_and_see(rank, SIGCONT, false, "SIGCONT");
}

void team_finish(void)
{
	for (int i = 0; i < team.nr; i++) {
		pid_t pid = team.worker[i].pid;
		int status = 0;

		if (!reap(i, demo_now() + 20 * DEMO_SEC, &status))
			team_fail("%s (pid %d) left the group, but its process does not end",
				  demo_name(i), (int)pid);
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			team_fail("%s (pid %d) left the group, but ended with %s %d", demo_name(i),
				  (int)pid, WIFSIGNALED(status) ? "signal" : "status",
				  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		if (team.worker[i].fd >= 0)
			close(team.worker[i].fd);
		team.worker[i].fd = -1;
	}
	close(team.signals);
}
