/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm: the device layer between processes of one machine. A READ is a copy from the peer's memory,
 * mapped read-only here. A message is a slot of a shared ring. Neither costs a syscall unless the
 * receiver sleeps.
 *
 * Shared memory, and its writers:
 *
 *   page   one memfd per device, written by its device, mapped read-only by every peer. It has the
 *          sleeping flag, and one 64-bit word per key. A READ is good only if the key's word is the
 *          same before and after the copy. It also has the marks of what this device looks at in
 *          memory of its peers (look.c).
 *   box    one memfd per connection and direction, made by the side that receives. It has the ring
 *          of messages to it, and the word that says whether the other side may READ. So each side
 *          grants its own number of credits. One segment for both would need both numbers.
 *   region the memory of reg(), handed to peers as a read-only descriptor, mapped on arrival.
 *
 * A Unix SEQPACKET socket per connection carries the handshake and the descriptors of later
 * regions. It also carries wake-ups, which are sent only while the device sleeps. Its hang-up tells
 * of the peer's death. It is read on RV_POLL_SLOW, and by a READ that meets a key whose memory has
 * not arrived yet. No system call here writes to a peer's descriptor, nor closes it if it is no
 * memory (foreign.c). The peer would decide whether that blocks. A send to the socket never blocks.
 *
 * Strangers: any process on the machine can connect to the listener's name, so the cost of that is
 * bounded. Other users are dropped unheard, and nothing of a stranger's is mapped before the core
 * has accepted its hello. In each window 32 are accepted that prove nothing; the others wait in the
 * listener's backlog.
 *
 * Trust: a peer runs under the same user id (checked), so it could harm this process by other
 * means. Nevertheless all that it can write is bounded and checked here once, in a private copy.
 * Its nonsense ends its own connection only. A peer that follows the protocol never returns bytes
 * read after the key or the connection was revoked. The mapping itself goes when the peer next
 * looks (it is woken to look).
 *
 * Locks: dev->lock (keys, regions, the peers that have them), conn->rx_lock (socket reading,
 * mapping). dev->lock may be taken under rx_lock.
 */
#ifndef RVS_H
#define RVS_H

#include <errno.h>
#include <pthread.h>
#include <sys/types.h>

#include "base/assert.h"
#include "base/atomic.h"
#include "base/child.h"
#include "base/slow.h"
#include "base/util.h"
#include "verbs/rv.h"
#include "verbs/rv_error.h"

#define RVS_MAGIC 0x6d687272u        /* "rrhm" */
#define RVS_VERSION 4u
#define RVS_KEY_BITS 16
#define RVS_NR_KEYS (1u << RVS_KEY_BITS)
#define RVS_KEY_INDEX(key) ((key) & (RVS_NR_KEYS - 1))
#define RVS_MAX_CREDITS 4096u
#define RVS_MAX_MSG ((uint64_t)1 << 30)
#define RVS_MAX_GREETING 64          /* accepted sockets that have not said hello yet */
#define RVS_ACCEPTS 8                /* in a turn */
#define RVS_WINDOW_STRANGERS 32u     /* accepted in a window; holders of the key are not counted */
#define RVS_GREET_NS (2 * NSEC_PER_SEC)
#define RVS_CONNECT_NS (2500 * NSEC_PER_MSEC)
#define RVS_RETRY_NS (20 * NSEC_PER_MSEC)
#define RVS_WINDOW_NS RVS_RETRY_NS   /* progress reads RVS_WINDOW_PACKETS of a peer in each */
#define RVS_WINDOW_PACKETS 64u       /* wake-ups for which there was a reason are not counted */
#define RVS_MAX_REGIONS 8192u        /* regions of one peer, mapped here or their addresses kept */
#define RVS_SCAN_FEW 64u             /* places of regions, looked through at any time */
/* the numbers of enum ibv_wc_status, which this provider must not include */
#define RVS_WC_LOC_PROT_ERR 4
#define RVS_WC_REM_ACCESS_ERR 10

/*
 * A key's word: the key (index and random bits), whether it may be used, and a count of
 * registrations. A word never comes back, so "the same before and after" is enough. 0 = no key.
 */
#define RVS_WORD_LIVE (UINT64_C(1) << 32)
#define RVS_WORD(key, count) ((uint64_t)(key) | RVS_WORD_LIVE | (uint64_t)(count) << 33)
#define RVS_WORD_COUNT(word) ((uint32_t)((word) >> 33))

struct rvs_page {
	uint32_t magic, version;                /* const after create */
	/* number of the sleep; 0 = awake. Partner: rvs_wake() */
	cache_aligned _Atomic uint32_t sleeping;
	/* counts dereg(): peers look whether they map something dead */
	cache_aligned _Atomic uint32_t revoked;
	cache_aligned _Atomic uint64_t key[RVS_NR_KEYS];
	/* looks: no place from here on was ever used; the device's looks have all begun */
	cache_aligned _Atomic uint32_t places_end;
	_Atomic uint32_t leaves;
	cache_aligned struct rvs_place {
		_Atomic uint64_t word[RV_MARK_WORDS]; /* word[0]: 0 = no mark */
		uint64_t unused;
	} place[RV_LOOKS];
};
_Static_assert(offsetof(struct rvs_page, sleeping) == 64, "layout is shared between processes");
_Static_assert(offsetof(struct rvs_page, revoked) == 128, "layout is shared between processes");
_Static_assert(offsetof(struct rvs_page, key) == 192, "layout is shared between processes");
_Static_assert(offsetof(struct rvs_page, places_end) == 192 + 8 * RVS_NR_KEYS,
	       "layout is shared between processes");
_Static_assert(sizeof(struct rvs_page) == 256 + 8 * RVS_NR_KEYS + 32 * RV_LOOKS,
	       "layout is shared between processes");

enum rvs_serve { RVS_SERVE_NONE = 0, RVS_SERVE_READS = 1, RVS_SERVE_FENCED = 2 };

/* The head of a box; behind it post[ring], back[ring], then the slots, page-aligned. See ring.c. */
struct rvs_box {
	/* receiver writes: enum rvs_serve; the sender checks around READs */
	cache_aligned _Atomic uint32_t serve;
	_Atomic uint32_t lets_look; /* receiver writes: the sender may look, too */
	cache_aligned _Atomic uint32_t want;    /* sender writes: it waits for a slot */
	cache_aligned unsigned char end[];
};
_Static_assert(sizeof(struct rvs_box) == 128 && offsetof(struct rvs_box, want) == 64,
	       "shared layout");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
	       "atomics between processes cannot lock");

/* A place of the ring `post`. A short message is in it, so
 * that word and message come over in one piece. */
#define RVS_INLINE_MAX 120u
struct rvs_post {
	_Alignas(128) _Atomic uint64_t word;
	unsigned char data[RVS_INLINE_MAX];
};
_Static_assert(sizeof(struct rvs_post) == 128, "layout is shared between processes");

/* The words of both rings; see ring.c. */
#define RVS_POST_WORD(pos, len, slot) \
	((uint64_t)(uint32_t)((pos) + 1) << 32 | (uint64_t)(len) << 16 | (slot))
#define RVS_POST_WORD_THERE(word, pos) ((uint32_t)((word) >> 32) == (uint32_t)((pos) + 1))
#define RVS_POST_WORD_LEN(word) ((uint32_t)((word) >> 16) & 0xffff)
#define RVS_POST_WORD_SLOT(word) ((uint32_t)(word) & 0xffff)

#define RVS_PKT_FDS 2                /* descriptors that a packet brings at most */
#define RVS_DUE_MAX 8u /* slots given back at once; see ring.c */

/* An end of a box: the receiver's of the own box, or the
 * sender's of the peer's box. Owner: progress. */
struct rvs_ring {
	struct rvs_box *box;
	size_t bytes;
	struct rvs_post *post;                  /* full slots to the receiver */
	_Atomic uint64_t *back;                 /* free slots to the sender */
	unsigned char *slots;
	uint32_t nr, mask;
	uint32_t post_pos, back_pos;
	uint32_t fresh;                         /* sender: slots from here on were never used */
	uint32_t nr_taken;
	/* receiver: slots that are free, and not given back yet */
	uint32_t nr_due;
	uint16_t due[RVS_DUE_MAX];
	struct list owing;                      /* receiver: in dev->owing while nr_due */
	/* sender: slot is with the receiver; receiver: with the core */
	unsigned char *taken;
	/* receiver: private copies of the messages, one per slot */
	unsigned char *copy;
};

/* A registration of our own. Guarded by dev->lock; key, base
 * and length are read by post_reads without it. */
struct rvs_key {
	/* 0 = no landing place. Partner: landing_ok in read.c */
	cache_aligned _Atomic uint32_t key;
	/* read-only, for peers; -1 = never remotely accessible */
	int fd;
	_Atomic uintptr_t base;
	_Atomic size_t length;
	uint64_t iova, word, order;
	struct list node;                       /* link in dev->regions, by order */
};
_Static_assert(sizeof(struct rvs_key) == 64, "one line: a READ looks at its landing keys");

/* A peer's region as this process maps it. Written under conn->rx_lock, read without: see map.c. */
struct rvs_seg {
	_Atomic uint64_t word;
	_Atomic uintptr_t base;
	_Atomic uint64_t iova, length;
};

/*
 * Knowledge of the regions under one key index. Guarded by conn->rx_lock. A region that finds no
 * descriptor, no address space or no room below a bound is missed. A READ that needs it asks the
 * peer for it again.
 */
enum rvs_missed { RVS_NOT_MISSED, RVS_MISSED, RVS_ASKED, RVS_FAILED };
struct rvs_news {
	uint32_t mapped;                        /* highest count of a word that was mapped */
	uint32_t missed;                        /* the count of the word that was missed */
	uint32_t asked_ms;                      /* time when it was asked for; the clock may wrap */
	uint16_t state, why;                    /* enum rvs_missed; the errno of the miss */
	/* place of the mapping; looks read it without the lock: map.c */
	_Atomic(struct rvs_span *) span;
};

/*
 * Address space for a mapping. It stays readable when the mapping is gone, until it is used again.
 * A READ may still be at it. A mapping that is looked at may outlive its connection.
 */
struct rvs_span {
	struct rvs_span *next;
	void *base;
	size_t length;
	_Atomic uint32_t refs; /* count: 1 of the connection, 1 of each look */
	const void *user; /* the peer's, when its connection is gone: conn->user */
	/* Link in conn->mapped, by rx_lock; later in dev->outliving, by dev->lock. */
	struct list node;
};

enum rvs_state {
	RVS_GREETING,   /* accepted socket, no hello yet; unknown to the core */
	RVS_REQUESTED, RVS_CONNECTING,
	RVS_ANSWERED,   /* CONNECTED not yet reported */
	RVS_UP,
	/* a READ failed or the peer wrote nonsense; DISCONNECTED not yet reported */
	RVS_BROKEN,
	RVS_DOWN,
	/* closed by close_conn: only private copies of messages that the core still holds */
	RVS_CLOSED,
};

enum rvs_source { RVS_SRC_LISTEN, RVS_SRC_WAKE, RVS_SRC_TIMER, RVS_SRC_CONN, RVS_SRC_PROCESS };

enum rvs_attn { RVS_A_NOTIFY = 1, RVS_A_STALLED = 2, RVS_A_HUP = 4 };

struct rv_conn {
	/* Read by post_reads on any thread; const while UP except state. */
	/* atomic: UP -> BROKEN by any thread, all else by progress */
	cache_aligned _Atomic uint32_t state;
	uint32_t max_reads;
	uint64_t max_msg;
	struct rvs_key *keys;
	struct rvs_seg *segs;                   /* RVS_NR_KEYS of them, by key index */
	const _Atomic uint64_t *peer_keys;      /* peer_page->key */
	const _Atomic uint32_t *peer_serve;     /* tx.box->serve */
	const _Atomic uint32_t *peer_lets_look; /* tx.box->lets_look */

	/* Owner: progress, except where said. */
	cache_aligned enum rvs_source source;   /* first thing epoll's data points at */
	struct rv_dev *dev;
	void *user;
	int sock;
	_Atomic uint32_t woken;                 /* atomic: the peer's sleep that was ended last */
	_Atomic uint32_t wake_owed;             /* atomic: a wake-up found no memory */
	int64_t window_at;                      /* begin of this window of its packets */
	uint32_t window_packets;
	uint32_t wake_pos;                      /* rx.post_pos at the last wake-up */
	int64_t scanned_at;                     /* time when its regions were last looked through */
	enum rvs_source process_source;         /* the same */
	struct rv_onlooker *onlooker; /* the peer's process and page */
	struct rvs_page *peer_page;
	struct rvs_ring rx, tx;
	/* place in dev->conns; of the token; place in dev->watch or -1 */
	uint32_t index, gen, watch;
	struct list attn;                       /* link in dev->attn while attn_why != 0 */
	unsigned attn_why;
	struct list timed;                      /* link in dev->timed while deadline_ns */
	int64_t deadline_ns;
	bool dialled;                           /* connect(2) done: it can meet a full backlog */
	bool gone;                              /* hang-up seen; the socket is out of epoll */
	int box_fd;                             /* until dialled */
	/* REQUESTED: the descriptors that came along with hello */
	int hello_fds[RVS_PKT_FDS];
	uint32_t hello_credits;
	/* the ring holds nonsense: nothing more is taken from it */
	bool poisoned;
	/* errno | wc_status << 16 of what broke it. Partner: rvs_break */
	_Atomic uint32_t why;
	uint32_t seen_revoked;
	int status;                             /* status of the pending FAILED */
	enum rv_event_type notify;
	uint16_t text_len;
	unsigned char text[RV_ANSWER_MAX];      /* hello, answer or reason */
	struct rv_addr to;
	pid_t pid;
	struct list told;                       /* link in dev->told; guarded by dev->lock */
	/* guarded by dev->lock: regions up to here were handed over */
	uint64_t told_order;
	bool told_blocked;                      /* guarded by dev->lock: the socket is full */
	bool muted;                             /* guarded by dev->lock: not read for a while */
	pthread_mutex_t rx_lock;                /* socket reading, segs, spans */
	uint32_t segs_end;                      /* guarded by rx_lock */
	struct rvs_news *news;                  /* guarded by rx_lock */
	uint32_t nr_mapped, nr_spans;           /* guarded by rx_lock; spans: mapped or kept */
	uint64_t span_bytes;                    /* guarded by rx_lock */
	struct rvs_span *spans; /* guarded by rx_lock; free ones */
	struct rvs_span *looked_at; /* guarded by rx_lock; dropped but for looks */
	struct list mapped; /* guarded by rx_lock; spans of segments */
};

/* A peer's process, by its end and its page. Shared by its connection and the core. */
struct rv_onlooker {
	const struct rvs_page *page;
	int process; /* pidfd, or -1; process.c */
	uint32_t refs; /* owner: progress */
};

/* The word in which a connection's next message will appear, for poll(). Owner: progress. */
struct rvs_watch {
	const _Atomic uint64_t *word;
	uint32_t seq;
	struct rv_conn *conn;
};

struct rv_dev {
	enum rvs_source listen_src, wake_src, timer_src;
	int epoll, listener, wake, timer, page_fd;
	/* given up for a moment to refuse a connection when no fd is left */
	int spare;
	struct rvs_page *page;
	struct rv_options opt;                  /* const after open */
	uint64_t max_msg;                       /* const after open */
	struct rv_addr self;                    /* const after open */
	uid_t uid;

	struct rv_conn **conns;                 /* owner: progress, as all of this block */
	uint32_t max_conns, nr_conns, nr_greeting, next_gen;
	struct rvs_watch *watch;
	uint32_t nr_watch, scan_at;
	struct list attn, timed, owing;
	int64_t timer_ns;
	uint32_t sleep_nr;                      /* number of the last sleep; not 0 */
	int64_t listen_at;                      /* begin of this window of strangers */
	uint32_t listen_nr;
	bool listen_muted;
	uint64_t nr_refused;                    /* wrong user, garbage, too many */

	cache_aligned pthread_mutex_t lock;     /* guards all below */
	struct rvs_key *keys;
	uint16_t *free_keys;
	uint32_t nr_free_keys, used_keys;
	uint32_t key_count;
	uint64_t order;
	struct list regions, told;
	struct list outliving; /* spans whose connections are gone */
	uint64_t max_mapped;                    /* const after open: bytes of one peer */
	uint32_t max_spans;                     /* const after open: mappings of all peers */
	_Atomic uint32_t nr_spans;              /* atomic: of all connections */
	_Atomic uint32_t tell_again;            /* atomic: something could not be sent yet */
};

/*
 * Orders of a READ and of its revocation, partners of each other. Loads of the copy come before the
 * second look at key and connection. Stores that revoke come before any later use of the memory by
 * its owner. Stand-alone, because the copy itself is memcpy.
 */
static inline void rvs_after_copy(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__asm__ __volatile__("" ::: "memory");
#elif defined(__aarch64__)
	__asm__ __volatile__("dmb ishld" ::: "memory");
#else
	__sync_synchronize();
#endif
}

static inline void rvs_after_revoke(void)
{
#if defined(__aarch64__)
	__asm__ __volatile__("dmb ish" ::: "memory");
#else
	__sync_synchronize();
#endif
}

/*
 * Asserts that somebody holds the mutex; by its callers' word it is the calling thread. No
 * assertion here looks at memory that a peer can write: its nonsense is an error, not a mistake.
 */
#define rvs_assert_held(mutex) rb_assert(pthread_mutex_trylock(mutex) != 0)

/* memfd.c: shared memory objects */
int rvs_memfd(const char *name, size_t size, int *fd, void **map);
int rvs_seal(int fd, bool only_reader);
int rvs_reopen_ro(int fd);
int rvs_check_fd(int fd, size_t size);

/* packet.c: one datagram of the socket, with descriptors */
enum rvs_packet_type { RVS_PKT_HELLO = 1, RVS_PKT_ACCEPT, RVS_PKT_REJECT, RVS_PKT_REGION,
		       RVS_PKT_WAKE, RVS_PKT_AGAIN };
struct rvs_packet {
	uint32_t magic;
	uint16_t version, type;                 /* WAKE: the end */
	uint32_t credits;                       /* HELLO, ACCEPT: slots of the box */
	uint16_t status, len;                   /* REJECT: errno; bytes of data */
	uint64_t word, iova, length;            /* REGION; AGAIN: the word */
	unsigned char data[RV_ANSWER_MAX];
	uint32_t pad;
};
#define RVS_HEAD_BYTES ((ssize_t)offsetof(struct rvs_packet, credits))
_Static_assert(sizeof(struct rvs_packet) == 240, "layout is shared between processes");
int rvs_packet_send(int sock, struct rvs_packet *p, enum rvs_packet_type type, const int *fds,
		    unsigned nr_fds);
int rvs_wake_send(int sock);
int rvs_packet_recv(int sock, struct rvs_packet *p, int fds[RVS_PKT_FDS], unsigned *nr_fds);
int rvs_fail_fds(int err, const char *what);
static inline bool rvs_lacks_fd(int err)
{
	return err == EMFILE || err == ENFILE;
}
int rvs_packet_skip(int sock);
void rvs_close_fds(int *fds, unsigned nr);

/* foreign.c: closing what others may have a say in */
/* A packet that still lies in its socket, and the descriptors that came with it. */
struct rvs_peeked {
	int fds[RVS_PKT_FDS];
	unsigned nr;
	int flags;                              /* of the message */
	bool control;                           /* the kernel added something to its bytes */
};
ssize_t rvs_peek(int sock, void *buf, size_t size, bool creds, struct rvs_peeked *out);
bool rvs_all_memory(const int *fds, unsigned nr);
void rvs_close_received(int *fds, unsigned nr);
void rvs_close_socket(int sock);
void rvs_close_listener(int listener);
bool rvs_foreign_full(void);

/* keys.c: registrations, and telling peers of them */
int rvs_reg(struct rv_dev *dev, void *base, size_t length, int fd, uint64_t iova,
	    enum rv_access access, struct rv_mr *out);
int rvs_dereg(struct rv_dev *dev, struct rv_mr *mr);
int rvs_keys_init(struct rv_dev *dev);
void rvs_keys_fini(struct rv_dev *dev);
void rvs_tell_start(struct rv_conn *conn);
void rvs_tell_stop(struct rv_conn *conn);
void rvs_tell_more(struct rv_conn *conn);
bool rvs_tell_all(struct rv_dev *dev);
void rvs_tell_one(struct rv_conn *conn, uint64_t word);
void rvs_mute(struct rv_conn *conn, bool muted);

/* map.c: the peer's regions */
int rvs_segs_init(struct rv_conn *conn);
void rvs_segs_fini(struct rv_conn *conn);
struct rvs_taken {
	unsigned packets, wakes;                /* wakes: of the packets */
	uint64_t again;                         /* the region that the peer asks for, 0 = none */
	bool eof;
};
void rvs_map_bounds(struct rv_dev *dev);
int rvs_missed(struct rv_conn *conn, uint32_t rkey);
int rvs_drain(struct rv_conn *conn, unsigned max, struct rvs_taken *out);
bool rvs_drop_revoked(struct rv_conn *conn, int64_t now);
void rvs_span_put(struct rv_dev *dev, struct rvs_span *s);
void rvs_spans_fini(struct rv_dev *dev);

/* read.c */
int rvs_post_reads(struct rv_conn *conn, struct rv_read *r, unsigned n);
void rvs_will_read(struct rv_conn *conn, uint32_t rkey, uint64_t addr, uint64_t length);

int rvs_find(struct rv_conn *conn, uint32_t rkey, uint64_t addr, uint64_t length,
	     const void **at, uint64_t *word);

/* look.c: looks of this device, and of its peers */
void rvs_looks_fini(struct rv_dev *dev);
struct rv_onlooker *rvs_onlooker_new(const struct rvs_page *page);
void rvs_onlooker_put(struct rv_onlooker *o);
extern const struct rv_look_ops rvs_look_ops;

/* ring.c: messages */
int rvs_box_create(struct rvs_ring *rx, uint32_t credits, int *fd);
int rvs_box_attach(struct rvs_ring *tx, uint32_t credits, int fd);
void rvs_ring_fini(struct rvs_ring *ring);
int rvs_send(struct rv_conn *conn, const void *msg, size_t len);
void rvs_recv_done(struct rv_dev *dev, uint64_t token);
void rvs_give_back(struct rv_dev *dev, bool all);
bool rvs_ring_has_room(const struct rvs_ring *tx);

/* conn.c */
int rvs_conn_new(struct rv_dev *dev, int sock, enum rvs_state state, struct rv_conn **out);
void rvs_conn_free(struct rv_conn *conn);
int rvs_conn_listen(struct rv_conn *conn);
void rvs_conn_fail(struct rv_conn *conn, int status);
void rvs_conn_hangup(struct rv_conn *conn);
void rvs_hang_up(struct rv_dev *dev, int sock);
void rvs_break(struct rv_conn *conn, int err, int wc_status);
void rvs_attend(struct rv_conn *conn, unsigned why);
void rvs_attended(struct rv_conn *conn, unsigned why);
void rvs_notify(struct rv_conn *conn, enum rv_event_type type, int status);
void rvs_watch_add(struct rv_conn *conn);
void rvs_watch_del(struct rv_conn *conn);
int rvs_allow_reads(struct rv_conn *conn);
bool rvs_close_conn(struct rv_conn *conn);
void rvs_peer_text(struct rv_conn *conn, char *buf, size_t size);

/* connect.c, accept.c: the handshake from both sides */
int rvs_connect(struct rv_dev *dev, const struct rv_addr *to, const void *hello, size_t len,
		void *user, struct rv_conn **out);
void rvs_dial(struct rv_conn *conn);
void rvs_on_answer(struct rv_conn *conn);
int rvs_hold_peer(struct rv_conn *conn, uint32_t credits, int fds[RVS_PKT_FDS], unsigned nr_fds);
int rvs_accept(struct rv_conn *conn, const void *answer, size_t len, void *user);
void rvs_reject(struct rv_conn *conn, const void *reason, size_t len);
void rvs_on_listener(struct rv_dev *dev);
bool rvs_listen_timer(struct rv_dev *dev, int64_t now);
void rvs_on_hello(struct rv_conn *conn);

/* process.c: the peer's process */
void rvs_process_watch(struct rv_conn *conn);
void rvs_process_unwatch(struct rv_conn *conn);

/* wake.c: sleeping, waking, deadlines */
int rvs_arm(struct rv_dev *dev, unsigned flags);
void rvs_disarm(struct rv_dev *dev);
void rvs_wake_self(struct rv_dev *dev);
void rvs_wake_consume(struct rv_dev *dev);
void rvs_wake_sleeper(struct rv_conn *conn, uint32_t sleep);
bool rvs_wake_owed(struct rv_conn *conn);
void rvs_wake_taken(struct rv_dev *dev);
void rvs_timer_soon(struct rv_dev *dev);
void rvs_deadline(struct rv_conn *conn, int64_t at_ns);
void rvs_timers(struct rv_dev *dev);

/*
 * Wakes the peer if it sleeps. Call it after the news was published by a seq_cst store. Either the
 * peer's look after arm() sees the news, or this look sees the flag. Once for each of its sleeps:
 * wake.c.
 */
static inline void rvs_wake(struct rv_conn *conn)
{
	uint32_t sleep = at_load_sc(&conn->peer_page->sleeping);

	if (unlikely(sleep) && sleep != at_load(&conn->woken))
		rvs_wake_sleeper(conn, sleep);
}

static inline bool rvs_ring_ready(const struct rvs_ring *rx)
{
	return RVS_POST_WORD_THERE(at_load_sc(&rx->post[rx->post_pos & rx->mask].word),
				   rx->post_pos);
}

/* poll.c */
int rvs_poll(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags);

/* address.c: this device's process and place */
int rvs_self(struct rv_addr *out);
int rvs_reach(struct rv_dev *dev, const struct rv_addr *to);
const char *rvs_name(const struct rv_addr *a, size_t *len);

/* dev.c */
void rvs_log_refused(struct rv_dev *dev, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void rvs_log(const struct rv_dev *dev, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
