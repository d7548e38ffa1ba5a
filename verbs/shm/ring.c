/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages. A box has slots and two rings of 64-bit words, one each way. `post` brings full slots
 * to the receiver. `back` returns free ones, in any order. So a message kept for long holds one
 * credit and blocks no other.
 *
 *   word = sequence (32) | length (16) | slot (16)
 *
 * The sequence is the position + 1, so that one load tells both whether a word is there and its
 * content. Neither side has an index in shared memory that the other would have to trust. Each ring
 * has at least as many words as there are slots. It cannot overflow: no word is written without
 * holding the slot that it names.
 *
 * One producer and one consumer per ring, both [progress] of their process; wait-free. The word is
 * stored with seq_cst and `sleeping` is looked at after it, see rvs_wake(). The same store and its
 * load order a slot's bytes.
 *
 * A message of up to RVS_INLINE_MAX bytes is written behind its word and not into its slot. The
 * slot then is only the credit. The receiver, which waits for the word, has both with one transfer
 * of the cache line. Slots go back several at a time.
 *
 * The receiver copies a message out before the core sees it. The sender could still change the
 * shared bytes while they are parsed. The slot goes back with recv_done() all the same, since it is
 * the credit.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/limit.h"
#include "shm.h"

_Static_assert(RV_MSG_MAX <= 0xffff && RVS_MAX_CREDITS <= 0xffff, "they fit a word");

static uint32_t ring_words(uint32_t nr)
{
	uint32_t words = 8;

	while (words < nr)
		words *= 2;
	return words;
}

/* Sets the pointers into a box of nr slots; returns its size in bytes. */
static size_t lay_out(struct rvs_ring *r, uint32_t nr)
{
	uint32_t words = ring_words(nr);
	size_t at = offsetof(struct rvs_box, end) +
		words * (sizeof(struct rvs_post) + sizeof(uint64_t));
	char *base = (char *)r->box;

	rb_assert_with(words >= nr && !(words & (words - 1)), "%u words for %u slots", words, nr);
	at = (at + 4095) & ~(size_t)4095;
	r->nr = nr;
	r->mask = words - 1;
	if (base) {
		r->post = (struct rvs_post *)(void *)(base + offsetof(struct rvs_box, end));
		r->back = (_Atomic uint64_t *)(void *)(r->post + words);
		r->slots = (unsigned char *)base + at;
	}
	return at + (size_t)nr * RV_MSG_MAX;
}

/* Makes the receiver's end. *fd goes to the sender. */
int rvs_box_create(struct rvs_ring *rx, uint32_t credits, int *fd)
{
	void *map;
	int rc, box_fd;

	rb_assert_with(credits >= 4 && credits <= RVS_MAX_CREDITS, "%u", credits);
	memset(rx, 0, sizeof(*rx));
	list_init(&rx->owing);
	rx->bytes = lay_out(rx, credits);
	rc = rvs_memfd("rref-box", rx->bytes, &box_fd, &map);
	if (rc)
		return rc;
	rx->box = map;
	lay_out(rx, credits);
	rc = rvs_seal(box_fd, false);
	if (rc) {
		rc = rv_fail(-rc, "shm: cannot seal a message box: %s", strerror(-rc));
		goto fini;
	}
	rx->taken = calloc(credits, 1);
	rx->copy = malloc((size_t)credits * RV_MSG_MAX);
	if (!rx->taken || !rx->copy) {
		rc = rv_fail(ENOMEM, "shm: no memory for %u messages", credits);
		goto fini;
	}
	*fd = box_fd;
	return 0;

fini:
	rb_close(box_fd);
	rvs_ring_fini(rx);
	return rc;
}

/* Attaches the sender's end to the box that the peer made. fd stays the caller's. */
int rvs_box_attach(struct rvs_ring *tx, uint32_t credits, int fd)
{
	void *map;

	memset(tx, 0, sizeof(*tx));
	if (credits < 4 || credits > RVS_MAX_CREDITS)
		return rv_fail(EPROTO, "shm: the peer grants %u credits", credits);
	tx->bytes = lay_out(tx, credits);
	if (rvs_check_fd(fd, tx->bytes))
		return rv_fail(EPROTO, "shm: the peer's message box is not what it should be");
	tx->taken = calloc(credits, 1);
	if (!tx->taken)
		return rv_fail(ENOMEM, "shm: no memory for %u credits", credits);
	map = mmap(NULL, tx->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return rv_fail(errno == EAGAIN ? ENOMEM : errno, "shm: the peer's message box: %s",
			       limit_why("mmap", errno, tx->bytes));
	rb_not_in_child(map, tx->bytes);
	tx->box = map;
	lay_out(tx, credits);
	return 0;
}

void rvs_ring_fini(struct rvs_ring *ring)
{
	if (ring->owing.next)
		list_del(&ring->owing);
	if (ring->box)
		munmap(ring->box, ring->bytes);
	free(ring->taken);
	free(ring->copy);
	memset(ring, 0, sizeof(*ring));
}

enum { NO_SLOT = -1, NONSENSE = -2 };

static inline int next_slot(struct rvs_ring *tx)
{
	/* Partner: recv_done(). Slots that came back go first:
	 * the fewer are in use, the more stay in the cache. */
	uint64_t word = at_load_sc(&tx->back[tx->back_pos & tx->mask]);
	uint32_t slot = RVS_POST_WORD_SLOT(word);

	if (RVS_POST_WORD_THERE(word, tx->back_pos)) {
		if (slot >= tx->nr || !tx->taken[slot])
			return NONSENSE;
		rb_assert_is(slot, <, tx->fresh); /* the others were never sent */
		tx->back_pos++;
		tx->taken[slot] = 0;
		return (int)slot;
	}
	rb_assert_is(tx->fresh, <=, tx->nr);
	return tx->fresh < tx->nr ? (int)tx->fresh++ : NO_SLOT;
}

bool rvs_ring_has_room(const struct rvs_ring *tx)
{
	return tx->fresh < tx->nr ||
		RVS_POST_WORD_THERE(at_load_sc(&tx->back[tx->back_pos & tx->mask]), tx->back_pos);
}

int rvs_send(struct rv_conn *conn, const void *msg, size_t len)
{
	struct rvs_ring *tx = &conn->tx;
	int slot;

	if (len - 1 >= RV_MSG_MAX)
		return rv_fail(EMSGSIZE, "shm: a message of %zu bytes, 1..%d are possible", len,
			       RV_MSG_MAX);
	if (at_load(&conn->state) != RVS_UP)
		return rv_fail(ENOTCONN, "shm: the connection is not up");
	slot = next_slot(tx);
	if (unlikely(slot == NO_SLOT)) {
		/* Partner: recv_done(), which looks at it after it
		 * returned a slot; so look once more. */
		at_xchg_sc(&tx->box->want, 1);
		slot = next_slot(tx);
		if (slot == NO_SLOT) {
			rvs_attend(conn, RVS_A_STALLED);
			return rv_fail(EAGAIN, "shm: all %u credits are in use", tx->nr);
		}
		at_store(&tx->box->want, (conn->attn_why & RVS_A_STALLED) != 0);
	}
	if (unlikely(slot == NONSENSE)) {
		conn->poisoned = true;
		rvs_break(conn, EPROTO, -1);
		return rv_fail(ENOTCONN, "shm: the peer returned a slot that it did not have");
	}
	rb_assert_with(!tx->taken[slot], "slot %d is with the peer", slot);
	/* No more words than slots are under way, so that none is written over another. */
	rb_assert_is(tx->post_pos - tx->back_pos, <, tx->nr);
	tx->taken[slot] = 1;
	struct rvs_post *post = &tx->post[tx->post_pos & tx->mask];

	memcpy(len <= RVS_INLINE_MAX ? post->data : tx->slots + (size_t)slot * RV_MSG_MAX, msg,
	       len);
	at_xchg_sc(&post->word, RVS_POST_WORD(tx->post_pos, len, (uint32_t)slot));
	tx->post_pos++;
	rvs_wake(conn);
	return 0;
}

static void give_slots_back(struct rv_conn *conn)
{
	struct rvs_ring *rx = &conn->rx;

	rb_assert_with(rx->nr_due > 0 && rx->nr_due <= RVS_DUE_MAX, "%u", rx->nr_due);
	rb_assert_is(rx->nr_due + rx->nr_taken, <=, rx->nr);
	rb_assert(!list_empty(&rx->owing));
	rb_assert_with(rx->due[0] < rx->nr && !rx->taken[rx->due[0]], "slot %u", rx->due[0]);
	/* Each slot that was taken is given back, due, or with the core. */
	rb_assert_is(rx->post_pos - rx->back_pos, ==, rx->nr_due + rx->nr_taken);
	list_del(&rx->owing);
	/*
	 * Partners: next_slot() for the words; send(), which sets `want` and then looks for a word.
	 * That word is the first of these, so it is written last, and only it with seq_cst.
	 */
	for (uint32_t i = rx->nr_due - 1; i > 0; i--)
		at_store_rel(&rx->back[(rx->back_pos + i) & rx->mask],
			     RVS_POST_WORD(rx->back_pos + i, 0, rx->due[i]));
	at_xchg_sc(&rx->back[rx->back_pos & rx->mask], RVS_POST_WORD(rx->back_pos, 0, rx->due[0]));
	rx->back_pos += rx->nr_due;
	rx->nr_due = 0;
	if (unlikely(at_load_sc(&rx->box->want)))
		rvs_wake(conn);
}

/*
 * Gives the owed slots back: several at a time, and all of them before the device sleeps. Each word
 * written takes a cache line away from the sender, which looks there for its next slot. A sender
 * that waits for slots has sent much more than is owed here: recv_done() sees it. RV_POLL_SLOW sees
 * it if the core keeps all of that.
 */
void rvs_give_back(struct rv_dev *dev, bool all)
{
	struct list *l, *tmp;

	list_for_each_safe(l, tmp, &dev->owing) {
		struct rv_conn *conn = container_of(l, struct rv_conn, rx.owing);

		if (all || at_load_sc(&conn->rx.box->want))
			give_slots_back(conn);
	}
}

/* Tells whether the owed slots are too many, or the sender waits for one. */
static inline bool must_give_back(const struct rv_dev *dev, const struct rvs_ring *rx)
{
	return rx->nr_due >= min_of(RVS_DUE_MAX, rx->nr / 4) || at_load(&dev->page->sleeping) ||
	       at_load_sc(&rx->box->want);
}

void rvs_recv_done(struct rv_dev *dev, uint64_t token)
{
	uint32_t slot = (uint32_t)token & 0xffff, index = (uint32_t)(token >> 16) & 0xffff;
	struct rv_conn *conn = index < dev->max_conns ? dev->conns[index] : NULL;
	struct rvs_ring *rx;

	if (!conn || conn->gen != (uint32_t)(token >> 32))
		return;
	rx = &conn->rx;
	if (slot >= rx->nr || !rx->taken[slot])
		return;
	rb_assert_is(rx->nr_taken, >, 0);
	rx->taken[slot] = 0;
	rx->nr_taken--;
	if (unlikely(at_load(&conn->state) == RVS_CLOSED)) {
		if (!rx->nr_taken)
			rvs_conn_free(conn);
		return;
	}
	rb_assert_is(rx->nr_due, <, RVS_DUE_MAX);
	rb_assert(list_empty(&rx->owing) == !rx->nr_due);
	rx->due[rx->nr_due++] = (uint16_t)slot;
	if (rx->nr_due == 1)
		list_add_tail(&dev->owing, &rx->owing);
	if (must_give_back(dev, rx))
		give_slots_back(conn);
}
