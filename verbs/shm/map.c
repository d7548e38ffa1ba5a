/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer's regions, mapped here: received from the socket, found by key index, dropped when the peer revoked them.
 *
 * READs look a mapping up and copy from it on any thread with no lock and no count of users. Two things make that safe:
 *
 *  - A segment is replaced like under a sequence lock whose sequence is the key's word, which never comes back:
 *    word = 0, then base, iova, length, then the new word. A reader that sees its word before and after it loaded the
 *    rest has a set that belongs together.
 *  - Address space that a segment used is never unmapped while the connection lives. A dropped mapping is replaced in
 *    place by zero pages, which frees the peer's memory, and the space is used again for later regions. A late
 *    reader copies zeros or another region's bytes, and then fails its second look at the key's word.
 *
 * Spans are powers of two, so that the space kept stays below about twice the largest sum that was ever mapped.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shm.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define SEGS_BYTES (RVS_NR_KEYS * sizeof(struct rvs_seg))

int rvs_segs_init(struct rv_conn *conn)
{
	void *map = mmap(NULL, SEGS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return rv_fail(ENOMEM, "shm: no memory for a connection's segment table");
	conn->segs = map;
	return 0;
}

static size_t span_of(uint64_t length)
{
	size_t span = 4096;

	while (span < length)
		span *= 2;
	return span;
}

/* Address space for a region, 2 MiB-aligned where that lets large pages be used; conn->rx_lock held. */
static int take_span(struct rv_conn *conn, size_t length, struct rvs_span **out)
{
	struct rvs_span **at, *s;
	size_t align = length >= HUGE_PAGE ? HUGE_PAGE : 0;
	char *map, *base;

	for (at = &conn->spans; (s = *at); at = &s->next)
		if (s->length == length) {
			*at = s->next;
			*out = s;
			return 0;
		}
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	map = mmap(NULL, length + align, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED) {
		free(s);
		return -ENOMEM;
	}
	base = map;
	if (align) {
		base = (char *)(((uintptr_t)map + align - 1) & ~(align - 1));
		if (base != map)
			munmap(map, (size_t)(base - map));
		if (base != map + align)
			munmap(base + length, (size_t)(map + align - base));
	}
	s->base = base;
	s->length = length;
	*out = s;
	return 0;
}

/* conn->rx_lock held. */
static void drop(struct rv_conn *conn, struct rvs_seg *seg)
{
	struct rvs_span *s;
	uintptr_t base = at_load(&seg->base);
	size_t length = span_of(at_load(&seg->length));

	at_store(&seg->word, 0);
	conn->nr_mapped--;
	/* If even this fails the peer's memory stays mapped until close_conn: memory, not correctness. */
	s = malloc(sizeof(*s));
	if (mmap((void *)base, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		rvs_log(conn->dev, 1, "shm: cannot let go of a peer's region: %s", strerror(errno));
	if (!s)
		return;
	s->base = (void *)base;
	s->length = length;
	s->next = conn->spans;
	conn->spans = s;
}

/* conn->rx_lock held. */
static int add(struct rv_conn *conn, const struct rvs_packet *p, int fd)
{
	uint32_t index = RVS_KEY_INDEX((uint32_t)p->word);
	struct rvs_seg *seg = &conn->segs[index];
	struct rvs_span *s;
	int rc;

	if (!(p->word & RVS_WORD_LIVE) || !p->length || p->length > (UINT64_C(1) << 46) ||
	    p->iova + p->length < p->iova || rvs_check_fd(fd, p->length))
		return -EPROTO;
	if (at_load(&seg->word))
		drop(conn, seg);
	if ((at_load(&conn->peer_keys[index]) | RVS_WORD_LIVE) != p->word)
		return 0; /* revoked before it arrived */
	rc = take_span(conn, span_of(p->length), &s);
	if (rc)
		return rc;
	if (mmap(s->base, p->length, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
		rc = -errno;
		s->next = conn->spans;
		conn->spans = s;
		return rc;
	}
	/* Partner of all four: find in read.c. Each is a release, so that word = 0 is seen before them. */
	at_store_rel(&seg->base, (uintptr_t)s->base);
	at_store_rel(&seg->iova, p->iova);
	at_store_rel(&seg->length, p->length);
	at_store_rel(&seg->word, p->word);
	free(s);
	conn->nr_mapped++;
	conn->segs_end = max_of(conn->segs_end, index + 1);
	return 0;
}

/*
 * Takes up to max packets from the socket of an established connection. 0, or -errno when the connection cannot go on.
 * Stops behind a wake-up: epoll tells of what else there is. [any, may block]
 */
int rvs_drain(struct rv_conn *conn, unsigned max, struct rvs_taken *out)
{
	int fds[RVS_PKT_FDS], rc = -EAGAIN;
	struct rvs_packet p;
	unsigned nr_fds;

	*out = (struct rvs_taken){0};
	pthread_mutex_lock(&conn->rx_lock);
	while (!out->wakes && out->packets < max) {
		rc = rvs_packet_recv(conn->sock, &p, fds, &nr_fds);
		if (rc <= 0)
			break;
		out->packets++;
		out->wakes += p.type == RVS_PKT_WAKE;
		if (p.type != RVS_PKT_WAKE)
			rc = p.type == RVS_PKT_REGION && nr_fds == 1 ? add(conn, &p, fds[0]) : -EPROTO;
		rvs_close_fds(fds, nr_fds);
		if (rc < 0)
			break;
		rc = -EAGAIN;
	}
	pthread_mutex_unlock(&conn->rx_lock);
	out->eof = !rc;
	return rc == -EAGAIN ? 0 : rc;
}

/*
 * Lets go of what the peer revoked since the last look. True: later, since the peer, whose count it is, could have this
 * side look through many regions all the time. [progress]
 */
bool rvs_drop_revoked(struct rv_conn *conn, int64_t now)
{
	/* seq_cst: partner of dereg(), which looks at `sleeping` after it counted. */
	uint32_t revoked = at_load_sc(&conn->peer_page->revoked);
	bool later;

	if (likely(revoked == conn->seen_revoked))
		return false;
	pthread_mutex_lock(&conn->rx_lock);
	later = conn->nr_mapped > RVS_SCAN_FEW && now < conn->scanned_at + RVS_WINDOW_NS;
	for (uint32_t i = 0, left = later ? 0 : conn->nr_mapped; left && i < conn->segs_end; i++) {
		uint64_t word = at_load(&conn->segs[i].word);

		left -= word != 0;
		if (word && (at_load(&conn->peer_keys[i]) | RVS_WORD_LIVE) != word)
			drop(conn, &conn->segs[i]);
	}
	pthread_mutex_unlock(&conn->rx_lock);
	if (later)
		return true;
	conn->seen_revoked = revoked;
	conn->scanned_at = now;
	return false;
}

void rvs_segs_fini(struct rv_conn *conn)
{
	struct rvs_span *s;

	if (!conn->segs)
		return;
	for (uint32_t i = 0; i < conn->segs_end; i++)
		if (at_load(&conn->segs[i].word))
			munmap((void *)at_load(&conn->segs[i].base), span_of(at_load(&conn->segs[i].length)));
	while ((s = conn->spans)) {
		conn->spans = s->next;
		munmap(s->base, s->length);
		free(s);
	}
	munmap(conn->segs, SEGS_BYTES);
	conn->segs = NULL;
}
