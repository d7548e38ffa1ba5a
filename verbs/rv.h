/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rv: the device layer (docs/design/devices.md). One total table of operations, two providers: ibv
 * (libibverbs + librdmacm) and shm (the same semantics between processes of one machine). The only
 * directory that knows <infiniband/...> and <rdma/...>.
 *
 * Nothing here calls upwards: poll() returns all that happens as events, and the core pulls them.
 *
 * Results: 0 or -errno, always; the four error conventions of verbs end here. rv_error_text()
 * explains the last failure of the calling thread in words.
 *
 * Thread classes
 *   [any]       any thread, at any time between open and close; lock-free unless said otherwise.
 *   [progress]  one thread at a time; the core holds its progress lock around these calls.
 *
 * A connection lives from connect()/RV_EV_REQUEST to close_conn(). It carries messages (reliable,
 * ordered, flow controlled by credits inside the provider) and one-sided READs.
 *
 * READs may end alone, and messages go on: a READ was refused, here or at the peer. READS_DOWN
 * says so. READs come back when the caller has called allow_reads again, and the peer too.
 *
 *   allow_reads() -> READS_UP -> READS_DOWN -> no thread is in post_reads -> allow_reads() -> ...
 *
 *   connect() -> CONNECTING -RV_EV_CONNECTED-> UP --RV_EV_DISCONNECTED--> DOWN -close_conn()-> gone
 *                    \-------RV_EV_FAILED----------------------------------^
 *   RV_EV_REQUEST --> REQUESTED --accept()--> ACCEPTING --RV_EV_CONNECTED--> UP
 *                         \--reject()--> gone     \------RV_EV_FAILED------> DOWN
 *
 * close_conn() may end every state. It is the fence. When it is over, this side serves no READ of
 * the peer any more over this connection. Our own READs cannot write local memory any more either.
 * It is over when close_conn() returned false. If it returned true, it is over with RV_EV_CLOSED.
 * Before that, poll() reports each of our unfinished READs exactly once, with -ECONNRESET. A READ
 * that was over may be reported by reads() instead. No other event of a closed connection is
 * reported. If RV_EV_CLOSED has a status the device may write for our READs for ever. Unfinished
 * ones are then never reported, and their memory must not be used again.
 */
#ifndef RV_H
#define RV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct rv_dev;
struct rv_conn;
struct rv_onlooker;

#define RV_ADDR_MAX 120      /* bytes of a provider's address blob */
/*
 * RDMA CM private data is 56, 196 and 148 bytes for RC, and arrives zero-padded to that size. So
 * the first byte of each is the provider's own length byte; an answer has a second one for credits.
 */
#define RV_HELLO_MAX 55      /* bytes a connect request can carry */
#define RV_ANSWER_MAX 194    /* bytes an accept can carry */
#define RV_REASON_MAX 147    /* bytes a reject can carry */
#define RV_SEAL_KEY_BYTES 16 /* a key of seal() */
#define RV_MSG_MAX 4096      /* largest message, without the provider's own frame */
/* landing pieces that a request has room for; a value with its header takes one */
#define RV_READ_SGE 2
/* pieces of any READ: a NIC's send queue has room for so many in each of its entries */
#define RV_READ_SGE_MAX 16

enum rv_kind { RV_SHM = 0, RV_IBV = 1, RV_NR_KINDS };

enum rv_access {
	RV_ACCESS_LOCAL = 0,       /* landing memory: never remotely accessible */
	RV_ACCESS_REMOTE_READ = 1, /* value memory: remote read only, never write */
};

/* The log hook: level 0 error, 1 warning, 2 info, 3 debug. May
 * be NULL. Called on the thread at hand. */
typedef void (*rv_log_fn)(void *ctx, int level, const char *text);

struct rv_options {
	const char *device;    /* ibv: device name, NULL = the first usable one */
	int port;              /* ibv: port number, 0 = first active */
	/* ibv: -1 = choose (RoCE v2 with an IP address, else the first valid) */
	int gid_index;
	uint32_t credits;      /* messages each peer may have in flight to us; 0 = 64; at least 4 */
	uint32_t max_reads;    /* READs outstanding per connection; 0 = 256 */
	uint32_t max_conns;    /* peers at once; sizes shared queues; 0 = 64 */
	/* ibv: how long a device may not answer before its connection ends; 0 = 0.5 s */
	int64_t silence_ns;
	/* time that connect waits for an answer, and accept for its confirmation; 0 = 2.5 s */
	int64_t connect_ns;
	rv_log_fn log;
	void *log_ctx;
};

struct rv_caps {
	uint64_t max_msg;      /* bytes of one READ; larger ones must be split by the caller */
	uint32_t max_inline;   /* bytes sent inline, for information */
	uint32_t max_reads;    /* READs outstanding per connection, as granted */
	uint32_t max_sge;      /* landing pieces of one READ: RV_READ_SGE to RV_READ_SGE_MAX */
	/* READs the hardware works on at once per connection; 0 = not applicable */
	uint32_t max_rd_atomic;
	bool reads_inline;     /* a READ is complete when post_reads() returns (shm) */
	char device[64];       /* "shm", or the device's name, port and GID as text: "rxe0:1:1" */
};

struct rv_addr {
	uint16_t len;
	uint8_t bytes[RV_ADDR_MAX];
};

/* A registration. Filled by reg(); borrowed by the caller until dereg(). */
struct rv_mr {
	void *base;
	size_t length;
	uint64_t iova;         /* remote address of base; random, chosen by the caller */
	/* landing memory only: RV_ACCESS_REMOTE_READ memory is no landing place (lkey 0 on ibv) */
	uint32_t lkey;
	uint32_t rkey;         /* RV_ACCESS_REMOTE_READ only */
	void *impl;
};

struct rv_sge {
	void *addr;
	uint32_t length;
	uint32_t lkey;
};

/* A READ. The landing pieces are filled in order from remote
 * addr on. Total length <= caps.max_msg, may be 0. */
struct rv_read {
	uint64_t cookie;       /* comes back in the event; the caller's */
	uint64_t addr;
	uint32_t rkey;
	uint32_t nr_sge;       /* 0..caps.max_sge */
	struct rv_sge sge[RV_READ_SGE]; /* the first of them */
	/* the others; borrowed until post_reads returns; not looked at if there are none */
	const struct rv_sge *more;
	/* out, providers with reads_inline only: 0 or -errno, valid when post_reads counts it */
	int status;
};

static inline const struct rv_sge *rv_read_sge(const struct rv_read *r, uint32_t i)
{
	return i < RV_READ_SGE ? &r->sge[i] : &r->more[i - RV_READ_SGE];
}

/* A READ that ended well. */
struct rv_read_end {
	uint64_t cookie;
	void *user;            /* the user of its connection */
};

enum rv_event_type {
	/* a peer wants to connect: conn, data/len = its hello; answer with accept or reject */
	RV_EV_REQUEST = 1,
	RV_EV_CONNECTED,       /* conn is UP. On the connecting side data/len = the answer */
	/* connect or accept failed: status; data/len = the reason of a reject, if any */
	RV_EV_FAILED,
	/* the peer left, died, or the queue pair failed: status says which; call close_conn */
	RV_EV_DISCONNECTED,
	RV_EV_RECV,            /* a message: data/len, borrowed until recv_done(token) */
	RV_EV_READ,            /* a READ that was not reported by reads: cookie, status */
	RV_EV_WRITABLE,        /* send() works again after -EAGAIN */
	/* the fence is over: nothing of conn's, which is a name only, comes any more */
	RV_EV_CLOSED,
	/* providers without reads_inline: READs may be posted from now on; not any more */
	RV_EV_READS_UP,
	RV_EV_READS_DOWN,
	/* device or port changed: status 0 = information (text), else the device is unusable */
	RV_EV_DEVICE,
};

struct rv_event {
	enum rv_event_type type;
	int status;            /* 0 or -errno */
	/* the verbs status behind a failure, or -1: for error details only */
	int wc_status;
	struct rv_conn *conn;
	void *user;            /* the user of connect()/accept() */
	uint64_t cookie;       /* RV_EV_READ */
	/* RV_EV_RECV: until recv_done; REQUEST/CONNECTED/FAILED: until the next poll */
	const void *data;
	uint32_t len;
	uint64_t token;        /* RV_EV_RECV */
};

/* also look at connection events, async events, sockets (syscalls) */
#define RV_POLL_SLOW 1u
/* arm: wake for finished READs too, not for messages and connections only */
#define RV_ARM_READS 2u

#define RV_LOOKS 4096u /* looks of a device at once, each in a place of its own */
#define RV_MARK_WORDS 3

/* The core's name of what a look shows. word[0] is not 0. */
struct rv_mark {
	uint64_t word[RV_MARK_WORDS];
};

struct rv_want {
	uint64_t addr, length;
	uint32_t rkey;
	uint32_t place; /* below RV_LOOKS; no other look has it */
	struct rv_mark mark;
};

struct rv_look {
	const void *at; /* the bytes, in this process */
	void *impl;
};

/*
 * Looks: bytes of a peer, looked at where they lie, by a device that maps memory of its peers.
 *
 * The reader's side:
 * look        [any] Finds the bytes, and marks the place for the peer. conn must not be closed
 *             meanwhile, as for post_reads. 0: they stay mapped, and the peer finds the mark, until
 *             look_away; also when the connection has ended. -errno without a text: a READ finds
 *             the words.
 * look_away   [any, may block] Ends a look.
 * leave       [any] Tells all peers that no look begins any more. They read the marks once more.
 *
 * The owner's side:
 * let_look    [progress] Lets the peer look over a connection that may READ. *out is the peer's
 *             process with its marks, until let_go; it outlives the connection. -EOPNOTSUPP: the
 *             end of the process could not be seen, so it may not look.
 * nr_places   [progress] The first places, which may have marks: at most RV_LOOKS.
 * mark_at     [progress] The mark of a place. Returns false if there is none. All is the peer's
 *             word. Behind close_conn no mark comes whose look is good.
 * leaves      [progress] Whether it has called leave.
 * has_ended   [progress] Whether the process has ended: it looks at nothing any more.
 * let_go      [progress] Ends it.
 */
struct rv_look_ops {
	int (*look)(struct rv_conn *conn, const struct rv_want *want, struct rv_look *out);
	void (*look_away)(struct rv_dev *dev, uint32_t place, struct rv_look *look);
	void (*leave)(struct rv_dev *dev);
	int (*let_look)(struct rv_conn *conn, struct rv_onlooker **out);
	uint32_t (*nr_places)(const struct rv_onlooker *o);
	bool (*mark_at)(const struct rv_onlooker *o, uint32_t place, struct rv_mark *out);
	bool (*leaves)(const struct rv_onlooker *o);
	bool (*has_ended)(const struct rv_onlooker *o);
	void (*let_go)(struct rv_onlooker *o);
};

/*
 * The total table: no entry but look is NULL in any provider.
 *
 * open        [any] Opens the device and listens. Returns *out. -ENODEV: no (such) device, port or
 *             GID. The text names the missing item, the present items and the modules to load.
 *             -EPERM/-EACCES: device file; -ENOMEM memlock or memory.
 * close       [progress] Closes everything, all connections and registrations included. NULL is
 *             accepted.
 * caps, addr  [any] The device's abilities; the address blob for peers. Static for the device's
 *             life.
 * reach       [any] 0 if this provider can reach a peer with that address, else -EHOSTUNREACH.
 * reg         [any, may block] Registers [base, base+length). fd = the memory's memfd or -1. shm
 *             needs it for RV_ACCESS_REMOTE_READ (-EINVAL without), offset 0 of the fd = base. iova
 *             = the remote address of base. -ENOMEM: limit; the text names RLIMIT_MEMLOCK, its
 *             value and the size that was asked for, or plain memory.
 * dereg       [any, may block] On return no remote access to it is possible any more. 0, or -EBUSY:
 *             keep the memory.
 * connect     [progress] Starts connecting; the hello (<= RV_HELLO_MAX) is copied. Ends in
 *             CONNECTED or FAILED, soon after options.connect_ns at the latest: -ETIMEDOUT,
 *             -EHOSTUNREACH, -EPROTONOSUPPORT. -ECONNREFUSED: rejected, with a reason; without a
 *             reason no process listens there. -EAGAIN: the peer lives and has no room now
 *             (descriptors, memory), come again. -ECONNRESET: a process listens, and hung up
 *             without an answer (busy, or died meanwhile).
 * accept      [progress] Answers a REQUEST; the answer (<= RV_ANSWER_MAX) is copied. CONNECTED or
 *             FAILED follows. -EMFILE, -ENFILE, -ENOMEM: nothing follows; there is no room for it
 *             now, and shm has told the peer so.
 * reject      [progress] Refuses a REQUEST with a reason (<= RV_REASON_MAX, copied). The conn is
 *             gone on return.
 * seal        [progress] Adds a MAC to each message over conn from now on. The key `out` is for our
 *             messages, `in` for the peer's. Called before accept, or before the first send.
 *             Messages that do not fit (forged, changed, repeated, out of order) are not reported;
 *             the connection ends with -EBADMSG. 0; -EBADMSG: a message came already, without a
 *             MAC. A provider whose connections are its peer's alone does nothing.
 * allow_reads [progress] From now on the peer may READ over this connection; before, it has no
 *             remote access at all. Where not caps.reads_inline, READS_UP follows when both sides
 *             have called it. It is called again after READS_DOWN, when no thread is in post_reads.
 *             That ends the READs that are left, and their events follow. If READs do not come back
 *             in time the connection ends.
 * send        [progress] Copies the message (1..RV_MSG_MAX bytes) out. 0; -EAGAIN no credit or
 *             slot, WRITABLE follows; -ENOTCONN not UP; -EMSGSIZE.
 * post_reads  [any] Posts up to n READs with one doorbell. conn must not be closed meanwhile (the
 *             caller excludes it). Returns the number of posted READs (fewer than n: no slots, try
 *             the rest later). -errno if none was posted: -EAGAIN: no slots, or before READS_UP;
 *             -ENOTCONN, -EMSGSIZE, -EINVAL.
 *             -ENOMEM: a limit of this process stops only this READ, which may go well later. The
 *             text names the limit. A posted READ is reported exactly once. Where
 *             caps.reads_inline that is at once, in r[i].status. Elsewhere RV_EV_READ reports it
 *             if it failed or was cut off. If it ended well, mostly reads does.
 *             Its status: -EACCES, refused by the peer's device; -EFAULT, no landing place;
 *             -EPROTO, the peer broke the rules. All others say that the connection or its READs
 *             are gone, and nothing about this one. -ETIMEDOUT: the peer did not answer.
 * will_read   [progress] The program will probably READ length bytes at addr soon. A hint: shm
 *             brings the first of them into the processor's cache, if it has the region.
 * poll        [progress] Up to max events; flags: RV_POLL_SLOW. Returns their number, or -errno if
 *             the device is lost.
 * reads       [any] Takes in READs that ended well, at most max. Returns their number, -EAGAIN if
 *             other threads are at it. It waits for nobody, and a thread that stops inside holds up
 *             nobody. *more is set, and never cleared, if it found news that poll reports. In
 *             providers with reads_inline there is never any.
 * recv_done   [progress] Gives a message's buffer back (and thereby, sooner or later, its credit).
 * arm         [progress] Makes fd() readable when news arrives: messages, connection events, and
 *             finished READs if flags has RV_ARM_READS. The caller looks once more before it
 *             sleeps: by reads, whose -EAGAIN is no look, and by poll (RV_POLL_SLOW).
 * disarm      [progress] The caller is awake again: peers need not wake it any more, pending
 *             wake-ups are consumed.
 * fd          [any] A pollable (epoll) descriptor, static for the device's life.
 * close_conn  [progress] The fence, see above. Returns whether RV_EV_CLOSED follows. No READ is
 *             being posted to conn, or will be. NULL is accepted.
 * peer_text   [progress] Writes the peer's address for people ("10.77.0.2:34567", "pid 4711").
 */
struct rv_ops {
	const char *name;
	enum rv_kind kind;
	int (*open)(const struct rv_options *opt, struct rv_dev **out);
	void (*close)(struct rv_dev *dev);
	void (*caps)(struct rv_dev *dev, struct rv_caps *out);
	void (*addr)(struct rv_dev *dev, struct rv_addr *out);
	int (*reach)(struct rv_dev *dev, const struct rv_addr *to);
	int (*reg)(struct rv_dev *dev, void *base, size_t length, int fd, uint64_t iova,
		   enum rv_access access, struct rv_mr *out);
	int (*dereg)(struct rv_dev *dev, struct rv_mr *mr);
	int (*connect)(struct rv_dev *dev, const struct rv_addr *to, const void *hello, size_t len,
		       void *user, struct rv_conn **out);
	int (*accept)(struct rv_conn *conn, const void *answer, size_t len, void *user);
	void (*reject)(struct rv_conn *conn, const void *reason, size_t len);
	int (*seal)(struct rv_conn *conn, const uint8_t out[RV_SEAL_KEY_BYTES],
		    const uint8_t in[RV_SEAL_KEY_BYTES]);
	int (*allow_reads)(struct rv_conn *conn);
	int (*send)(struct rv_conn *conn, const void *msg, size_t len);
	int (*post_reads)(struct rv_conn *conn, struct rv_read *r, unsigned n);
	const struct rv_look_ops *look; /* NULL: no peer's memory can be looked at */
	void (*will_read)(struct rv_conn *conn, uint32_t rkey, uint64_t addr, uint64_t length);
	int (*poll)(struct rv_dev *dev, struct rv_event *ev, unsigned max, unsigned flags);
	int (*reads)(struct rv_dev *dev, struct rv_read_end *out, unsigned max, bool *more);
	void (*recv_done)(struct rv_dev *dev, uint64_t token);
	int (*arm)(struct rv_dev *dev, unsigned flags);
	void (*disarm)(struct rv_dev *dev);
	int (*fd)(struct rv_dev *dev);
	bool (*close_conn)(struct rv_conn *conn);
	void (*peer_text)(struct rv_conn *conn, char *buf, size_t size);
};

extern const struct rv_ops rv_shm_ops, rv_ibv_ops;

/* The text of the calling thread's last failure in this layer;
 * "" if none. Borrowed until the thread's next rv call. */
const char *rv_error_text(void);

/* [any] The devices of this machine, for people and for `auto`. One entry per port; found = number
 * filled, result >= 0 or -errno. */
struct rv_device_info {
	char name[64];
	int port;
	int gid_index;           /* the one that would be chosen, -1 = none usable */
	char gid[48], netdev[32], ip[48];
	char link[16];           /* "Ethernet", "InfiniBand" */
	char state[16];          /* "ACTIVE", "DOWN", ... */
	uint32_t active_mtu;
	uint64_t max_mr_size, max_msg;
	uint32_t max_qp, max_cq, max_mr, max_srq, max_sge, max_rd_atomic, max_inline;
	bool atomics, memory_windows, on_demand_paging;
	bool usable;
	char why_not[160];       /* when not usable */
};
int rv_ibv_devices(struct rv_device_info *out, int max, int *found);

#endif
