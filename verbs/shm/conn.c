/* SPDX-License-Identifier: Apache-2.0 */
/* A connection's life: made, watched, broken, closed. The
 * handshake is in connect.c and accept.c. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shm.h"

/* Takes over sock on success. */
int rvs_conn_new(struct rv_dev *dev, int sock, enum rvs_state state, struct rv_conn **out)
{
	struct rv_conn *conn;
	uint32_t index = 0;

	while (index < dev->max_conns && dev->conns[index])
		index++;
	if (index == dev->max_conns)
		return rv_fail(ENOMEM, "shm: %u connections already (max_conns %u)", dev->nr_conns,
			       dev->opt.max_conns);
	conn = aligned_alloc(CACHE_LINE, sizeof(*conn));
	if (!conn)
		return rv_fail(ENOMEM, "shm: no memory for a connection");
	memset(conn, 0, sizeof(*conn));
	rb_assert(state == RVS_GREETING || state == RVS_CONNECTING);
	rb_assert_is(dev->nr_conns, <, dev->max_conns);
	conn->state = state;
	conn->max_reads = dev->opt.max_reads;
	conn->max_msg = dev->max_msg;
	conn->keys = dev->keys;
	conn->source = RVS_SRC_CONN;
	conn->dev = dev;
	conn->process_source = RVS_SRC_PROCESS;
	conn->sock = sock;
	conn->box_fd = -1;
	memset(conn->hello_fds, -1, sizeof(conn->hello_fds));
	conn->index = index;
	conn->gen = ++dev->next_gen;
	conn->watch = UINT32_MAX;
	list_init(&conn->attn);
	list_init(&conn->timed);
	list_init(&conn->told);
	list_init(&conn->mapped);
	pthread_mutex_init(&conn->rx_lock, NULL);
	dev->conns[index] = conn;
	dev->nr_conns++;
	*out = conn;
	return 0;
}

/* Adds the socket to epoll, so that poll hears of it. */
int rvs_conn_listen(struct rv_conn *conn)
{
	struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conn->source};

	if (epoll_ctl(conn->dev->epoll, EPOLL_CTL_ADD, conn->sock, &e))
		return rv_fail(errno, "shm: cannot wait for a connection's socket: %s",
			       strerror(errno));
	return 0;
}

/*
 * Closes a socket, -1 too, so that its peer hears of it and this side does not any more. shutdown
 * does so even if a child still has a copy, which epoll would go on reporting.
 */
void rvs_hang_up(struct rv_dev *dev, int sock)
{
	if (sock < 0)
		return;
	epoll_ctl(dev->epoll, EPOLL_CTL_DEL, sock, NULL);
	rvs_close_socket(sock);
}

/* Gives back all but the private copies of messages, which the
 * core may still hold. Twice is harmless. */
static void release_conn(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;
	unsigned char *copy = conn->rx.copy, *taken = conn->rx.taken;
	uint32_t nr = conn->rx.nr, nr_taken = conn->rx.nr_taken;

	rvs_watch_del(conn);
	rvs_attended(conn, ~0u);
	rvs_deadline(conn, 0);
	rvs_tell_stop(conn);
	rvs_process_unwatch(conn);
	rvs_hang_up(dev, conn->sock);
	rvs_close_fds((int[]){conn->box_fd}, 1);
	rvs_close_fds(conn->hello_fds, RVS_PKT_FDS);
	memset(conn->hello_fds, -1, sizeof(conn->hello_fds));
	conn->sock = conn->box_fd = -1;
	rvs_onlooker_put(conn->onlooker);
	conn->onlooker = NULL;
	conn->peer_page = NULL;
	rvs_segs_fini(conn);
	rvs_ring_fini(&conn->tx);
	conn->rx.copy = conn->rx.taken = NULL;
	rvs_ring_fini(&conn->rx);
	conn->rx.copy = copy;
	conn->rx.taken = taken;
	conn->rx.nr = nr;
	conn->rx.nr_taken = nr_taken;
	rb_assert(!conn->attn_why && !conn->deadline_ns && list_empty(&conn->told));
	if (dev->nr_greeting && at_load(&conn->state) == RVS_GREETING)
		dev->nr_greeting--;
	at_store(&conn->state, RVS_CLOSED);
}

void rvs_conn_free(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;

	release_conn(conn);
	rvs_ring_fini(&conn->rx);
	rb_assert(dev->conns[conn->index] == conn && dev->nr_conns);
	dev->conns[conn->index] = NULL;
	dev->nr_conns--;
	pthread_mutex_destroy(&conn->rx_lock);
	free(conn);
}

void rvs_attend(struct rv_conn *conn, unsigned why)
{
	rb_assert(list_empty(&conn->attn) == !conn->attn_why);
	if (!conn->attn_why)
		list_add_tail(&conn->dev->attn, &conn->attn);
	conn->attn_why |= why;
}

void rvs_attended(struct rv_conn *conn, unsigned why)
{
	rb_assert(list_empty(&conn->attn) == !conn->attn_why);
	conn->attn_why &= ~why;
	if (!conn->attn_why)
		list_del(&conn->attn);
}

void rvs_notify(struct rv_conn *conn, enum rv_event_type type, int status)
{
	/* The one before was told: a connection has one piece of news at a time. */
	rb_assert(!(conn->attn_why & RVS_A_NOTIFY));
	conn->notify = type;
	conn->status = status;
	rvs_attend(conn, RVS_A_NOTIFY);
}

/* Ends a connection whose connecting or accepting came to nothing: FAILED follows. */
void rvs_conn_fail(struct rv_conn *conn, int status)
{
	rb_assert_with(status < 0, "%d", status);
	rb_assert(at_load(&conn->state) == RVS_CONNECTING ||
		  at_load(&conn->state) == RVS_REQUESTED);
	rvs_deadline(conn, 0);
	if (status == -ETIMEDOUT)
		conn->text_len = 0; /* a hello that was not sent yet */
	rvs_hang_up(conn->dev, conn->sock);
	conn->sock = -1;
	at_store(&conn->state, RVS_DOWN);
	rvs_notify(conn, RV_EV_FAILED, status);
}

/* Adds a connection to those that poll looks at. CONNECTED is
 * being reported: messages and READs may flow. */
void rvs_watch_add(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;

	rb_assert_is(conn->watch, ==, UINT32_MAX);
	rb_assert_is(at_load(&conn->state), ==, RVS_ANSWERED);
	rb_assert_is(dev->nr_watch, <, dev->max_conns);
	rb_assert(conn->rx.box && conn->tx.box && conn->peer_page && conn->segs);
	rb_assert_is(conn->rx.post_pos, ==, 0);
	conn->watch = dev->nr_watch;
	dev->watch[dev->nr_watch++] = (struct rvs_watch){ .word = &conn->rx.post->word,
							  .seq = 1,
							  .conn = conn };
	at_store_rel(&conn->state, RVS_UP); /* Pairs with post_reads() */
	rvs_process_watch(conn);
	rvs_tell_start(conn);
}

void rvs_watch_del(struct rv_conn *conn)
{
	struct rv_dev *dev = conn->dev;

	if (conn->watch == UINT32_MAX)
		return;
	rb_assert_is(conn->watch, <, dev->nr_watch);
	rb_assert(dev->watch[conn->watch].conn == conn);
	dev->watch[conn->watch] = dev->watch[--dev->nr_watch];
	dev->watch[conn->watch].conn->watch = conn->watch;
	conn->watch = UINT32_MAX;
}

/* Ends a connection whose socket ended. The peer's earlier
 * messages are delivered first, then DISCONNECTED (see poll.c). */
void rvs_conn_hangup(struct rv_conn *conn)
{
	/* else it would report its end for ever */
	epoll_ctl(conn->dev->epoll, EPOLL_CTL_DEL, conn->sock, NULL);
	rvs_process_unwatch(conn);
	conn->gone = true;
	rvs_attend(conn, RVS_A_HUP);
}

static void fence(struct rv_conn *conn)
{
	if (conn->rx.box) {
		/* Pairs with the READ's second look */
		at_store_rel(&conn->rx.box->serve, RVS_SERVE_FENCED);
		rvs_after_revoke();
	}
}

/*
 * [any] Ends a connection that is up, like a queue pair that goes to the error state. Nothing is
 * read over it any more, in both directions, and both sides see their socket end. The first reason
 * counts.
 */
void rvs_break(struct rv_conn *conn, int err, int wc_status)
{
	uint32_t none = 0, up = RVS_UP;

	rb_assert_with(err > 0 && err <= 0xffff && wc_status >= -1 && wc_status < 0x8000, "%d, %d",
		       err, wc_status);
	/* Pairs with poll.c, hup */
	at_cas_ar(&conn->why, &none, (uint32_t)err | (uint32_t)(wc_status & 0xffff) << 16);
	at_cas_ar(&conn->state, &up, RVS_BROKEN);
	fence(conn);
	shutdown(conn->sock, SHUT_RDWR);
}

int rvs_allow_reads(struct rv_conn *conn)
{
	uint32_t none = RVS_SERVE_NONE;

	if (at_load(&conn->state) != RVS_UP)
		return rv_fail(ENOTCONN, "shm: the connection is not up");
	/* Not a plain store: rvs_break() on another thread may
	 * have fenced it. Partner: the READ's looks. */
	at_cas_ar(&conn->rx.box->serve, &none, RVS_SERVE_READS);
	return 0;
}

bool rvs_close_conn(struct rv_conn *conn)
{
	if (!conn)
		return false;
	rb_assert_is(at_load(&conn->state), !=, RVS_CLOSED);
	fence(conn);
	release_conn(conn);
	if (!conn->rx.nr_taken)
		rvs_conn_free(conn);
	return false;
}

void rvs_peer_text(struct rv_conn *conn, char *buf, size_t size)
{
	snprintf(buf, size, "pid %ld", (long)conn->pid);
}
