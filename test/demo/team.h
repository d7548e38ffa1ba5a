/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launcher's worker processes. Rank 0 is the owner. Any failure ends all of them, by pid, and
 * the demo: these calls then do not return. A failure is a worker's own, its death, silence beyond
 * the job's patience, or a signal to the launcher.
 */
#ifndef DEMO_TEAM_H
#define DEMO_TEAM_H

#include <sys/types.h>

#include "demo.h"

void team_start(const struct demo_job *job);
pid_t team_pid(int rank);

/*
 * Gives the workers of ranks [first, end) a command (NULL: they report by themselves), and waits
 * for all their reports. out[i] is the report of rank first + i. Progress is shown as a share of
 * expect bytes in all (0 = unknown).
 */
void team_run(int first, int end, const struct demo_command *c, uint64_t expect, const char *what,
	      struct demo_report *out);

/* Send SIGSTOP or SIGCONT, and wait until the kernel says that it took effect. */
void team_stop(int rank);
void team_continue(int rank);
bool team_is_stopped(int rank);

/* Waits for the exits of all workers, which must be clean. */
void team_finish(void);

/* Ends the workers, and the demo as failed. */
_Noreturn void team_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
