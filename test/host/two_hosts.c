/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two hosts (test/vm/run.sh --hosts 2): the same program runs on both.
 *
 *   mixed   two workers on each: shm inside a host, ibv between them,
 *           the same regions registered with both
 *   death   an owner whose host dies without a word: its readers learn of it in bounded time,
 *           and leave
 *   flap    a link that goes down for two seconds, several times: reads and calls go on after it
 *
 * Host 0 prints the verdict; host 1 gives its own by its exit status.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tg.h"

#define LIFE_S 150
#define FLAPS 6
#define BIG ((size_t)(8 << 20) + 4096) /* more than the device's largest message: read in pieces */

static struct rref *own[3];
static const size_t sizes[3] = { 8, 100000, BIG };
static int host, nr_hosts_ranks;
static int64_t peer_timeout = 8 * NSEC_PER_SEC;
/* workers of both hosts are not this process' children: it gives the time alone */
static struct tg_group hosts;

static unsigned char byte_at(int rank, size_t i)
{
	return (unsigned char)((unsigned)rank * 131u + i * 7u + (i >> 12));
}

static int get(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call, &(struct rref_args){ .refs = own, .nr_refs = 3 });
}

/* Reads its references, of any owner, and returns the number of right bytes. */
static int verify(struct rref_call *call, void *arg)
{
	uint64_t good = 0;

	(void)arg;
	for (size_t i = 0; i < rref_call_nr_refs(call); i++) {
		struct rref *r = rref_call_ref(call, i);
		struct rref_view *v;
		int err = rref_to_here(r, RREF_DEFAULT, &v);

		if (err)
			return rref_call_error(call, err, "%s", rref_last_error());
		for (size_t k = 0; k < rref_view_length(v); k++)
			good += ((const unsigned char *)rref_view_data(v))[k] ==
				byte_at(rref_owner(r), k);
		rref_view_free(v);
	}
	return rref_call_reply(call, &(struct rref_args){ .data = &good, .length = sizeof(good) });
}

static int die(struct rref_call *call, void *arg)
{
	(void)arg;
	(void)call;
	/* Ends this host at once by the harness, like a loss of power. */
	execl("test/vm/die.sh", "die.sh", (char *)NULL);
	_exit(9);
}

static const struct rref_function functions[] = {
	{ .name = "get", .handler = get }, { .name = "verify", .handler = verify },
	{ .name = "die", .handler = die },
};

static struct rref_ctx *join(int rank, int world)
{
	char key[] = "/tmp/two-hosts.key";
	int fd = open(key, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct rref_options o;
	struct rref_ctx *ctx;

	/* The same key on both hosts, as an administrator would put it there. */
	TG_CHECK(fd >= 0 && write(fd, "a key for two hosts, 32 bytes..!", 32) == 32 &&
		 close(fd) == 0);
	rref_options_init(&o);
	o.rank = rank;
	o.world_size = world;
	o.rendezvous = "10.77.0.1:29400";
	o.key_file = key;
	o.functions = functions;
	o.nr_functions = array_size(functions);
	tg_log(&o);
	/* An emulated host may stand still for longer than the silence of a dead real one. */
	o.peer_timeout = peer_timeout;
	o.init_timeout = 60 * NSEC_PER_SEC;
	o.timeout = 60 * NSEC_PER_SEC;
	TG_OK(rref_init(&o, &ctx));
	return ctx;
}

static int mixed(int rank)
{
	struct rref_ctx *ctx = join(rank, 4);
	uint64_t shm_peers = 0, ibv_peers = 0;

	for (int i = 0; i < 3; i++) {
		void *data;

		TG_OK(rref_alloc(ctx, sizes[i], &own[i], &data));
		for (size_t k = 0; k < sizes[i]; k++)
			((unsigned char *)data)[k] = byte_at(rank, k);
		TG_OK(rref_set(own[i]));
	}
	for (int peer = 0; peer < 4; peer++) {
		struct rref_worker_info w = { .size = sizeof(w) };

		TG_OK(rref_worker(ctx, peer, &w));
		const char *want = peer == rank ? "self" : peer / 2 == rank / 2 ? "shm" : "ibv";

		TG_CHECK(strcmp(w.device, want) == 0);
		shm_peers += strcmp(w.device, "shm") == 0;
		ibv_peers += strcmp(w.device, "ibv") == 0;
	}
	TG_CHECK(shm_peers == 1 && ibv_peers == 2);
	/* Peers may lack their values yet: a first round of calls is the barrier. */
	for (int peer = 0; peer < 4; peer++) {
		struct rref_future *f;
		struct rref *r[3];
		struct rref_view *v;

		if (peer == rank)
			continue;
		for (;;) {
			int err = rref_rpc_sync(ctx, peer, "get", NULL, RREF_DEFAULT, &f);

			if (!err)
				break;
			TG_IS(err, -EINVAL); /* some of its references are missing */
			usleep(20000);
		}
		for (size_t i = 0; i < 3; i++)
			TG_OK(rref_future_ref(f, i, &r[i]));
		rref_future_free(f);
		for (int i = 0; i < 3; i++) {
			/* The big value once in each direction: the
			 * emulated wire carries a few MB/s. */
			if (i == 2 && !(rank == 0 && peer == 2) && !(rank == 3 && peer == 1))
				continue;
			TG_OK(rref_to_here(r[i], RREF_DEFAULT, &v));
			TG_IS(rref_view_length(v), sizes[i]);
			for (size_t k = 0; k < sizes[i]; k++)
				TG_CHECK(((const unsigned char *)rref_view_data(v))[k] ==
					 byte_at(peer, k));
			rref_view_free(v);
		}
		/* User to user, across and inside hosts. */
		for (int to = 0; to < 4; to++) {
			const void *data;
			size_t length;

			TG_OK(rref_rpc_sync(ctx, to, "verify",
					    &(struct rref_args){ .refs = r, .nr_refs = 2 },
					    RREF_DEFAULT, &f));
			TG_OK(rref_future_data(f, &data, &length));
			TG_IS(*(const uint64_t *)data, sizes[0] + sizes[1]);
			rref_future_free(f);
		}
		for (int i = 0; i < 3; i++)
			rref_release(r[i]);
	}
	/* The others may still ask for its values. The graceful shutdown
	 * releases them when every worker has come. */
	tg_finish(ctx);
	return 0;
}

static int death(int rank)
{
	struct rref_ctx *ctx = join(rank, 2);
	struct rref_future *f;
	struct rref *r;
	struct rref_view *v;
	int err;

	if (rank == 1) {
		TG_OK(rref_new(ctx, "alive", 6, &own[0]));
		TG_OK(rref_new(ctx, "alive", 6, &own[1]));
		TG_OK(rref_new(ctx, "alive", 6, &own[2]));
		pause();
	}
	while ((err = rref_rpc_sync(ctx, 1, "get", NULL, RREF_DEFAULT, &f)) == -EINVAL)
		usleep(20000);
	TG_OK(err);
	TG_OK(rref_future_ref(f, 0, &r));
	rref_future_free(f);
	TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
	TG_CHECK(strcmp(rref_view_data(v), "alive") == 0);
	rref_view_free(v);
	/* This call gets no answer. It has to end because its callee's host is gone, long before
	 * its own 60 s. */
	int64_t start = now_ns();

	TG_IS(rref_rpc_sync(ctx, 1, "die", NULL, RREF_DEFAULT, &f), -EOWNERDEAD);
	TG_CHECK(now_ns() - start < 30 * NSEC_PER_SEC);
	TG_IS(rref_to_here(r, RREF_DEFAULT, &v), -EOWNERDEAD);
	rref_release(r);
	TG_IS(tg_stats(ctx).dead_peers, 1);
	err = rref_shutdown(ctx, RREF_SHUTDOWN_GRACEFUL, 20 * NSEC_PER_SEC);
	TG_CHECK(err == 0 || err == -EOWNERDEAD);
	rref_free_ctx(ctx);
	return 0;
}

/* Cuts the link of this host for two seconds. Returns the process that restores it. */
static pid_t cut_link(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/bin/sh", "sh", "-c",
		      "ip link set \"$RREF_VM_NETDEV\" down; sleep 2; ip link set "
		      "\"$RREF_VM_NETDEV\" up",
		      (char *)NULL);
		_exit(9);
	}
	TG_CHECK(pid > 0);
	return pid;
}

/* Reads and calls while the link goes and comes, and a while
 * longer: interrupted operations go on. */
static void read_over_a_flap(struct rref_ctx *ctx, struct rref *r)
{
	pid_t pid = cut_link();
	bool is_back = false;

	for (int after = 0; after < 20; after += is_back) {
		struct rref_view *v;
		int status;

		TG_OK(rref_to_here(r, RREF_DEFAULT, &v));
		TG_CHECK(strcmp(rref_view_data(v), "alive") == 0);
		rref_view_free(v);
		TG_OK(rref_rpc_sync(ctx, 0, "verify", NULL, RREF_DEFAULT, NULL));
		if (!is_back && waitpid(pid, &status, WNOHANG) == pid) {
			TG_IS(status, 0);
			is_back = true;
		}
		TG_CHECK(now_ns() < hosts.deadline);
	}
}

static int flap(int rank)
{
	struct rref_ctx *ctx = join(rank, 2);

	if (rank == 0) {
		for (int i = 0; i < 3; i++)
			TG_OK(rref_new(ctx, "alive", 6, &own[i]));
	} else {
		struct rref_future *f;
		struct rref *r;
		int err;

		while ((err = rref_rpc_sync(ctx, 0, "get", NULL, RREF_DEFAULT, &f)) == -EINVAL)
			usleep(20000);
		TG_OK(err);
		TG_OK(rref_future_ref(f, 0, &r));
		rref_future_free(f);
		/*
		 * Several times, since the outcome depends on the moment. The
		 * connection may outlive one flap. A side that waits for an answer, and
		 * sends nothing meanwhile, does not notice.
		 */
		for (int n = 0; n < FLAPS || !tg_stats(ctx).resumed_sessions; n++) {
			read_over_a_flap(ctx, r);
			TG_IS(tg_stats(ctx).dead_peers, 0);
			TG_CHECK(now_ns() < hosts.deadline);
		}
		rref_release(r);
	}
	tg_finish(ctx);
	return 0;
}

int main(int argc, char **argv)
{
	int (*worker)(int rank);
	pid_t pid[2];
	int bad = 0;

	if (argc != 2 || !getenv("RREF_VM_HOST")) {
		fprintf(stderr,
			"usage, on each of two hosts: RREF_VM_HOST=0|1 two_hosts "
			"mixed|death|flap\n");
		return 2;
	}
	worker = strcmp(argv[1], "death") == 0 ? death
		: strcmp(argv[1], "flap") == 0 ? flap
					       : mixed;
	nr_hosts_ranks = worker == mixed ? 2 : 1;
	if (worker == flap)
		peer_timeout = 20 * NSEC_PER_SEC;
	host = atoi(getenv("RREF_VM_HOST"));
	for (int i = 0; i < nr_hosts_ranks; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			alarm(LIFE_S);
			hosts.deadline = now_ns() + (LIFE_S - 10) * NSEC_PER_SEC;
			tg_current = &hosts;
			_exit(worker(host * nr_hosts_ranks + i));
		}
	}
	for (int i = 0; i < nr_hosts_ranks; i++) {
		int status = -1;

		waitpid(pid[i], &status, 0);
		if (status) {
			fprintf(stderr, "host %d: worker %d ended with status %#x\n", host, i,
				(unsigned)status);
			bad++;
		}
	}
	if (host == 0)
		printf("%d passed, %d failed\n", nr_hosts_ranks - bad, bad);
	return bad != 0;
}
