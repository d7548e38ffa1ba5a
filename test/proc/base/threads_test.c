/* SPDX-License-Identifier: Apache-2.0 */
/* The library's own threads: they take no signal of the program's, and errors name their limits. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "tg.h"

/* Signals that a thread raises by its own fault. */
static bool is_synchronous(int sig)
{
	return sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL || sig == SIGSYS ||
	       sig == SIGTRAP;
}

/* Checks the threads of this process except the first. Each must block
 * all foreign signals. Returns their number. */
static int check_masks(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	int nr = 0;

	TG_CHECK(d);
	while ((e = readdir(d))) {
		unsigned long long blocked = 0;
		char path[300], line[256], name[64] = "";
		FILE *f;

		if (e->d_name[0] == '.' || atoi(e->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		f = fopen(path, "r");
		if (!f)
			continue; /* it ended */
		while (fgets(line, sizeof(line), f)) {
			sscanf(line, "Name: %63s", name);
			sscanf(line, "SigBlk: %llx", &blocked);
		}
		fclose(f);
		if (strncmp(name, "rref-", 5))
			continue; /* a sanitizer's */
		nr++;
		for (int sig = 1; sig < 32; sig++) {
			if (sig == SIGKILL || sig == SIGSTOP)
				continue;
			if ((blocked >> (sig - 1) & 1) == is_synchronous(sig)) {
				fprintf(stderr, "%s: signal %d is %s\n", name, sig,
					is_synchronous(sig) ? "blocked" : "not blocked");
				TG_CHECK(false);
			}
		}
	}
	closedir(d);
	return nr;
}

static _Atomic int inside;

static int waits_for_flag(struct rref_call *call, void *arg)
{
	(void)call, (void)arg;
	atomic_fetch_add(&inside, 1);
	while (!tg_flag(0))
		tg_pause();
	return 0;
}

#define HANDLERS 4

TG_TEST(no_signal_of_the_program_reaches_them, 1)
{
	const struct rref_function fns[] = { { .name = "waits", .handler = waits_for_flag } };
	struct timespec limit = { .tv_sec = 20 };
	struct rref_future *f[HANDLERS];
	struct rref_ctx *ctx;
	sigset_t set;

	sigemptyset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
	signal(SIGTERM, SIG_DFL);
	ctx = tg_init(rank, fns, 1);
	for (int i = 0; i < HANDLERS; i++)
		TG_OK(rref_rpc_async(ctx, 0, "waits", NULL, RREF_DEFAULT, &f[i]));
	while (atomic_load(&inside) < HANDLERS && now_ns() < tg_deadline())
		rref_progress(ctx);
	TG_IS(atomic_load(&inside), HANDLERS);
	/* The poller may not have begun yet. */
	while (check_masks() < HANDLERS + (tg_mode() != RREF_PROGRESS_MANUAL)) {
		TG_CHECK(now_ns() < tg_deadline());
		tg_pause();
	}
	/*
	 * This thread takes the signal by sigtimedwait; any other thread that had it unblocked
	 * would end the process.
	 */
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 100; i++) {
		TG_IS(kill(getpid(), SIGTERM), 0);
		TG_IS(sigtimedwait(&set, NULL, &limit), SIGTERM);
	}
	tg_set_flag(0, 1);
	for (int i = 0; i < HANDLERS; i++) {
		TG_OK(rref_future_wait(f[i], RREF_DEFAULT));
		rref_future_free(f[i]);
	}
	/* The program's own mask is unchanged. */
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	for (int sig = 1; sig < 32; sig++)
		TG_IS(sigismember(&set, sig), sig == SIGTERM);
	tg_finish(ctx);
	return 0;
}

/* The limit does not hold for root. */
TG_TEST(a_limit_on_threads_is_named, 1)
{
	struct rlimit none, before;
	char key[] = "/tmp/rref-test-key-XXXXXX", secret[32] = "0123456789abcdef0123456789abcde";
	struct rref_options o;
	struct rref_ctx *ctx;
	int fd = mkstemp(key);

	TG_CHECK(fd >= 0);
	TG_IS(write(fd, secret, sizeof(secret)), (ssize_t)sizeof(secret));
	if (geteuid() == 0) {
		TG_IS(fchown(fd, 12345, 12345), 0);
		TG_IS(setresgid(12345, 12345, 12345), 0);
		TG_IS(setresuid(12345, 12345, 12345), 0);
	}
	close(fd);
	TG_IS(getrlimit(RLIMIT_NPROC, &before), 0);
	none = (struct rlimit){ .rlim_cur = 0, .rlim_max = before.rlim_max };
	TG_IS(setrlimit(RLIMIT_NPROC, &none), 0);
	tg_options(&o, rank);
	o.key_file = key;
	o.device = "shm";
	o.mode = RREF_PROGRESS_AUTO;
	TG_IS(rref_init(&o, &ctx), -ENOMEM);
	TG_TEXT("RLIMIT_NPROC");
	TG_IS(unlink(key), 0);
	/* The leak sanitizer looks from a thread of its own, and by ptrace. */
	TG_IS(setrlimit(RLIMIT_NPROC, &before), 0);
	prctl(PR_SET_DUMPABLE, 1);
	return 0;
}

/* A pipe without a reader: a write would raise SIGPIPE, and opening the pipe would not return. */
TG_TEST(a_trace_file_is_no_pipe, 1)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	char path[64], full[80];

	snprintf(path, sizeof(path), "/tmp/rref-test-pipe-%d", getpid());
	snprintf(full, sizeof(full), "%s.%d", path, rank);
	TG_IS(mkfifo(full, 0600), 0);
	tg_options(&o, rank);
	o.trace = path;
	TG_IS(rref_init(&o, &ctx), -EIO);
	TG_TEXT("trace");
	int reader = open(full, O_RDONLY | O_NONBLOCK);

	TG_CHECK(reader >= 0);
	TG_IS(rref_init(&o, &ctx), -EIO);
	TG_TEXT("regular");
	close(reader);
	TG_IS(unlink(full), 0);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_signal_of_the_program_reaches_them),
		cmocka_unit_test(a_limit_on_threads_is_named),
		cmocka_unit_test(a_trace_file_is_no_pipe),
	};

	return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
