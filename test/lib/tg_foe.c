/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <pthread.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

#include "core/ctx.h"
#include "tg_foe.h"

#define BEACON_BYTES 4096

const struct rref_function *foe_functions;
size_t foe_nr_functions;

struct shown *foe_shown(void)
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

/* Worker 0's own value. */
static struct rref *own;

static int give_own(struct rref_call *call, void *arg)
{
	(void)arg;
	return rref_call_reply(call, &(struct rref_args){ .refs = &own, .nr_refs = 1 });
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
	foe_shown()->logged_lines++;
	if (getenv("RREF_TEST_LOG"))
		fprintf(stderr, "[%d] log %d: %s\n", (int)getpid(), (int)level, text);
	if (level <= RREF_LOG_WARNING)
		snprintf(foe_shown()->logged, sizeof(foe_shown()->logged), "%s", text);
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

	foe_shown()->of[rank].rejected = s.rejected_peers;
	foe_shown()->of[rank].dropped = s.dropped_messages;
	foe_shown()->of[rank].rss_kib = rss_kib();
	foe_shown()->of[rank].threads = threads();
	foe_shown()->of[rank].forks = s.forks;
	foe_shown()->of[rank].looks++;
}

static void round_of_work(struct rref_ctx *ctx, struct rref *ref)
{
	struct rref_future *f;
	char got[5];

	TG_OK(rref_rpc_sync(ctx, 1, "tg.echo", &(struct rref_args){ .data = "hello", .length = 5 },
			    RREF_DEFAULT, &f));
	tg_result(f, got, 5);
	TG_CHECK(memcmp(got, "hello", 5) == 0);
	rref_future_free(f);
	tg_expect_bytes(ref, "a value", 7);
	foe_shown()->rounds++;
}

static void call_foe(struct rref_ctx *ctx)
{
	int64_t start = now_ns();
	int err = rref_rpc_sync(ctx, FOE, "tg.echo", NULL, 6 * tg_slow() * NSEC_PER_SEC, NULL);

	snprintf(foe_shown()->called_text, sizeof(foe_shown()->called_text), "%s",
		 err ? rref_last_error() : "");
	foe_shown()->took_ns = now_ns() - start;
	foe_shown()->called = 1 - err;
	tg_set_flag(F_CALL_FOE, 0);
}

static int good(int rank)
{
	const struct rref_function keeper = { .name = "keep", .handler = keep };
	const struct rref_function giver = { .name = "own", .handler = give_own };
	struct rref_options o;
	struct rref_ctx *ctx;
	struct rref *ref;

	tg_options(&o, rank);
	o.functions = tg_functions;
	o.nr_functions = tg_nr_functions;
	o.log = rank == 1 ? on_log : o.log;
	o.max_waiting = FOE_WAITING;
	if (!tg_is_shm())
		/* handshakes of an emulated device take longer */
		o.peer_timeout = 5 * NSEC_PER_SEC;
	TG_OK(rref_init(&o, &ctx));
	ctx->session.answer_ns = 2 * NSEC_PER_SEC;
	TG_OK(rref_register(ctx, &keeper));
	for (size_t i = 0; i < foe_nr_functions; i++)
		TG_OK(rref_register(ctx, &foe_functions[i]));
	if (rank == 0) {
		TG_OK(rref_new(ctx, "worker 0's", 11, &own)); /* (0, 1): its first id */
		TG_OK(rref_register(ctx, &giver));
	}
	look(ctx, rank);
	tg_meet(0);
	if (rank == 0) {
		TG_OK(rref_remote(ctx, 1, "tg.echo",
				  &(struct rref_args){ .data = "a value", .length = 7 },
				  RREF_DEFAULT, &ref));
		while (!tg_flag(F_END)) {
			round_of_work(ctx, ref);
			if (tg_flag(F_CALL_FOE))
				call_foe(ctx);
			look(ctx, rank);
			tg_pause();
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
		tg_pause();
	}
	tg_meet(1);
	TG_OK(rref_shutdown(ctx, RREF_SHUTDOWN_NOW, RREF_DEFAULT));
	answer_kept();
	rref_free_ctx(ctx);
	return 0;
}

/* ---- the foe ---- */

/* Says how many messages have come; not in sequence. */
int foe_say_received(struct foe *f, const uint8_t *proof)
{
	struct rw_message m = {
		.frame = { .type = RW_RECEIVED, .epoch = f->hs.epoch, .ack = (uint32_t)f->got },
		.u.received.seq = f->got
	};
	uint8_t buf[RV_MSG_MAX];

	if (proof)
		memcpy(m.u.received.mac, proof, sizeof(m.u.received.mac));
	return f->ops->send(f->conn, buf, (size_t)rw_encode(&m, buf, sizeof(buf)));
}

static void on_recv(struct foe *f, const struct rv_event *ev)
{
	struct rw_message m;

	TG_IS(rw_decode(ev->data, ev->len, FOE_WORLD, &m), 0);
	f->nr_recv[m.frame.type]++;
	if (m.frame.type == RW_REPLY) {
		f->reply_status = m.u.reply.status;
		snprintf(f->reply_text, sizeof(f->reply_text), "%.*s", (int)m.u.reply.text_length,
			 m.u.reply.text ? m.u.reply.text : "");
		f->nr_again += m.u.reply.status == -EAGAIN;
		f->reply_nr_refs = m.u.reply.nr_refs;
		f->reply_loc = m.u.reply.loc;
		if (!m.u.reply.loc.version)
			memcpy(f->reply_refs, m.u.reply.refs, sizeof(f->reply_refs));
		else
			memcpy(f->reply_key, m.u.reply.key, sizeof(f->reply_key));
	} else if (m.frame.type == RW_PROTO) {
		f->nr_proto[m.u.proto.type]++;
		f->proto_status = m.u.proto.status;
		f->proto = m.u.proto;
	} else if (m.frame.type == RW_TYPE_QUERY && f->on_query) {
		f->on_query(f, &m.u.type);
	} else if (m.frame.type == RW_CALL && f->on_call) {
		f->on_call(f, &m.u.call);
	} else if (m.frame.type == RW_TYPE_ANSWER) {
		f->told = m.u.type;
		snprintf(f->told_name, sizeof(f->told_name), "%.*s", (int)m.u.type.name_length,
			 m.u.type.name);
	}
	f->got += m.frame.type != RW_RECEIVED;
	if (f->deaf)
		return;
	f->ops->recv_done(f->dev, ev->token);
	/* A peer that never confirms messages gets no more at some time. */
	if (f->got % 32 == 0)
		foe_say_received(f, NULL);
}

static void seal(struct foe *f, struct rv_conn *conn, const struct rc_handshake *h, bool is_client)
{
	uint8_t out[RV_SEAL_KEY_BYTES], in[RV_SEAL_KEY_BYTES];

	rc_handshake_seals(&f->pair[h->peer_rank], h, is_client, out, in);
	TG_OK(f->ops->seal(conn, out, in));
}

void foe_asked(struct foe *f, struct rc_handshake *h)
{
	uint32_t from;

	TG_OK(rc_hello_from(f->asked, f->asked_length, FOE, &from));
	TG_CHECK(from < FOE);
	TG_OK(rc_hello_check(&f->pair[from], f->asked, f->asked_length, h));
}

void foe_accept(struct foe *f, const struct rc_handshake *h, const uint8_t *answer, size_t length)
{
	f->conn = f->request;
	f->request = NULL;
	seal(f, f->conn, h, false);
	TG_OK(f->ops->accept(f->conn, answer, length, NULL));
}

void foe_take(struct foe *f, const struct rv_event *ev, int n)
{
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
				if (ev[i].len) {
					TG_OK(rc_answer_check(&f->pair[f->hs.peer_rank], ev[i].data,
							      ev[i].len, &f->hs, f->proof));
					seal(f, f->conn, &f->hs, true);
				}
				break;
			case RV_EV_FAILED:
				f->failed = true;
				f->status = ev[i].len
					? rc_reason_parse(ev[i].data, ev[i].len, f->reason,
							  sizeof(f->reason))
					: ev[i].status;
				break;
			case RV_EV_DISCONNECTED:
				f->ended = true;
				f->status = ev[i].status;
				break;
			case RV_EV_RECV:
				on_recv(f, &ev[i]);
				break;
			case RV_EV_READS_UP:
			case RV_EV_READS_DOWN:
				f->reads_up = ev[i].type == RV_EV_READS_UP;
				if (!f->reads_up)
					f->ops->allow_reads(f->conn);
				break;
			case RV_EV_READ:
				f->nr_read++;
				f->read_status = ev[i].status;
				break;
			default:
				break;
			}
		} else if (ev[i].type == RV_EV_RECV) {
			f->ops->recv_done(f->dev, ev[i].token);
		}
	}
}

void foe_pump(struct foe *f)
{
	struct rv_event ev[16];
	struct rv_read_end end[16];
	bool more = false;
	int reads = f->ops->reads(f->dev, end, 16, &more);
	int n = f->ops->poll(f->dev, ev, 16, RV_POLL_SLOW);

	reads = max_of(reads, 0);
	f->nr_read += (unsigned)reads;
	if (reads)
		f->read_status = 0;
	foe_take(f, ev, n);
	if (!n && !reads)
		tg_pause();
}

void foe_hang_up(struct foe *f)
{
	f->ops->close_conn(f->conn);
	f->conn = NULL;
	f->connected = f->failed = f->ended = f->deaf = f->reads_up = false;
	f->seq = f->got = 0;
}

/* Makes a correct hello to worker `to`, which foe_dial sends. */
void foe_make_hello(struct foe *f, int to)
{
	f->hs = (struct rc_handshake){ .self_rank = FOE,
				       .peer_rank = (uint32_t)to,
				       .self_incarnation = f->me.incarnation,
				       .peer_incarnation = f->members[to].incarnation };
	f->hello_length = rc_hello_make(&f->pair[to], &f->hs, f->hello);
}

void foe_dial(struct foe *f, int to)
{
	foe_hang_up(f);
	TG_OK(f->ops->connect(f->dev, &f->members[to].addr[f->ops->kind], f->hello, f->hello_length,
			      NULL, &f->conn));
	FOE_UNTIL(f, f->connected || f->failed);
}

int foe_send_bytes(struct foe *f, const void *bytes, size_t length)
{
	int err;

	while ((err = f->ops->send(f->conn, bytes, length)) == -EAGAIN && !f->ended)
		foe_pump(f);
	return err;
}

/* Sends a message in sequence. Returns 0, or -errno when the connection has ended. */
int foe_say(struct foe *f, const struct rw_message *m)
{
	uint8_t buf[RV_MSG_MAX];
	int n = rw_encode(m, buf, sizeof(buf));

	TG_OK(n);
	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	return foe_send_bytes(f, buf, (size_t)n);
}

int foe_say_number(struct foe *f, uint8_t type, uint64_t number)
{
	return foe_say(f, &(struct rw_message){ .frame.type = type, .u.number = number });
}

int foe_say_proto(struct foe *f, enum rp_msg_type type, struct rref_id id, struct rref_id fork)
{
	struct rw_message m = { .frame.type = RW_PROTO,
				.u.proto = { .type = type, .id = id, .fork = fork } };

	if (type == RP_MSG_FORK_REQUEST)
		m.u.proto.word = f->word;
	if (type == RP_MSG_FETCH_REPLY || type == RP_MSG_CREATED)
		m.u.proto.status = -EIO;
	return foe_say(f, &m);
}

int foe_say_auth(struct foe *f)
{
	struct rw_message m = { .frame.type = RW_AUTH };

	memcpy(m.u.auth.mac, f->proof, sizeof(f->proof));
	m.u.auth.beacon_addr = f->beacon_mr.iova;
	m.u.auth.beacon_rkey = f->beacon_mr.rkey;
	TG_OK(f->ops->allow_reads(f->conn));
	return foe_say(f, &m);
}

/* Begins a session that worker `to` accepts. */
void foe_meet(struct foe *f, int to)
{
	do {
		foe_make_hello(f, to);
		foe_dial(f, to);
	} while (f->failed && f->status == -EAGAIN); /* too many for now */
	if (f->failed)
		fprintf(stderr, "worker %d refused the foe's hello: %d %s\n", to, f->status,
			f->reason);
	TG_CHECK(f->connected);
	f->nr_recv[RW_AUTH] = 0;
	TG_OK(foe_say_auth(f));
	FOE_UNTIL(f, f->nr_recv[RW_AUTH] || f->ended);
	TG_CHECK(!f->ended);
}

/* Checks that the session is alive and that all earlier messages were handled. */
void foe_still_served(struct foe *f)
{
	uint64_t before = f->nr_recv[RW_PONG];

	TG_OK(foe_say_number(f, RW_PING, 7));
	FOE_UNTIL(f, f->nr_recv[RW_PONG] > before || f->ended);
	TG_CHECK(!f->ended);
}

uint64_t foe_fresh_look(int rank, const _Atomic uint64_t *of)
{
	uint64_t looks = foe_shown()->of[rank].looks;
	int64_t end = tg_deadline();

	while (foe_shown()->of[rank].looks < looks + 2) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
	return *of;
}

uint64_t foe_rejected(int rank)
{
	return foe_fresh_look(rank, &foe_shown()->of[rank].rejected);
}

uint64_t foe_dropped(int rank)
{
	return foe_fresh_look(rank, &foe_shown()->of[rank].dropped);
}

/* Waits until the good workers have made a round. */
void foe_others_work(void)
{
	uint64_t rounds = foe_shown()->rounds;
	int64_t end = tg_deadline();

	while (foe_shown()->rounds < rounds + 2) {
		TG_CHECK(now_ns() < end);
		tg_pause();
	}
}

/*
 * Checks that the last message ends the connection, and is counted. The foe may learn of the end
 * first: a device tells the peer before it tells its own program.
 */
void foe_must_end(struct foe *f, int rank, uint64_t rejected_before, const char *what)
{
	int64_t end = tg_deadline();

	while (!f->ended && now_ns() < end)
		foe_pump(f);
	while (f->ended && foe_rejected(rank) <= rejected_before && now_ns() < end)
		;
	if (!f->ended || foe_rejected(rank) <= rejected_before) {
		fprintf(stderr, "%s: the connection %s, rejected %lu -> %lu\n", what,
			f->ended ? "ended" : "lives", (unsigned long)rejected_before,
			(unsigned long)foe_rejected(rank));
		_exit(1);
	}
	foe_others_work();
}

void foe_refused(struct foe *f, int to, int status, const char *text)
{
	uint64_t before = foe_rejected(to);

	foe_dial(f, to);
	TG_CHECK(f->failed && !f->connected);
	TG_IS(f->status, status);
	TG_CHECK(strstr(f->reason, text) != NULL);
	TG_IS(foe_rejected(to), before + 1);
	foe_others_work();
}

/* Makes a beacon: a member that is silent while it works is asked for it by READs (over ibv).
 * Without one the others would leave it. */
static void light_beacon(struct foe *f)
{
	int fd = memfd_create("foe", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	TG_CHECK(fd >= 0 && !ftruncate(fd, BEACON_BYTES));
	f->beacon = mmap(NULL, BEACON_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TG_CHECK(f->beacon != MAP_FAILED);
	TG_OK(f->ops->reg(f->dev, f->beacon, BEACON_BYTES, fd, UINT64_C(0x5eed) << 32,
			  RV_ACCESS_REMOTE_READ, &f->beacon_mr));
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
	rc_identity_make(&f->identity);
	memcpy(f->me.public, f->identity.public, sizeof(f->me.public));
	snprintf(f->me.name, sizeof(f->me.name), "foe");
	f->ops->addr(f->dev, &f->me.addr[f->ops->kind]);
	TG_OK(rc_rendezvous(tg_current->rendezvous, FOE_WORLD, &f->me, &f->key, tg_deadline(), NULL,
			    f->members));
	for (int i = 0; i < FOE; i++)
		TG_OK(rc_pair_key(&f->key, &f->identity, &f->me, &f->members[i], &f->pair[i]));
	tg_meet(0);
	foe_others_work();
	body(f);
	foe_others_work();
	foe_hang_up(f);
	f->ops->dereg(f->dev, &f->beacon_mr);
	munmap(f->beacon, BEACON_BYTES);
	f->ops->close(f->dev);
	rc_key_wipe(&f->key);
	free(f);
	tg_set_flag(F_END, 1);
	tg_meet(1);
	return 0;
}

int foe_worker(int rank, void *arg)
{
	void (*const *body)(struct foe *f) = arg;

	return rank == FOE ? foe(*body) : good(rank);
}

struct rref_id foe_id_of(uint32_t rank, uint64_t n)
{
	return (struct rref_id){ .local_id = n, .created_on = rank };
}

size_t foe_a_call(uint8_t *buf, const char *name, uint64_t call_id, const struct rp_fork *refs,
		  unsigned nr)
{
	struct rw_message m = { .frame.type = RW_CALL };
	int n;

	m.u.call = (struct rw_call){ .call_id = call_id,
				     .kind = RW_CALL_RPC,
				     .nr_refs = (uint16_t)nr,
				     .name = name,
				     .name_length = (uint8_t)strlen(name),
				     .data = "0123456789abcdef",
				     .data_length = 16 };
	for (unsigned i = 0; i < nr; i++)
		m.u.call.refs[i] = refs[i];
	n = rw_encode(&m, buf, RV_MSG_MAX);
	TG_OK(n);
	return (size_t)n;
}

int foe_reply_to(struct foe *f, const char *name, const struct rp_fork *ref)
{
	uint64_t before = f->nr_recv[RW_REPLY];
	uint8_t buf[RV_MSG_MAX];
	size_t n = foe_a_call(buf, name, 5, ref, ref != NULL);

	rw_set_seq(buf, ++f->seq, f->hs.epoch);
	TG_OK(foe_send_bytes(f, buf, n));
	FOE_UNTIL(f, f->nr_recv[RW_REPLY] > before || f->ended);
	return f->ended ? -ENOTCONN : f->reply_status;
}

struct rp_fork foe_be_given(struct foe *f)
{
	foe_meet(f, 0);
	TG_IS(foe_reply_to(f, "own", NULL), 0);
	TG_IS(f->reply_nr_refs, 1);
	foe_hang_up(f);
	return f->reply_refs[0];
}

struct rp_fork foe_record(struct foe *f, uint32_t owner, struct rref_id id, uint64_t fork)
{
	return (struct rp_fork){ .id = id,
				 .fork = foe_id_of(FOE, fork),
				 .owner = owner,
				 .parent = FOE,
				 .word = f->word,
				 .owner_incarnation = f->members[owner].incarnation };
}
