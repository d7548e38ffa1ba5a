/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer's regions, mapped here: received from the socket, found by key index, dropped when the
 * peer revoked them.
 *
 * READs look a mapping up and copy from it on any thread with no lock and no count of users. Two
 * things make that safe:
 *
 * - A segment is replaced like under a sequence lock whose sequence is the key's word. First word
 *   = 0, then base, iova, length, then the new word. A reader that sees its word before and after
 *   it loaded the rest has a set that belongs together. A word never comes back: add_region() takes
 *   none twice, so that this does not depend on the peer.
 * - Address space that a segment used is never unmapped while the connection lives. A dropped
 *   mapping is replaced in place by zero pages, which frees the peer's memory. The space is used
 *   again for later regions. A late reader copies zeros or another region's bytes, and then fails
 *   its second look at the key's word.
 *
 * A span that is looked at (look.c) is neither dropped nor used again: looks count in it. A look
 * counts, then loads the segment's word; a drop stores word = 0, then loads the count. So a look
 * that goes on is seen by the drop. The span keeps its mapping until its looks are over, also
 * behind the end of its connection. Only then may it be unmapped: no READ is at it any more.
 *
 * Spans are powers of two. So the space kept stays below about twice the largest sum that was ever
 * mapped. Their number and sum are bounded: a peer cannot use up this process' addresses or
 * mappings. A span that outlives its connection for a view counts in both. So a peer whose
 * connections break while it is looked at has less room in the next one.
 *
 * A region that cannot be mapped is a lack on this side, which ends nothing. It is noted as missed,
 * and its descriptor dropped. A READ that needs it asks the peer for it again. Only that READ fails
 * if there is still no room.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define SEGS_BYTES (RVS_NR_KEYS * (sizeof(struct rvs_seg) + sizeof(struct rvs_news)))
/* bound on a peer's mappings in this process, in sizes of the machine's memory */
#define MEMORY_TIMES 4u
#define MAPS_DEFAULT 65530l /* vm.max_map_count of most kernels */
#define MAPS_SHARE 2u       /* the others stay for the program */

static long max_map_count(void)
{
	FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
	long n;

	if (!f || fscanf(f, "%ld", &n) != 1 || n <= 0)
		n = MAPS_DEFAULT;
	if (f)
		fclose(f);
	return n;
}

/* Sets how much of its peers this process maps: a share of what it can map at all. */
void rvs_map_bounds(struct rv_dev *dev)
{
	struct rlimit as;
	struct sysinfo si;

	dev->max_mapped = UINT64_C(1) << 46;
	if (!sysinfo(&si))
		dev->max_mapped =
			min_of(dev->max_mapped, (uint64_t)si.totalram * si.mem_unit * MEMORY_TIMES);
	if (!getrlimit(RLIMIT_AS, &as) && as.rlim_cur != RLIM_INFINITY)
		dev->max_mapped = min_of(dev->max_mapped, (uint64_t)as.rlim_cur / 4 * 3);
	dev->max_spans = (uint32_t)min_of(max_map_count() / (long)MAPS_SHARE, 1l << 30);
}

int rvs_segs_init(struct rv_conn *conn)
{
	void *map = mmap(NULL, SEGS_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return rv_fail(ENOMEM, "shm: no memory for a connection's segment table");
	conn->segs = map;
	conn->news = (struct rvs_news *)(void *)(conn->segs + RVS_NR_KEYS);
	return 0;
}

static size_t span_of(uint64_t length)
{
	size_t span = 4096;

	while (span < length)
		span *= 2;
	return span;
}

/* Reserves address space, 2 MiB-aligned where that lets large pages be used. */
static void *reserve_span(size_t length)
{
	size_t align = length >= HUGE_PAGE ? HUGE_PAGE : 0;
	char *map = mmap(NULL, length + align, PROT_READ,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *base = map;

	if (map == MAP_FAILED)
		return NULL;
	if (align) {
		base = (char *)(((uintptr_t)map + align - 1) & ~(align - 1));
		if (base != map)
			munmap(map, (size_t)(base - map));
		if (base != map + align)
			munmap(base + length, (size_t)(map + align - base));
	}
	rb_assert_with(!align || ((uintptr_t)base & (align - 1)) == 0, "%p", (void *)base);
	return base;
}

/* Puts zero pages where a peer's region was, for a later one. conn->rx_lock held. */
static void give_up_span(struct rv_conn *conn, struct rvs_span *s)
{
	rvs_assert_held(&conn->rx_lock);
	/* Failing, the peer's memory stays mapped until close_conn. That costs memory only. */
	if (mmap(s->base, s->length, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		rvs_log(conn->dev, 1, "shm: cannot let go of a peer's region: %s", strerror(errno));
	s->next = conn->spans;
	conn->spans = s;
}

/* Gives up dropped mappings whose looks are over. conn->rx_lock held. */
static void give_up_unlooked(struct rv_conn *conn)
{
	struct rvs_span **at = &conn->looked_at, *s;

	rvs_assert_held(&conn->rx_lock);
	while ((s = *at)) {
		if (at_load_acq(&s->refs) != 1) {
			at = &s->next;
			continue;
		}
		*at = s->next;
		give_up_span(conn, s);
	}
}

/* Returns the bytes of views that hold mappings of the peer's earlier connections. */
static uint64_t outliving_bytes(const struct rv_conn *conn)
{
	struct list *l, *tmp;
	uint64_t bytes = 0;

	pthread_mutex_lock(&conn->dev->lock);
	list_for_each_safe(l, tmp, &conn->dev->outliving)
	{
		const struct rvs_span *s = container_of(l, struct rvs_span, node);

		bytes += s->user == conn->user ? s->length : 0;
	}
	pthread_mutex_unlock(&conn->dev->lock);
	return bytes;
}

/*
 * Takes address space for a region; conn->rx_lock held. Returns -ENOMEM, -EMLINK for too many
 * mappings, -EFBIG for too many bytes.
 */
static int take_span(struct rv_conn *conn, size_t length, struct rvs_span **out)
{
	struct rvs_span **at, *s;

	rvs_assert_held(&conn->rx_lock);
	rb_assert_with(length >= 4096 && !(length & (length - 1)), "%zu", length);
	give_up_unlooked(conn);
	for (at = &conn->spans; (s = *at); at = &s->next)
		if (s->length == length) {
			*at = s->next;
			*out = s;
			return 0;
		}
	if (conn->nr_spans >= RVS_MAX_REGIONS ||
	    at_load(&conn->dev->nr_spans) >= conn->dev->max_spans)
		return -EMLINK;
	if (length > conn->dev->max_mapped ||
	    conn->span_bytes + outliving_bytes(conn) > conn->dev->max_mapped - length)
		return -EFBIG;
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->base = reserve_span(length);
	if (!s->base) {
		free(s);
		return -ENOMEM;
	}
	s->length = length;
	at_store(&s->refs, 1);
	list_init(&s->node);
	conn->nr_spans++;
	conn->span_bytes += length;
	at_add(&conn->dev->nr_spans, 1);
	*out = s;
	return 0;
}

/* Drops a mapping, or leaves it to the looks at it. conn->rx_lock held. */
static void drop_mapping(struct rv_conn *conn, struct rvs_seg *seg)
{
	struct rvs_span *s = at_load(&conn->news[seg - conn->segs].span);

	rb_slow(RB_SLOW_UNMAP);
	rvs_assert_held(&conn->rx_lock);
	rb_assert(at_load(&seg->word) && (uintptr_t)s->base == at_load(&seg->base));
	rb_assert_is(seg - conn->segs, <, conn->segs_end);
	rb_assert_with(conn->nr_mapped > 0 && conn->nr_mapped <= conn->nr_spans, "%u of %u",
		       conn->nr_mapped, conn->nr_spans);
	at_store_sc(&seg->word, 0); /* Pairs with look_at in look.c */
	at_store(&seg->length, 0); /* else the key 0 would find it, in read_value() */
	conn->nr_mapped--;
	list_del(&s->node);
	if (likely(at_load_sc(&s->refs) == 1)) {
		give_up_span(conn, s);
		return;
	}
	s->next = conn->looked_at;
	conn->looked_at = s;
}

/* Notes a region that is not mapped for a lack on this side. conn->rx_lock held. */
static void miss(struct rvs_news *news, uint64_t word, int why)
{
	bool asked = news->state == RVS_ASKED && news->missed == RVS_WORD_COUNT(word);

	news->missed = RVS_WORD_COUNT(word);
	news->state = asked ? RVS_FAILED : RVS_MISSED;
	news->why = (uint16_t)why;
}

/*
 * Maps fd into the span. Returns 0, -ENOMEM for a lack here, or -EPROTO if the descriptor cannot be
 * mapped at all. The span is kept in any case: a look that comes late may still count in it.
 */
static int map_over(struct rv_conn *conn, struct rvs_span *s, size_t length, int fd)
{
	int err;

	rb_slow(RB_SLOW_MAP);
	if (mmap(s->base, length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED)
		return 0;
	err = errno;
	/*
	 * A failed MAP_FIXED may have made a hole, which others' mappings could fall into. Failing
	 * twice, the addresses are given up: they may be others' by now. No length is below 4096.
	 */
	if (mmap(s->base, s->length, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		s->length = 0;
	s->next = conn->spans;
	conn->spans = s;
	return err == ENOMEM || err == EAGAIN || err == ENFILE ? -ENOMEM : -EPROTO;
}

static bool region_ok(const struct rvs_packet *p, int fd)
{
	return (p->word & RVS_WORD_LIVE) && p->length && p->length <= (UINT64_C(1) << 46) &&
	       p->iova + p->length >= p->iova && (fd < 0 || !rvs_check_fd(fd, p->length));
}

/* Adds a region of the peer's. fd = -1: no descriptor was free
 * to receive it. conn->rx_lock held. */
static int add_region(struct rv_conn *conn, const struct rvs_packet *p, int fd)
{
	uint32_t index = RVS_KEY_INDEX((uint32_t)p->word);
	struct rvs_seg *seg = &conn->segs[index];
	struct rvs_news *news = &conn->news[index];
	struct rvs_span *s;
	int rc = -EMFILE;

	if (!region_ok(p, fd))
		return -EPROTO;
	if (at_load(&seg->word) == p->word)
		return 0; /* asked for twice */
	if (at_load(&seg->word))
		drop_mapping(conn, seg);
	if ((at_load(&conn->peer_keys[index]) | RVS_WORD_LIVE) != p->word)
		return 0; /* revoked before it arrived */
	if (RVS_WORD_COUNT(p->word) <= news->mapped)
		return -EPROTO; /* this word, or a later one, was mapped before */
	if (fd >= 0)
		rc = take_span(conn, span_of(p->length), &s);
	if (!rc)
		rc = map_over(conn, s, p->length, fd);
	if (rc == -EPROTO)
		return rc;
	if (rc) {
		miss(news, p->word, -rc);
		return 0;
	}
	rb_assert_is(s->length, >=, p->length);
	rb_assert_is(at_load(&seg->word), ==, 0);
	rb_not_in_child(s->base, p->length);
	/* Partner of all: find_bytes in read.c, and look_at in look.c. Each is a release,
	 * so that word = 0 is seen before them. */
	list_add(&conn->mapped, &s->node);
	at_store_rel(&news->span, s);
	at_store_rel(&seg->base, (uintptr_t)s->base);
	at_store_rel(&seg->iova, p->iova);
	at_store_rel(&seg->length, p->length);
	at_store_rel(&seg->word, p->word);
	news->mapped = RVS_WORD_COUNT(p->word);
	news->state = RVS_NOT_MISSED;
	conn->nr_mapped++;
	conn->segs_end = max_of(conn->segs_end, index + 1);
	rb_assert_is(conn->nr_mapped, <=, conn->nr_spans);
	rb_assert_is(conn->nr_mapped, <=, conn->segs_end);
	rb_assert_is(conn->nr_spans, <=, RVS_MAX_REGIONS);
	return 0;
}

static int tell_miss(const struct rv_conn *conn, int why)
{
	const char *limit;

	switch (why) {
	case EMFILE:
		rvs_fail_fds(why, "a region of the peer's cannot be received");
		break;
	case EMLINK:
		rv_fail(why,
			"shm: a region of the peer's is one too many: %u of it are mapped (at most "
			"%u), and %u of all peers "
			"(at most %u, half of vm.max_map_count)",
			conn->nr_spans, RVS_MAX_REGIONS, at_load(&conn->dev->nr_spans),
			conn->dev->max_spans);
		break;
	case EFBIG:
		rv_fail(why,
			"shm: a region of the peer's is too much: %llu MiB of it are mapped, views "
			"hold %llu MiB of its earlier connections, and at most %llu are (a bound "
			"from RLIMIT_AS or the machine's memory)",
			(unsigned long long)(conn->span_bytes >> 20),
			(unsigned long long)(outliving_bytes(conn) >> 20),
			(unsigned long long)(conn->dev->max_mapped >> 20));
		break;
	default:
		limit = limit_why_no_memory();
		if (*limit)
			rv_fail(why, "shm: a region of the peer's cannot be mapped: %s", limit);
		else
			rv_fail(why,
				"shm: a region of the peer's cannot be mapped: no memory for it, "
				"or vm.max_map_count "
				"(%ld) mappings are in use",
				max_map_count());
	}
	return -ENOMEM;
}

/*
 * Decides the fate of a READ of a region that is not mapped. -EAGAIN: the region is under way, or
 * this call asked for it again. -ENOMEM with a text: it came again, and there was still no room.
 * The next READ asks once more. [any]
 */
int rvs_missed(struct rv_conn *conn, uint32_t rkey)
{
	uint64_t word = at_load_acq(&conn->peer_keys[RVS_KEY_INDEX(rkey)]);
	struct rvs_news *news = &conn->news[RVS_KEY_INDEX(rkey)];
	uint32_t now_ms = (uint32_t)(now_ns() / NSEC_PER_MSEC);
	struct rvs_packet p;
	int rc = -EAGAIN;

	pthread_mutex_lock(&conn->rx_lock);
	if (news->state == RVS_NOT_MISSED || news->missed != RVS_WORD_COUNT(word))
		goto unlock;
	if (news->state == RVS_FAILED) {
		news->state = RVS_MISSED;
		rc = tell_miss(conn, news->why);
		goto unlock;
	}
	/* An answer may be lost: the peer sends none if this side's socket is full just then. */
	if (news->state == RVS_ASKED &&
	    now_ms - news->asked_ms < (uint32_t)(RVS_WINDOW_NS / NSEC_PER_MSEC))
		goto unlock;
	memset(&p, 0, sizeof(p));
	p.word = word;
	if (!rvs_packet_send(conn->sock, &p, RVS_PKT_AGAIN, NULL, 0)) {
		news->state = RVS_ASKED;
		news->asked_ms = now_ms;
	}
unlock:
	pthread_mutex_unlock(&conn->rx_lock);
	if (rc == -EAGAIN)
		rv_fail(EAGAIN, "shm: the peer has not handed the region over yet");
	return rc;
}

/* Takes a region. A lost descriptor is skipped unseen: if its close waits, so does this. */
static int take_region(struct rv_conn *conn, const struct rvs_packet *p, const int *fds,
		       unsigned nr_fds, bool lost)
{
	int rc;

	if (!lost)
		return nr_fds == 1 ? add_region(conn, p, fds[0]) : -EPROTO;
	rc = rvs_packet_skip(conn->sock);
	return rc ? rc : add_region(conn, p, -1);
}

/*
 * Takes the next packet. Returns 1; 0 at the end, -EAGAIN if there is none, another -errno when the
 * connection cannot go on.
 */
static int drain_one(struct rv_conn *conn, struct rvs_taken *out)
{
	int fds[RVS_PKT_FDS], rc = 0;
	struct rvs_packet p;
	unsigned nr_fds = 0;
	int got = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);

	if (got <= 0 && got != -EMFILE)
		return got;
	out->packets++;
	if (p.type == RVS_PKT_REGION)
		rc = take_region(conn, &p, fds, nr_fds, got < 0);
	else if (p.type == RVS_PKT_WAKE && got > 0)
		out->wakes = 1;
	else if (p.type == RVS_PKT_AGAIN && got > 0 && !nr_fds)
		out->again = p.word;
	else
		rc = -EPROTO;
	rvs_close_fds(fds, nr_fds);
	return rc ? rc : 1;
}

/*
 * Takes up to max packets from the socket of an established connection. Returns 0, or -errno when
 * the connection cannot go on. Stops behind a wake-up or a question: epoll tells if there is more.
 * [any, may block]
 */
int rvs_drain(struct rv_conn *conn, unsigned max, struct rvs_taken *out)
{
	int rc = 1;

	*out = (struct rvs_taken){0};
	pthread_mutex_lock(&conn->rx_lock);
	while (rc > 0 && !out->wakes && !out->again && out->packets < max)
		rc = drain_one(conn, out);
	pthread_mutex_unlock(&conn->rx_lock);
	rb_assert_is(out->packets, <=, max);
	out->eof = !rc;
	return rc > 0 || rc == -EAGAIN ? 0 : rc;
}

/*
 * Lets go of the regions that the peer revoked since the last look. Returns true if that has to
 * come later. The count is the peer's, and so are the indexes of its keys. A bad peer could have
 * this side look through the whole table all the time. [progress]
 */
bool rvs_drop_revoked(struct rv_conn *conn, int64_t now)
{
	/* seq_cst. Pairs with dereg(), which looks at `sleeping` after it counted. */
	uint32_t revoked = at_load_sc(&conn->peer_page->revoked);
	bool later;

	if (likely(revoked == conn->seen_revoked))
		return false;
	pthread_mutex_lock(&conn->rx_lock);
	give_up_unlooked(conn);
	later = conn->segs_end > RVS_SCAN_FEW && now < conn->scanned_at + RVS_WINDOW_NS;
	for (uint32_t i = 0, left = later ? 0 : conn->nr_mapped; left && i < conn->segs_end; i++) {
		uint64_t word = at_load(&conn->segs[i].word);

		left -= word != 0;
		if (word && (at_load(&conn->peer_keys[i]) | RVS_WORD_LIVE) != word)
			drop_mapping(conn, &conn->segs[i]);
	}
	pthread_mutex_unlock(&conn->rx_lock);
	if (later)
		return true;
	conn->seen_revoked = revoked;
	conn->scanned_at = now;
	return false;
}

static void unmap_span(struct rvs_span *s)
{
	if (s->length) /* else map_over gave its addresses up */
		munmap(s->base, s->length);
	free(s);
}

/* Ends a look, or the connection. The last one unmaps the span, which is in dev->outliving then. */
void rvs_span_put(struct rv_dev *dev, struct rvs_span *s)
{
	if (at_sub_ar(&s->refs, 1) != 1)
		return;
	pthread_mutex_lock(&dev->lock);
	list_del(&s->node);
	pthread_mutex_unlock(&dev->lock);
	at_sub(&dev->nr_spans, 1);
	rb_slow(RB_SLOW_UNMAP);
	unmap_span(s);
}

/* Leaves a span to the looks at it. Its connection ends, so no further look begins. */
static void outlive(const struct rv_conn *conn, struct rvs_span *s)
{
	struct rv_dev *dev = conn->dev;

	/* Acquire. Pairs with rvs_span_put: looks at the bytes come before the unmapping. */
	if (likely(at_load_acq(&s->refs) == 1)) {
		unmap_span(s);
		return;
	}
	at_add(&dev->nr_spans, 1);
	s->user = conn->user;
	pthread_mutex_lock(&dev->lock);
	list_add_tail(&dev->outliving, &s->node);
	pthread_mutex_unlock(&dev->lock);
	rvs_span_put(dev, s);
}

/* Unmaps what is still looked at: the device closes. */
void rvs_spans_fini(struct rv_dev *dev)
{
	struct list *l;

	while ((l = list_pop(&dev->outliving))) {
		at_sub(&dev->nr_spans, 1);
		unmap_span(container_of(l, struct rvs_span, node));
	}
}

static void outlive_all(const struct rv_conn *conn, struct rvs_span **list)
{
	struct rvs_span *s;

	while ((s = *list)) {
		*list = s->next;
		outlive(conn, s);
	}
}

void rvs_segs_fini(struct rv_conn *conn)
{
	struct list *l;

	if (!conn->segs)
		return;
	rb_slow(RB_SLOW_UNMAP);
	rb_assert_is(at_load(&conn->dev->nr_spans), >=, conn->nr_spans);
	rb_assert_is(conn->nr_spans, >=, conn->nr_mapped);
	at_sub(&conn->dev->nr_spans, conn->nr_spans);
	conn->nr_spans = 0;
	while ((l = list_pop(&conn->mapped)))
		outlive(conn, container_of(l, struct rvs_span, node));
	outlive_all(conn, &conn->looked_at);
	outlive_all(conn, &conn->spans);
	munmap(conn->segs, SEGS_BYTES);
	conn->segs = NULL;
}
