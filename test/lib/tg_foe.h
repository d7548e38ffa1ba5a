/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers 0 and 1 use the library. Worker 2, the foe, is a member of the group, but speaks to the
 * device layer itself. It says things that no worker would. Worker 1 owns a value that worker 0
 * reads all the while, between calls.
 */
#ifndef TG_FOE_H
#define TG_FOE_H

#include "core/group/group.h"
#include "core/wire/wire.h"
#include "tg.h"
#include "verbs/rv.h"

#define FOE 2
#define FOE_WORLD 3
#define FOE_WAITING 450u     /* waiting handlers of the good workers for one caller */

/* Memory that the workers share, outside the library. */
struct shown {
	_Atomic uint64_t rounds;            /* made by the good pair: a call and a read each */
	struct {
		_Atomic uint64_t rejected, dropped, rss_kib, threads, forks, looks;
	} of[2];
	/* worker 0's call of the foe: 1 + -status, and its duration */
	_Atomic int64_t called, took_ns;
	char called_text[256];
	char logged[512];                   /* worker 1's last warning */
	_Atomic uint64_t logged_lines;      /* lines of worker 1, of all levels that are on */
};
_Static_assert(sizeof(struct shown) <= sizeof(((struct tg_shared *)0)->bytes), "it fits");

enum { F_END = 0, F_SERVED = 1, F_CALL_FOE = 2, F_ANSWER = 3 };

struct foe {
	const struct rv_ops *ops;
	struct rv_dev *dev;
	struct rc_key key;                  /* the group's */
	struct rc_identity identity;
	struct rc_key pair[FOE_WORLD];      /* keys with each of the others */
	struct rc_member me, members[FOE_WORLD];

	struct rv_conn *conn;               /* the present one */
	struct rc_handshake hs;
	uint8_t hello[RV_HELLO_MAX];
	size_t hello_length;
	uint8_t proof[RC_MAC_BYTES];
	uint64_t seq, got;                  /* messages sent, and received, in this session */
	bool connected, failed, ended;
	bool reads_up; /* ibv: READs may be posted */
	int status;                         /* status of the failure or the end */
	char reason[RV_REASON_MAX];

	struct rv_conn *request;            /* a peer's, when serving */
	uint8_t asked[RV_HELLO_MAX];
	size_t asked_length;

	bool deaf;                          /* takes messages, frees none */
	uint64_t nr_recv[RW_NR_TYPES], nr_proto[RP_MSG_NR_TYPES];
	uint64_t nr_again;                  /* replies -EAGAIN */
	int32_t reply_status, proto_status; /* statuses of the last ones */
	uint16_t reply_nr_refs;
	struct rp_fork reply_refs[RW_REFS_MAX]; /* the reply's references; if in a payload: */
	struct rp_location reply_loc;
	uint8_t reply_key[RW_KEY_BYTES];
	uint64_t word;                      /* word of later FORK_REQUESTs and records */
	uint64_t nr_read;                   /* ended READs of its own */
	int read_status;                    /* status of the last READ */
	char reply_text[RP_TEXT_MAX];
	struct rp_msg proto;                /* the last */
	struct rw_type_info told;           /* the last TYPE_ANSWER */
	char told_name[RREF_NAME_MAX + 1];
	void (*on_query)(struct foe *f, const struct rw_type_info *q); /* runs for a TYPE_QUERY */
	void (*on_call)(struct foe *f, const struct rw_call *c);       /* runs for a CALL */

	void *beacon;                       /* peers READ it: our device answers */
	struct rv_mr beacon_mr;
};

/* Functions that worker 1 serves besides tg_functions and "keep"; set before the test runs. */
extern const struct rref_function *foe_functions;
extern size_t foe_nr_functions;

struct shown *foe_shown(void);
int foe_worker(int rank, void *arg);

/* foe_pump takes in the foe's device events, once. foe_take
 * takes events that a poll has brought. */
void foe_pump(struct foe *f);
void foe_take(struct foe *f, const struct rv_event *ev, int n);

/*
 * Serves as the foe. foe_asked parses the hello of f->request, which the foe accepts, into *h.
 * foe_accept answers the request with the given bytes, right or wrong, and makes it f->conn.
 */
void foe_asked(struct foe *f, struct rc_handshake *h);
void foe_accept(struct foe *f, const struct rc_handshake *h, const uint8_t *answer, size_t length);

/* foe_make_hello makes a correct hello to worker `to`, and foe_dial sends it. foe_meet begins a
 * session that the worker accepts. */
void foe_make_hello(struct foe *f, int to);
void foe_dial(struct foe *f, int to);
void foe_meet(struct foe *f, int to);
void foe_hang_up(struct foe *f);
void foe_refused(struct foe *f, int to, int status, const char *text);

/* Send in sequence; return 0, or -errno when the connection has ended. */
int foe_send_bytes(struct foe *f, const void *bytes, size_t length);
int foe_say(struct foe *f, const struct rw_message *m);
int foe_say_number(struct foe *f, uint8_t type, uint64_t number);
int foe_say_proto(struct foe *f, enum rp_msg_type type, struct rref_id id, struct rref_id fork);
int foe_say_auth(struct foe *f);
int foe_say_received(struct foe *f, const uint8_t *proof);
size_t foe_a_call(uint8_t *buf, const char *name, uint64_t call_id, const struct rp_fork *refs,
		  unsigned nr);
/* Calls worker 0, which shares its own value (0,1); then ends that session. Returns the record. */
struct rp_fork foe_be_given(struct foe *f);
/* Calls a function with that reference, and returns its reply's status. */
int foe_reply_to(struct foe *f, const char *name, const struct rp_fork *ref);

/* foe_still_served: the session is alive, and all earlier messages were handled. foe_must_end: the
 * last message ends the session, and is counted. */
void foe_still_served(struct foe *f);
void foe_must_end(struct foe *f, int rank, uint64_t rejected_before, const char *what);

/* Return counters of a good worker, as they are now. foe_others_work waits until the good workers
 * have made a round. */
uint64_t foe_fresh_look(int rank, const _Atomic uint64_t *of);
uint64_t foe_rejected(int rank);
uint64_t foe_dropped(int rank);
void foe_others_work(void);

struct rref_id foe_id_of(uint32_t rank, uint64_t n);
/* Makes a fork record of the foe's, with f->word. */
struct rp_fork foe_record(struct foe *f, uint32_t owner, struct rref_id id, uint64_t fork);

/* Makes progress until cond; fails the test after a minute. */
#define FOE_UNTIL(f, cond) \
	do { \
		int64_t end_ = tg_deadline(); \
		while (!(cond)) { \
			TG_CHECK(now_ns() < end_); \
			foe_pump(f); \
		} \
	} while (0)

/* Declares a test with a body for the foe. */
#define FOE_TEST(name) \
	static void name##_body(struct foe *f); \
	static void name(void **state) \
	{ \
		void (*body)(struct foe *f) = name##_body; \
		struct tg_group g = { .world = FOE_WORLD, .timeout_s = 180 }; \
		(void)state; \
		assert_int_equal(tg_run_group(&g, foe_worker, &body), 0); \
	} \
	static void name##_body(struct foe *f)

#endif
