/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The raw operations beside the library's. shm: memcpy from a mapped segment of
 * worker 0. Also a cache line that two spinning processes pass to and fro. ibv:
 * verbs/raw. The ends find each other by calls.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/util.h"
#include "pf.h"
#include "verbs/raw/raw.h"

#define LINE 64
#define LOST_NS (10 * NSEC_PER_SEC)

/* Spins until the line shows i. Gives the processor away when the other side seems to lack one. */
static bool await(const _Atomic uint32_t *line, uint32_t i, int64_t end)
{
	for (unsigned spins = 1; atomic_load_explicit(line, memory_order_acquire) != i; spins++) {
		if (spins % 16384)
			continue;
		if (now_ns() > end)
			return false;
		sched_yield();
	}
	return true;
}

/* The head of the shared segment. The bytes to read follow it, on a separate page. */
struct segment {
	_Alignas(LINE) _Atomic uint32_t ping;
	_Alignas(LINE) _Atomic uint32_t pong;
};
#define HEAD 4096
#define HEADER 64 /* bytes that the library reads before a value */

struct pf_raw {
	size_t bytes, head;
	struct segment *segment; /* shm */
	char *to; /* nr_to buffers, step bytes apart */
	unsigned nr_to;
	size_t step;
	struct rv_raw *ibv;
};

/* Maps memory as the library maps value memory: huge pages where the system gives them. */
static struct segment *map(int fd, size_t bytes, int prot)
{
	void *at = mmap(NULL, HEAD + bytes, prot, MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		return NULL;
	madvise(at, HEAD + bytes, MADV_HUGEPAGE);
	return at;
}

/* ---- worker 0 ---- */

static struct {
	struct segment *at;
	size_t bytes;
	int fd;
	struct rv_raw *ibv[PF_THREADS_MAX];
} own = { .fd = -1 };

struct shm_end {
	int32_t pid, fd;
};

/* Serves one segment at a time: a new request ends the one before. */
int pf_raw_serve_shm(struct rref_call *call, void *arg)
{
	uint64_t bytes;

	(void)arg;
	if (rref_call_length(call) != sizeof(bytes))
		return -EINVAL;
	memcpy(&bytes, rref_call_data(call), sizeof(bytes));
	if (own.at) {
		munmap(own.at, HEAD + own.bytes);
		close(own.fd);
	}
	own.bytes = bytes;
	own.fd = memfd_create("rref-perf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	own.at = own.fd >= 0 && ftruncate(own.fd, (off_t)(HEAD + bytes)) == 0
		? map(own.fd, bytes, PROT_READ | PROT_WRITE)
		: NULL;
	if (!own.at)
		return rref_call_error(call, -errno, "a segment of %llu bytes: %s",
				       (unsigned long long)bytes, strerror(errno));
	memset((char *)own.at + HEAD, 0x5a, bytes);

	struct shm_end end = { .pid = getpid(), .fd = own.fd };

	return rref_call_reply(call, &(struct rref_args){ .data = &end, .length = sizeof(end) });
}

/* Answers n pings; the caller sends them as soon as this call is on its way. */
int pf_raw_serve_pingpong(struct rref_call *call, void *arg)
{
	uint32_t n;

	(void)arg;
	if (rref_call_length(call) != sizeof(n) || !own.at)
		return -EINVAL;
	memcpy(&n, rref_call_data(call), sizeof(n));
	int64_t end = now_ns() + LOST_NS;

	for (uint32_t i = 1; i <= n; i++) {
		if (!await(&own.at->ping, i, end))
			return rref_call_error(call, -ETIMEDOUT, "ping %u of %u did not come", i,
					       n);
		atomic_store_explicit(&own.at->pong, i, memory_order_release);
	}
	return 0;
}

struct ibv_ask {
	uint64_t bytes;
	int32_t port, gid_index, slot;
	char device[64];
	uint8_t end[RV_RAW_END_BYTES];
};

int pf_raw_serve_ibv(struct rref_call *call, void *arg)
{
	struct ibv_ask ask;
	int err;

	(void)arg;
	if (rref_call_length(call) != sizeof(ask))
		return -EINVAL;
	memcpy(&ask, rref_call_data(call), sizeof(ask));
	if (ask.slot < 0 || ask.slot >= PF_THREADS_MAX)
		return -EINVAL;
	struct rv_raw **ibv = &own.ibv[ask.slot];

	ask.device[sizeof(ask.device) - 1] = 0;
	rv_raw_close(*ibv);
	*ibv = NULL;
	err = rv_raw_open(ask.device, ask.port, ask.gid_index, 0, ask.bytes, ibv);
	if (!err)
		err = rv_raw_connect(*ibv, ask.end);
	if (err)
		return rref_call_error(call, err, "%s", rv_raw_error());
	rv_raw_end(*ibv, ask.end);
	return rref_call_reply(call,
			       &(struct rref_args){ .data = ask.end, .length = sizeof(ask.end) });
}

/* ---- the measuring worker ---- */

/* Makes so many buffers to copy into. */
static int buffers(struct pf_raw *raw, unsigned nr)
{
	size_t all;

	if (nr <= raw->nr_to)
		return 0;
	free(raw->to);
	raw->nr_to = nr;
	raw->step = (raw->bytes + LINE - 1) / LINE * LINE;
	all = (raw->step * nr + 4095) / 4096 * 4096;
	raw->to = aligned_alloc(4096, all);
	if (!raw->to)
		return pf_say(-ENOMEM, "buffers of the raw side");
	memset(raw->to, 1, all);
	return 0;
}

static int open_shm(struct rref_ctx *ctx, struct pf_raw *raw)
{
	uint64_t bytes = raw->bytes;
	struct shm_end end;
	char path[64];
	int err = pf_ask(ctx, 0, "perf.raw_shm", &bytes, sizeof(bytes), &end, sizeof(end)), fd;

	if (err)
		return err;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", end.pid, end.fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return pf_say(-errno, path);
	raw->segment = map(fd, raw->bytes, PROT_READ | PROT_WRITE);
	close(fd);
	return raw->segment ? buffers(raw, 1) : pf_say(-ENOMEM, "a raw segment");
}

/* Parses "ibv[:device[:port[:gid-index]]]". */
static void parse_device(const char *text, struct ibv_ask *ask)
{
	char buf[128], *save = NULL, *part;

	ask->gid_index = -1;
	snprintf(buf, sizeof(buf), "%s", text ? text : "");
	part = strtok_r(buf, ":", &save);
	if (!part || strcmp(part, "ibv"))
		return;
	if ((part = strtok_r(NULL, ":", &save)))
		snprintf(ask->device, sizeof(ask->device), "%s", part);
	if (part && (part = strtok_r(NULL, ":", &save)))
		ask->port = atoi(part);
	if (part && (part = strtok_r(NULL, ":", &save)))
		ask->gid_index = atoi(part);
}

static int open_ibv(const struct pf_config *cfg, struct rref_ctx *ctx, unsigned slot,
		    struct pf_raw *raw)
{
	struct ibv_ask ask = { .bytes = raw->bytes + raw->head, .slot = (int32_t)slot };
	uint8_t end[RV_RAW_END_BYTES];
	int err;

	parse_device(cfg->device, &ask);
	err = rv_raw_open(ask.device, ask.port, ask.gid_index, raw->head, raw->bytes, &raw->ibv);
	if (err)
		return pf_say(err, rv_raw_error());
	rv_raw_end(raw->ibv, ask.end);
	err = pf_ask(ctx, 0, "perf.raw_ibv", &ask, sizeof(ask), end, sizeof(end));
	if (err)
		return err;
	err = rv_raw_connect(raw->ibv, end);
	return err ? pf_say(err, rv_raw_error()) : 0;
}

int pf_raw_open(const struct pf_config *cfg, struct rref_ctx *ctx, size_t bytes, unsigned slot,
		struct pf_raw **out)
{
	struct pf_raw *raw = calloc(1, sizeof(*raw));

	if (!raw)
		return pf_say(-ENOMEM, "the raw side");
	raw->bytes = bytes;
	raw->head = cfg->headed ? HEADER : 0;
	int err = strcmp(pf_reached_by(ctx, 0), "shm") == 0 ? open_shm(ctx, raw)
							    : open_ibv(cfg, ctx, slot, raw);

	if (err) {
		pf_raw_close(raw);
		return err;
	}
	*out = raw;
	return 0;
}

/* Copies n times, into the first nr buffers in turn. */
static void copies(struct pf_raw *raw, unsigned n, unsigned nr)
{
	for (unsigned i = 0; n--; i = i + 1 < nr ? i + 1 : 0) {
		char *to = raw->to + i * raw->step;

		memcpy(to, (char *)raw->segment + HEAD, raw->bytes);
		/* Each copy is made: the compiler must not see that the
		 * next one writes the same bytes. */
		__asm__ volatile("" : : "r"(to) : "memory");
	}
}

int pf_raw_read(struct pf_raw *raw, unsigned n)
{
	if (raw->ibv) {
		int err = rv_raw_read(raw->ibv, raw->bytes, n);

		return err ? pf_say(err, rv_raw_error()) : 0;
	}
	copies(raw, n, 1);
	return 0;
}

int pf_raw_stream(struct pf_raw *raw, unsigned n, unsigned window)
{
	if (!raw->ibv) {
		int err = buffers(raw, window);

		if (!err)
			copies(raw, n, window);
		return err;
	}
	int err = rv_raw_stream(raw->ibv, raw->bytes, n, window);

	return err ? pf_say(err, rv_raw_error()) : 0;
}

int pf_raw_pingpong(struct pf_raw *raw, struct rref_ctx *ctx, unsigned n)
{
	struct rref_future *f;
	uint32_t count = n;
	int err;

	if (!raw->segment)
		return -EOPNOTSUPP;
	atomic_store(&raw->segment->ping, 0);
	atomic_store(&raw->segment->pong, 0);
	err = rref_rpc_async(ctx, 0, "perf.pingpong",
			     &(struct rref_args){ .data = &count, .length = sizeof(count) },
			     RREF_DEFAULT, &f);
	if (err)
		return pf_say(err, "perf.pingpong");
	int64_t end = now_ns() + LOST_NS;

	for (uint32_t i = 1; i <= n && !err; i++) {
		atomic_store_explicit(&raw->segment->ping, i, memory_order_release);
		if (!await(&raw->segment->pong, i, end))
			err = pf_say(-ETIMEDOUT, "ping-pong");
	}
	if (!err)
		err = pf_say(rref_future_wait(f, RREF_DEFAULT), "perf.pingpong");
	rref_future_free(f);
	return err;
}

const char *pf_raw_name(const struct pf_raw *raw)
{
	return raw->ibv ? raw->head ? "READ+header" : "READ" : "memcpy";
}

void pf_raw_close(struct pf_raw *raw)
{
	if (!raw)
		return;
	if (raw->segment)
		munmap(raw->segment, HEAD + raw->bytes);
	free(raw->to);
	rv_raw_close(raw->ibv);
	free(raw);
}
