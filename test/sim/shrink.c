/* SPDX-License-Identifier: Apache-2.0 */
/* Shrinking leaves out decisions, in halves, quarters ..., as long as the rest fails by the same
 * rule. Then it leaves out workers. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "test/sim/sim.h"

#define HANG_S 20               /* a schedule takes a millisecond */
#define MAX_TRIES 4000u

static const char crash_rule[] = "the machine crashed", hang_rule[] = "the machine hangs";

int sim_run_apart(const struct sim_plan *plan, FILE *trace, struct sim_result *result)
{
	struct sim_result *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;
	pid_t pid;

	if (shared == MAP_FAILED)
		abort();
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		abort();
	if (pid == 0) {
		/* An assertion would print its text at each try. */
		if (!trace && !freopen("/dev/null", "w", stderr))
			_exit(2);
		alarm(HANG_S);
		sim_run(plan, trace, shared);
		fflush(NULL);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			abort();
	*result = *shared;
	munmap(shared, sizeof(*shared));
	if (WIFSIGNALED(status)) {
		result->rule = WTERMSIG(status) == SIGALRM ? hang_rule : crash_rule;
		snprintf(result->text, sizeof(result->text), "%s (signal %d)", result->rule,
			 WTERMSIG(status));
	} else if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		result->rule = crash_rule;
		snprintf(result->text, sizeof(result->text), "%s (exit status %d)", result->rule,
			 WEXITSTATUS(status));
	} else {
		trace = NULL; /* the run said so itself */
	}
	if (trace)
		fprintf(trace, "\nFAILED: %s\n", result->text);
	return result->text[0] ? -1 : 0;
}

static unsigned tries;

static bool still(const struct sim_plan *plan, const char *rule, struct sim_result *result)
{
	struct sim_result r;

	if (++tries > MAX_TRIES || !sim_run_apart(plan, NULL, &r) || r.rule != rule)
		return false;
	*result = r;
	return true;
}

/* Leaves out runs of size decisions that are still in. Returns true if it could leave any out. */
static bool leave_out(struct sim_plan *plan, unsigned size, struct sim_result *result)
{
	bool any = false;

	for (unsigned end = plan->nr; end;) {
		struct sim_plan try = *plan;
		unsigned out = 0, i = end;

		while (i && out < size) {
			i--;
			out += !try.list[i].left_out;
			try.list[i].left_out = true;
		}
		end = i;
		if (out && still(&try, result->rule, result)) {
			*plan = try;
			any = true;
		}
	}
	return any;
}

static unsigned left(const struct sim_plan *plan)
{
	unsigned n = 0;

	for (unsigned i = 0; i < plan->nr; i++)
		n += !plan->list[i].left_out;
	return n;
}

void sim_shrink(struct sim_plan *plan, struct sim_result *result)
{
	struct sim_plan try = *plan;
	bool more = true;

	tries = 0;
	/* Decisions after the failure did not cause it. */
	for (unsigned i = result->decision + 1; i < try.nr; i++)
		try.list[i].left_out = true;
	if (still(&try, result->rule, result))
		*plan = try;
	while (more && tries < MAX_TRIES) {
		more = false;
		for (unsigned size = (left(plan) + 1) / 2; size; size /= 2)
			while (leave_out(plan, size, result) && size == 1)
				more = true;
		/* A hostile worker is the last one: with fewer workers another one is hostile,
		 * which is as good. */
		while (plan->workers > MIN_MACHINES) {
			try = *plan;
			try.workers--;
			if (!still(&try, result->rule, result))
				break;
			*plan = try;
			more = true;
		}
	}
}
