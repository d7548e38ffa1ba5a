/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looks: bytes of a peer that this process looks at where they lie, in memory that it has mapped.
 *
 * The reader writes each look as a mark into a place of its device's page. The owner has that page
 * mapped, and reads the marks when the session ends or the reader leaves. So a look costs the owner
 * nothing. Each side stores first, and looks at the other's word then, all sequentially consistent:
 *
 *   reader    stores its mark,   then loads the owner's `serve` and the key's word
 *   owner     stores FENCED,     then loads the marks
 *
 * Either the reader finds the fence and takes its mark back, or the owner finds the mark. An end of
 * the connection alone ends no look: the mark is the process', not the connection's.
 *
 * The mapping stays while looks count in its span. Its connection drops it like this: it stores the
 * segment's word = 0, then loads the count. The reader counts, then loads the word. See map.c.
 *
 * A peer may look only where its process can be watched: its marks are void when it has ended. The
 * owner trusts no mark. A mark is numbers, and the core looks them up among the references that the
 * peer really holds.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "shm.h"

/* ---- the reader ---- */

static void set_mark(struct rvs_page *page, uint32_t place, const struct rv_mark *mark)
{
	struct rvs_place *p = &page->place[place];
	uint32_t end = at_load(&page->places_end);

	while (unlikely(end <= place) && !at_cas_sc(&page->places_end, &end, place + 1))
		;
	/* Release: the looks of the mark before this one are over. */
	for (unsigned i = 1; i < RV_MARK_WORDS; i++)
		at_store_rel(&p->word[i], mark->word[i]);
	/* sc. Pairs with the fence of the owner: conn.c, and mark_at */
	at_store_sc(&p->word[0], mark->word[0]);
}

/* Tells whether the look may be: nothing was revoked before the mark was there. */
static bool may_look(const struct rv_conn *conn, uint32_t index, uint64_t word)
{
	return at_load_sc(&conn->segs[index].word) == word &&
	       at_load_sc(&conn->peer_keys[index]) == word &&
	       at_load_sc(conn->peer_serve) == RVS_SERVE_READS;
}

static void look_away(struct rv_dev *dev, uint32_t place, struct rv_look *look)
{
	/* Pairs with mark_at: the loads of the bytes come before the owner uses them again. */
	at_store_rel(&dev->page->place[place].word[0], 0);
	rvs_span_put(dev, look->impl);
	look->impl = NULL;
}

static int look_at(struct rv_conn *conn, const struct rv_want *want, struct rv_look *out)
{
	uint32_t index = RVS_KEY_INDEX(want->rkey);
	struct rvs_span *span;
	const void *at;
	uint64_t word;
	int rc;

	rb_assert(want->place < RV_LOOKS && want->mark.word[0]);
	if (at_load_acq(&conn->state) != RVS_UP || !at_load_acq(conn->peer_lets_look))
		return -ENOTCONN;
	rc = rvs_find(conn, want->rkey, want->addr, want->length, &at, &word);
	if (rc)
		return rc;
	/* Acquire: add_region has set it up. It may be of a later region; may_look finds that. */
	span = at_load_acq(&conn->news[index].span);
	set_mark(conn->dev->page, want->place, &want->mark);
	at_add_sc(&span->refs, 1); /* Pairs with drop_mapping */
	*out = (struct rv_look){ .at = at, .impl = span };
	if (likely(may_look(conn, index, word)))
		return 0;
	look_away(conn->dev, want->place, out);
	return -ESTALE;
}

static void say_leave(struct rv_dev *dev)
{
	at_store_sc(&dev->page->leaves, 1); /* Pairs with leaves */
}

/* ---- the owner ---- */

struct rv_onlooker *rvs_onlooker_new(const struct rvs_page *page)
{
	struct rv_onlooker *o = malloc(sizeof(*o));

	if (o)
		*o = (struct rv_onlooker){ .page = page, .process = -1, .refs = 1 };
	return o;
}

void rvs_onlooker_put(struct rv_onlooker *o)
{
	if (!o || --o->refs)
		return;
	rb_slow(RB_SLOW_UNMAP);
	rb_close(o->process);
	munmap((void *)(uintptr_t)o->page, sizeof(*o->page));
	free(o);
}

static int let_look(struct rv_conn *conn, struct rv_onlooker **out)
{
	struct rv_onlooker *o = conn->onlooker;

	if (at_load(&conn->state) != RVS_UP || o->process < 0)
		return -EOPNOTSUPP;
	o->refs++;
	*out = o;
	at_store_rel(&conn->rx.box->lets_look, 1); /* Pairs with look_at */
	return 0;
}

static uint32_t nr_places(const struct rv_onlooker *o)
{
	return min_of(at_load_sc(&o->page->places_end), RV_LOOKS);
}

static bool mark_at(const struct rv_onlooker *o, uint32_t place, struct rv_mark *out)
{
	rb_assert_is(place, <, RV_LOOKS);
	/* sc. Pairs with set_mark: a mark whose look is good is found whole. Acquire: pairs with
	 * look_away. */
	out->word[0] = at_load_sc(&o->page->place[place].word[0]);
	for (unsigned i = 1; i < RV_MARK_WORDS; i++)
		out->word[i] = at_load_acq(&o->page->place[place].word[i]);
	return out->word[0];
}

static bool leaves(const struct rv_onlooker *o)
{
	return at_load_sc(&o->page->leaves);
}

static bool has_ended(const struct rv_onlooker *o)
{
	struct pollfd p = { .fd = o->process, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

/* Takes back all marks, and unmaps all that is still looked at: the device closes. */
void rvs_looks_fini(struct rv_dev *dev)
{
	for (uint32_t i = 0; dev->page && i < at_load(&dev->page->places_end); i++)
		at_store_rel(&dev->page->place[i].word[0], 0);
	rvs_spans_fini(dev);
}

const struct rv_look_ops rvs_look_ops = {
	.look = look_at,
	.look_away = look_away,
	.leave = say_leave,
	.let_look = let_look,
	.nr_places = nr_places,
	.mark_at = mark_at,
	.leaves = leaves,
	.has_ended = has_ended,
	.let_go = rvs_onlooker_put,
};
