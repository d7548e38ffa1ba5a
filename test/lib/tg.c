/* SPDX-License-Identifier: Apache-2.0 */
#include "tg.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/lsan_interface.h>
#endif
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

struct tg_group *tg_current;

const char *tg_device(void)
{
	const char *d = getenv("RREF_TEST_DEVICE");

	return d && *d ? d : "shm";
}

bool tg_is_shm(void)
{
	return strcmp(tg_device(), "shm") == 0;
}

int64_t tg_slow(void)
{
	const char *s = getenv("RREF_TEST_SLOW");

	return s && atoi(s) > 1 ? atoi(s) : 1;
}

long tg_sleeps(void)
{
	struct rusage u;

	TG_IS(getrusage(RUSAGE_THREAD, &u), 0);
	return u.ru_nvcsw;
}

bool tg_is_asleep(pid_t thread)
{
	char path[100], line[512] = "";
	const char *state;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)thread);
	f = fopen(path, "r");
	TG_CHECK(f);
	TG_CHECK(fgets(line, sizeof(line), f));
	fclose(f);
	state = strrchr(line, ')');
	return state && strncmp(state, ") S", 3) == 0;
}

void tg_pause(void)
{
	usleep(tg_is_shm() ? 300 : 3000);
}

int tg_scale(int n)
{
	return tg_is_shm() ? n : n / 20 > 1 ? n / 20 : 1;
}

/*
 * Chooses a port, which rank 0 binds later. Each process has its own loopback
 * address for that, made of its pid. So neither other test programs nor the
 * kernel's choices can take the port meanwhile.
 */
void tg_free_place(char *buf, size_t size)
{
	unsigned pid = (unsigned)getpid();
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_addr.s_addr = htonl((127u << 24 | 64u << 16) + pid) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
	char ip[INET_ADDRSTRLEN];

	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
	    getsockname(fd, (struct sockaddr *)&a, &len) == 0)
		port = ntohs(a.sin_port);
	if (fd >= 0)
		close(fd);
	snprintf(buf, size, "%s:%d", inet_ntop(AF_INET, &a.sin_addr, ip, sizeof(ip)), port);
}

static void log_to_stderr(void *ctx, enum rref_log_level level, const char *text)
{
	(void)ctx;
	fprintf(stderr, "[%d] log %d: %s\n", (int)getpid(), (int)level, text);
}

void tg_log(struct rref_options *o)
{
	if (getenv("RREF_TEST_LOG")) {
		o->log = log_to_stderr;
		o->log_level = RREF_LOG_DEBUG;
	}
}

enum rref_progress_mode tg_mode(void)
{
	const char *m = getenv("RREF_TEST_PROGRESS");

	return m && strcmp(m, "poll") == 0	? RREF_PROGRESS_POLL
		: m && strcmp(m, "manual") == 0 ? RREF_PROGRESS_MANUAL
						: RREF_PROGRESS_AUTO;
}

void tg_options(struct rref_options *o, int rank)
{
	rref_options_init(o);
	o->rank = rank;
	o->world_size = tg_current->world;
	o->rendezvous = tg_current->rendezvous;
	o->device = tg_device();
	o->init_timeout = 30 * NSEC_PER_SEC;
	o->timeout = 30 * NSEC_PER_SEC;
	/* A slow machine is silent for longer. */
	o->peer_timeout = tg_slow() * NSEC_PER_SEC;
	o->mode = tg_mode();
	tg_log(o);
}

struct rref_ctx *tg_init(int rank, const struct rref_function *fns, size_t nr)
{
	struct rref_options o;
	struct rref_ctx *ctx;

	tg_options(&o, rank);
	o.functions = fns;
	o.nr_functions = nr;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

int64_t tg_deadline(void)
{
	return tg_current->deadline;
}

void tg_finish(struct rref_ctx *ctx)
{
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL,
			    max_of(tg_deadline() - now_ns(), NSEC_PER_SEC)));
	rref_free_ctx(ctx);
}

void tg_meet(int i)
{
	struct tg_shared *s = tg_current->shared;
	int n = atomic_fetch_add(&s->arrived[i], 1) + 1,
	    round = (n + tg_current->world - 1) / tg_current->world;
	int64_t end = tg_deadline();

	while (atomic_load(&s->arrived[i]) < round * tg_current->world) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

void tg_wait_flag(int i, int value)
{
	int64_t end = tg_deadline();

	while (atomic_load(&tg_current->shared->flag[i]) < value) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

void tg_meet_serving(struct rref_ctx *ctx, int i)
{
	struct tg_shared *s = tg_current->shared;
	int n = atomic_fetch_add(&s->arrived[i], 1) + 1,
	    round = (n + tg_current->world - 1) / tg_current->world;
	int64_t end = tg_deadline();

	while (atomic_load(&s->arrived[i]) < round * tg_current->world) {
		TG_CHECK(now_ns() < end);
		rref_progress(ctx);
		tg_pause();
	}
}

void tg_wait_flag_serving(struct rref_ctx *ctx, int i, int value)
{
	int64_t end = tg_deadline();

	while (atomic_load(&tg_current->shared->flag[i]) < value) {
		TG_CHECK(now_ns() < end);
		rref_progress(ctx);
		tg_pause();
	}
}

void tg_set_flag(int i, int value)
{
	atomic_store(&tg_current->shared->flag[i], value);
}

int tg_flag(int i)
{
	return atomic_load(&tg_current->shared->flag[i]);
}

struct rref_stats tg_stats(struct rref_ctx *ctx)
{
	struct rref_stats s = { .size = sizeof(s) };

	TG_OK(rref_get_stats(ctx, &s));
	return s;
}

bool tg_eventually(bool (*cond)(struct rref_ctx *ctx, void *arg), struct rref_ctx *ctx, void *arg)
{
	int64_t end = tg_deadline();

	while (!cond(ctx, arg)) {
		if (now_ns() > end)
			return false;
		rref_progress(ctx);
		tg_pause();
	}
	return true;
}

/* ---- functions that most tests need ---- */

#define HELD_MAX 64

static struct rref_call *held[HELD_MAX];
static int nr_held;
static pthread_mutex_t held_lock = PTHREAD_MUTEX_INITIALIZER;

static int echo(struct rref_call *call, void *arg)
{
	struct rref_args a = { .data = rref_call_data(call), .length = rref_call_length(call) };

	(void)arg;
	return rref_call_reply(call, &a);
}

static int reply_all(struct rref_call *call)
{
	struct rref *refs[RREF_REFS_MAX];
	struct rref_args a = { .data = rref_call_data(call),
			       .length = rref_call_length(call),
			       .refs = refs,
			       .nr_refs = rref_call_nr_refs(call) };

	for (size_t i = 0; i < a.nr_refs; i++)
		refs[i] = rref_call_ref(call, i);
	return rref_call_reply(call, &a);
}

static int echo_refs(struct rref_call *call, void *arg)
{
	(void)arg;
	return reply_all(call);
}

static int nothing(struct rref_call *call, void *arg)
{
	(void)call;
	(void)arg;
	return 0;
}

static int fail(struct rref_call *call, void *arg)
{
	const char *data = rref_call_data(call);
	int32_t code;

	(void)arg;
	if (rref_call_length(call) < sizeof(code))
		return -EINVAL;
	memcpy(&code, data, sizeof(code));
	return rref_call_error(call, code, "%.*s", (int)(rref_call_length(call) - sizeof(code)),
			       data + sizeof(code));
}

static int read_refs(struct rref_call *call, void *arg)
{
	unsigned sum = 0;

	(void)arg;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++) {
		struct rref_view *v;
		int err = rref_to_here(rref_call_ref(call, i), RREF_DEFAULT, &v);

		if (err)
			return rref_call_error(call, err, "reading %zu: %s", i, rref_last_error());
		sum += *(const unsigned char *)rref_view_data(v);
		rref_view_free(v);
	}
	return rref_call_reply(call, &(struct rref_args){ .data = &sum, .length = sizeof(sum) });
}

static int hold(struct rref_call *call, void *arg)
{
	(void)arg;
	pthread_mutex_lock(&held_lock);
	if (nr_held == HELD_MAX) {
		pthread_mutex_unlock(&held_lock);
		return -EDQUOT;
	}
	held[nr_held++] = call;
	pthread_mutex_unlock(&held_lock);
	return RREF_DEFER;
}

static int take_held(struct rref_call **to)
{
	int n;

	pthread_mutex_lock(&held_lock);
	n = nr_held;
	memcpy(to, held, (size_t)n * sizeof(to[0]));
	nr_held = 0;
	pthread_mutex_unlock(&held_lock);
	return n;
}

static int release(struct rref_call *call, void *arg)
{
	struct rref_call *mine[HELD_MAX];
	int32_t n = take_held(mine);

	(void)arg;
	for (int i = 0; i < n; i++) {
		int err = reply_all(mine[i]);

		/* References cannot be the result of a creation. */
		if (err)
			TG_OK(rref_call_error(mine[i], err, "%s", rref_last_error()));
	}
	return rref_call_reply(call, &(struct rref_args){ .data = &n, .length = sizeof(n) });
}

void tg_drop_held(void)
{
	struct rref_call *mine[HELD_MAX];
	int n = take_held(mine);

	for (int i = 0; i < n; i++)
		rref_call_error(mine[i], -ECANCELED, "dropped");
}

static int count_held(struct rref_call *call, void *arg)
{
	int32_t n;

	(void)arg;
	pthread_mutex_lock(&held_lock);
	n = nr_held;
	pthread_mutex_unlock(&held_lock);
	return rref_call_reply(call, &(struct rref_args){ .data = &n, .length = sizeof(n) });
}

static int reply_stats(struct rref_call *call, void *arg)
{
	struct rref_stats s = { .size = sizeof(s) };
	int err = rref_get_stats(rref_call_context(call), &s);

	(void)arg;
	return err ? err
		   : rref_call_reply(call, &(struct rref_args){ .data = &s, .length = sizeof(s) });
}

const struct rref_function tg_functions[] = {
	{ .name = "tg.echo", .handler = echo },
	{ .name = "tg.echo_inline", .handler = echo, .flags = RREF_INLINE },
	{ .name = "tg.echo_refs", .handler = echo_refs },
	{ .name = "tg.nothing", .handler = nothing },
	{ .name = "tg.fail", .handler = fail },
	{ .name = "tg.read", .handler = read_refs },
	{ .name = "tg.hold", .handler = hold },
	{ .name = "tg.release", .handler = release },
	{ .name = "tg.held", .handler = count_held },
	{ .name = "tg.stats", .handler = reply_stats },
};
const size_t tg_nr_functions = array_size(tg_functions);

struct rref_ctx *tg_join(int rank)
{
	return tg_init(rank, tg_functions, tg_nr_functions);
}

void tg_refuse(const struct rref_options *o, int err, const char *text)
{
	struct rref_ctx *ctx = NULL;

	TG_IS(rref_init(o, &ctx), err);
	TG_CHECK(!ctx);
	TG_TEXT(text);
}

void tg_accept(const struct rref_options *o)
{
	struct rref_ctx *ctx;

	TG_OK(rref_init(o, &ctx));
	tg_finish(ctx);
}

void tg_result(struct rref_future *f, void *to, size_t length)
{
	const void *data;
	size_t n;

	TG_OK(rref_future_data(f, &data, &n));
	TG_IS(n, length);
	if (n)
		memcpy(to, data, n);
}

struct rref_stats tg_stats_of(struct rref_ctx *ctx, int rank)
{
	struct rref_stats s;
	struct rref_future *f;

	if (rank == rref_rank(ctx))
		return tg_stats(ctx);
	TG_OK(rref_rpc_sync(ctx, rank, "tg.stats", NULL, RREF_DEFAULT, &f));
	tg_result(f, &s, sizeof(s));
	rref_future_free(f);
	return s;
}

void tg_until_clean(struct rref_ctx *ctx, int rank)
{
	int64_t end = tg_deadline();

	for (;;) {
		struct rref_stats s = tg_stats_of(ctx, rank);

		if (!s.owners && !s.forks && !s.users && !s.pending_users && !s.pending_children &&
		    !s.parked && !s.value_bytes)
			return;
		if (now_ns() > end) {
			fprintf(stderr,
				"rank %d does not become clean: owners %lu forks %lu users %lu "
				"pending users %lu pending children "
				"%lu parked %lu value bytes %lu\n",
				rank, (unsigned long)s.owners, (unsigned long)s.forks,
				(unsigned long)s.users, (unsigned long)s.pending_users,
				(unsigned long)s.pending_children, (unsigned long)s.parked,
				(unsigned long)s.value_bytes);
			_exit(1);
		}
		rref_progress(ctx);
		tg_pause();
	}
}

static int ask_number(struct rref_ctx *ctx, int rank, const char *function)
{
	struct rref_future *f;
	int32_t n;

	TG_OK(rref_rpc_sync(ctx, rank, function, NULL, 20 * NSEC_PER_SEC, &f));
	tg_result(f, &n, sizeof(n));
	rref_future_free(f);
	return n;
}

void tg_until_held(struct rref_ctx *ctx, int rank, int nr)
{
	int64_t end = tg_deadline();

	while (ask_number(ctx, rank, "tg.held") < nr) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

int tg_release_held(struct rref_ctx *ctx, int rank)
{
	return ask_number(ctx, rank, "tg.release");
}

void tg_expect_bytes(struct rref *ref, const void *bytes, size_t length)
{
	struct rref_view *v;

	TG_OK(rref_to_here(ref, RREF_DEFAULT, &v));
	TG_IS(rref_view_length(v), length);
	TG_CHECK(length == 0 || memcmp(rref_view_data(v), bytes, length) == 0);
	rref_view_free(v);
}

unsigned char tg_byte(size_t offset, unsigned seed)
{
	return (unsigned char)((offset * 0x9e3779b1u + seed * 0x85ebca6bu) >> 13 ^ offset);
}

void tg_fill(void *to, size_t length, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		((unsigned char *)to)[i] = tg_byte(i, seed);
}

bool tg_filled(const void *at, size_t length, size_t offset, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		if (((const unsigned char *)at)[i] != tg_byte(offset + i, seed))
			return false;
	return true;
}

#define AFTER_FAILURE_S 10

/* Looks at ends without reaping, until all have come: so no pid becomes another process's. */
static bool has_ended(pid_t pid, siginfo_t *how)
{
	how->si_pid = 0;
	return waitid(P_PID, (id_t)pid, how, WEXITED | WNOHANG | WNOWAIT) || how->si_pid == pid;
}

static bool ended_badly(const struct tg_group *g, int rank, const siginfo_t *how)
{
	if (g->expect_killed[rank])
		return how->si_code == CLD_EXITED || how->si_status != SIGKILL;
	if (how->si_code == CLD_EXITED && !how->si_status)
		return false;
	fprintf(stderr, "rank %d ended with %s %d\n", rank,
		how->si_code == CLD_EXITED ? "status" : "signal", how->si_status);
	return true;
}

/*
 * Returns the number of workers that did not end as expected. After a failure the others may wait
 * in vain until their own deadline. They get a little time to say what they noticed.
 */
static int wait_for_all(struct tg_group *g, int64_t end)
{
	bool ended[TG_MAX] = { false };
	int bad = 0;

	for (int left = g->world; left && now_ns() < end; tg_pause()) {
		for (int r = 0; r < g->world; r++) {
			siginfo_t how;

			if (ended[r] || !has_ended(g->pid[r], &how))
				continue;
			ended[r] = true;
			left--;
			if (!ended_badly(g, r, &how))
				continue;
			bad++;
			end = min_of(end, now_ns() + AFTER_FAILURE_S * tg_slow() * NSEC_PER_SEC);
		}
	}
	for (int r = 0; r < g->world; r++) {
		if (!ended[r]) {
			fprintf(stderr, "rank %d (pid %d) did not end in time\n", r,
				(int)g->pid[r]);
			kill(g->pid[r], getenv("RREF_TEST_ABORT") ? SIGABRT : SIGKILL);
			bad++;
		}
		waitpid(g->pid[r], NULL, 0);
	}
	return bad;
}

int tg_run_group(struct tg_group *g, int (*worker)(int rank, void *arg), void *arg)
{
	static const int crashes[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS };
	int bad;
	int64_t end = now_ns() + (g->timeout_s ? g->timeout_s : 60) * tg_slow() * NSEC_PER_SEC;

	g->deadline = end - 3 * NSEC_PER_SEC;
	g->shared = mmap(NULL, sizeof(*g->shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->shared == MAP_FAILED)
		return -1;
	tg_free_place(g->rendezvous, sizeof(g->rendezvous));
	fflush(NULL);
	for (int r = 0; r < g->world; r++) {
		g->pid[r] = fork();
		if (g->pid[r] < 0) {
			perror("fork");
			abort();
		}
		if (g->pid[r] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			tg_current = g;
			/* cmocka's handlers would end the worker with status 255 and no text. */
			for (size_t k = 0; k < array_size(crashes); k++)
				signal(crashes[k], SIG_DFL);
			g->shared->pid[r] = getpid();
			int status = worker(r, arg);

#if defined(__SANITIZE_ADDRESS__)
			/* _exit skips the check that exit would make. */
			if (__lsan_do_recoverable_leak_check())
				status = 1;
#endif
			fflush(NULL);
			_exit(status);
		}
	}
	bad = wait_for_all(g, end);
	munmap(g->shared, sizeof(*g->shared));
	return bad;
}

int tg_run(int world, int (*worker)(int rank, void *arg), void *arg)
{
	struct tg_group g = { .world = world };

	return tg_run_group(&g, worker, arg);
}
