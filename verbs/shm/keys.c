/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registrations: keys, and handing the memory behind them to peers.
 *
 * Order of reg(): the word without the live bit, the descriptor to every peer, the live bit. The
 * first makes a peer that gets the region keep it. So a peer that learns of the key by a message
 * finds the region in its socket at the latest. The exception: a peer whose socket is full has not
 * looked for hundreds of registrations. It gets the region when there is room, and its READ is
 * -EAGAIN until then.
 *
 * A key is an index (16 bits) and random bits (16). The caller's random iova brings the entropy
 * that these lack.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/random.h"
#include "shm.h"

int rvs_keys_init(struct rv_dev *dev)
{
	void *map = mmap(NULL, RVS_NR_KEYS * sizeof(struct rvs_key), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return rv_fail(ENOMEM, "shm: no memory for the key table");
	dev->keys = map;
	dev->free_keys = malloc(RVS_NR_KEYS * sizeof(*dev->free_keys));
	return dev->free_keys ? 0 : rv_fail(ENOMEM, "shm: no memory for the key table");
}

void rvs_keys_fini(struct rv_dev *dev)
{
	struct list *l;

	while ((l = list_pop(&dev->regions)))
		rb_close(container_of(l, struct rvs_key, node)->fd);
	if (dev->keys)
		munmap(dev->keys, RVS_NR_KEYS * sizeof(struct rvs_key));
	free(dev->free_keys);
}

/* Makes epoll report what the connection waits for; it reports
 * a hang-up in any case. dev->lock held. */
static void update_epoll(struct rv_conn *conn)
{
	struct epoll_event e = {.data.ptr = &conn->source};

	rvs_assert_held(&conn->dev->lock);
	e.events = (conn->muted ? 0u : (uint32_t)EPOLLIN) |
		   (conn->told_blocked ? (uint32_t)EPOLLOUT : 0u);
	epoll_ctl(conn->dev->epoll, EPOLL_CTL_MOD, conn->sock, &e);
}

/* Leaves what the peer sends in the socket until the window ends. [progress] */
void rvs_mute(struct rv_conn *conn, bool muted)
{
	pthread_mutex_lock(&conn->dev->lock);
	conn->muted = muted;
	update_epoll(conn);
	pthread_mutex_unlock(&conn->dev->lock);
	rvs_deadline(conn, muted ? conn->window_at + RVS_WINDOW_NS : 0);
}

/* Hands over every region that the peer has not got yet. Returns
 * true to be called again after a while. dev->lock held. */
static bool hand_over(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	struct list *l = &dev->regions;
	struct rvs_packet p;

	rvs_assert_held(&dev->lock);
	while (l->prev != &dev->regions &&
	       container_of(l->prev, struct rvs_key, node)->order > conn->told_order)
		l = l->prev;
	memset(&p, 0, sizeof(p));
	for (; l != &dev->regions; l = l->next) {
		struct rvs_key *k = container_of(l, struct rvs_key, node);
		int rc;

		rb_assert_with(k->order > conn->told_order && k->order <= dev->order,
			       "%llu after %llu", (unsigned long long)k->order,
			       (unsigned long long)conn->told_order);
		rb_assert_is(k->fd, >=, 0);
		p.word = k->word;
		p.iova = k->iova;
		p.length = at_load(&k->length);
		rc = rvs_packet_send(conn->sock, &p, RVS_PKT_REGION, &k->fd, 1);
		if (rc == -EAGAIN) {
			conn->told_blocked = true;
			update_epoll(conn);
			return false;
		}
		if (rc == -EPIPE || rc == -ECONNRESET || rc == -ENOTCONN)
			return false; /* gone; its hang-up is reported elsewhere */
		/* too many descriptors in flight, no memory: nothing tells when that ends */
		if (rc)
			return true;
		conn->told_order = k->order;
	}
	if (conn->told_blocked) {
		conn->told_blocked = false;
		update_epoll(conn);
	}
	return false;
}

static void tell_now(struct rv_conn *conn)
{
	if (hand_over(conn) && !at_xchg_ar(&conn->dev->tell_again, 1))
		rvs_wake_self(conn->dev); /* its timers retry */
}

void rvs_tell_start(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;

	pthread_mutex_lock(&dev->lock);
	rb_assert(list_empty(&conn->told) && !conn->told_order);
	list_add_tail(&dev->told, &conn->told);
	tell_now(conn);
	pthread_mutex_unlock(&dev->lock);
}

/*
 * Hands a region over once more, to a peer that had no room for it. If its socket is full it gets
 * nothing, and asks again. [any]
 */
void rvs_tell_one(struct rv_conn *conn, uint64_t word)
{
	struct rv_dev *dev = conn->dev;
	struct rvs_key *k = &dev->keys[RVS_KEY_INDEX((uint32_t)word)];
	struct rvs_packet p;

	pthread_mutex_lock(&dev->lock);
	if (k->fd >= 0 && k->word == word && k->order && k->order <= conn->told_order) {
		memset(&p, 0, sizeof(p));
		p.word = word;
		p.iova = k->iova;
		p.length = at_load(&k->length);
		(void)rvs_packet_send(conn->sock, &p, RVS_PKT_REGION, &k->fd, 1);
	}
	pthread_mutex_unlock(&dev->lock);
}

void rvs_tell_stop(struct rv_conn *conn)
{
	pthread_mutex_lock(&conn->dev->lock);
	list_del(&conn->told);
	pthread_mutex_unlock(&conn->dev->lock);
}

void rvs_tell_more(struct rv_conn *conn)
{
	pthread_mutex_lock(&conn->dev->lock);
	if (!list_empty(&conn->told))
		tell_now(conn);
	pthread_mutex_unlock(&conn->dev->lock);
}

/* Hands out regions to all peers. Returns true if some still lack one: try again after a while. */
bool rvs_tell_all(struct rv_dev *dev)
{
	struct list *l, *tmp;
	bool again = false;

	pthread_mutex_lock(&dev->lock);
	list_for_each_safe(l, tmp, &dev->told) {
		struct rv_conn *conn = container_of(l, struct rv_conn, told);

		again |= hand_over(conn);
		again |= rvs_wake_owed(conn);
	}
	pthread_mutex_unlock(&dev->lock);
	return again;
}

/* Takes a free index with a key that it did not have last; dev->lock held. */
static int take_key(struct rv_dev *dev, struct rvs_key **out, uint32_t *key)
{
	uint32_t index, last;
	uint16_t random;

	rvs_assert_held(&dev->lock);
	rb_assert_is(dev->nr_free_keys, <=, dev->used_keys);
	rb_random(&random, sizeof(random));
	if (dev->nr_free_keys)
		index = dev->free_keys[--dev->nr_free_keys];
	else if (dev->used_keys < RVS_NR_KEYS)
		index = dev->used_keys++;
	else
		return rv_fail(ENOMEM, "shm: all %u keys are in use", RVS_NR_KEYS);
	rb_assert_is(index, <, dev->used_keys);
	rb_assert(!at_load(&dev->keys[index].key) &&
		  !(at_load(&dev->page->key[index]) & RVS_WORD_LIVE));
	last = (uint32_t)dev->keys[index].word;
	while (!random || ((uint32_t)random << RVS_KEY_BITS | index) == last)
		random++;
	*key = (uint32_t)random << RVS_KEY_BITS | index;
	*out = &dev->keys[index];
	return 0;
}

/* Seals memory for peers to read. Returns a descriptor for peers, or -errno with a text. */
static int seal_for_peers(int fd, size_t length)
{
	int rc = fd < 0 ? -EBADF : rvs_seal(fd, true);

	if (rc)
		return rv_fail(EINVAL,
			       "shm: memory for peers to read needs its memfd, which can "
			       "be sealed "
			       "(MFD_ALLOW_SEALING): %s",
			       strerror(-rc));
	if (rvs_check_fd(fd, length))
		return rv_fail(EINVAL,
			       "shm: memory for peers to read needs a memfd of at least "
			       "%zu bytes, with "
			       "pages of the usual size (no MFD_HUGETLB)",
			       length);
	return rvs_reopen_ro(fd);
}

/* Hands a new region out to all peers. dev->lock held. */
static void hand_out(struct rv_dev *dev, struct rvs_key *k, uint32_t key)
{
	struct list *l, *tmp;

	k->order = ++dev->order;
	list_add_tail(&dev->regions, &k->node);
	at_store_rel(&dev->page->key[RVS_KEY_INDEX(key)], k->word & ~RVS_WORD_LIVE);
	list_for_each_safe(l, tmp, &dev->told)
		tell_now(container_of(l, struct rv_conn, told));
	/* Pairs with the READ's first look */
	at_store_rel(&dev->page->key[RVS_KEY_INDEX(key)], k->word);
}

int rvs_reg(struct rv_dev *dev, void *base, size_t length, int fd, uint64_t iova,
	    enum rv_access access, struct rv_mr *out)
{
	bool remote = access == RV_ACCESS_REMOTE_READ;
	struct rvs_key *k = NULL;
	uint32_t key = 0;
	int ro = -1, rc;

	if (!length || iova + length < iova || (uintptr_t)base + length < (uintptr_t)base)
		return rv_fail(EINVAL, "shm: a region of %zu bytes at %#llx", length,
			       (unsigned long long)iova);
	if (remote && (ro = seal_for_peers(fd, length)) < 0)
		return ro;
	pthread_mutex_lock(&dev->lock);
	rc = take_key(dev, &k, &key);
	if (!rc) {
		rb_assert_is(RVS_KEY_INDEX(key), ==, k - dev->keys);
		k->fd = ro;
		k->iova = iova;
		k->word = RVS_WORD(key, ++dev->key_count & INT32_MAX);
		at_store(&k->base, (uintptr_t)base);
		at_store(&k->length, length);
		if (remote)
			hand_out(dev, k, key);
		else
			/* Pairs with landing_ok(): readable memory is no landing place */
			at_store_rel(&k->key, key);
	}
	pthread_mutex_unlock(&dev->lock);
	if (rc) {
		rb_close(ro);
		return rc;
	}
	*out = (struct rv_mr){ .base = base, .length = length, .iova = iova, .impl = k };
	*(remote ? &out->rkey : &out->lkey) = key;
	return 0;
}

int rvs_dereg(struct rv_dev *dev, struct rv_mr *mr)
{
	struct rvs_key *k = mr->impl;
	uint32_t index = (uint32_t)(k - dev->keys);
	int ro;

	pthread_mutex_lock(&dev->lock);
	rb_assert_is(index, <, dev->used_keys);
	rb_assert_is((uint32_t)k->word, ==, mr->lkey | mr->rkey);
	/* The key is for peers or for landing, and not free. */
	rb_assert((k->fd >= 0) != (at_load(&k->key) != 0));
	rb_assert_is(dev->nr_free_keys, <, dev->used_keys);
	ro = k->fd;
	if (ro >= 0) {
		struct list *l, *tmp;

		/* Partner: the READ's second look. Without it a copy
		 * of reused memory would pass for the value. */
		at_store_rel(&dev->page->key[index], 0);
		rvs_after_revoke();
		list_del(&k->node);
		/* Peers that map it let go when they look; sleeping ones are woken to look. */
		at_add_sc(&dev->page->revoked, 1);
		list_for_each_safe(l, tmp, &dev->told)
			rvs_wake(container_of(l, struct rv_conn, told));
	}
	at_store_rel(&k->key, 0);
	k->fd = -1;
	dev->free_keys[dev->nr_free_keys++] = (uint16_t)index;
	pthread_mutex_unlock(&dev->lock);
	rb_close(ro);
	mr->impl = NULL;
	return 0;
}
