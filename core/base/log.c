/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log lines. The program's log function may do anything: ask the library for counters, wait, or
 * block on a full pipe. So a line is queued where it is written, with or without the progress lock,
 * and a hook delivers it. One thread delivers at a time, in order. LINES bounds the queue. Lines
 * beyond it are dropped and counted; the count is told when there is room.
 *
 * While a context is made no other thread knows it, and lines are delivered at once.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/slow.h"
#include "core/base/kick.h"
#include "core/base/log.h"
#include "core/ctx.h"

#define LINES 256u

struct line {
	struct line *next;
	enum rref_log_level level;
	char text[];
};

struct rc_log_lines {
	_Atomic bool announced;       /* work or hook is queued, and has not run yet */
	struct rc_work work;          /* pushed; it queues the hook */
	struct rc_hook hook;          /* delivers the lines */
	pthread_mutex_t lock;
	struct line *first, *last;    /* guarded by lock */
	unsigned nr;                  /* guarded by lock */
	uint64_t lost;                /* guarded by lock; since it was told last */
	bool busy;                    /* guarded by lock; a thread delivers */
};

static void log_run(struct rref_ctx *ctx, struct rc_hook *h)
{
	/* Comes before the look at the lines: a line that comes now brings the hook again. */
	at_store_rel(&container_of(h, struct rc_log_lines, hook)->announced, false);
	rc_log_deliver(ctx);
}

static needs_lock void schedule(struct rref_ctx *ctx, struct rc_work *w)
{
	rc_hook_push(ctx, &container_of(w, struct rc_log_lines, work)->hook);
}

int rc_log_open(struct rref_ctx *ctx)
{
	struct rc_log_lines *l = calloc(1, sizeof(*l));

	if (!l)
		return rc_fail(ENOMEM, "memory for log lines");
	l->work.run = schedule;
	l->hook.run = log_run;
	pthread_mutex_init(&l->lock, NULL);
	ctx->log.lines = l;
	return 0;
}

/* guarded by lock */
static struct line *pop(struct rc_log_lines *l)
{
	struct line *line = l->first;

	l->first = line->next;
	l->nr--;
	return line;
}

void rc_log_flush(struct rref_ctx *ctx)
{
	/* The program's function may cause lines for as long as it likes. */
	for (unsigned turn = 0; ctx->log.lines && turn < 4; turn++)
		rc_log_deliver(ctx);
}

void rc_log_close(struct rref_ctx *ctx)
{
	if (!ctx->log.lines)
		return;
	rc_log_flush(ctx); /* the last ones are dropped */
	while (ctx->log.lines->first)
		free(pop(ctx->log.lines));
	pthread_mutex_destroy(&ctx->log.lines->lock);
	free(ctx->log.lines);
	ctx->log.lines = NULL;
}

static void deliver(struct rref_ctx *ctx, enum rref_log_level level, const char *text)
{
	rb_slow(RB_SLOW_HOOK);
	rc_callback_enter();
	ctx->log.fn(ctx->log.arg, level, text);
	rc_callback_leave();
}

/*
 * Says that there are lines. Does not try the lock: the caller may hold another one. sc. Pairs with
 * is_quiet: a sleeper stores `sleeping` and then looks for pushed work.
 */
static void announce(struct rref_ctx *ctx)
{
	/*
	 * Leaves delivery after the shutdown to rc_log_flush alone: the program's function may ask
	 * for counters.
	 */
	if (at_load(&ctx->state) != RC_CTX_SHUT && !at_xchg_ar(&ctx->log.lines->announced, true))
		rc_work_push(ctx, &ctx->log.lines->work);
	rc_kick(ctx);
	if (!at_load(&ctx->turns.has_poller))
		rc_loop_wake(ctx);
}

static void queue(struct rref_ctx *ctx, enum rref_log_level level, const char *text)
{
	struct rc_log_lines *l = ctx->log.lines;
	size_t size = strlen(text) + 1;
	struct line *line = malloc(sizeof(*line) + size);

	if (line) {
		line->next = NULL;
		line->level = level;
		memcpy(line->text, text, size);
	}
	pthread_mutex_lock(&l->lock);
	if (!line || l->nr == LINES) {
		l->lost++;
	} else {
		if (l->first)
			l->last->next = line;
		else
			l->first = line;
		l->last = line;
		l->nr++;
		line = NULL;
	}
	pthread_mutex_unlock(&l->lock);
	free(line);
	announce(ctx);
}

void rc_log(struct rref_ctx *ctx, enum rref_log_level level, const char *fmt, ...)
{
	char text[RREF_TEXT_SIZE];
	va_list ap;

	if (!ctx->log.fn || level > ctx->log.level)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (at_load(&ctx->state) == RC_CTX_STARTING)
		deliver(ctx, level, text);
	else
		queue(ctx, level, text);
}

void rc_log_deliver(struct rref_ctx *ctx)
{
	struct rc_log_lines *l = ctx->log.lines;
	char text[120];
	uint64_t lost;
	bool more;

	pthread_mutex_lock(&l->lock);
	if (l->busy) {
		pthread_mutex_unlock(&l->lock);
		return;
	}
	l->busy = true;
	/*
	 * Delivers at most the lines of now: the program's function may cause another line each
	 * time.
	 */
	for (unsigned n = l->nr; n > 0; n--) {
		struct line *line = pop(l);

		pthread_mutex_unlock(&l->lock);
		deliver(ctx, line->level, line->text);
		free(line);
		pthread_mutex_lock(&l->lock);
	}
	/* Tells of lost lines only behind the lines that came before them. */
	lost = l->nr ? 0 : l->lost;
	l->lost -= lost;
	if (lost) {
		pthread_mutex_unlock(&l->lock);
		snprintf(text, sizeof(text),
			 "%llu log lines were dropped: they came faster than they were taken",
			 (unsigned long long)lost);
		deliver(ctx, RREF_LOG_WARNING, text);
		pthread_mutex_lock(&l->lock);
	}
	l->busy = false;
	more = l->nr > 0;
	pthread_mutex_unlock(&l->lock);
	if (more)
		announce(ctx);
}
