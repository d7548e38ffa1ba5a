/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tests of the device layer with real processes. A node is a device, its connections and their
 * events. A peer is a forked process that is its own node and does what the parent tells it.
 *
 * The provider is chosen by RREF_TEST_DEVICE = shm (default) | ibv. RREF_TEST_SCALE divides the
 * long loops' counts; it is 1 for shm and 100 for ibv, whose test machine is emulated. Every wait
 * ends, at the latest after tlv_deadline_ns.
 */
#ifndef TL_RV_H
#define TL_RV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "verbs/rv.h"

#define TLV_MAX_CONNS 160
#define TLV_MAX_HELD 256
#define TLV_MAX_REGIONS 64
#define TLV_MAX_READS 1024
#define TLV_PATTERN_LOCAL 0xee
#define TLV_UNFINISHED 1

enum tlv_policy { TLV_ACCEPT, TLV_REJECT, TLV_IGNORE };

enum tlv_mode {
	TLV_COUNT,      /* count and check messages */
	TLV_ECHO,       /* send each back */
	/* keep messages, free them out of order when many are kept: a slow receiver */
	TLV_HOLD,
	TLV_KEEP,       /* keep them until told */
};

struct tlv_node;

struct tlv_conn {
	struct tlv_node *node;
	struct rv_conn *conn;
	bool up, failed, down;
	bool closes; /* CLOSED is to come */
	int status, wc_status;
	unsigned nr_connected, nr_failed, nr_disconnected, nr_writable;
	bool reads_up; /* providers without reads_inline */
	unsigned nr_reads_up, nr_reads_down;
	/* hello at the acceptor, answer or reason at the connector */
	unsigned char text[256];
	uint32_t text_len;
	bool requested;
	uint64_t nr_recv, nr_bad, bytes;        /* nr_bad: out of order or wrong bytes */
	uint64_t nr_sent;
	uint32_t last_len;
};

struct tlv_held {
	struct tlv_conn *c;
	uint64_t token;
	const void *data;
	uint32_t len;
};

struct tlv_region {
	struct rv_mr mr;
	int fd;
	unsigned char *mem;
	size_t size;
};

struct tlv_node {
	const struct rv_ops *ops;
	struct rv_dev *dev;
	struct rv_caps caps;
	struct rv_addr addr;
	enum tlv_policy policy;
	enum tlv_mode mode;
	/* allow_reads on every connection that comes up, and again when its READs are cut off */
	bool allow;
	/* close_conn on DISCONNECTED and FAILED, as a program does */
	bool close_ended;
	unsigned char answer[256];
	uint32_t answer_len;
	struct tlv_conn conns[TLV_MAX_CONNS];
	unsigned nr_conns;
	struct tlv_held held[TLV_MAX_HELD];
	unsigned nr_held;
	struct tlv_region regions[TLV_MAX_REGIONS];
	uint64_t nr_events, nr_unknown;
	uint64_t nr_timeouts;                   /* sleeps that ran to their end */
	/* time-outs after which there was something: a lost wake-up */
	uint64_t nr_late;
	/* status by cookie, or TLV_UNFINISHED; atomic: threads that read wait for it */
	_Atomic int read_status[TLV_MAX_READS];
	unsigned read_reports[TLV_MAX_READS];
};

/* The table under test. The program sets it, so that tests of other
 * things need not link every provider. */
extern const struct rv_ops *tlv_ops;
bool tlv_is_shm(void);
unsigned tlv_scaled(unsigned n);
int64_t tlv_deadline_ns(void);
void tlv_sleep_ms(int ms);

/* A node. Results are 0 or -errno, like the layer's. */
int tlv_open(struct tlv_node *n, const struct rv_options *opt);
void tlv_close(struct tlv_node *n);
struct tlv_conn *tlv_connect(struct tlv_node *n, const struct rv_addr *to, const void *hello,
			     size_t len);
/* Closes the connection. The fence is over when c->closes is false. */
void tlv_close_conn(struct tlv_conn *c);
/* Makes one round: takes in present events, else sleeps up to ms (0:
 * does not). Returns the number of events. */
int tlv_pump(struct tlv_node *n, int ms, int other_fd);
/* Takes in READs that ended well, and nothing else. Returns their number. Sets *more if there is
 * news that the pump reports. */
int tlv_take_reads(struct tlv_node *n, bool *more);
/* Pump until *flag, or *count >= target; false at the deadline. */
bool tlv_until(struct tlv_node *n, const bool *flag);
bool tlv_until_count(struct tlv_node *n, const uint64_t *count, uint64_t target);
/* Pumps for that long. */
void tlv_pump_for(struct tlv_node *n, int ms);
/* Sends the next message of a numbered stream; waits for WRITABLE after -EAGAIN. */
int tlv_send_next(struct tlv_conn *c, size_t len);
void tlv_release_all(struct tlv_node *n);

/* Look at this process: its open descriptors, its lowest free one, its mappings. */
unsigned tlv_open_fds(void);
unsigned tlv_lowest_free_fd(void);
unsigned tlv_maps(void);

struct tlv_region *tlv_region(struct tlv_node *n, size_t size, enum rv_access access,
			      uint64_t seed);
int tlv_unregion(struct tlv_node *n, struct tlv_region *r);
void tlv_fill(unsigned char *p, size_t size, uint64_t seed);
/* Returns the first wrong byte's index, or -1. */
int64_t tlv_differs(const unsigned char *p, size_t size, uint64_t seed, uint64_t offset);

/* Posts all and waits for all; sets the cookies. Returns 0, or -errno if
 * one could not be posted; r[i].status is set. */
int tlv_reads(struct tlv_conn *c, struct rv_read *r, unsigned nr);
/* A region of the peer. tlv_read READs [offset, offset+len) of it into the start of `to`, and
 * returns the status, or -errno of posting. */
struct tlv_remote {
	uint64_t iova;
	uint32_t rkey;
	uint64_t size, index;                   /* index: its name at the peer */
};
int tlv_read(struct tlv_conn *c, const struct tlv_remote *from, uint64_t offset,
	     struct tlv_region *to, size_t len);

/* A peer. */
enum tlv_op {
	TLV_OP_OPEN = 1,
	TLV_OP_POLICY,
	TLV_OP_REGION,
	TLV_OP_UNREGION,
	TLV_OP_FILL,
	TLV_OP_STATE,
	TLV_OP_SEND,
	TLV_OP_CLOSE_CONN,
	TLV_OP_ALLOW,
	TLV_OP_RELEASE,
	TLV_OP_CONNECT,
	TLV_OP_COUNT,
	TLV_OP_EXIT,
};

struct tlv_msg {
	int op, status;
	uint64_t a, b, c, d;
	struct rv_addr addr;
	struct rv_options opt;
	/* STATE: as the peer sees it; pointers in it mean nothing here */
	struct tlv_conn conn;
	unsigned char bytes[256];
	uint32_t len;
};

struct tlv_peer {
	pid_t pid;
	int ctl;
	bool allows; /* its policy */
	struct rv_addr addr;
};

void tlv_fork(struct tlv_peer *p);
/* Asks and waits for the answer; fails the test if no answer comes. */
struct tlv_msg tlv_ask(struct tlv_peer *p, struct tlv_msg m);
/* The two halves of tlv_ask. */
void tlv_tell(struct tlv_peer *p, struct tlv_msg m);
struct tlv_msg tlv_hear(struct tlv_peer *p);
void tlv_peer_open(struct tlv_peer *p, const struct rv_options *opt);
void tlv_peer_policy(struct tlv_peer *p, enum tlv_policy policy, enum tlv_mode mode, bool allow,
		     const void *answer, size_t len);
struct tlv_remote tlv_peer_region(struct tlv_peer *p, size_t size, enum rv_access access,
				  uint64_t seed);
/* Returns the peer's index-th connection, once the peer reports it: pumps n meanwhile. */
struct tlv_conn tlv_peer_conn(struct tlv_peer *p, unsigned index);
/* Waits until the peer's index-th connection is up / has ended. */
bool tlv_peer_until_up(struct tlv_peer *p, struct tlv_node *n, unsigned index);
bool tlv_peer_until_down(struct tlv_peer *p, struct tlv_node *n, unsigned index,
			 struct tlv_conn *out);
/* Ends the peer and waits for it; fails the test if it did not end well. */
void tlv_peer_exit(struct tlv_peer *p);
void tlv_peer_kill(struct tlv_peer *p);
/* Ends the rest of the peer, in any state: for teardown. */
void tlv_peer_reap(struct tlv_peer *p);

#endif
