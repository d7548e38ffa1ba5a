/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two workers connect to each other at the same moment, or resume. All orders are tried in which
 * the network can bring their messages. Two contexts of this process talk over a device of the
 * test: each packet waits until the test picks it. A schedule is the list of picks; all schedules
 * are tried, each from the same state.
 *
 * The law: earlier messages do not end a session that is up at both ends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/ctx.h"
#include "core/base/lock.h"
#include "core/session/session.h"

#define WIRES_MAX 16
#define PACKETS_MAX 16
#define PICKS_MAX 64
#define NEVER (1000 * NSEC_PER_SEC)

/* ---- the device: wires of two ends, a queue of packets towards each ---- */

enum packet_type { HELLO, ANSWER, REASON, CONFIRMED, MESSAGE, END };

struct packet {
	enum packet_type type;
	uint32_t length;
	uint8_t bytes[256];
};

struct rv_conn {
	struct wire *wire;
	int side;                      /* the worker whose end it is */
	bool exists, is_up, is_closed;
	void *user;
	struct packet queue[PACKETS_MAX]; /* packets on their way to this end */
	unsigned first, nr;
};

struct wire {
	struct rv_conn end[2];
	int client;
};

static struct wire wires[WIRES_MAX];
static unsigned nr_wires;
static struct rref_ctx *ctx[2];
static struct rc_device device[2];

static struct rv_conn *other(struct rv_conn *c)
{
	return &c->wire->end[!c->side];
}

static void push(struct rv_conn *to, enum packet_type type, const void *bytes, size_t length)
{
	struct packet *p = &to->queue[to->first + to->nr++];

	assert_true(to->first + to->nr <= PACKETS_MAX && length <= sizeof(p->bytes));
	p->type = type;
	p->length = (uint32_t)length;
	if (length)
		memcpy(p->bytes, bytes, length);
}

static int fake_connect(struct rv_dev *dev, const struct rv_addr *to, const void *hello,
			size_t length, void *user, struct rv_conn **out)
{
	int side = (void *)dev == (void *)&device[1];
	struct wire *w = &wires[nr_wires++];

	(void)to;
	assert_true(nr_wires <= WIRES_MAX);
	memset(w, 0, sizeof(*w));
	w->client = side;
	for (int i = 0; i < 2; i++)
		w->end[i] = (struct rv_conn){ .wire = w, .side = i };
	w->end[side].exists = true;
	w->end[side].user = user;
	push(&w->end[!side], HELLO, hello, length);
	*out = &w->end[side];
	return 0;
}

static int fake_accept(struct rv_conn *c, const void *answer, size_t length, void *user)
{
	c->user = user;
	push(other(c), ANSWER, answer, length);
	return 0;
}

static void fake_reject(struct rv_conn *c, const void *reason, size_t length)
{
	c->is_closed = true;
	push(other(c), REASON, reason, length);
}

static int fake_send(struct rv_conn *c, const void *bytes, size_t length)
{
	if (!c->is_up || c->is_closed)
		return -ENOTCONN;
	push(other(c), MESSAGE, bytes, length);
	return 0;
}

static bool fake_close(struct rv_conn *c)
{
	if (!c || c->is_closed)
		return false;
	c->is_closed = true;
	push(other(c), END, NULL, 0);
	return false;
}

static int fake_seal(struct rv_conn *c, const uint8_t out[RV_SEAL_KEY_BYTES],
		     const uint8_t in[RV_SEAL_KEY_BYTES])
{
	(void)c, (void)out, (void)in;
	return 0;
}

static int fake_allow_reads(struct rv_conn *c)
{
	(void)c;
	return 0;
}

static void fake_will_read(struct rv_conn *c, uint32_t rkey, uint64_t addr, uint64_t length)
{
	(void)c, (void)rkey, (void)addr, (void)length;
}

static void fake_recv_done(struct rv_dev *dev, uint64_t token)
{
	(void)dev, (void)token;
}

static void fake_peer_text(struct rv_conn *c, char *buf, size_t size)
{
	snprintf(buf, size, "worker %d", !c->side);
}

static const struct rv_ops fake_ops = {
	.name = "fake",
	.kind = RV_SHM,
	.connect = fake_connect,
	.accept = fake_accept,
	.reject = fake_reject,
	.seal = fake_seal,
	.allow_reads = fake_allow_reads,
	.send = fake_send,
	.will_read = fake_will_read,
	.recv_done = fake_recv_done,
	.close_conn = fake_close,
	.peer_text = fake_peer_text,
};

/* Delivers the first packet on its way to that end. */
static void deliver(struct rv_conn *c)
{
	struct packet p = c->queue[c->first++];
	struct rv_event ev = {
		.conn = c, .user = c->user, .data = p.bytes, .len = p.length, .wc_status = -1
	};
	bool gone = c->is_closed || (p.type != HELLO && !c->exists);

	c->nr--;
	if (gone)
		return;
	switch (p.type) {
	case HELLO:
		c->exists = true;
		ev.type = RV_EV_REQUEST;
		break;
	case ANSWER:
		c->is_up = true;
		push(other(c), CONFIRMED, NULL, 0);
		ev.type = RV_EV_CONNECTED;
		break;
	case CONFIRMED:
		c->is_up = true;
		ev.type = RV_EV_CONNECTED;
		break;
	case REASON:
		ev.type = RV_EV_FAILED;
		ev.status = -ECONNREFUSED;
		break;
	case MESSAGE:
		ev.type = RV_EV_RECV;
		break;
	case END:
		ev.type = c->is_up ? RV_EV_DISCONNECTED : RV_EV_FAILED;
		ev.status = -ECONNRESET;
		break;
	}
	rc_lock(ctx[c->side]);
	ctx[c->side]->peers[!c->side].nr_hellos = 0; /* schedules are quick */
	rc_peer_event(ctx[c->side], &device[c->side], &ev);
	rc_unlock(ctx[c->side]);
}

/* ---- the workers ---- */

static struct rc_peer *peer_of(int side)
{
	return &ctx[side]->peers[!side];
}

static int port;

static void *join(void *arg)
{
	int rank = *(int *)arg;
	struct rref_options o;
	char address[64];

	rref_options_init(&o);
	snprintf(address, sizeof(address), "127.0.0.1:%d", port);
	o.rank = rank;
	o.world_size = 2;
	o.rendezvous = address;
	o.device = "shm";
	o.mode = RREF_PROGRESS_MANUAL;
	o.peer_timeout = NEVER;
	if (rref_init(&o, &ctx[rank]))
		fprintf(stderr, "rank %d: %s\n", rank, rref_last_error());
	return NULL;
}

static int setup(void **state)
{
	struct sockaddr_in in = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(in);
	int rank[2] = { 0, 1 }, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pthread_t thread[2];

	(void)state;
	if (fd < 0 || bind(fd, (struct sockaddr *)&in, sizeof(in)) ||
	    getsockname(fd, (struct sockaddr *)&in, &length))
		return -1;
	close(fd);
	port = ntohs(in.sin_port);
	for (int i = 0; i < 2; i++)
		if (pthread_create(&thread[i], NULL, join, &rank[i]))
			return -1;
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	for (int i = 0; i < 2; i++) {
		if (!ctx[i])
			return -1;
		device[i] = (struct rc_device){ .ops = &fake_ops,
						.dev = (struct rv_dev *)(void *)&device[i] };
		peer_of(i)->ops = &fake_ops;
		peer_of(i)->dev = device[i].dev;
		peer_of(i)->device = &device[i];
		ctx[i]->session.score_limit = UINT32_MAX;
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (int i = 0; i < 2; i++) {
		struct rc_peer *p = peer_of(i);

		rc_lock(ctx[i]);
		rc_session_end(ctx[i], p, -ESHUTDOWN, "the test is over");
		rc_unlock(ctx[i]);
	}
	for (int i = 0; i < 2; i++) {
		rref_shutdown(ctx[i], RREF_SHUTDOWN_NOW, RREF_DEFAULT);
		rref_free_ctx(ctx[i]);
	}
	return 0;
}

static bool is_up(int side)
{
	struct rc_peer *p = peer_of(side);

	return p->state == RC_PEER_UP && p->link;
}

/* Returns whether both know one session, over one connection. */
static bool are_joined(void)
{
	return is_up(0) && is_up(1) && peer_of(0)->epoch == peer_of(1)->epoch &&
	       peer_of(0)->link->wire == peer_of(1)->link->wire;
}

/* Begins anew: neither knows of the other, and nothing is on its way. */
static void begin(void)
{
	for (int i = 0; i < 2; i++) {
		struct rc_peer *p = peer_of(i);

		rc_lock(ctx[i]);
		rc_session_end(ctx[i], p, -ENETRESET, "a new schedule");
		rc_unlock(ctx[i]); /* carries the fence out */
		rc_lock(ctx[i]);
		rc_peer_end_grace(ctx[i], p);
		rc_unlock(ctx[i]);
		p->retry_at = 0;
		p->nr_sessions = 0;
		p->resume.nr_resumed = 0;
		p->pinged = p->ponged = 0;
	}
	nr_wires = 0;
}

/* Gives that side something to say, so that it connects if it must. */
static void want(int side)
{
	struct rw_message m = { .frame.type = RW_PING, .u.number = 7 };
	struct rc_peer *p = peer_of(side);

	rc_lock(ctx[side]);
	p->pinged = 7;
	p->retry_at = 0;
	assert_int_equal(rc_send(ctx[side], p->rank, &m), 0);
	rc_unlock(ctx[side]);
}

/* ---- schedules ---- */

/* Choices of the next step: a packet arrives, or a worker does a
 * thing that is possible at any time. */
struct options {
	struct rv_conn *arrives[2 * WIRES_MAX];
	unsigned nr_arrive;
	int may[4];                    /* numbers of the test */
	unsigned nr_may;
};

static struct {
	unsigned pick[PICKS_MAX], of[PICKS_MAX], nr;
} schedule;

static void say_schedule(void)
{
	fprintf(stderr, "schedule:");
	for (unsigned i = 0; i < schedule.nr; i++)
		fprintf(stderr, " %u/%u", schedule.pick[i], schedule.of[i]);
	fprintf(stderr, "\n");
}

#define MUST(cond) \
	do { \
		if (!(cond)) { \
			say_schedule(); \
			assert_true(cond); \
		} \
	} while (0)

static unsigned pick(unsigned at, unsigned of)
{
	assert_true(at < PICKS_MAX);
	if (at >= schedule.nr) {
		schedule.nr = at + 1;
		schedule.pick[at] = 0;
	}
	schedule.of[at] = of;
	return schedule.pick[at];
}

/* Goes to the next schedule, in the order of an odometer. Returns false after the last one. */
static bool next_schedule(void)
{
	while (schedule.nr && schedule.pick[schedule.nr - 1] + 1 == schedule.of[schedule.nr - 1])
		schedule.nr--;
	if (!schedule.nr)
		return false;
	schedule.pick[schedule.nr - 1]++;
	return true;
}

static void look(struct options *o)
{
	o->nr_arrive = 0;
	for (unsigned i = 0; i < nr_wires; i++)
		for (int side = 0; side < 2; side++)
			if (wires[i].end[side].nr)
				o->arrives[o->nr_arrive++] = &wires[i].end[side];
}

/* Runs one schedule: act(i) happens left[i] times, and all packets
 * arrive. The two stay joined once they are. */
static void run(unsigned left[4], void (*act)(int))
{
	bool joined = false;

	for (unsigned at = 0;; at++) {
		struct options o;
		unsigned n;

		look(&o);
		o.nr_may = 0;
		for (int i = 0; i < 4; i++)
			if (left[i])
				o.may[o.nr_may++] = i;
		if (!o.nr_arrive && !o.nr_may)
			break;
		n = pick(at, o.nr_arrive + o.nr_may);
		if (n < o.nr_arrive) {
			deliver(o.arrives[n]);
		} else {
			left[o.may[n - o.nr_arrive]]--;
			act(o.may[n - o.nr_arrive]);
		}
		MUST(!joined || are_joined());
		joined |= are_joined();
	}
}

/* ---- a new session ---- */

static void act_want(int what)
{
	want(what);
}

static void crossing__of_hellos_ends_no_session(void **state)
{
	unsigned nr = 0, crossed = 0;

	(void)state;
	schedule.nr = 0;
	do {
		unsigned left[4] = { 1, 1 };

		begin();
		run(left, act_want);
		MUST(are_joined());
		for (int i = 0; i < 2; i++) {
			MUST(peer_of(i)->nr_sessions == 1);
			MUST(peer_of(i)->ponged == 7);
		}
		crossed += nr_wires > 1;
		nr++;
	} while (next_schedule());
	print_message("%u schedules, in %u of them both connected\n", nr, crossed);
	assert_true(crossed > 100);
}

/* Lets side 0 or 1 connect, or lets its attempt fail while its hello is still on its way. */
static void act_lose(int what)
{
	struct rc_peer *p = peer_of(what & 1);
	struct rv_event ev = { .type = RV_EV_FAILED,
			       .status = -ETIMEDOUT,
			       .conn = p->link,
			       .user = p,
			       .wc_status = -1 };

	if (what < 2) {
		want(what);
	} else if (p->state == RC_PEER_CONNECTING) {
		rc_lock(ctx[what & 1]);
		rc_peer_event(ctx[what & 1], &device[what & 1], &ev);
		rc_unlock(ctx[what & 1]);
	}
}

/* Delivers everything on its way, and runs the timers of both, until the two are joined. */
static void try_again(void)
{
	struct options o;

	for (int tries = 0; tries < 100; tries++) {
		for (look(&o); o.nr_arrive; look(&o))
			deliver(o.arrives[0]);
		if (are_joined())
			return;
		for (int i = 0; i < 2; i++) {
			peer_of(i)->retry_at = 0;
			rc_lock(ctx[i]);
			rc_contact_tick(ctx[i], peer_of(i), now_ns());
			rc_unlock(ctx[i]);
		}
	}
}

/* Gives an attempt up; its hello comes when the session of another is up. Waiting messages are not
 * lost, in any order. */
static void crossing__of_an_abandoned_hello(void **state)
{
	for (int loser = 0; loser < 2; loser++) {
		unsigned nr = 0, joined = 0;

		(void)state;
		schedule.nr = 0;
		do {
			unsigned left[4] = { 1, 1 };

			left[2 + loser] = 1;
			begin();
			run(left, act_lose);
			joined += are_joined();
			try_again();
			MUST(are_joined());
			for (int i = 0; i < 2; i++)
				MUST(peer_of(i)->nr_sessions == 1 && peer_of(i)->ponged == 7);
			nr++;
		} while (next_schedule());
		print_message("%u schedules, %u of them joined at once\n", nr, joined);
		assert_true(joined > 100);
	}
}

/* ---- a session that resumes ---- */

static void act_dial(int side)
{
	struct rc_peer *p = peer_of(side);

	/* The timer comes: for the next attempt, or because this one has had its time. */
	rc_lock(ctx[side]);
	if (rc_state_broken(p->state))
		rc_resume_tick(ctx[side], p, max_of(now_ns(), p->resume.at));
	rc_unlock(ctx[side]);
}

static void settle(void)
{
	struct options o;

	for (int tries = 0; tries < 100 && !are_joined(); tries++) {
		for (look(&o); o.nr_arrive; look(&o))
			deliver(o.arrives[0]);
		if (!are_joined())
			act_dial(tries & 1);
	}
	for (look(&o); o.nr_arrive; look(&o))
		deliver(o.arrives[0]);
}

static void crossing__of_resumptions_breaks_no_connection(void **state)
{
	unsigned nr = 0, crossed = 0;

	(void)state;
	schedule.nr = 0;
	do {
		unsigned left[4] = { 1, 1 };
		uint32_t epoch;

		begin();
		want(0);
		settle();
		assert_true(are_joined());
		epoch = peer_of(0)->epoch;
		for (int i = 0; i < 2; i++) {
			rc_lock(ctx[i]);
			rc_resume_break(ctx[i], peer_of(i), -ECONNRESET, "the test cut it");
			rc_unlock(ctx[i]);
		}
		nr_wires = 0;
		run(left, act_dial);
		crossed += nr_wires > 1;
		settle();
		MUST(are_joined());
		for (int i = 0; i < 2; i++)
			MUST(peer_of(i)->nr_sessions == 1 && peer_of(i)->epoch == epoch);
		nr++;
	} while (next_schedule());
	print_message("%u schedules, in %u of them both connected\n", nr, crossed);
	assert_true(crossed > 100);
}

/* ---- hellos that must still end a session ---- */

/* Ends the session for good at one end, and the other does not know: the next hello is news. */
static void crossing__a_new_hello_begins_a_new_session(void **state)
{
	(void)state;
	for (int side = 0; side < 2; side++) {
		struct options o;

		begin();
		want(0);
		settle();
		assert_true(are_joined());
		rc_lock(ctx[side]);
		rc_session_end(ctx[side], peer_of(side), -ENETRESET, "the test ended it here");
		rc_unlock(ctx[side]); /* carries the fence out */
		rc_lock(ctx[side]);
		rc_peer_end_grace(ctx[side], peer_of(side));
		rc_unlock(ctx[side]);
		for (look(&o); o.nr_arrive; look(&o)) /* the other end is not told */
			o.arrives[0]->nr = 0;
		want(side);
		settle();
		assert_true(are_joined());
		assert_int_equal(peer_of(0)->nr_sessions, 2);
		assert_int_equal(peer_of(1)->nr_sessions, 2);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crossing__a_new_hello_begins_a_new_session),
		cmocka_unit_test(crossing__of_an_abandoned_hello),
		cmocka_unit_test(crossing__of_hellos_ends_no_session),
		cmocka_unit_test(crossing__of_resumptions_breaks_no_connection),
	};

	return cmocka_run_group_tests_name("crossing", tests, setup, teardown);
}
