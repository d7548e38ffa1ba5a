/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ibv provider's objects. Private to verbs/ibv/.
 *
 * A device is one context of our own. librdmacm's contexts are shared by all its users of the
 * process, which would steal async events. It has one PD and one shared receive queue. It has one
 * completion queue for receives and one for sends and READs, both on one completion channel. A
 * sleeper is woken by every receive, but by finished READs only if it asked (arm): hence two
 * queues. rdma_cm only carries the handshake. The queue pairs are ours, taken through their states
 * here. So no queue pair ever has the REMOTE_WRITE that rdma_cm would give it. A connection has
 * two of them: one for messages, and one for READs (pair.c).
 *
 * The ledger. Every READ under way has a slot with a generation, every send a slot, every receive
 * buffer a state. Each completion is checked against it. A fence resolves the slots for which no
 * completion comes. A queue pair in error need not flush all, and may flush late.
 *
 * Guards: [progress] = the core's progress lock; [const] after open or after the connection is UP;
 * [atomic].
 */
#ifndef RVI_IBV_H
#define RVI_IBV_H

#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>

#include "base/assert.h"
#include "base/atomic.h"
#include "base/child.h"
#include "base/slow.h"
#include "base/util.h"
#include "cm_table.h"
#include "frame.h"
#include "token.h"
#include "verbs/rv.h"
#include "verbs/rv_error.h"

#define RVI_CREDITS_MIN 4u
/* receive buffers kept for credit messages: send.c says why two are enough */
#define RVI_CREDIT_BUFS 2u
/* the same for the frames that make a queue pair for READs: pair.c says why two are enough */
#define RVI_PAIR_BUFS 2u
/* receive buffers for all frames that cost no credit */
#define RVI_FREE_BUFS (RVI_CREDIT_BUFS + RVI_PAIR_BUFS)
/* messages of one connection that the device has not finished with */
#define RVI_SENDS_MAX 64u
/* queue pairs that are being destroyed, besides the living ones */
#define RVI_CLOSING_MAX 16u
#define RVI_HALF_OPEN_MAX 64u    /* requests not yet accepted, and accepts not yet confirmed */
/* a step of connecting may take so long, at least; dev->connect_ns */
#define RVI_CONNECT_NS (2500 * NSEC_PER_MSEC)
#define RVI_RESOLVE_MS 2000
/* a send not over this long after its last retry never will be */
#define RVI_WATCH_SLACK_NS (130 * NSEC_PER_MSEC)
#define RVI_SILENCE_NS (500 * NSEC_PER_MSEC) /* the default of rv_options.silence_ns */
#define RVI_INLINE_WISH 256u
/* A try lasts 4.096 us * 2^n. 14: 67 ms; with 6 retries silence is known after 0.47 s. */
#define RVI_ACK_TIMEOUT_MIN 8
#define RVI_ACK_TIMEOUT_MAX 20
#define RVI_RETRY_CNT 6          /* 7 means for ever on rxe */
#define RVI_RNR_RETRY 6
#define RVI_MIN_RNR_TIMER 1      /* 0.01 ms; rdma_cm leaves 0, which is 655 ms */
#define RVI_RD_ATOMIC_MAX 128
#define RVI_BATCH 16
/* READs of one doorbell; 40 KiB of stack, of which a short chain touches little */
#define RVI_CHAIN_MAX 256u
#define RVI_SPILL_MAX 64
#define RVI_MSG_STRIDE 4160      /* frame + RV_MSG_MAX, to a cache line */
#define RVI_NIL UINT32_MAX
#define RVI_ADDR_VERSION 1

_Static_assert(RVI_MSG_STRIDE >= RVI_FRAME_BYTES + RV_MSG_MAX + RVI_SEAL_BYTES &&
		       RVI_MSG_STRIDE % CACHE_LINE == 0,
	       "message stride");

/* --- message buffers (buffers.c), all [progress] --- */

enum rvi_buf_state { RVI_BUF_FREE = 0, RVI_BUF_POSTED, RVI_BUF_HELD, RVI_BUF_SENDING };

struct rvi_buf {
	struct rvi_buf *next;   /* next one in the free list */
	uint8_t *mem;
	uint32_t lkey;
	uint32_t index, gen;    /* gen changes each time the buffer is taken */
	uint32_t conn, epoch;   /* HELD: whose message */
	enum rvi_buf_state state;
};

struct rvi_chunk {
	struct rvi_chunk *next;
	struct ibv_mr *mr;
	uint8_t *mem;
	struct rvi_buf bufs[];
};

struct rvi_pool {
	struct rvi_chunk *chunks;
	struct rvi_buf *free;
	struct rvi_buf **by_index;
	uint32_t nr, max, chunk_bufs;
};

/* --- connections --- */

/* A READ. Any thread takes it and gives it back (read.c). */
struct rvi_read {
	/* generation and state (ledger.h); tokens of an earlier connection never match */
	_Atomic uint32_t gen;
	uint32_t name;               /* [const] kind and index of its token */
	_Atomic uint64_t cookie;
};

struct rvi_send {                    /* [progress] */
	uint32_t gen;                /* odd = under way */
	uint32_t next;
	struct rvi_buf *buf;         /* NULL: it went inline */
};

/* The states of a connection's queue pair for READs; pair.c has the steps. */
enum rvi_pair_state {
	RVI_PAIR_NONE = 0, /* reads are not allowed here */
	RVI_PAIR_MAKING, /* the helper makes ours, in the place of one that was lost */
	RVI_PAIR_OFFERED, /* ours is made, and the peer is told */
	RVI_PAIR_TYING, /* the helper ties ours to the peer's */
	RVI_PAIR_LINKED, /* ours is tied to the peer's, and serves READs */
	RVI_PAIR_READY, /* the peer's serves too: READs may be posted */
	RVI_PAIR_LOST, /* a READ failed, or the peer offers the next: the core stops reads */
};

/* A connection's queue pair for READs. [progress] */
struct rvi_pair {
	enum rvi_pair_state state;
	_Atomic int done; /* the helper is done: 1, or -errno. Release */
	uint32_t number; /* counts the pairs of this connection, from 1 */
	uint32_t psn;
	uint32_t peer_qpn, peer_psn; /* the peer's next one; 0 = not offered yet */
	bool peer_ready; /* TYING, LINKED: the peer's serves already */
	bool say_offer, say_ready; /* frames that have found no room yet */
	int64_t heard_at; /* the last message before the first pair is ready */
	uint32_t still_looks, ended; /* looks at READs while no other ended; ends before them */
	int64_t still_since; /* time of the first such look */
};

/* Work for the helper; helper.c. */
struct rvi_task {
	struct list node; /* guarded by helper.lock: link in helper.tasks */
	struct rv_conn *conn; /* const */
	void (*run)(struct rv_conn *conn);
};

struct rv_conn {
	struct rv_dev *dev;          /* const */
	uint32_t index;              /* const */
	_Atomic int state; /* enum rvi_state; stored by progress */
	_Atomic int reads_open; /* READs may be posted; a release store: reads_qp is set */
	/* queue pair for READs: const while they are open; the helper's while it is at it */
	struct ibv_qp *reads_qp;
	_Atomic(struct rvi_read *) reads; /* const after the first use */
	_Atomic(void *) user;        /* stays while a READ is under way: any thread looks */
	/* post_reads: the device refused a post; the progress side ends the pair */
	_Atomic int kicked;

	/* [progress] from here on */
	cache_aligned struct rdma_cm_id *id;
	struct ibv_qp *qp; /* for messages */
	struct rvi_pair pair;
	uint32_t epoch;              /* number of this use of the struct, for held buffers */
	uint32_t qpn;
	struct rv_conn *qpn_next;
	struct rvi_send *sends;
	uint32_t free_send, nr_sending;
	uint32_t tx_credits;         /* messages we may still send; set by the handshake */
	uint32_t rx_window;          /* messages the peer may still send */
	uint32_t to_return;          /* buffers given back and not yet told */
	uint32_t nr_held;
	uint16_t tx_seq, rx_seq;
	bool sealed;                 /* frames carry a MAC */
	struct rvi_seal tx_seal, rx_seal;
	bool want_write;             /* send() said -EAGAIN */
	bool active, half_open;      /* counted in nr_active, in nr_half_open */
	bool cm_used; /* a request or an accept went out; const while the helper works */
	bool stops, destroys; /* left to the helper; const until it is done */
	bool reads_allowed;
	bool deliver;                /* DOWN: messages that came before the end still count */
	uint8_t responder, initiator; /* READs to serve, to have under way */
	int64_t deadline_ns;         /* 0 = none */
	int dead;                    /* REQUESTED: the requester is gone, -errno */

	struct list end;             /* link in dev->ends until the end is reported */
	uint64_t end_taken; /* dev->taken at which it is reported at the latest */
	enum rv_event_type end_type;
	int end_status, end_wc;
	bool end_by_flush;           /* no cause known yet */

	/* enum rvi_qp_stage: the end of the queue pair. Release: stored by the helper */
	_Atomic int stage;
	struct rvi_task end_task, pair_task; /* tasks of its end, and of the next pair */

	struct list link;            /* dev->free_conns, dev->closed */
	struct list pairs, unsaid; /* dev->pairs, dev->unsaid */
	uint32_t report_slot; /* CLOSED, or its pair is made again: next slot to report */
	struct sockaddr_storage peer;
	uint32_t data_len;
	uint8_t data[RVI_PDATA_MAX + 60];
};

/* --- the device --- */

struct rvi_region {
	struct list link;
	struct ibv_mr *mr;
};

/* Stages of the end of a queue pair; helper.c. */
enum rvi_qp_stage {
	RVI_QP_LIVE = 0,
	RVI_QP_STOPPED,
	RVI_QP_GONE,
	RVI_QP_STUCK, /* cannot be destroyed */
};

/* A thread that stops, destroys and makes queue pairs; helper.c. */
struct rvi_helper {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct list tasks; /* guarded by lock, as the rest */
	bool runs, stop;
	int fd; /* const after open; readable when there is news */
	_Atomic int news; /* sc: some connection came to its next stage */
};

/* Record of an id of the connection manager, from its beginning. It is the id's context. */
struct rvi_id {
	struct list node; /* link in reaper.refused, reaper.ids or reaper.stock */
	struct rdma_cm_id *id;
	struct rv_conn *conn; /* [progress] NULL: closed, or not yet a connection */
	bool may_live; /* else it is from the stock's last part: a request is refused */
	uint8_t nr_reason; /* bytes to reject a request with; 0 = none */
	uint8_t reason[RVI_PDATA_MAX];
};

/* Rejects requests, and destroys what the connection manager keeps of connections; reap.c. */
struct rvi_reaper {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct list refused, ids; /* guarded by lock, as the rest */
	_Atomic uint32_t nr_refused; /* number in refused; lock writes, any thread reads */
	uint32_t nr; /* number in refused and ids, and in work */
	struct list stock; /* records to use */
	uint32_t nr_stock;
	bool full; /* connection events are not taken */
	bool runs, stop;
	struct rvi_id *spare; /* [progress] record for the next request */
};

struct rv_dev {
	/* const after open */
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *send_cq, *recv_cq;
	struct ibv_srq *srq;
	struct rdma_event_channel *cm;
	struct rdma_cm_id *listener;
	int epfd, timerfd;
	struct ibv_device_attr attr;
	struct rv_caps caps;
	struct rv_addr addr;
	struct sockaddr_storage src; /* the chosen GID's address, port 0 */
	uint64_t max_msg;
	/* messages that a peer may send before any frame came (frame.h) */
	unsigned credit_class;
	uint32_t max_inline, credits, max_reads, max_sge, max_conns, max_slots, nr_sends;
	uint32_t max_qps; /* max_conns, and room for queue pairs that are being destroyed */
	unsigned ifindex;            /* the GID's network interface; 0 = none */
	uint8_t port, max_responder, max_initiator, ack_timeout;
	int64_t connect_ns;
	int64_t patience_ns;          /* the longest time of a send under way */
	rv_log_fn log;
	void *log_ctx;

	_Atomic int attention;       /* some conn->kicked is set */
	_Atomic bool cq_broken;      /* set when one of the queues is broken */

	/* the completions of the send queues, sent.c */
	struct rvi_odd *odd;         /* const after open */
	cache_aligned _Atomic uint32_t ticket; /* a thread polls the queue; a hint */
	cache_aligned _Atomic uint64_t odd_free; /* {tag 32, number 32} */
	/* number of the node that came last; RVI_NIL = none */
	_Atomic uint32_t odd_came;

	/* [progress] */
	cache_aligned bool lost;     /* unusable */
	uint32_t odd_due;            /* number of the first node that is to be looked at */
	/* receive completions that a fence took out early; poll looks here first */
	struct ibv_wc *stash;
	uint32_t stash_head, stash_tail, stash_max;
	struct rv_event spill[RVI_SPILL_MAX];
	uint32_t spill_head, spill_tail;
	struct list closed, ends, free_conns;
	struct list pairs; /* connections that wait for the helper to be done with their pair */
	struct list unsaid; /* connections with a frame for which there was no room */
	int64_t say_ns; /* time to say them again; 0 = none */
	_Atomic(struct rv_conn *) *conns; /* [progress] writes; any thread reads */
	_Atomic uint32_t nr_conns;   /* entries of conns that exist; it only grows */
	uint32_t nr_active;          /* connections with a queue pair, or about to have one */
	uint32_t nr_closing; /* the part of nr_active that is closed */
	uint32_t nr_half_open, nr_timed;
	struct rv_conn **qpn_table;
	uint32_t qpn_mask;
	struct rvi_pool recv_pool, send_pool;
	uint32_t nr_posted;          /* receive buffers the device has */
	uint32_t nr_held_live;       /* buffers of living connections that the core holds */
	unsigned send_cq_events, recv_cq_events; /* not yet acked */
	uint32_t nr_sending;         /* messages the device has, of all connections */
	bool asleep;                 /* armed, and not for READs */
	int64_t sends_watch_ns;      /* time to wake a sleeper to look after them; 0 = not */
	int64_t timer_ns;            /* the time that timerfd is set to; 0 = off */
	bool timer_due; /* timerfd has fired, and the deadlines are not yet looked at */
	bool cm_drained; /* no connection event was left */
	int64_t watch_at; /* time of the next look at READs that stand still */
	uint32_t watch_next; /* connection at which that look goes on */
	uint32_t timer_waits; /* polls that they waited for what had come before the timer */
	int64_t timer_at; /* time at which the timer was found to have fired */
	uint64_t taken, timer_taken; /* messages taken; the number at which they wait no longer */

	pthread_mutex_t region_lock;
	struct list regions;         /* guarded by region_lock */

	struct rvi_reaper reaper;
	struct rvi_helper helper;
};

/* A place for poll()'s events: the caller's array, then the spill. */
struct rvi_sink {
	struct rv_dev *dev;
	struct rv_event *ev;
	unsigned n, max;
};

/* device.c */
void rvi_log(struct rv_dev *dev, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int rvi_open(const struct rv_options *opt, struct rv_dev **out);
void rvi_close(struct rv_dev *dev);

/*
 * child.c: keeps the device's descriptors and mappings out of children of fork(2). Calls that make
 * or map any stand between begin and end. Only fork(2) waits for the end of them.
 */
int rvi_child_begin(const struct rv_options *opt);
void rvi_keep_begin(void);
void rvi_keep_end(void);
void rvi_keep_fd(int fd);
struct ibv_context *rvi_context_open(struct ibv_device *device);
void rvi_context_close(struct ibv_context *ctx);

/* helper.c */
int rvi_thread_start(pthread_t *thread, bool *runs, void *(*run)(void *), struct rv_dev *dev);
int rvi_helper_start(struct rv_dev *dev);
/* Ends the thread, and every queue pair. All connections are closed. */
void rvi_helper_end(struct rv_dev *dev);
/* Has the queue pair stopped, if there is one. [progress] */
void rvi_stop(struct rv_conn *conn);
/* Has a stopped queue pair destroyed. [progress] */
void rvi_destroy(struct rv_conn *conn);
/* Has a queue pair for READs made; destroys the one before. No thread posts. [progress] */
void rvi_make_reads(struct rv_conn *conn);
/* Has it tied to the peer's. [progress] */
void rvi_tie_reads(struct rv_conn *conn);
/* Has it look for requests to reject. [progress] */
void rvi_help_reject(struct rv_dev *dev);
/* Has the next poll look at the connections that are closed, and wakes a sleeper. [any] */
void rvi_news(struct rv_dev *dev);

/* reap.c */
void rvi_reap_init(struct rv_dev *dev);
int rvi_reap_start(struct rv_dev *dev);
void rvi_reap_fini(struct rv_dev *dev);
/* Returns a record for a connect's id, or NULL with a text. [progress, as the next ones] */
struct rvi_id *rvi_id_new(struct rv_dev *dev);
void rvi_id_drop(struct rv_dev *dev, struct rvi_id *one);
/* Has a record for the id of the next request. Returns false if connection events have to wait. */
bool rvi_id_spare(struct rv_dev *dev);
/* Takes the id over, and destroys it. */
void rvi_reap(struct rv_dev *dev, struct rdma_cm_id *id);
/* Has a request rejected, with a reason if nr is not 0, and its id destroyed. */
void rvi_refuse(struct rv_dev *dev, struct rdma_cm_id *id, const void *reason, uint8_t nr);
/* Rejects a request that waits for it. Returns false if there is none. [reaper, helper] */
bool rvi_reject_next(struct rv_dev *dev);
/* Returns true if the port is up and has a route there, or if that is unknown. */
bool rvi_can_reach(const struct rv_dev *dev, const struct sockaddr_storage *to);

/* probe.c: chooses and opens. */
struct rvi_pick {
	struct ibv_context *ctx;
	int port, gid_index;
	union ibv_gid gid;
	struct sockaddr_storage ip;  /* port 0 */
};
int rvi_pick(const struct rv_options *opt, struct rvi_pick *out);
/* Explains why RDMA does not work here: device files, modules.
 * Sets the error text, or returns 0. */
int rvi_no_devices(int err);

/* netdev.c */
/* The network interface of a GID: its index, or 0 where there is none. */
unsigned rvi_gid_netdev(struct ibv_context *ctx, int port, int gid_index);
/* Returns true if a datagram to that address finds a route now, or if that is unknown. */
bool rvi_has_route(const struct rv_dev *dev, const struct sockaddr_storage *to);
int rvi_gid_ip(const char *device, int port, int link_layer, const union ibv_gid *gid,
	       struct sockaddr_storage *out);
void rvi_ip_text(const struct sockaddr_storage *a, char *buf, size_t size);
void rvi_addr_text(const struct sockaddr_storage *a, char *buf, size_t size);

/* region.c */
int rvi_reg(struct rv_dev *dev, void *base, size_t length, int fd, uint64_t iova,
	    enum rv_access access, struct rv_mr *out);
int rvi_dereg(struct rv_dev *dev, struct rv_mr *mr);
void rvi_regions_free(struct rv_dev *dev);
int rvi_reg_failed(int err, size_t length);

/* buffers.c */
int rvi_pool_init(struct rvi_pool *p, uint32_t max, uint32_t chunk_bufs);
void rvi_pool_free(struct rvi_pool *p);
int rvi_pool_take(struct rv_dev *dev, struct rvi_pool *p, enum rvi_buf_state state,
		  struct rvi_buf **out);
void rvi_pool_give(struct rvi_pool *p, struct rvi_buf *b);

/* conn.c */
int rvi_conn_alloc(struct rv_dev *dev, struct rv_conn **out);
void rvi_conn_release(struct rv_conn *conn);
void rvi_conn_down(struct rv_conn *conn, int status, int wc_status);
void rvi_conn_fail_wc(struct rv_conn *conn, int wc_status);
/* status: -EPROTO: the peer's own fault; -EBADMSG: perhaps another process' fault. */
void rvi_conn_protocol_error(struct rv_conn *conn, int status, const char *what);
void rvi_conn_up(struct rv_conn *conn);
void rvi_conn_deadline(struct rv_conn *conn, int64_t at_ns);
bool rvi_close_conn(struct rv_conn *conn);
int rvi_seal(struct rv_conn *conn, const uint8_t out[RV_SEAL_KEY_BYTES],
	     const uint8_t in[RV_SEAL_KEY_BYTES]);
int rvi_allow_reads(struct rv_conn *conn);

/* qp.c */
int rvi_qp_probe_inline(struct rv_dev *dev, uint32_t *max_inline);
int rvi_qp_probe(struct rv_dev *dev);
int rvi_qp_create(struct rv_conn *conn);
int rvi_qp_ready(struct rv_conn *conn);
void rvi_qp_error(struct rv_conn *conn);
int rvi_qp_stop(struct ibv_qp *qp);
int rvi_qp_destroy(struct ibv_qp *qp);
void rvi_qp_gone(struct rv_conn *conn);
struct rv_conn *rvi_qpn_find(struct rv_dev *dev, uint32_t qpn);
int rvi_qp_create_reads(struct rv_conn *conn);
int rvi_qp_link_reads(struct rv_conn *conn);

/* pair.c */
/* Takes part in making READs possible, or does so again after READS_DOWN. The connection is UP. */
void rvi_pair_allow(struct rv_conn *conn);
/* Takes a frame of the peer's about it. A false one ends the connection. */
void rvi_pair_frame(struct rv_conn *conn, const struct rvi_frame *f, const uint8_t *body,
		    struct rvi_sink *sink);
/* Sends what it has to say, if there is room. */
void rvi_pair_say(struct rv_conn *conn);
/* Judges a READ that failed: it ends the pair, or the connection. */
void rvi_pair_failed(struct rv_conn *conn, int wc_status, struct rvi_sink *sink);
/* Ends a pair at which the device refused a post. */
void rvi_pair_refused(struct rv_conn *conn, struct rvi_sink *sink);
/* Ends connections whose READs stand still. Called by slow polls. */
void rvi_pairs_watch(struct rv_dev *dev);
/* Ends the pair of that queue pair, if it is one. */
void rvi_pair_broke(struct rv_dev *dev, uint32_t qpn, struct rvi_sink *sink);
/* A message came: the peer is awake, and has to take part in time. */
void rvi_pair_awake(struct rv_conn *conn);
/* Opens the pair if the peer's is ready and our READY has gone out. */
void rvi_pair_said(struct rv_conn *conn, struct rvi_sink *sink);
/* Returns whether the peer lets a deadline pass at which it could have made progress. */
bool rvi_pair_overdue(const struct rv_conn *conn);
/* Goes on with pairs that the helper was at. READs of those that are gone are reported. */
void rvi_pairs_go_on(struct rv_dev *dev, struct rvi_sink *sink);

/* cm.c */
int rvi_listen(struct rv_dev *dev, const struct rvi_pick *pick);
int rvi_reach(struct rv_dev *dev, const struct rv_addr *to);
int rvi_connect(struct rv_dev *dev, const struct rv_addr *to, const void *hello, size_t len,
		void *user, struct rv_conn **out);
int rvi_accept(struct rv_conn *conn, const void *answer, size_t len, void *user);
void rvi_reject(struct rv_conn *conn, const void *reason, size_t len);
void rvi_peer_text(struct rv_conn *conn, char *buf, size_t size);

/* cm_event.c */
bool rvi_cm_events(struct rv_dev *dev, struct rvi_sink *sink);
void rvi_cm_deadlines(struct rv_dev *dev, int64_t now);
void rvi_confirmed(struct rv_conn *conn, struct rvi_sink *sink, bool by_message);

/* addr.c */
void rvi_addr_pack(const struct sockaddr_storage *ip, uint16_t port, const union ibv_gid *gid,
		   struct rv_addr *out);
int rvi_addr_unpack(const struct rv_addr *a, struct sockaddr_storage *out);

/* send.c */
/* Posts a frame. Returns 0; -EAGAIN no room; -ENOMEM no buffer; -ENOTCONN the device refused, and
 * the connection is over. */
int rvi_post_frame(struct rv_conn *conn, enum rvi_frame_type type, const void *msg, uint32_t len);
int rvi_send(struct rv_conn *conn, const void *msg, size_t len);
void rvi_return_credits(struct rv_conn *conn);
/* Says again what found no room before, if it is time. */
void rvi_say_again(struct rv_dev *dev, struct rvi_sink *sink);
void rvi_send_done(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
		   struct rvi_sink *sink);
void rvi_writable(struct rv_conn *conn, struct rvi_sink *sink);
void rvi_sends_init(struct rv_conn *conn);
void rvi_sends_drop(struct rv_conn *conn);

/* recv.c */
int rvi_recv_fill(struct rv_dev *dev);
void rvi_recv_done(struct rv_dev *dev, uint64_t token);
void rvi_recv_completed(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
			struct rvi_sink *sink);
void rvi_recv_drop(struct rv_dev *dev, struct rvi_token t);

/* read.c */
int rvi_reads_init(struct rv_conn *conn);
int rvi_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n);
void rvi_read_done(struct rv_dev *dev, const struct ibv_wc *wc, struct rvi_token t,
		   struct rvi_sink *sink);
/* Returns whether READs are under way. *ended: moves with each READ that ends. */
bool rvi_reads_outstanding(const struct rv_conn *conn, uint32_t *ended);
bool rvi_reads_report(struct rv_conn *conn, struct rvi_sink *sink);

/* poll.c */
struct rv_event *rvi_emit(struct rvi_sink *sink, struct rv_conn *conn, enum rv_event_type type,
			  int status);
int rvi_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags);
int rvi_poll_cq(struct rv_dev *dev, struct ibv_cq *cq, int max, struct ibv_wc *wc);
void rvi_drain_for(struct rv_conn *conn);
void rvi_spill_purge(struct rv_conn *conn);

/* sent.c */
int rvi_sent_init(struct rv_dev *dev, uint32_t queue);
int rvi_reads(struct rv_dev *dev, struct rv_read_end *out, unsigned max, bool *more);
/* Takes the next completion left to the holder of the lock. Returns false if there is none. */
bool rvi_sent_next(struct rv_dev *dev, struct ibv_wc *out);
void rvi_sent_drain(struct rv_dev *dev);

/* wake.c */
int rvi_wake_init(struct rv_dev *dev);
int rvi_arm(struct rv_dev *dev, unsigned flags);
void rvi_disarm(struct rv_dev *dev);
int rvi_fd(struct rv_dev *dev);
/* Has connection events wake a sleeper, or not. [any] */
void rvi_watch_cm(struct rv_dev *dev, bool watch);
void rvi_wake_timer(struct rv_dev *dev);
void rvi_watch_sends(struct rv_dev *dev);
void rvi_slow(struct rv_dev *dev, struct rvi_sink *sink);
void rvi_timer_due(struct rv_dev *dev, bool all, struct rvi_sink *sink);

/* async.c */
void rvi_async_events(struct rv_dev *dev, struct rvi_sink *sink);
void rvi_lost(struct rv_dev *dev, struct rvi_sink *sink, const char *why);

/* The parts of a word {tag 32, head 32}, which is a stack of numbers. The tag makes ABA visible. */
static inline uint32_t rvi_stack_head(uint64_t word)
{
	return (uint32_t)word;
}

static inline uint64_t rvi_stack_word(uint64_t old, uint32_t head)
{
	return (old & ~(uint64_t)UINT32_MAX) + ((uint64_t)1 << 32) + head;
}

/* Returns the connection of that number, NULL if there is none. */
static inline struct rv_conn *rvi_conn_at(const struct rv_dev *dev, uint32_t i)
{
	/* Acquire. Pairs with conn_new. */
	return i < at_load_acq(&dev->nr_conns) ? at_load(&dev->conns[i]) : NULL;
}

static inline enum rvi_state rvi_state(const struct rv_conn *conn)
{
	return (enum rvi_state)at_load_acq(&conn->state);
}

/*
 * Asserts that each credit of a living connection is in one place. It is with the peer, on its way
 * back to it, or held by the core as a message.
 */
static inline void rvi_assert_credits(const struct rv_conn *conn)
{
	rb_assert_with(conn->rx_window + conn->to_return + conn->nr_held == conn->dev->credits,
		       "%u with the peer, %u to return, %u held, of %u", conn->rx_window,
		       conn->to_return, conn->nr_held, conn->dev->credits);
	(void)conn;
}

#endif
