/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures the cost of an attacker for others: the rate of an honest pair beside each attacker over
 * shared memory. The unit is the pair's rate without an attacker. docs/perf/beside.txt holds the
 * printed result.
 *
 * Worker 0 calls worker 1 and reads its value, again and again. The attacker, on its own processor,
 * runs and is stopped in turn. So other work of the machine is the same for both. Each window
 * begins with a pause, in which worker 1 finishes the attacker's leftover work. The pair shares a
 * processor if there are only two.
 *
 *   rref-beside [WINDOWS [NAME]]    windows of each kind (30); one attacker only
 */
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tg_attack.h"
#include "verbs/shm/shm.h"

#define OTHER_UID 12345
#define PAUSE_NS  (150 * NSEC_PER_MSEC)
#define WINDOW_NS (100 * NSEC_PER_MSEC)
#define RUNS      10000 /* windows are so many at most */

enum { F_STOP = 4 }; /* a flag of the run, beside the flags of tg_foe.h */

static int windows = 30;

/* ---- attackers ---- */

static bool act_nothing(struct foe *f)
{
	(void)f;
	usleep(1000);
	return false;
}

static bool act_spin(struct foe *f)
{
	(void)f;
	return false;
}

#define STRANGER(name) \
	static bool stranger_##name(struct foe *f) \
	{ \
		return tg_stranger(f, tg_act_##name); \
	}
STRANGER(leave)
STRANGER(stay_silent)
STRANGER(trickle)
STRANGER(send_garbage)
STRANGER(say_hello)
STRANGER(hand_over_pipe)

#define MEMBER(name) \
	static bool member_##name(struct foe *f) \
	{ \
		static uint32_t nr; \
		int err = tg_##name(f, nr); \
		TG_CHECK(!err || err == -EAGAIN); \
		nr += !err; \
		return !err; \
	}
MEMBER(send_region)
MEMBER(send_wake)
MEMBER(send_again)

/* Connects anew all the time, as a member may. */
static bool member_connect(struct foe *f)
{
	foe_make_hello(f, 1);
	foe_dial(f, 1);
	return f->connected;
}

static const struct attack {
	const char *name;
	bool (*once)(struct foe *f);
	bool other_user, member;
} attacks[] = {
	{ "nobody", act_nothing, false, false },
	{ "somebody who has nothing to do with it", act_spin, false, false },
	{ "another user who connects and leaves", stranger_leave, true, false },
	{ "another user who connects and stays", stranger_stay_silent, true, false },
	{ "another user who says hello", stranger_say_hello, true, false },
	{ "a stranger who connects and leaves", stranger_leave, false, false },
	{ "a stranger who says nothing", stranger_stay_silent, false, false },
	{ "a stranger who sends one byte", stranger_trickle, false, false },
	{ "a stranger who sends garbage", stranger_send_garbage, false, false },
	{ "a stranger who says hello without the key", stranger_say_hello, false, false },
	{ "a stranger who hands over a pipe", stranger_hand_over_pipe, false, false },
	{ "a member who sends regions", member_send_region, false, true },
	{ "a member who sends wake-ups", member_send_wake, false, true },
	{ "a member who asks for regions", member_send_again, false, true },
	{ "a member who connects", member_connect, false, false },
};

/* ---- processors ---- */

/* Takes the nth processor that this process may use. The attacker's is the last one. */
static int pin(int nth)
{
	cpu_set_t may, one;

	TG_OK(sched_getaffinity(0, sizeof(may), &may));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &may) || nth--)
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		return sched_setaffinity(0, sizeof(one), &one);
	}
	return -EINVAL;
}

static int processors(void)
{
	cpu_set_t may;

	return sched_getaffinity(0, sizeof(may), &may) ? 1 : CPU_COUNT(&may);
}

/* ---- the pair ---- */

static void round_of_work(struct rref_ctx *ctx, struct rref *ref)
{
	TG_OK(rref_rpc_sync(ctx, 1, "tg.nothing", NULL, RREF_DEFAULT, NULL));
	tg_expect_bytes(ref, "a value", 7);
	foe_shown()->rounds++;
}

static int honest(int rank)
{
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *ref;

	TG_OK(pin(rank && processors() > 2));
	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	TG_OK(rref_init(&o, &ctx));
	tg_meet(0);
	if (!rank) {
		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "a value", .length = 7 },
				  RREF_DEFAULT, &ref));
		while (!tg_flag(F_END))
			round_of_work(ctx, ref);
		rref_release(ref);
		tg_set_flag(F_SERVED, 1);
	}
	while (!tg_flag(F_SERVED)) {
		rref_progress(ctx);
		usleep(1000);
	}
	tg_meet(1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	rref_free_ctx(ctx);
	return 0;
}

/* ---- measuring ---- */

static void pause_ns(int64_t ns)
{
	nanosleep(&(struct timespec){ .tv_sec = ns / NSEC_PER_SEC, .tv_nsec = ns % NSEC_PER_SEC },
		  NULL);
}

/* Returns the rounds of the pair in a second. */
static double rate(const _Atomic uint64_t *rounds)
{
	int64_t start;
	uint64_t before;

	pause_ns(PAUSE_NS);
	start = now_ns();
	before = *rounds;
	pause_ns(WINDOW_NS);
	return (double)(*rounds - before) * NSEC_PER_SEC / (double)(now_ns() - start);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Controls the attacker, in a separate process. */
static void control(pid_t attacker, const char *name, const _Atomic uint64_t *acts)
{
	double with[RUNS], without[RUNS], parts[RUNS];
	uint64_t before, acted = 0;
	int64_t ns = 0;

	pause_ns(300 * NSEC_PER_MSEC);
	for (int i = 0; i < windows; i++) {
		TG_OK(kill(attacker, SIGSTOP));
		without[i] = rate(&foe_shown()->rounds);
		TG_OK(kill(attacker, SIGCONT));
		before = *acts;
		ns -= now_ns();
		with[i] = rate(&foe_shown()->rounds);
		ns += now_ns();
		acted += *acts - before;
		parts[i] = 100 * with[i] / without[i];
	}
	qsort(with, (size_t)windows, sizeof(*with), by_size);
	qsort(without, (size_t)windows, sizeof(*without), by_size);
	qsort(parts, (size_t)windows, sizeof(*parts), by_size);
	printf("%-42s %9.0f %9.0f %7.1f %% (%.1f to %.1f) %10.0f\n", name, without[windows / 2],
	       with[windows / 2], parts[windows / 2], parts[windows / 4], parts[windows * 3 / 4],
	       (double)acted * NSEC_PER_SEC / (double)ns);
	fflush(stdout);
	tg_set_flag(F_STOP, 1);
}

static const struct attack *at_hand;
static _Atomic uint64_t *acts; /* acts of the attacker, since the beginning */

static void attacker(struct foe *f)
{
	pid_t self = getpid(), pid;
	int status;

	if (at_hand->member)
		foe_meet(f, 1);
	if (at_hand->other_user && (setegid(OTHER_UID) || seteuid(OTHER_UID)))
		_exit(2);
	pid = fork();
	TG_CHECK(pid >= 0);
	if (!pid) {
		if (at_hand->other_user && (seteuid(0) || setegid(0)))
			_exit(2);
		control(self, at_hand->name, acts);
		_exit(0);
	}
	TG_OK(pin(processors() - 1));
	while (!tg_flag(F_STOP))
		*acts += at_hand->once(f);
	if (at_hand->other_user && (seteuid(0) || setegid(0)))
		_exit(2);
	TG_IS(waitpid(pid, &status, 0), pid);
	TG_IS(status, 0);
}

static int worker(int rank, void *arg)
{
	return rank == FOE ? foe_worker(rank, arg) : honest(rank);
}

int main(int argc, char **argv)
{
	void (*body)(struct foe *f) = attacker;
	int failed = 0;

	windows = argc > 1 ? atoi(argv[1]) : windows;
	if (windows < 1 || windows > RUNS || processors() < 2) {
		fprintf(stderr,
			"usage: rref-beside [WINDOWS [NAME]], on two processors at least\n");
		return 2;
	}
	acts = mmap(NULL, sizeof(*acts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (acts == MAP_FAILED)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("medians of %d windows of %d ms of each kind; quartiles in brackets\n", windows,
	       (int)(WINDOW_NS / NSEC_PER_MSEC));
	printf("%-42s %9s %9s %9s %22s\n", "beside", "without", "with", "part", "acts a second");
	for (size_t i = 0; i < array_size(attacks); i++) {
		struct tg_group g = { .world = FOE_WORLD, .timeout_s = 600 };

		at_hand = &attacks[i];
		if (argc > 2 && !strstr(at_hand->name, argv[2]))
			continue;
		if (at_hand->other_user && geteuid()) {
			printf("%-42s skipped: needs root\n", at_hand->name);
			continue;
		}
		*acts = 0;
		failed |= tg_run_group(&g, worker, &body);
	}
	return failed != 0;
}
