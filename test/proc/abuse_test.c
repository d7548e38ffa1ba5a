/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers 0 and 1 use the library; worker 2, the foe, is a member of the group that does not: it speaks to the device
 * layer itself and says what no worker would. Whatever it does ends its own connection or changes nothing; it is
 * counted; the others' calls and reads go on all the while, their memory stays bounded, and what it left behind goes.
 */
#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "core/rc_group.h"
#include "core/rw.h"
#include "tg.h"
#include "verbs/rv.h"

#define FOE 2
#define WORLD 3
#define BEACON_BYTES 4096

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* ---- what the workers show each other, beside the library ---- */

struct shown {
	_Atomic uint64_t rounds;            /* of the good pair: one call and one read each */
	struct {
		_Atomic uint64_t rejected, dropped, rss_kib, threads, forks, looks;
	} of[2];
	_Atomic int64_t called, took_ns;    /* worker 0's call of the foe: 1 + -status, and how long it took */
	char called_text[256];
	char logged[512];                   /* worker 1's last warning */
};
_Static_assert(sizeof(struct shown) <= sizeof(((struct tg_shared *)0)->bytes), "it fits");

enum { F_END = 0, F_SERVED = 1, F_CALL_FOE = 2, F_ANSWER = 3 };

static struct shown *shown(void)
{
	return (struct shown *)(void *)tg_current->shared->bytes;
}

/* ---- the good workers ---- */

static struct rref_call *kept[100000];
static unsigned nr_kept;
static pthread_mutex_t keep_lock = PTHREAD_MUTEX_INITIALIZER;

/* Keeps the call until F_ANSWER is set. */
static int keep(struct rref_call *call, void *arg)
{
	(void)arg;
	pthread_mutex_lock(&keep_lock);
	bool room = nr_kept < array_size(kept);

	if (room)
		kept[nr_kept++] = call;
	pthread_mutex_unlock(&keep_lock);
	return room ? RREF_DEFER : -ENOSPC;
}

static void answer_kept(void)
{
	for (;;) {
		pthread_mutex_lock(&keep_lock);
		struct rref_call *call = nr_kept ? kept[--nr_kept] : NULL;

		pthread_mutex_unlock(&keep_lock);
		if (!call)
			return;
		TG_OK(rref_call_reply(call, NULL));
	}
}

static void on_log(void *arg, enum rref_log_level level, const char *text)
{
	(void)arg;
	if (getenv("RREF_TEST_LOG"))
		fprintf(stderr, "[%d] log %d: %s\n", (int)getpid(), (int)level, text);
	if (level <= RREF_LOG_WARNING)
		snprintf(shown()->logged, sizeof(shown()->logged), "%s", text);
}

static uint64_t rss_kib(void)
{
	unsigned long size, resident = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%lu %lu", &size, &resident) != 2)
		resident = 0;
	if (f)
		fclose(f);
	return resident * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

static uint64_t threads(void)
{
	DIR *d = opendir("/proc/self/task");
	uint64_t n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n - 2;
}

static void look(struct rref_ctx *ctx, int rank)
{
	struct rref_stats s = tg_stats(ctx);

	shown()->of[rank].rejected = s.rejected_peers;
	shown()->of[rank].dropped = s.dropped_messages;
	shown()->of[rank].rss_kib = rss_kib();
	shown()->of[rank].threads = threads();
	shown()->of[rank].forks = s.forks;
	shown()->of[rank].looks++;
}

static void round_of_work(struct rref_ctx *ctx, struct rref *ref)
{
	struct rref_future *f;
	char got[5];

	TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &(struct rref_args){ .data = "hello", .length = 5 }, RREF_DEFAULT, &f));
	tg_result(f, got, 5);
	TG_CHECK(memcmp(got, "hello", 5) == 0);
	rref_future_free(f);
	tg_expect_bytes(ref, "a value", 7);
	shown()->rounds++;
}

static void call_foe(struct rref_ctx *ctx)
{
	int64_t start = now_ns();
	int err = rref_rpc_sync(ctx, FOE, "tg.echo", NULL, 20 * NSEC_PER_SEC, NULL);

	snprintf(shown()->called_text, sizeof(shown()->called_text), "%s", err ? rref_last_error() : "");
	shown()->took_ns = now_ns() - start;
	shown()->called = 1 - err;
	tg_set_flag(F_CALL_FOE, 0);
}

static int good(int rank)
{
	const struct rref_function keeper = { .name = "keep", .handler = keep };
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *ref, *own = NULL;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.log = rank == 1 ? on_log : o.log;
	TG_OK(rref_init(&o, &ctx));
	TG_OK(rref_register(ctx, &keeper));
	if (rank == 0)
		TG_OK(rref_new(ctx, "worker 0's", 11, &own)); /* (0, 1): its first id */
	look(ctx, rank);
	tg_meet(0);
	if (rank == 0) {
		TG_OK(rref_remote(ctx, 1, "tg.echo", &(struct rref_args){ .data = "a value", .length = 7 }, RREF_DEFAULT, &ref));
		while (!tg_flag(F_END)) {
			round_of_work(ctx, ref);
			if (tg_flag(F_CALL_FOE))
				call_foe(ctx);
			look(ctx, rank);
			usleep(1000);
		}
		for (int i = 0; i < 10; i++)
			round_of_work(ctx, ref);
		rref_release(ref);
		rref_release(own);
		tg_until_clean(ctx, 1);
		tg_until_clean(ctx, 0);
		tg_set_flag(F_SERVED, 1);
	}
	while (!tg_flag(F_SERVED)) {
		rref_progress(ctx);
		look(ctx, rank);
		if (tg_flag(F_ANSWER))
			answer_kept();
		usleep(1000);
	}
	tg_meet(1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	answer_kept();
	rref_free_ctx(ctx);
	return 0;
}

/* ---- the foe ---- */

struct foe {
	const struct rv_ops *ops;
	struct rv_dev *dev;
	struct rc_key key;
	struct rc_member me, members[WORLD];

	struct rv_conn *conn;               /* the one at hand */
	struct rc_handshake hs;
	uint8_t hello[RV_HELLO_MAX];
	size_t hello_length;
	uint8_t proof[RC_MAC_BYTES];
	uint64_t seq;
	bool connected, failed, ended;
	int status;                         /* of the failure or the end */
	char reason[RV_REASON_MAX];

	struct rv_conn *request;            /* somebody's, when serving */
	uint8_t asked[RV_HELLO_MAX];
	size_t asked_length;

	bool deaf;                          /* takes messages, gives none back */
	uint64_t nr_recv[RW_NR_TYPES], nr_proto[RP_MSG_NR_TYPES];
	uint64_t nr_again;                  /* replies -EAGAIN */
	int32_t reply_status, proto_status; /* of the last */

	void *beacon;                       /* what peers READ to learn that our device answers */
	struct rv_mr beacon_mr;
};

static void on_recv(struct foe *f, const struct rv_event *ev)
{
	struct rw_message m;

	TG_IS(rw_decode(ev->data, ev->len, WORLD, &m), 0);
	f->nr_recv[m.frame.type]++;
	if (m.frame.type == RW_REPLY) {
		f->reply_status = m.u.reply.status;
		f->nr_again += m.u.reply.status == -EAGAIN;
	} else if (m.frame.type == RW_PROTO) {
		f->nr_proto[m.u.proto.type]++;
		f->proto_status = m.u.proto.status;
	}
	if (!f->deaf)
		f->ops->recv_done(f->dev, ev->token);
}

static void pump(struct foe *f)
{
	struct rv_event ev[16];
	int n = f->ops->poll(f->dev, ev, 16, RV_POLL_SLOW);

	TG_OK(n);
	for (int i = 0; i < n; i++) {
		if (ev[i].type == RV_EV_REQUEST) {
			f->request = ev[i].conn;
			f->asked_length = ev[i].len;
			memcpy(f->asked, ev[i].data, ev[i].len);
		} else if (ev[i].conn && ev[i].conn == f->conn) {
			switch (ev[i].type) {
			case RV_EV_CONNECTED:
				f->connected = true;
				if (ev[i].len)
					TG_OK(rc_answer_check(&f->key, ev[i].data, ev[i].len, &f->hs, f->proof));
				break;
			case RV_EV_FAILED:
				f->failed = true;
				f->status = ev[i].len ? rc_reason_parse(ev[i].data, ev[i].len, f->reason, sizeof(f->reason)) :
					    ev[i].status;
				break;
			case RV_EV_DISCONNECTED:
				f->ended = true;
				f->status = ev[i].status;
				break;
			case RV_EV_RECV:
				on_recv(f, &ev[i]);
				break;
			default:
				break;
			}
		} else if (ev[i].type == RV_EV_RECV) {
			f->ops->recv_done(f->dev, ev[i].token);
		}
	}
	if (!n)
		usleep(100);
}

#define UNTIL(f, cond) \
	do { \
		int64_t end_ = now_ns() + 60 * NSEC_PER_SEC; \
		while (!(cond)) { \
			TG_CHECK(now_ns() < end_); \
			pump(f); \
		} \
	} while (0)

static void hang_up(struct foe *f)
{
	f->ops->close_conn(f->conn);
	f->conn = NULL;
	f->connected = f->failed = f->ended = f->deaf = false;
	f->seq = 0;
}

/* A proper hello to worker `to`; made here, sent by dial. */
static void make_hello(struct foe *f, int to)
{
	f->hs = (struct rc_handshake){ .self_rank = FOE, .peer_rank = (uint32_t)to, .self_incarnation = f->me.incarnation,
				       .peer_incarnation = f->members[to].incarnation };
	f->hello_length = rc_hello_make(&f->key, &f->hs, f->hello);
}

static void dial(struct foe *f, int to)
{
	hang_up(f);
	TG_OK(f->ops->connect(f->dev, &f->members[to].addr[f->ops->kind], f->hello, f->hello_length, NULL, &f->conn));
	UNTIL(f, f->connected || f->failed);
}

static int send_bytes(struct foe *f, const void *bytes, size_t length)
{
	int err;

	while ((err = f->ops->send(f->conn, bytes, length)) == -EAGAIN && !f->ended)
		pump(f);
	return err;
}

/* In sequence; 0, or -errno when the connection has ended. */
static int say(struct foe *f, const struct rw_message *m)
{
	uint8_t buf[RV_MSG_MAX];
	int n = rw_encode(m, buf, sizeof(buf));

	TG_OK(n);
	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	return send_bytes(f, buf, (size_t)n);
}

static int say_number(struct foe *f, uint8_t type, uint64_t number)
{
	return say(f, &(struct rw_message){ .frame.type = type, .u.number = number });
}

static int say_proto(struct foe *f, enum rp_msg_type type, struct rref_id id, struct rref_id fork)
{
	struct rw_message m = { .frame.type = RW_PROTO, .u.proto = { .type = type, .id = id, .fork = fork } };

	if (type == RP_MSG_FETCH_REPLY || type == RP_MSG_CREATED)
		m.u.proto.status = -EIO;
	return say(f, &m);
}

static int say_auth(struct foe *f)
{
	struct rw_message m = { .frame.type = RW_AUTH };

	memcpy(m.u.auth.mac, f->proof, sizeof(f->proof));
	m.u.auth.beacon_addr = f->beacon_mr.iova;
	m.u.auth.beacon_rkey = f->beacon_mr.rkey;
	TG_OK(f->ops->allow_reads(f->conn));
	return say(f, &m);
}

/* A session that worker `to` takes for a good one. */
static void meet(struct foe *f, int to)
{
	make_hello(f, to);
	dial(f, to);
	TG_CHECK(f->connected);
	f->nr_recv[RW_AUTH] = 0;
	TG_OK(say_auth(f));
	UNTIL(f, f->nr_recv[RW_AUTH] || f->ended);
	TG_CHECK(!f->ended);
}

/* The session is alive, and all that was said before has been dealt with. */
static void still_served(struct foe *f)
{
	uint64_t before = f->nr_recv[RW_PONG];

	TG_OK(say_number(f, RW_PING, 7));
	UNTIL(f, f->nr_recv[RW_PONG] > before || f->ended);
	TG_CHECK(!f->ended);
}

static uint64_t fresh_look(int rank, const _Atomic uint64_t *of)
{
	uint64_t looks = shown()->of[rank].looks;
	int64_t end = now_ns() + 60 * NSEC_PER_SEC;

	while (shown()->of[rank].looks < looks + 2) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
	return *of;
}

static uint64_t rejected(int rank)
{
	return fresh_look(rank, &shown()->of[rank].rejected);
}

static uint64_t dropped(int rank)
{
	return fresh_look(rank, &shown()->of[rank].dropped);
}

/* The others go on with their work. */
static void others_work(void)
{
	uint64_t rounds = shown()->rounds;
	int64_t end = now_ns() + 60 * NSEC_PER_SEC;

	while (shown()->rounds < rounds + 2) {
		TG_CHECK(now_ns() < end);
		usleep(200);
	}
}

/* What was just said ends the connection, and is counted. */
static void must_end(struct foe *f, int rank, uint64_t rejected_before, const char *what)
{
	int64_t end = now_ns() + 20 * NSEC_PER_SEC;

	while (!f->ended && now_ns() < end)
		pump(f);
	if (!f->ended || rejected(rank) <= rejected_before) {
		fprintf(stderr, "%s: the connection %s, rejected %lu -> %lu\n", what, f->ended ? "ended" : "lives",
			(unsigned long)rejected_before, (unsigned long)rejected(rank));
		_exit(1);
	}
	others_work();
}

static void refused(struct foe *f, int to, int status, const char *text)
{
	uint64_t before = rejected(to);

	dial(f, to);
	TG_CHECK(f->failed && !f->connected);
	TG_IS(f->status, status);
	TG_CHECK(strstr(f->reason, text) != NULL);
	TG_IS(rejected(to), before + 1);
	others_work();
}

/* A member that is silent while it works is asked for its beacon, by READs (over ibv): without one it would be left. */
static void light_beacon(struct foe *f)
{
	int fd = memfd_create("foe", MFD_CLOEXEC);

	TG_CHECK(fd >= 0 && !ftruncate(fd, BEACON_BYTES));
	f->beacon = mmap(NULL, BEACON_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TG_CHECK(f->beacon != MAP_FAILED);
	TG_OK(f->ops->reg(f->dev, f->beacon, BEACON_BYTES, fd, UINT64_C(0x5eed) << 32, RV_ACCESS_REMOTE_READ, &f->beacon_mr));
	close(fd);
}

static int foe(void (*body)(struct foe *f))
{
	struct foe *f = calloc(1, sizeof(*f));
	struct rv_options ro = { .gid_index = -1, .max_conns = 16 };

	TG_CHECK(f && sodium_init() >= 0);
	f->ops = tg_is_shm() ? &rv_shm_ops : &rv_ibv_ops;
	TG_OK(rc_key_load(NULL, &f->key));
	TG_OK(f->ops->open(&ro, &f->dev));
	light_beacon(f);
	f->me.rank = FOE;
	rc_random(&f->me.incarnation, sizeof(f->me.incarnation));
	snprintf(f->me.name, sizeof(f->me.name), "foe");
	f->ops->addr(f->dev, &f->me.addr[f->ops->kind]);
	TG_OK(rc_rendezvous(tg_current->rendezvous, WORLD, &f->me, &f->key, now_ns() + 30 * NSEC_PER_SEC, NULL, f->members));
	tg_meet(0);
	others_work();
	body(f);
	others_work();
	hang_up(f);
	f->ops->dereg(f->dev, &f->beacon_mr);
	munmap(f->beacon, BEACON_BYTES);
	f->ops->close(f->dev);
	rc_key_wipe(&f->key);
	free(f);
	tg_set_flag(F_END, 1);
	tg_meet(1);
	return 0;
}

static int worker(int rank, void *arg)
{
	void (*const *body)(struct foe *f) = arg;

	return rank == FOE ? foe(*body) : good(rank);
}

#define FOE_TEST(name) \
	static void name##_body(struct foe *f); \
	static void name(void **state) \
	{ \
		void (*body)(struct foe *f) = name##_body; \
		struct tg_group g = { .world = WORLD, .timeout_s = 180 }; \
		(void)state; \
		assert_int_equal(tg_run_group(&g, worker, &body), 0); \
	} \
	static void name##_body(struct foe *f)

static struct rref_id id_of(uint32_t rank, uint64_t n)
{
	return (struct rref_id){ .local_id = n, .created_on = rank };
}

/* ---- connecting ---- */

FOE_TEST(hello__with_another_key)
{
	struct rc_key key = f->key;

	f->key.bytes[3] ^= 1;
	make_hello(f, 1);
	f->key = key;
	refused(f, 1, -EKEYREJECTED, "key");
	for (size_t i = 0; i < f->hello_length; i += 9) {
		make_hello(f, 1);
		f->hello[i] ^= 0x40;
		dial(f, 1);
		TG_CHECK(f->failed);
	}
	others_work();
}

FOE_TEST(hello__garbage)
{
	uint64_t before = rejected(1);

	for (size_t n = 1; n <= RV_HELLO_MAX; n += 6) {
		rc_random(f->hello, sizeof(f->hello));
		f->hello[0] = 0;
		f->hello_length = n;
		dial(f, 1);
		TG_CHECK(f->failed);
		TG_IS(f->status, -EPROTO);
	}
	TG_CHECK(rejected(1) > before);
}

FOE_TEST(hello__of_another_version)
{
	make_hello(f, 1);
	put_le16(f->hello + 1, RW_PROTOCOL_VERSION + 1);
	refused(f, 1, -EPROTONOSUPPORT, "version 2");
	TG_CHECK(strstr(shown()->logged, "version 2") != NULL);
}

FOE_TEST(hello__of_somebody_else)
{
	/* The victim itself. */
	make_hello(f, 1);
	f->hs.self_rank = 1;
	f->hello_length = rc_hello_make(&f->key, &f->hs, f->hello);
	refused(f, 1, -EKEYREJECTED, "this very worker");
	/* A rank that is none, and an earlier self. */
	make_hello(f, 1);
	f->hs.self_rank = 77;
	f->hello_length = rc_hello_make(&f->key, &f->hs, f->hello);
	refused(f, 1, -ESTALE, "not a member");
	make_hello(f, 1);
	f->hs.self_incarnation++;
	f->hello_length = rc_hello_make(&f->key, &f->hs, f->hello);
	refused(f, 1, -ESTALE, "not a member");
	/* To another worker, and to an earlier life of this one. */
	make_hello(f, 0);
	refused(f, 1, -EKEYREJECTED, "");
	make_hello(f, 1);
	f->hs.peer_incarnation++;
	f->hello_length = rc_hello_make(&f->key, &f->hs, f->hello);
	refused(f, 1, -ESTALE, "another incarnation");
}

/* The first session must survive a copy of its hello, and so must a second session that of the first. */
FOE_TEST(hello__repeated)
{
	struct rv_conn *session, *copy;

	for (int i = 0; i < 2; i++) {
		uint64_t before = rejected(1);
		uint8_t hello[RV_HELLO_MAX];

		meet(f, 1);
		if (i == 0)
			memcpy(hello, f->hello, sizeof(hello));
		session = f->conn;
		TG_OK(f->ops->connect(f->dev, &f->members[1].addr[f->ops->kind], i ? hello : f->hello, f->hello_length, NULL,
				      &copy));
		f->conn = copy;
		f->connected = false;
		UNTIL(f, f->connected || f->failed);
		TG_CHECK(f->failed);
		TG_IS(f->status, -EKEYREJECTED);
		f->ops->close_conn(copy);
		f->conn = session;
		still_served(f);
		TG_IS(rejected(1), before + 1);
	}
}

FOE_TEST(silence__after_connecting)
{
	int64_t start = now_ns();
	uint64_t before = rejected(1);

	make_hello(f, 1);
	dial(f, 1);
	TG_CHECK(f->connected);
	must_end(f, 1, before, "silence");
	TG_CHECK(now_ns() - start > NSEC_PER_SEC && now_ns() - start < 15 * NSEC_PER_SEC);
	meet(f, 1);
	still_served(f);
}

FOE_TEST(silence__of_a_server)
{
	uint8_t answer[RV_ANSWER_MAX];
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };

	tg_set_flag(F_CALL_FOE, 1);
	UNTIL(f, f->request);
	f->conn = f->request;
	TG_OK(rc_hello_check(&f->key, f->asked, f->asked_length, &h));
	h.epoch = 1;
	TG_OK(f->ops->accept(f->conn, answer, rc_answer_make(&f->key, &h, answer), NULL));
	UNTIL(f, shown()->called);
	TG_IS(shown()->called, 1 + EOWNERDEAD);
	TG_CHECK(shown()->took_ns < 15 * NSEC_PER_SEC);
}

FOE_TEST(server__that_never_answers)
{
	tg_set_flag(F_CALL_FOE, 1);
	UNTIL(f, shown()->called);
	TG_IS(shown()->called, 1 + EOWNERDEAD);
	TG_CHECK(shown()->took_ns < 15 * NSEC_PER_SEC);
}

static void serve_with(struct foe *f, const uint8_t *answer, size_t length, bool accept)
{
	f->request = NULL;
	shown()->called = 0;
	usleep(300000); /* the other does not try again at once */
	tg_set_flag(F_CALL_FOE, 1);
	UNTIL(f, f->request);
	hang_up(f);
	if (accept) {
		f->conn = f->request;
		TG_OK(f->ops->accept(f->conn, answer, length, NULL));
	} else {
		f->ops->reject(f->request, answer, length);
	}
	UNTIL(f, shown()->called);
	TG_CHECK(shown()->took_ns < 15 * NSEC_PER_SEC);
	others_work();
}

FOE_TEST(server__that_answers_nonsense)
{
	struct rc_handshake h = { .self_rank = FOE, .self_incarnation = f->me.incarnation };
	uint8_t answer[RV_ANSWER_MAX];
	size_t n;

	rc_random(answer, sizeof(answer));
	answer[0] = 0;
	serve_with(f, answer, 59, true);
	TG_IS(shown()->called, 1 + EPROTO);
	TG_OK(rc_hello_check(&f->key, f->asked, f->asked_length, &h));
	h.epoch = 5;
	n = rc_answer_make(&f->key, &h, answer); /* of another hello */
	serve_with(f, answer, n, true);
	TG_IS(shown()->called, 1 + EKEYREJECTED);
	put_le16(answer + 1, RW_PROTOCOL_VERSION + 1);
	serve_with(f, answer, n, true);
	TG_IS(shown()->called, 1 + EPROTONOSUPPORT);
	TG_CHECK(strstr(shown()->called_text, "version 2") != NULL);
	serve_with(f, answer, rc_reason_make(-EPROTONOSUPPORT, "version 9 is what I speak\033[2J", answer), false);
	TG_IS(shown()->called, 1 + EPROTONOSUPPORT);
	TG_CHECK(strstr(shown()->called_text, "version 9 is what I speak?[2J") != NULL);
	rc_random(answer, sizeof(answer));
	serve_with(f, answer, RV_REASON_MAX, false);
	TG_IS(shown()->called, 1 + EOWNERDEAD);
	serve_with(f, answer, rc_reason_make(-EALREADY, "crossing", answer), false); /* and never comes */
	TG_IS(shown()->called, 1 + EOWNERDEAD);
}

/* ---- before the proof, and the proof ---- */

FOE_TEST(proof__wrong_or_something_else)
{
	for (int i = 0; i < 5; i++) {
		uint64_t before = rejected(1);

		make_hello(f, 1);
		dial(f, 1);
		TG_CHECK(f->connected);
		if (i == 0) {
			f->proof[31] ^= 1;
			say_auth(f);
		} else if (i == 1) {
			f->seq = 1;
			say_auth(f);
		} else if (i == 2) {
			f->hs.epoch++;
			say_auth(f);
		} else if (i == 3) {
			say_number(f, RW_PING, 1);
		} else {
			send_bytes(f, "?", 1);
		}
		must_end(f, 1, before, "no proof");
		TG_IS(f->nr_recv[RW_PONG], 0);
	}
	uint64_t before = rejected(1);

	meet(f, 1);
	say_auth(f);
	must_end(f, 1, before, "the proof twice");
}

/* ---- messages that are none ---- */

static size_t a_call(uint8_t *buf, const char *name, uint64_t call_id, const struct rp_fork *refs, unsigned nr)
{
	struct rw_message m = { .frame.type = RW_CALL };
	int n;

	m.u.call = (struct rw_call){ .call_id = call_id, .kind = RW_CALL_RPC, .nr_refs = (uint8_t)nr, .name = name,
				     .name_length = (uint8_t)strlen(name), .data = "0123456789abcdef", .data_length = 16 };
	for (unsigned i = 0; i < nr; i++)
		m.u.call.refs[i] = refs[i];
	n = rw_encode(&m, buf, RV_MSG_MAX);
	TG_OK(n);
	return (size_t)n;
}

FOE_TEST(malformed__in_every_way)
{
	static const struct { uint16_t at; uint8_t value; } bad[] = {
		{ 0, 0 }, { 0, RW_NR_TYPES }, { 0, 255 }, { 1, 1 }, { 2, 1 }, { 4, 255 }, { 7, 255 }, { 20, 1 },
		{ 32, 0 }, { 32, 3 },      /* kind */
		{ 33, 1 }, { 33, 255 },    /* references */
		{ 34, 0 }, { 34, 255 },    /* length of the name */
		{ 35, 1 }, { 37, 255 }, { 39, 255 }, /* length of the data */
		{ 40, 0 },                 /* NUL in the name */
	};
	uint8_t buf[RV_MSG_MAX];

	for (unsigned i = 0; i < array_size(bad); i++) {
		uint64_t before = rejected(1);
		size_t n = a_call(buf, "tg.echo", 1, NULL, 0);

		meet(f, 1);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		buf[bad[i].at] = bad[i].value;
		send_bytes(f, buf, n);
		must_end(f, 1, before, "malformed");
	}
	for (unsigned i = 0; i < 8; i++) {
		uint64_t before = rejected(1);
		size_t n = a_call(buf, "tg.echo", 1, NULL, 0);

		meet(f, 1);
		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		if (i == 7)
			rc_random(buf, sizeof(buf));
		send_bytes(f, buf, i < 7 ? n * i / 7 + 1 - (i == 6) : sizeof(buf)); /* cut short, or noise */
		must_end(f, 1, before, "cut");
	}
	TG_IS(f->nr_recv[RW_REPLY], 0);
	TG_CHECK(dropped(1) >= array_size(bad) + 8);
}

FOE_TEST(sequence__and_epoch_that_are_not_next)
{
	static const int seq[] = { -1, 0, 2, 1000 }, epoch[] = { -1, 1, 1 << 30 };
	uint8_t buf[RV_MSG_MAX];

	for (unsigned i = 0; i < array_size(seq) + array_size(epoch); i++) {
		uint64_t before = rejected(1);
		size_t n = a_call(buf, "tg.echo", 1, NULL, 0);

		meet(f, 1);
		if (i < array_size(seq))
			rw_set_seq(buf, f->seq + (uint64_t)seq[i], f->hs.epoch);
		else
			rw_set_seq(buf, f->seq + 1, f->hs.epoch + (uint32_t)epoch[i - array_size(seq)]);
		send_bytes(f, buf, n);
		must_end(f, 1, before, "out of sequence");
	}
	TG_IS(f->nr_recv[RW_REPLY], 0);
}

/* Over ibv a silent member's beacon is READ; a false one ends that member's session. Over shm nobody asks for it. */
FOE_TEST(beacon__false)
{
	f->beacon_mr.rkey ^= 0x5a00;
	meet(f, 1);
	if (tg_is_shm()) {
		still_served(f);
		return;
	}
	UNTIL(f, f->ended);
	others_work();
	f->beacon_mr.rkey ^= 0x5a00;
	meet(f, 1);
	still_served(f);
}

/* ---- well-formed, and not the foe's to say ---- */

FOE_TEST(direction__wrong)
{
	static const struct { uint8_t type; uint64_t number; int to; } bad[] = {
		{ RW_BARRIER, 1, 1 },       /* rank 1 holds no barriers */
		{ RW_BARRIER, 4, 0 },       /* not the next one */
		{ RW_BARRIER, UINT64_MAX, 0 },
		{ RW_BARRIER_DONE, 1, 1 },  /* not from rank 0 */
		{ RW_BARRIER_DONE, 1, 0 },
		{ RW_PONG, 1, 1 },          /* never asked */
	};

	for (unsigned i = 0; i < array_size(bad); i++) {
		uint64_t before = rejected(bad[i].to);

		meet(f, bad[i].to);
		say_number(f, bad[i].type, bad[i].number);
		must_end(f, bad[i].to, before, rw_type_name(bad[i].type));
	}
	/* Its own first barrier is its own affair; a cancel is a hint; a goodbye too, which keeps none from speaking on. */
	meet(f, 0);
	say_number(f, RW_BARRIER, 2);
	say_number(f, RW_CANCEL, 99);
	say(f, &(struct rw_message){ .frame.type = RW_GOODBYE });
	still_served(f);
}

FOE_TEST(protocol__answers_never_asked_for)
{
	static const enum rp_msg_type quiet[] = { RP_MSG_FORK_ACK, RP_MSG_CHILD_ACCEPT, RP_MSG_FETCH_REPLY, RP_MSG_CREATED,
						  RP_MSG_PARENT_ACK };
	uint64_t before = dropped(1), rejects;

	meet(f, 1);
	for (unsigned i = 0; i < array_size(quiet); i++)
		for (uint64_t n = 1; n < 50; n++)
			say_proto(f, quiet[i], id_of(1, n), id_of(1, n + 1000000));
	still_served(f);
	TG_CHECK(dropped(1) >= before + 49 * array_size(quiet));
	/* Of a child that the victim never had: its id says so. */
	for (int i = 0; i < 2; i++) {
		meet(f, 1);
		rejects = rejected(1);
		say_proto(f, i ? RP_MSG_PARENT_REQUEST : RP_MSG_CHILD_ACCEPT, id_of(1, 1), id_of(FOE, 1));
		must_end(f, 1, rejects, "child of another");
	}
	/* A reply to no call, with references too. */
	struct rw_message m = { .frame.type = RW_REPLY };

	meet(f, 1);
	before = dropped(1);
	for (uint64_t n = 0; n < 1000; n++) {
		m.u.reply.call_id = n << 32 | (n & 7);
		say(f, &m);
	}
	still_served(f);
	TG_CHECK(dropped(1) >= before + 1000);
}

/* Worker 0's reference to the value on worker 1 outlives all of this: others_work reads it. */
FOE_TEST(protocol__what_belongs_to_others)
{
	uint64_t acks;

	meet(f, 1);
	for (uint64_t n = 1; n < 200; n++) {
		say_proto(f, RP_MSG_DELETE, id_of(0, 1 + n % 4), id_of(0, n));
		say_proto(f, RP_MSG_DELETE, id_of(1, 1 + n % 4), id_of(1, n));
		say_proto(f, RP_MSG_FETCH, id_of(0, 1 + n % 4), id_of(0, n));
	}
	still_served(f);
	TG_IS(f->nr_proto[RP_MSG_FETCH_REPLY], 199);
	TG_IS(f->proto_status, -ESTALE);
	others_work();
	acks = f->nr_proto[RP_MSG_FORK_ACK];
	for (uint64_t n = 1; n <= 5000; n++)
		say_proto(f, RP_MSG_FORK_REQUEST, id_of(n % 3, n + 1000000), id_of(FOE, n));
	still_served(f);
	TG_IS(f->nr_proto[RP_MSG_FORK_ACK], acks + 5000);
	TG_IS(f->proto_status, -ESTALE);
	TG_IS(fresh_look(1, &shown()->of[1].forks), 1);
	for (uint64_t n = 1; n <= 5000; n++)
		say_proto(f, RP_MSG_DELETE, id_of(1, n), id_of(FOE, n + 10000));
	still_served(f);
}

static int reply_to(struct foe *f, const char *name, const struct rp_fork *ref)
{
	uint64_t before = f->nr_recv[RW_REPLY];
	uint8_t buf[RV_MSG_MAX];
	size_t n = a_call(buf, name, 5, ref, ref != NULL);

	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	TG_OK(send_bytes(f, buf, n));
	UNTIL(f, f->nr_recv[RW_REPLY] > before || f->ended);
	return f->ended ? -ENOTCONN : f->reply_status;
}

static struct rp_fork record(struct foe *f, uint32_t owner, struct rref_id id, uint64_t fork)
{
	return (struct rp_fork){ .id = id, .fork = id_of(FOE, fork), .owner = owner, .parent = FOE,
				 .owner_incarnation = f->members[owner].incarnation };
}

FOE_TEST(records__forged)
{
	struct rp_fork r;

	meet(f, 1);
	r = record(f, 1, id_of(1, 1000000), 1);      /* the victim never owned it */
	TG_IS(reply_to(f, "tg.read", &r), -ESTALE);
	r = record(f, 0, id_of(0, 1000000), 2);      /* nor did worker 0 */
	TG_IS(reply_to(f, "tg.read", &r), -ESTALE);
	r = record(f, 0, id_of(0, 1000000), 3);
	r.owner_incarnation++;
	TG_IS(reply_to(f, "tg.read", &r), -ESTALE);
	r = record(f, 0, id_of(0, 1), 4);
	r.parent = 0;                                /* in worker 0's name */
	TG_IS(reply_to(f, "tg.read", &r), -EPROTO);
	r = record(f, 0, id_of(0, 1), 5);
	r.fork = id_of(0, 5);
	TG_IS(reply_to(f, "tg.read", &r), -EPROTO);
	/* Its own value, at a place that is none. */
	r = record(f, FOE, id_of(FOE, 1), 6);
	r.loc = (struct rp_location){ .addr = 4096, .length = 100, .nonce = 9, .rkey = { 77, 77 }, .version = 1 };
	TG_CHECK(reply_to(f, "tg.read", &r) < 0); /* the read with a wrong key ends this very connection */
	/* Worker 0's value, at a place that is none: only its owner says where it is, else two good workers were parted. */
	meet(f, 1);
	r = record(f, 0, id_of(0, 1), 8);
	r.loc = (struct rp_location){ .addr = 4096, .length = 100, .nonce = 9, .rkey = { 77, 77 }, .version = 1 };
	TG_IS(reply_to(f, "tg.read", &r), 0);
	others_work();
	r = record(f, FOE, id_of(FOE, 2), 7);
	r.loc = (struct rp_location){ .addr = 4096, .length = UINT64_C(1) << 40, .nonce = 9, .rkey = { 77, 77 }, .version = 1 };
	TG_CHECK(reply_to(f, "tg.read", &r) < 0);
	still_served(f);
	TG_IS(reply_to(f, "no.such.function", NULL), -ENOSYS);
	TG_IS(reply_to(f, "tg.echo", NULL), 0);
	TG_IS(reply_to(f, "tg.echo", NULL), 0);      /* the same call id again: its own affair */
}

FOE_TEST(creation__with_ids_of_others)
{
	struct rw_message m = { .frame.type = RW_CALL };
	uint64_t before;

	m.u.call = (struct rw_call){ .call_id = 1, .kind = RW_CALL_REMOTE, .name = "tg.echo", .name_length = 7 };
	for (int i = 0; i < 2; i++) {
		meet(f, 1);
		before = rejected(1);
		m.u.call.id = id_of(i ? FOE : 0, 1);
		m.u.call.fork = id_of(i ? 0 : FOE, 2);
		say(f, &m);
		must_end(f, 1, before, "creation in another's name");
	}
	/* Its own, many times over: made once. */
	meet(f, 1);
	m.u.call.id = id_of(FOE, 1);
	m.u.call.fork = id_of(FOE, 2);
	for (int i = 0; i < 100; i++)
		say(f, &m);
	UNTIL(f, f->nr_proto[RP_MSG_CREATED]);
	still_served(f);
	TG_IS(f->nr_proto[RP_MSG_CREATED], 1);
	TG_IS(fresh_look(1, &shown()->of[1].forks), 2);
}

/* ---- too much of it ---- */

/* Beyond its bound each call is answered -EAGAIN; when those before it end, the foe is served again. */
FOE_TEST(flood__of_calls)
{
	uint64_t rss = fresh_look(1, &shown()->of[1].rss_kib);
	struct rw_message m = { .frame.type = RW_CALL };
	static char data[1000];
	int n = tg_is_shm() ? 100000 : 2000;

	meet(f, 1);
	m.u.call = (struct rw_call){ .kind = RW_CALL_RPC, .name = "keep", .name_length = 4, .data = data,
				     .data_length = sizeof(data) };
	for (int i = 0; i < n; i++) {
		m.u.call.call_id = (uint64_t)i;
		TG_OK(say(f, &m));
		if (i % 1000 == 0)
			pump(f);
	}
	still_served(f);
	others_work();
	if (tg_is_shm())
		TG_CHECK(f->nr_again > 20000 && f->nr_again < 80000);
	if (!SANITIZED)
		TG_CHECK(fresh_look(1, &shown()->of[1].rss_kib) < rss + 160 * 1024);
	tg_set_flag(F_ANSWER, 1);
	UNTIL(f, f->nr_recv[RW_REPLY] == (uint64_t)n);
	TG_IS(reply_to(f, "tg.echo", NULL), 0);
}

/* Asks and never reads: at the bound of what waits for it the session ends. */
FOE_TEST(flood__by_one_who_does_not_read)
{
	uint64_t rss = fresh_look(1, &shown()->of[1].rss_kib), before = rejected(1);
	struct rw_message m = { .frame.type = RW_CALL };
	static char data[RREF_ARGS_MAX];

	if (!tg_is_shm())
		return; /* it would take a day */
	meet(f, 1);
	f->deaf = true;
	m.u.call = (struct rw_call){ .kind = RW_CALL_RPC, .name = "tg.echo_inline", .name_length = 14, .data = data,
				     .data_length = sizeof(data) };
	for (int i = 0; i < 1000000 && say(f, &m) == 0; i++)
		if (i % 64 == 0)
			pump(f);
	must_end(f, 1, before, "deaf");
	if (!SANITIZED)
		TG_CHECK(fresh_look(1, &shown()->of[1].rss_kib) < rss + 400 * 1024);
	meet(f, 1);
	still_served(f);
}

/* Handlers that wait for what never comes: their threads are bounded, and others' calls find one. */
FOE_TEST(flood__of_calls_that_wait)
{
	uint8_t buf[RV_MSG_MAX];
	int n = tg_is_shm() ? 1500 : 600;

	meet(f, 1);
	for (int i = 0; i < n; i++) {
		struct rp_fork r = record(f, FOE, id_of(FOE, 1000 + (uint64_t)i), 5000 + (uint64_t)i);
		size_t length = a_call(buf, "tg.read", (uint64_t)i, &r, 1);

		rw_set_seq(buf, ++f->seq, f->hs.epoch);
		TG_OK(send_bytes(f, buf, length));
	}
	still_served(f);
	UNTIL(f, f->nr_proto[RP_MSG_FETCH] > 400);
	others_work();
	TG_CHECK(fresh_look(1, &shown()->of[1].threads) < 512 + 40);
	TG_IS(f->nr_recv[RW_REPLY], 0);
}

/* Replies to nothing, with references that are never confirmed. */
FOE_TEST(flood__of_references_nobody_asked_for)
{
	uint64_t before = rejected(1);
	struct rw_message m = { .frame.type = RW_REPLY };
	int i;

	meet(f, 1);
	m.u.reply.nr_refs = 1;
	for (i = 0; i < 100000; i++) {
		m.u.reply.refs[0] = record(f, 0, id_of(FOE, 1 + (uint64_t)i), 1000000 + (uint64_t)i);
		m.u.reply.refs[0].flags = RP_FORK_EARLY;
		if (say(f, &m))
			break;
		if (i % 64 == 0)
			pump(f);
	}
	must_end(f, 1, before, "references unasked");
	TG_CHECK(i < 20000);
}

FOE_TEST(flood__of_pings)
{
	meet(f, 1);
	for (int i = 0; i < (tg_is_shm() ? 50000 : 1000); i++) {
		TG_OK(say_number(f, RW_PING, (uint64_t)i));
		if (i % 32 == 0)
			pump(f);
	}
	still_served(f);
}

/* Sessions that come and go as fast as they can. */
FOE_TEST(flood__of_sessions)
{
	for (int i = 0; i < (tg_is_shm() ? 200 : 20); i++) {
		meet(f, 1);
		if (i % 3 == 0)
			say_proto(f, RP_MSG_FORK_REQUEST, id_of(0, 1 + (uint64_t)i), id_of(FOE, 1 + (uint64_t)i));
		if (i % 10 == 0)
			others_work();
	}
	still_served(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hello__with_another_key),
		cmocka_unit_test(hello__garbage),
		cmocka_unit_test(hello__of_another_version),
		cmocka_unit_test(hello__of_somebody_else),
		cmocka_unit_test(hello__repeated),
		cmocka_unit_test(silence__after_connecting),
		cmocka_unit_test(silence__of_a_server),
		cmocka_unit_test(server__that_never_answers),
		cmocka_unit_test(server__that_answers_nonsense),
		cmocka_unit_test(proof__wrong_or_something_else),
		cmocka_unit_test(malformed__in_every_way),
		cmocka_unit_test(sequence__and_epoch_that_are_not_next),
		cmocka_unit_test(direction__wrong),
		cmocka_unit_test(protocol__answers_never_asked_for),
		cmocka_unit_test(beacon__false),
		cmocka_unit_test(protocol__what_belongs_to_others),
		cmocka_unit_test(records__forged),
		cmocka_unit_test(creation__with_ids_of_others),
		cmocka_unit_test(flood__of_calls),
		cmocka_unit_test(flood__by_one_who_does_not_read),
		cmocka_unit_test(flood__of_calls_that_wait),
		cmocka_unit_test(flood__of_references_nobody_asked_for),
		cmocka_unit_test(flood__of_pings),
		cmocka_unit_test(flood__of_sessions),
	};

	return cmocka_run_group_tests_name("abuse", tests, NULL, NULL);
}
