/* SPDX-License-Identifier: Apache-2.0 */
/* A node: see tl_rv.h. Used by the test's own process and by its peers. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"
#include "tl_rv.h"

bool tlv_is_shm(void)
{
	const char *env = getenv("RREF_TEST_DEVICE");

	return !env || !*env || !strcmp(env, "shm");
}

const struct rv_ops *tlv_ops;

unsigned tlv_scaled(unsigned n)
{
	const char *env = getenv("RREF_TEST_SCALE");
	unsigned by = env && *env ? (unsigned)strtoul(env, NULL, 0) : tlv_is_shm() ? 1 : 100;

	return max_of(n / max_of(by, 1u), 1u);
}

/* Returns a distant time: only a failing test ever waits for it. */
int64_t tlv_deadline_ns(void)
{
	return now_ns() + (tlv_is_shm() ? 30 : 60) * NSEC_PER_SEC;
}

void tlv_sleep_ms(int ms)
{
	struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};

	nanosleep(&ts, NULL);
}

int tlv_open(struct tlv_node *n, const struct rv_options *opt)
{
	struct rv_options o = opt ? *opt : (struct rv_options){.gid_index = -1};
	int rc;

	memset(n, 0, sizeof(*n));
	n->ops = tlv_ops;
	o.gid_index = -1;
	o.device = NULL;
	rc = n->ops->open(&o, &n->dev);
	if (rc) {
		fprintf(stderr, "open: %s\n", rv_error_text());
		return rc;
	}
	n->ops->caps(n->dev, &n->caps);
	n->ops->addr(n->dev, &n->addr);
	return 0;
}

void tlv_close(struct tlv_node *n)
{
	if (!n->ops)
		return;
	for (unsigned i = 0; i < TLV_MAX_REGIONS; i++)
		if (n->regions[i].mem)
			tlv_unregion(n, &n->regions[i]);
	n->ops->close(n->dev);
	n->dev = NULL;
	n->ops = NULL;
}

static struct tlv_conn *new_conn(struct tlv_node *n)
{
	struct tlv_conn *c;

	if (n->nr_conns == TLV_MAX_CONNS)
		return NULL;
	c = &n->conns[n->nr_conns++];
	memset(c, 0, sizeof(*c));
	c->node = n;
	return c;
}

struct tlv_conn *tlv_connect(struct tlv_node *n, const struct rv_addr *to, const void *hello,
			     size_t len)
{
	struct tlv_conn *c = new_conn(n);

	c->status = n->ops->connect(n->dev, to, hello, len, c, &c->conn);
	if (c->status)
		c->failed = true;
	return c;
}

void tlv_close_conn(struct tlv_conn *c)
{
	c->closes = c->node->ops->close_conn(c->conn);
	c->conn = NULL;
}

/* Checks message k of a stream: its number, then bytes that depend on it. A message of one byte
 * holds the number's low byte. */
static void check_message(struct tlv_conn *c, const unsigned char *p, uint32_t len)
{
	uint64_t seq = c->nr_recv;
	bool good = p[0] == (unsigned char)seq;

	if (len >= 9)
		good = get_le64(p) == seq && p[8] == (unsigned char)(seq * 7) &&
			p[len - 1] == (unsigned char)(seq * 7);
	if (!good)
		c->nr_bad++;
	c->nr_recv++;
	c->bytes += len;
	c->last_len = len;
}

int tlv_send_next(struct tlv_conn *c, size_t len)
{
	unsigned char p[RV_MSG_MAX];
	int64_t deadline = tlv_deadline_ns();

	memset(p, (unsigned char)(c->nr_sent * 7), len);
	if (len >= 9)
		put_le64(p, c->nr_sent);
	else
		p[0] = (unsigned char)c->nr_sent;
	for (;;) {
		unsigned writable = c->nr_writable;
		int rc = c->node->ops->send(c->conn, p, len);

		if (rc != -EAGAIN) {
			if (!rc)
				c->nr_sent++;
			return rc;
		}
		while (c->nr_writable == writable && !c->down)
			if (!tlv_pump(c->node, 5000, -1) && now_ns() > deadline)
				return -ETIMEDOUT;
	}
}

static void give_back(struct tlv_node *n, unsigned i)
{
	n->ops->recv_done(n->dev, n->held[i].token);
	n->held[i] = n->held[--n->nr_held];
}

void tlv_release_all(struct tlv_node *n)
{
	while (n->nr_held)
		give_back(n, n->nr_held / 2);
}

static void on_message(struct tlv_node *n, struct tlv_conn *c, const struct rv_event *ev)
{
	check_message(c, ev->data, ev->len);
	if (n->mode == TLV_COUNT) {
		n->ops->recv_done(n->dev, ev->token);
		return;
	}
	if (n->nr_held == TLV_MAX_HELD)
		abort();
	n->held[n->nr_held++] = (struct tlv_held){c, ev->token, ev->data, ev->len};
	/* Frees newer ones first: buffers come back in any order. */
	if (n->mode == TLV_HOLD && n->nr_held >= 24) {
		tlv_sleep_ms(1);
		for (unsigned i = 0; i < 20; i++)
			give_back(n, (i * 7) % n->nr_held);
	}
}

static void on_read(struct tlv_node *n, uint64_t cookie, int status)
{
	if (cookie < TLV_MAX_READS) {
		n->read_status[cookie] = status;
		n->read_reports[cookie]++;
	} else {
		n->nr_unknown++;
	}
}

static void on_closed(struct tlv_node *n, struct tlv_conn *c)
{
	n->nr_unknown += !c || !c->closes;
	if (c)
		c->closes = false;
}

/* Notes whether READs go over a connection. Has them come back. */
static void on_reads(struct tlv_node *n, struct tlv_conn *c, bool up)
{
	c->reads_up = up;
	c->nr_reads_up += up;
	c->nr_reads_down += !up;
	if (!up && n->allow)
		/* -ENOTCONN: its DISCONNECTED is in the same batch */
		(void)n->ops->allow_reads(c->conn);
}

static void note_text(struct tlv_conn *c, const struct rv_event *ev)
{
	c->text_len = ev->len;
	if (ev->len)
		memcpy(c->text, ev->data, min_of(ev->len, (uint32_t)sizeof(c->text)));
}

static void on_request(struct tlv_node *n, const struct rv_event *ev)
{
	struct tlv_conn *c;

	if (n->policy == TLV_REJECT) {
		n->ops->reject(ev->conn, n->answer, n->answer_len);
		return;
	}
	c = new_conn(n);
	c->conn = ev->conn;
	c->requested = true;
	note_text(c, ev);
	if (n->policy == TLV_ACCEPT && n->ops->accept(ev->conn, n->answer, n->answer_len, c)) {
		fprintf(stderr, "accept: %s\n", rv_error_text());
		c->failed = true;
		tlv_close_conn(c);
	}
}

static void on_event(struct tlv_node *n, const struct rv_event *ev)
{
	struct tlv_conn *c = ev->user;

	n->nr_events++;
	switch (ev->type) {
	case RV_EV_REQUEST:
		on_request(n, ev);
		return;
	case RV_EV_CONNECTED:
		c->up = true;
		c->nr_connected++;
		if (!c->requested && ev->len)
			note_text(c, ev);
		if (n->allow)
			/* -ENOTCONN: its DISCONNECTED is in the same batch */
			(void)n->ops->allow_reads(c->conn);
		return;
	case RV_EV_FAILED:
		c->failed = true;
		c->nr_failed++;
		c->status = ev->status;
		note_text(c, ev);
		if (n->close_ended)
			tlv_close_conn(c);
		return;
	case RV_EV_DISCONNECTED:
		c->down = true;
		c->nr_disconnected++;
		c->status = ev->status;
		c->wc_status = ev->wc_status;
		if (n->close_ended)
			tlv_close_conn(c);
		return;
	case RV_EV_RECV:
		on_message(n, c, ev);
		return;
	case RV_EV_CLOSED:
		on_closed(n, c);
		return;
	case RV_EV_READ:
		on_read(n, ev->cookie, ev->status);
		return;
	case RV_EV_WRITABLE:
		c->nr_writable++;
		return;
	case RV_EV_READS_UP:
	case RV_EV_READS_DOWN:
		on_reads(n, c, ev->type == RV_EV_READS_UP);
		return;
	case RV_EV_DEVICE:
		if (ev->status)
			fprintf(stderr, "device: %d\n", ev->status);
		return;
	}
	n->nr_unknown++;
}

static void echo(struct tlv_node *n)
{
	for (unsigned i = 0; i < n->nr_held;) {
		struct tlv_held *h = &n->held[i];
		int rc = h->c->down ? 0 : n->ops->send(h->c->conn, h->data, h->len);

		if (rc == -EAGAIN)
			return; /* the order is kept: the rest waits for WRITABLE too */
		h->c->nr_sent++;
		n->ops->recv_done(n->dev, h->token);
		memmove(h, h + 1, (n->nr_held - i - 1) * sizeof(*h));
		n->nr_held--;
	}
}

int tlv_take_reads(struct tlv_node *n, bool *more)
{
	struct rv_read_end end[8];
	int nr;

	/* -EAGAIN is no look: another thread was at it. */
	do
		nr = n->ops->reads(n->dev, end, array_size(end), more);
	while (nr == -EAGAIN);
	for (int i = 0; i < nr; i++) {
		n->nr_events++;
		on_read(n, end[i].cookie, 0);
	}
	return nr;
}

static int take(struct tlv_node *n, unsigned flags)
{
	struct rv_event ev[40];
	bool more = false;
	int reads = tlv_take_reads(n, &more);
	int nr = n->ops->poll(n->dev, ev, array_size(ev), flags);

	for (int i = 0; i < nr; i++)
		on_event(n, &ev[i]);
	if (n->mode == TLV_ECHO)
		echo(n);
	return nr < 0 ? nr : nr + reads;
}

int tlv_pump(struct tlv_node *n, int ms, int other_fd)
{
	struct pollfd fds[2] = { { .fd = n->ops->fd(n->dev), .events = POLLIN },
				 { .fd = other_fd, .events = POLLIN } };
	int nr = take(n, RV_POLL_SLOW), slept;

	if (nr || !ms)
		return nr;
	if (n->ops->arm(n->dev, RV_ARM_READS))
		return -EIO;
	nr = take(n, RV_POLL_SLOW);
	if (!nr) {
		slept = poll(fds, 2, ms);
		n->ops->disarm(n->dev);
		nr = take(n, RV_POLL_SLOW);
		n->nr_timeouts += !slept;
		if (!slept && nr > 0)
			/* the caller knows whether ms was long enough for this to count */
			n->nr_late++;
		return nr;
	}
	n->ops->disarm(n->dev);
	return nr;
}

bool tlv_until(struct tlv_node *n, const bool *flag)
{
	int64_t deadline = tlv_deadline_ns();

	while (!*flag) {
		if (now_ns() > deadline)
			return false;
		tlv_pump(n, 1000, -1);
	}
	return true;
}

bool tlv_until_count(struct tlv_node *n, const uint64_t *count, uint64_t target)
{
	int64_t deadline = tlv_deadline_ns();

	while (*count < target) {
		if (now_ns() > deadline)
			return false;
		tlv_pump(n, 1000, -1);
	}
	return true;
}

void tlv_pump_for(struct tlv_node *n, int ms)
{
	int64_t until = now_ns() + ms * NSEC_PER_MSEC;

	while (now_ns() < until)
		tlv_pump(n, 5, -1);
}

void tlv_fill(unsigned char *p, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size; i++)
		p[i] = (unsigned char)((i * 131 + (i >> 8) * 17 + seed) % 251);
}

int64_t tlv_differs(const unsigned char *p, size_t size, uint64_t seed, uint64_t offset)
{
	for (size_t i = 0; i < size; i++) {
		uint64_t at = i + offset;

		if (p[i] != (unsigned char)((at * 131 + (at >> 8) * 17 + seed) % 251))
			return (int64_t)i;
	}
	return -1;
}

unsigned tlv_open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* less ".", ".." and the directory itself */
}

unsigned tlv_lowest_free_fd(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	close(fd);
	return (unsigned)fd;
}

unsigned tlv_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned n = 0;
	int ch;

	while ((ch = fgetc(f)) != EOF)
		n += ch == '\n';
	fclose(f);
	return n;
}

struct tlv_region *tlv_region(struct tlv_node *n, size_t size, enum rv_access access, uint64_t seed)
{
	struct tlv_region *r = n->regions;
	uint64_t iova;
	size_t map_size = (size + 4095) & ~(size_t)4095;

	while (r < n->regions + TLV_MAX_REGIONS && r->mem)
		r++;
	if (r == n->regions + TLV_MAX_REGIONS)
		return NULL;
	r->fd = memfd_create("tl-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (r->fd < 0 || ftruncate(r->fd, (off_t)map_size))
		return NULL;
	r->mem = mmap(NULL, map_size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (r->mem == MAP_FAILED)
		return NULL;
	r->size = size;
	if (access == RV_ACCESS_REMOTE_READ)
		tlv_fill(r->mem, size, seed);
	else
		memset(r->mem, TLV_PATTERN_LOCAL, size);
	if (getrandom(&iova, sizeof(iova), 0) != sizeof(iova))
		return NULL;
	/* Random, page-aligned relative to base for ibv, and without a wrap. */
	iova = (iova & 0x3fffffffffff000) | ((uintptr_t)r->mem & 4095);
	if (n->ops->reg(n->dev, r->mem, size, r->fd, iova, access, &r->mr)) {
		fprintf(stderr, "reg: %s\n", rv_error_text());
		munmap(r->mem, map_size);
		close(r->fd);
		r->mem = NULL;
		return NULL;
	}
	return r;
}

int tlv_unregion(struct tlv_node *n, struct tlv_region *r)
{
	int rc = n->ops->dereg(n->dev, &r->mr);

	munmap(r->mem, (r->size + 4095) & ~(size_t)4095);
	close(r->fd);
	r->mem = NULL;
	return rc;
}

int tlv_reads(struct tlv_conn *c, struct rv_read *r, unsigned nr)
{
	struct tlv_node *n = c->node;
	int64_t deadline = tlv_deadline_ns();
	unsigned posted = 0, done = 0;

	for (unsigned i = 0; i < nr; i++) {
		r[i].cookie = i;
		n->read_status[i] = TLV_UNFINISHED;
		n->read_reports[i] = 0;
	}
	while (posted < nr) {
		int rc = n->ops->post_reads(c->conn, r + posted, nr - posted);

		if (rc < 0 && rc != -EAGAIN)
			return rc;
		for (int i = 0; n->caps.reads_inline && i < rc; i++) {
			n->read_status[posted + (unsigned)i] = r[posted + (unsigned)i].status;
			n->read_reports[posted + (unsigned)i]++;
		}
		if (rc > 0)
			posted += (unsigned)rc;
		else
			tlv_pump(n, 10, -1);
		if (now_ns() > deadline)
			return -ETIMEDOUT;
	}
	while (done < nr) {
		if (n->read_status[done] != TLV_UNFINISHED) {
			r[done].status = n->read_status[done];
			done++;
			continue;
		}
		if (now_ns() > deadline)
			return -ETIMEDOUT;
		tlv_pump(n, 1000, -1);
	}
	return 0;
}

int tlv_read(struct tlv_conn *c, const struct tlv_remote *from, uint64_t offset,
	     struct tlv_region *to, size_t len)
{
	struct rv_read r = {.addr = from->iova + offset, .rkey = from->rkey, .nr_sge = 1,
			    .sge = {{to->mem, (uint32_t)len, to->mr.lkey}}};
	int rc;

	if (!len)
		r.nr_sge = 0;
	rc = tlv_reads(c, &r, 1);
	return rc ? rc : r.status;
}
