/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of a worker process. Any failure is told to the
 * launcher, and ends the process: demo_give_up. */
#ifndef DEMO_WORKER_H
#define DEMO_WORKER_H

#include <pthread.h>

#include "demo.h"

struct demo_worker {
	const struct demo_job *job;
	int rank;
	int fd;                        /* to the launcher */
	struct rref_ctx *ctx;
	pthread_mutex_t lock;
	/* Guarded by lock while references arrive; const from demo_held to demo_release. */
	uint64_t file_bytes;           /* size from the owner, 0 = not yet */
	uint32_t nr_refs, nr_held;
	struct rref **refs;
};

/* Lives the process' life, and returns its exit status. */
int demo_work(const struct demo_job *job, int rank, int fd);

_Noreturn void demo_give_up(struct demo_worker *w, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void demo_tell(struct demo_worker *w, const struct demo_report *r);
void demo_tell_progress(struct demo_worker *w, uint64_t bytes);
/* Gives up if a call of the library failed. Tells the call, the
 * error's meaning, and the library's own words. */
int demo_ok(struct demo_worker *w, int result, const char *what, uint32_t which);

/* owner.c */
void demo_publish(struct demo_worker *w, struct demo_report *r);
int demo_serve_get(struct rref_call *call, void *worker);

/* user.c */
void demo_get(struct demo_worker *w, struct demo_report *r);
void demo_share(struct demo_worker *w, struct demo_report *r);
void demo_release(struct demo_worker *w, struct demo_report *r);
/* Returns all references, which must have come: no more will. */
struct rref **demo_held(struct demo_worker *w);
int demo_serve_take(struct rref_call *call, void *worker);

/* passes.c */
void demo_read(struct demo_worker *w, enum demo_way way, struct demo_report *r);
void demo_small(struct demo_worker *w, struct demo_report *r);

#endif
