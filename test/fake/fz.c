/* SPDX-License-Identifier: Apache-2.0 */
#include "fz.h"

#include <execinfo.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include "base/atomic.h"
#include "fz_symbols.h"
#include "tg.h"

#define STEPS_MAX 3000u /* a thread that was nowhere in so many steps is given up */
#define STACK 24
#define PLACES (1u << 20)
#define TRAP_FLAG 0x100

enum { RUNS,
       ASKED,
       STOPPED,
       MISSED };

static _Thread_local struct fz_thread *me;
static _Thread_local int in_arena;
static struct fz_counts counts;
static uint32_t places[PLACES]; /* offsets of the stops from fz_open */

void fz_arena(int delta)
{
	in_arena += delta;
	__asm__ volatile(""
			 :
			 :
			 : "memory");
}

#define LOOK_NS (100 * NSEC_PER_MSEC) /* a sleep between two looks at the deadline */

static void futex(_Atomic uint32_t *word, int op, uint32_t value)
{
	struct timespec ts = { .tv_nsec = LOOK_NS };

	syscall(SYS_futex, word, op, value, op == FUTEX_WAIT_PRIVATE ? &ts : NULL, NULL, 0);
}

static void set_state(struct fz_thread *t, uint32_t state)
{
	at_store_rel(&t->state, state);
	futex(&t->state, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

/* Returns false if that takes longer than till `end`. */
static bool wait_while(struct fz_thread *t, uint32_t state, int64_t end)
{
	while (at_load_acq(&t->state) == state) {
		if (now_ns() > end)
			return false;
		futex(&t->state, FUTEX_WAIT_PRIVATE, state);
	}
	return true;
}

#if defined(__x86_64__)
static uintptr_t next_of(const ucontext_t *u)
{
	return (uintptr_t)u->uc_mcontext.gregs[REG_RIP];
}

static void step_by_step(ucontext_t *u, bool on)
{
	if (on)
		u->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
	else
		u->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)TRAP_FLAG;
}

/*
 * Returns whether the next instruction may block signals. A step behind it would end the program.
 */
static bool may_block_signals(const ucontext_t *u)
{
	const unsigned char *code = (const void *)next_of(u);

	return code[0] == 0x0f && code[1] == 0x05 &&
	       u->uc_mcontext.gregs[REG_RAX] == SYS_rt_sigprocmask;
}
#else
static bool may_block_signals(const ucontext_t *u)
{
	(void)u;
	return false;
}

static uintptr_t next_of(const ucontext_t *u)
{
	(void)u;
	return 0;
}

static void step_by_step(ucontext_t *u, bool on)
{
	(void)u, (void)on;
}
#endif

/* Begins the steps of a thread that is to be stopped. */
static void on_ask(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)info;
	if (me && at_load_acq(&me->state) == ASKED)
		step_by_step(context, true);
}

static bool may_stop_at(uintptr_t at)
{
	const struct fz_symbol *s = fz_symbol_of(at);

	return !in_arena && s && s->library;
}

/* Takes a step. Stops the thread here if it may be. */
static void on_step(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = next_of(context);
	int err = errno;

	(void)sig, (void)info;
	if (me->left)
		me->left--;
	if (!me->left && may_stop_at(at)) {
		step_by_step(context, false);
		me->at = at;
		set_state(me, STOPPED);
		wait_while(me, STOPPED, INT64_MAX);
	} else if (++me->tried == STEPS_MAX || may_block_signals(context)) {
		step_by_step(context, false);
		set_state(me, MISSED);
	}
	errno = err;
}

/* Writes the thread's stack, in one piece. */
static void on_tell(int sig)
{
	char text[STACK * 80], at[72];
	void *stack[STACK];
	int n = backtrace(stack, STACK), err = errno;
	size_t length = 0;

	(void)sig;
	for (int i = 1; i < n; i++) {
		fz_symbol_text((uintptr_t)stack[i], at, sizeof(at));
		length += (size_t)snprintf(text + length, sizeof(text) - length, "    %s\n", at);
	}
	if (write(2, text, length) < 0)
		abort();
	at_store_rel(&me->told, 1);
	errno = err;
}

bool fz_can(void)
{
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
	printf("a sanitizer has locks of its own, in which no thread may stop\n");
	return false;
#elif defined(__x86_64__)
	return true;
#else
	printf("this processor's single steps are not known here\n");
	return false;
#endif
}

void fz_open(void)
{
	struct sigaction ask = { .sa_sigaction = on_ask, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction step = { .sa_sigaction = on_step, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction tell = { .sa_handler = on_tell, .sa_flags = SA_RESTART };
	void *first[1];

	/* A thread that goes on is still in its handler, where it cannot step. */
	sigaddset(&step.sa_mask, SIGUSR1);
	fz_symbols_open();
	backtrace(first, 1); /* loads what it needs */
	TG_IS(sigaction(SIGUSR1, &ask, NULL), 0);
	TG_IS(sigaction(SIGTRAP, &step, NULL), 0);
	TG_IS(sigaction(SIGUSR2, &tell, NULL), 0);
}

/* Asks for short turns of the processor, which make a test with many stops faster. */
static void take_short_turns(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} turns = { .size = sizeof(turns), .runtime = 100 * NSEC_PER_USEC };

	syscall(SYS_sched_setattr, 0, &turns, 0); /* old kernels refuse it */
}

void fz_join(struct fz_thread *t)
{
	take_short_turns();
	t->thread = pthread_self();
	me = t;
}

bool fz_stop(struct fz_thread *t, unsigned steps)
{
	t->left = steps;
	t->tried = 0;
	at_store_rel(&t->state, ASKED);
	TG_IS(pthread_kill(t->thread, SIGUSR1), 0);
	if (!wait_while(t, ASKED, now_ns() + 20 * tg_slow() * NSEC_PER_SEC)) {
		fprintf(stderr, "a thread neither stops nor goes on. It stands at:\n");
		fz_tell(t);
		_exit(1);
	}
	if (at_load_acq(&t->state) != STOPPED) {
		at_store(&t->state, RUNS);
		counts.missed++;
		return false;
	}
	fz_symbol_of(t->at)->stops++;
	places[counts.stops++ % PLACES] = (uint32_t)(t->at - (uintptr_t)fz_open);
	return true;
}

void fz_go_on(struct fz_thread *t)
{
	set_state(t, RUNS);
}

void fz_where(const struct fz_thread *t, char *buf, size_t size)
{
	fz_symbol_text(t->at, buf, size);
}

void fz_tell(struct fz_thread *t)
{
	int64_t end = now_ns() + 2 * NSEC_PER_SEC;

	at_store(&t->told, 0);
	if (!pthread_kill(t->thread, SIGUSR2))
		while (!at_load_acq(&t->told) && now_ns() < end)
			tg_pause();
}

static int by_number(const void *a, const void *b)
{
	const uint32_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

struct fz_counts fz_count(void)
{
	uint32_t n = (uint32_t)min_of(counts.stops, (unsigned long)PLACES);

	qsort(places, n, sizeof(places[0]), by_number);
	counts.instructions = n > 0;
	for (uint32_t i = 1; i < n; i++)
		counts.instructions += places[i] != places[i - 1];
	counts.functions = fz_symbols_stopped();
	return counts;
}
