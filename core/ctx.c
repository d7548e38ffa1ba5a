/* SPDX-License-Identifier: Apache-2.0 */
/* Contexts: joining a group, its members, and freeing. Leaving a group is in shutdown.c. */
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/limit.h"
#include "core/base/clock.h"
#include "core/base/guard.h"
#include "core/base/limits.h"
#include "core/base/lock.h"
#include "core/base/log.h"
#include "core/base/scope.h"
#include "core/call/call.h"
#include "core/engine.h"
#include "core/observe/observe.h"
#include "core/op/op.h"
#include "core/read/read.h"
#include "core/session/session.h"
#include "core/value/value.h"

#define THREADS_MAX 1024u
#define BOUND_MIN ((size_t)2 << 20)
#define WAITING_MAX (1u << 20)
#define OPS_MAX (1u << 24)
#define REGION_MAX ((size_t)1 << 31) /* each is the same bound as for its variable in options.c */

/* Forgets the state of the forking thread, which belongs to the parent. */
static void on_fork_child(void)
{
	rc_fast_fork_child();
	rc_callback_fork_child();
	rc_hands_fork_child();
	rc_scopes_fork_child();
	rc_pool_fork_child();
}

/*
 * Keeps this library loaded, even if it is linked into a plug-in that is unloaded. Threads that
 * have used it end later, and run its destructors (jemalloc's, our own). The shared library is
 * linked with -z nodelete for the same reason.
 */
static void stay_loaded(void)
{
	Dl_info me;

	if (dladdr((void *)(uintptr_t)stay_loaded, &me) && me.dli_fname)
		dlopen(me.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

static void once(void)
{
	pthread_atfork(NULL, NULL, on_fork_child);
	stay_loaded();
}

/* Prepares a process for its first context, and a child of fork(2) for its own. */
static int begin_process(void)
{
	static pthread_once_t done = PTHREAD_ONCE_INIT;
	int err;

	if (rb_is_stray())
		return rc_fail(ECHILD, "this process was made by clone(2) or _Fork from one with "
			       "contexts: make workers by fork(2), whose handlers prepare them");
	err = rb_child_begin();
	if (err)
		return rc_fail(ENOMEM, "fork handlers cannot be installed: %s", rref_strerror(err));
	pthread_once(&done, once);
	err = rb_random_begin();
	if (err)
		return rc_fail(EIO,
			       "getrandom(2) gives no random numbers: %s; keys and nonces "
			       "come from it, so a seccomp filter must allow it",
			       rref_strerror(err));
	return sodium_init() < 0 ? rc_fail(EIO, "libsodium could not be initialised") : 0;
}

static void log_below(void *arg, int level, const char *text)
{
	rc_log(arg, (enum rref_log_level)level, "%s", text);
}

static int check_member(const struct rref_options *o)
{
	if (!o->world_size)
		return rc_fail(
			EINVAL,
			"world size 0: it was not set; 1 is a group of one, "
			"and rref_options_from_env reads RREF_WORLD_SIZE");
	if (o->world_size < 1 || o->world_size > 1024)
		return rc_fail(EINVAL, "world size %d: 1 to 1024 (RREF_WORLD_SIZE)", o->world_size);
	if (o->rank == -1)
		return rc_fail(
			EINVAL,
			"rank -1 of a group of %d: it was not set; "
			"rref_options_from_env reads RREF_RANK", o->world_size);
	if (o->rank < 0 || o->rank >= o->world_size)
		return rc_fail(EINVAL,
			       "rank %d of a group of %d: its ranks are 0 to %d (RREF_RANK)",
			       o->rank, o->world_size, o->world_size - 1);
	if (o->world_size > 1 && (!o->rendezvous || !*o->rendezvous))
		return rc_fail(
			EINVAL,
			"a group of %d needs the rendezvous address of rank 0, "
			"host:port (RREF_RENDEZVOUS)",
			o->world_size);
	return 0;
}

static int check_options(const struct rref_options *o)
{
	if ((unsigned)o->mode > RREF_PROGRESS_MANUAL)
		return rc_fail(EINVAL, "progress mode %d is unknown", (int)o->mode);
	if ((o->timeout | o->init_timeout | o->peer_timeout | o->stall_timeout) < 0)
		return rc_fail(EINVAL, "a timeout is negative");
	if (o->nr_functions && !o->functions)
		return rc_fail(EINVAL, "%zu functions, but no table", o->nr_functions);
	if (o->poller_core < -1 || o->poller_core >= get_nprocs_conf())
		return rc_fail(EINVAL, "poller core %d: this machine has %d, and -1 means any",
			       o->poller_core, get_nprocs_conf());
	if (o->flags & ~RREF_NO_LEAK_CHECK)
		return rc_fail(EINVAL, "unknown flags %#x", o->flags);
	return o->name ? rc_name_check(o->name) : 0;
}

static int check_limits(const struct rref_options *o)
{
	const struct {
		const char *before, *after;
		uint64_t value, most;
	} most[] = {
		{ "", " threads", o->nr_threads, THREADS_MAX },
		{ "max_waiting ", "", o->max_waiting, WAITING_MAX },
		{ "max_ops ", "", o->max_ops, OPS_MAX },
		{ "a first region of ", " bytes", o->region_bytes, REGION_MAX },
	};
	const struct {
		const char *option, *variable;
		size_t value;
	} least[] = {
		{ "max_value_bytes", "RREF_MAX_VALUE_BYTES", o->max_value_bytes },
		{ "max_landing_bytes", "RREF_MAX_LANDING_BYTES", o->max_landing_bytes },
	};

	for (size_t i = 0; i < array_size(most); i++)
		if (most[i].value > most[i].most)
			return rc_fail(EINVAL, "%s%" PRIu64 "%s: at most %" PRIu64, most[i].before,
				       most[i].value, most[i].after, most[i].most);
	for (size_t i = 0; i < array_size(least); i++)
		if (least[i].value && least[i].value < BOUND_MIN)
			return rc_fail(EINVAL, "%s of %zu: at least %zu, "
				       "which is the least region (%s)",
				       least[i].option, least[i].value, BOUND_MIN,
				       least[i].variable);
	return 0;
}

static int open_device(struct rref_ctx *ctx, const struct rv_ops *ops,
		       const struct rc_device_choice *c)
{
	struct rc_device *d = &ctx->device[ops->kind];
	struct rv_options ro = { .device = c->device[0] ? c->device : NULL,
				 .port = c->port,
				 .gid_index = c->gid_index,
				 .max_conns = ctx->world,
				 .silence_ns = ctx->session.peer_timeout / 2,
				 .connect_ns = ctx->session.answer_ns,
				 .log = log_below,
				 .log_ctx = ctx };
	int err = ops->open(&ro, &d->dev);

	d->ops = ops;
	if (err) {
		d->dev = NULL;
		snprintf(d->why_not, sizeof(d->why_not), "%s", rv_error_text());
		err = err == -EINVAL ? err : limit_errno(-err) == ENOMEM ? -ENOMEM : -ENODEV;
		return rc_fail(-err, "%s%s%s: %s", ops->name, c->device[0] ? ":" : "", c->device,
			       d->why_not);
	}
	ops->caps(d->dev, &d->caps);
	return 0;
}

static int open_devices(struct rref_ctx *ctx, const struct rref_options *opt)
{
	struct rc_device_choice c;
	int err = rc_device_parse(opt->device, &c), shm_err = 0;

	if (err)
		return err;
	snprintf(ctx->device[RV_SHM].why_not, sizeof(ctx->device[0].why_not), "shm is not chosen");
	snprintf(ctx->device[RV_IBV].why_not, sizeof(ctx->device[0].why_not), "ibv is not chosen");
	if (c.use_shm)
		err = shm_err = open_device(ctx, &rv_shm_ops, &c);
	if (c.use_ibv) {
		int e = open_device(ctx, &rv_ibv_ops, &c);

		/* auto: a machine may lack RDMA if all its peers are here. rc_peers_open tells if
		 * one is not. */
		err = c.must || (err && e) ? e : 0;
	}
	if (!err || !shm_err)
		return err;
	/* shm needs no hardware, so the text tells first why it does not work. A lack of RDMA is
	 * common. */
	return rc_fail(-shm_err, "no usable device: shm: %.300s; ibv: %.150s",
		       ctx->device[RV_SHM].why_not, ctx->device[RV_IBV].why_not);
}

/* Closes the devices that reach no peer, since they would only pin memory. */
static int close_unused(struct rref_ctx *ctx)
{
	for (int k = 0; k < RV_NR_KINDS; k++) {
		struct rc_device *d = &ctx->device[k];
		bool used = false;

		for (uint32_t i = 0; i < ctx->world; i++)
			used |= ctx->peers[i].dev == d->dev;
		if (d->dev && !used) {
			d->ops->close(d->dev);
			d->dev = NULL;
			snprintf(d->why_not, sizeof(d->why_not),
				 "no worker of this group is reached by it");
		}
	}
	return 0;
}

static int meet(struct rref_ctx *ctx, const struct rref_options *opt)
{
	struct rc_group_log log = { .fn = log_below, .ctx = ctx };
	struct rc_member *me = calloc(1, sizeof(*me));
	int err;

	if (!me)
		return rc_fail(ENOMEM, "memory for the group");
	me->rank = ctx->rank;
	me->incarnation = ctx->group.incarnation;
	rc_identity_make(&ctx->group.identity);
	memcpy(me->public, ctx->group.identity.public, sizeof(me->public));
	if (opt->name)
		snprintf(me->name, sizeof(me->name), "%s", opt->name);
	else
		snprintf(me->name, sizeof(me->name), "worker%u", ctx->rank);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			ctx->device[k].ops->addr(ctx->device[k].dev, &me->addr[k]);
	err = rc_rendezvous(opt->rendezvous, ctx->world, me, &ctx->group.key,
			    rc_deadline(ctx, opt->init_timeout), &log, ctx->members);
	free(me);
	return err;
}

/* Frees all that rref_init made. Works at every stage of rref_init. */
static is_alone void ctx_destroy(struct rref_ctx *ctx)
{
	struct rc_function *fn;

	rc_pool_close(ctx);
	rc_poller_close(ctx);
	rc_log_flush(ctx); /* flushed while the log function can still ask for counters */
	rc_scopes_close(ctx);
	rp_destroy(ctx->op.machine);
	rc_ops_close(ctx);
	rc_readers_close(ctx);
	rc_onlookers_close(ctx);
	rc_memory_close(ctx);
	rc_types_close(ctx);
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (ctx->device[k].dev)
			ctx->device[k].ops->close(ctx->device[k].dev);
	for (unsigned i = 0; i < RC_FUNCTION_BUCKETS; i++)
		while ((fn = at_load(&ctx->call.functions[i]))) {
			at_store(&ctx->call.functions[i], fn->next);
			free(fn);
		}
	if (ctx->sleep.loop_fd != ctx->sleep.loop_wake_fd)
		rb_close(ctx->sleep.loop_fd);
	rb_close(ctx->sleep.loop_wake_fd);
	rb_close(ctx->sleep.epfd);
	rb_close(ctx->sleep.kickfd);
	rb_close(ctx->sleep.timer_fd);
	rc_log_close(ctx);
	rc_key_wipe(&ctx->group.key);
	rc_identity_wipe(&ctx->group.identity);
	pthread_mutex_destroy(&ctx->op.grow_lock);
	pthread_mutex_destroy(&ctx->call.function_lock);
	rc_send_close(ctx);
	rc_incoming_close(ctx);
	rc_leaks_free(ctx);
	rc_calls_close(ctx);
	rc_slabs_close(&ctx->value.handles);
	rc_slabs_close(&ctx->value.remotes);
	free(ctx->end.barrier_seen);
	for (uint32_t i = 0; ctx->peers && i < ctx->world; i++)
		rc_key_wipe(&ctx->peers[i].key);
	free(ctx->peers);
	free(ctx->members);
	free(ctx);
}

static is_alone struct rref_ctx *ctx_make(const struct rref_options *o)
{
	struct rref_ctx *ctx = aligned_alloc(CACHE_LINE, sizeof(*ctx));

	if (!ctx)
		return NULL;
	memset(ctx, 0, sizeof(*ctx));
	ctx->sleep.epfd = ctx->sleep.kickfd = ctx->sleep.loop_wake_fd = ctx->sleep.loop_fd =
		ctx->sleep.timer_fd = -1;
	ctx->guard.generation = rb_generation();
	ctx->guard.gate = o->scope ? RC_NO_GATE : ctx->guard.generation;
	ctx->serial = rc_fast_serial();
	ctx->rank = (uint32_t)o->rank;
	ctx->world = (uint32_t)o->world_size;
	at_store(&ctx->timeout, o->timeout);
	ctx->session.peer_timeout = o->peer_timeout;
	ctx->session.stall_timeout = o->stall_timeout;
	ctx->session.events = &rc_router_session;
	ctx->session.fence = rc_peer_fence;
	ctx->session.score_limit = RC_SCORE_LIMIT;
	ctx->session.answer_ns = max_of(RC_ANSWER_NS,
					min_of(ctx->session.peer_timeout, INT64_MAX / 2));
	ctx->turns.mode = o->mode;
	ctx->turns.poller_core = o->poller_core;
	ctx->end.leak_check = !(o->flags & RREF_NO_LEAK_CHECK);
	ctx->log.fn = o->log;
	ctx->log.arg = o->log == rc_log_stderr ? ctx : o->log_ctx;
	ctx->log.level = o->log_level;
	ctx->end.came_calm.idle = true;
	ctx->session.peer_down = o->peer_down;
	ctx->session.peer_down_arg = o->peer_down_arg;
	rc_random(&ctx->group.incarnation, sizeof(ctx->group.incarnation));
	pthread_mutex_init(&ctx->op.grow_lock, NULL);
	pthread_mutex_init(&ctx->call.function_lock, NULL);
	list_init(&ctx->session.self_queue);
	rc_slabs_open(&ctx->value.handles, sizeof(struct rref));
	rc_slabs_open(&ctx->value.remotes, sizeof(struct rc_remote));
	list_init(&ctx->value.mems);
	list_init(&ctx->value.wraps);
	list_init(&ctx->value.wraps_out);
	list_init(&ctx->hooks.due);
	rc_scrub_open(ctx);
	ctx->works.run_bare = rc_handle_dropped;
	ctx->turns.engine = &rc_engine;
	list_init(&ctx->call.spare_calls);
	for (unsigned i = 0; i < RC_CALL_BUCKETS; i++) {
		list_init(&ctx->call.open[i]);
		list_init(&ctx->call.offers[i]);
	}
	ctx->call.bucket_seed = rb_random64();
	list_init(&ctx->sleep.sleepers);
	ctx->op.effect = rc_effect;
	ctx->op.started_at = rc_coarse_ns();
	ctx->members = calloc(ctx->world, sizeof(*ctx->members));
	ctx->end.barrier_seen = calloc(ctx->world, sizeof(*ctx->end.barrier_seen));
	return ctx;
}

/*
 * Keeps an errno that rref_init's block lists. Limits of the system become ENOMEM. Refusals, and
 * any errno that is not listed, become EIO.
 */
static int listed(int err)
{
	static const int list[] = {
		EINVAL, EEXIST, ENODEV, ENOMEM, ETIMEDOUT, ECONNREFUSED, EADDRINUSE,
		EADDRNOTAVAIL, EACCES, ENOENT, EKEYREJECTED, EPROTONOSUPPORT, EPROTO,
	};

	err = limit_errno(-err);
	for (size_t i = 0; i < array_size(list); i++)
		if (list[i] == err)
			return -err;
	return -EIO;
}

static void set_if_unset(int64_t *option, int64_t ns)
{
	if (!*option)
		*option = ns;
}

/* Reads the program's options, or the environment's; checks them, and fills in what is unset. */
static int take_options(const struct rref_options *opt, struct rref_options *o)
{
	int err;

	if (opt) {
		err = rc_options_read(opt, o);
	} else {
		rref_options_init(o);
		err = rref_options_from_env(o);
	}
	if (err)
		return err;
	if (o->rank == -1 && o->world_size == 1)
		o->rank = 0;
	if ((err = check_member(o)) || (err = check_options(o)) || (err = check_limits(o)))
		return err;
	set_if_unset(&o->timeout, 60 * NSEC_PER_SEC);
	set_if_unset(&o->init_timeout, 60 * NSEC_PER_SEC);
	set_if_unset(&o->peer_timeout, NSEC_PER_SEC);
	return 0;
}

static int open_group(struct rref_ctx *ctx, const struct rref_options *o)
{
	rc_limits_raise(ctx);
	return rc_key_load(o->key_file, &ctx->group.key);
}

static int register_all(struct rref_ctx *ctx, const struct rref_options *o)
{
	int err = 0;

	for (size_t i = 0; i < o->nr_functions && !err; i++)
		err = rref_register(ctx, &o->functions[i]);
	return err;
}

static int open_ops(struct rref_ctx *ctx, const struct rref_options *o)
{
	return rc_ops_open(ctx, o->max_ops ? o->max_ops : 65536);
}

static is_alone int open_machine(struct rref_ctx *ctx)
{
	int err = rp_create(ctx->rank, ctx->world, &ctx->op.machine);

	if (err)
		return rc_fail(-err, "memory for the protocol's tables");
	rp_set_seed(ctx->op.machine, rb_random64());
	return 0;
}

static int open_pool(struct rref_ctx *ctx, const struct rref_options *o)
{
	return rc_pool_open(ctx, o->nr_threads ? o->nr_threads : 4,
			    o->max_waiting ? o->max_waiting : 8192);
}

/* Parts of a context, in the order in which they are opened. ctx_destroy closes them. */
static const struct part {
	int (*open)(struct rref_ctx *ctx);
	int (*open_by)(struct rref_ctx *ctx, const struct rref_options *o);
} parts[] = {
	{ .open = rc_log_open },
	{ .open_by = open_group },
	{ .open_by = register_all },
	{ .open_by = open_devices },
	{ .open_by = meet },
	{ .open_by = rc_scopes_open },
	{ .open = rc_peers_open },
	{ .open = rc_send_open },
	{ .open = rc_incoming_open },
	{ .open = close_unused },
	{ .open_by = rc_memory_open },
	{ .open = rc_types_open },
	{ .open_by = open_ops },
	{ .open = open_machine },
	{ .open_by = open_pool },
};

static is_alone int open_all(struct rref_ctx *ctx, const struct rref_options *o)
{
	int err = 0;

	for (size_t i = 0; i < array_size(parts) && !err; i++)
		err = parts[i].open ? parts[i].open(ctx) : parts[i].open_by(ctx, o);
	if (err)
		return err;
	rc_log(ctx, RREF_LOG_INFO, "%s joined a group of %u", ctx->members[ctx->rank].name,
	       ctx->world);
	at_store_rel(&ctx->state, RC_CTX_RUNNING);
	err = rc_poller_open(ctx);
	if (err)
		at_store_rel(&ctx->state, RC_CTX_SHUT);
	return err;
}

is_alone int rref_init(const struct rref_options *opt, struct rref_ctx **out)
{
	RB_NO_CANCEL;
	struct rref_options o;
	struct rref_ctx *ctx;
	int err;

	if (!out)
		return rc_fail(EINVAL, "rref_init: nowhere to put the context");
	if ((err = begin_process()) || (err = take_options(opt, &o)))
		return err;
	ctx = ctx_make(&o);
	if (ctx && ctx->members && ctx->end.barrier_seen)
		err = open_all(ctx, &o);
	else
		err = rc_fail(ENOMEM, "memory for a context");
	if (err) {
		if (ctx)
			ctx_destroy(ctx);
		return listed(err);
	}
	*out = ctx;
	/* clears the text of an attempt that failed, say for a missing provider */
	rc_error_clear();
	return 0;
}

is_alone void rref_free_ctx(struct rref_ctx *ctx)
{
	RB_NO_CANCEL;
	unsigned turn = 0;

	if (!ctx || rc_is_child(ctx))
		return;
	if (rc_in_callback() || rc_in_scope_hook()) {
		rc_log(ctx, RREF_LOG_ERROR, "rref_free_ctx: called from a callback, handler or "
		       "scope hook, which may still use the context");
		return;
	}
	if (at_load_acq(&ctx->state) != RC_CTX_SHUT)
		rref_shutdown(ctx, RREF_SHUTDOWN_NOW, 0);
	/* Another thread may be in rref_shutdown, and has to leave it first. */
	while (at_load_acq(&ctx->end.closing))
		rc_pause(&turn);
	rc_queues_close(ctx);
	rc_lock(ctx);
	rc_unlock(ctx); /* the unlock finishes the references dropped last */
	struct rref *h;

	/* The program never released these handles: their memory goes with the context. */
	while ((h = rc_handle_next(ctx, NULL)))
		rc_handle_free(h);
	rc_wraps_close(ctx);
	ctx_destroy(ctx);
}

int rref_rank(const struct rref_ctx *ctx)
{
	return ctx ? (int)ctx->rank : rc_fail(EINVAL, "no context");
}

int rref_world_size(const struct rref_ctx *ctx)
{
	return ctx ? (int)ctx->world : rc_fail(EINVAL, "no context");
}

int rref_set_timeout(struct rref_ctx *ctx, int64_t timeout)
{
	int err = rc_enter(ctx);

	if (err)
		return err;
	if (timeout <= 0)
		return rc_fail(EINVAL, "rref_set_timeout: %" PRIi64 " ns is not above 0", timeout);
	at_store(&ctx->timeout, timeout);
	return 0;
}

int rref_worker(struct rref_ctx *ctx, int rank, struct rref_worker_info *out)
{
	struct rref_worker_info w;
	const struct rc_peer *p;

	if (!ctx || !out || out->size < sizeof(size_t))
		return rc_fail(EINVAL, "rref_worker: no context, or out->size is not set");
	if (rc_is_child(ctx))
		return rc_fail_child();
	if (rank < 0 || (uint32_t)rank >= ctx->world)
		return rc_fail(EINVAL, "rank %d: the group has ranks 0 to %u", rank,
			       ctx->world - 1);
	p = &ctx->peers[rank];
	w = (struct rref_worker_info){ .size = out->size,
				       .rank = rank,
				       .name = ctx->members[rank].name,
				       .incarnation = ctx->members[rank].incarnation,
				       .alive = at_load(&p->alive),
				       .device = p->ops ? p->ops->name : "self",
				       .stalled = at_load(&p->stalled_ns) };
	memcpy(out, &w, min_of(out->size, sizeof(w)));
	return 0;
}

int rref_worker_by_name(struct rref_ctx *ctx, const char *name)
{
	if (!ctx || !name)
		return rc_fail(EINVAL, "rref_worker_by_name: no context or no name");
	if (rc_is_child(ctx))
		return rc_fail_child();
	for (uint32_t i = 0; i < ctx->world; i++)
		if (strcmp(ctx->members[i].name, name) == 0)
			return (int)i;
	return rc_fail(ENOENT, "no worker is named %.127s", name);
}
