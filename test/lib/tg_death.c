/* SPDX-License-Identifier: Apache-2.0 */
#include "tg_death.h"

#include <dirent.h>
#include <signal.h>

#include "core/ctx.h"
#include "verbs/ibv/ibv.h"

_Noreturn void tg_die(void)
{
	kill(getpid(), SIGKILL);
	for (;;)
		pause();
}

_Noreturn void tg_serve_and_die(struct rref_ctx *ctx, int flag)
{
	tg_wait_flag_serving(ctx, flag, 1);
	tg_die();
}

void tg_leave(struct rref_ctx *ctx)
{
	int err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, TG_LONG_NS);

	if (err != -EOWNERDEAD)
		TG_OK(err);
	rref_free_ctx(ctx);
}

bool tg_is_dead(struct rref_ctx *ctx, void *rank)
{
	struct rref_worker_info w = { .size = sizeof(w) };

	TG_OK(rref_worker(ctx, *(int *)rank, &w));
	return !w.alive;
}

void tg_stop_worker(int rank)
{
	pid_t pid = tg_current->shared->pid[rank];
	int64_t end = now_ns() + TG_LONG_NS;
	bool running = true;

	TG_IS(kill(pid, SIGSTOP), 0);
	while (running) {
		char path[300], line[512];
		struct dirent *e;
		DIR *d;

		TG_CHECK(now_ns() < end);
		snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
		d = opendir(path);
		TG_CHECK(d);
		running = false;
		while ((e = readdir(d))) {
			FILE *f;

			if (e->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)pid, e->d_name);
			f = fopen(path, "r");
			if (!f)
				continue; /* it ended meanwhile */
			if (fgets(line, sizeof(line), f)) {
				const char *state = strrchr(line, ')');

				running |= !state || strncmp(state, ") T", 3) != 0;
			}
			fclose(f);
		}
		closedir(d);
	}
}

void tg_continue_worker(int rank)
{
	TG_IS(kill(tg_current->shared->pid[rank], SIGCONT), 0);
}

bool tg_refuse_a_read(struct rref_ctx *ctx, int rank)
{
	struct rc_peer *p = &ctx->peers[rank];
	void *base;
	const struct rc_region *region = ra_lookup(ctx->value.landing, ctx->session.probe_landing,
						   &base);
	struct rv_read r = { .cookie = RC_PROBE_COOKIE,
			     .addr = 64,
			     .rkey = 0x5a5a5a,
			     .nr_sge = 1,
			     .sge[0] = { ctx->session.probe_landing, 8,
					 region->mr[p->kind].lkey } };

	if (!at_load(&p->conn) || p->ops->post_reads(p->link, &r, 1) != 1)
		return false;
	if (p->kind == RV_IBV)
		at_add(&ctx->sleep.reads_in_flight, 1);
	return true;
}

bool tg_break_link(struct rref_ctx *ctx, int rank)
{
	struct rc_peer *p = &ctx->peers[rank];

	if (p->kind == RV_SHM)
		return tg_refuse_a_read(ctx, rank);
	if (p->state != RC_PEER_UP || !p->link)
		return false;
	/* The CM's end takes long if the peer's process stands still. */
	rvi_conn_down(p->link, -EIO, -1);
	return true;
}
