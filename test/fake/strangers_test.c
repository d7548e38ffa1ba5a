/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of strangers, of which any number may come. A poll takes a few of them. It asks nothing
 * about those that are refused. It neither rejects nor destroys, however many ids wait for that.
 */
#include "two_pairs.h"

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>

#define BATCH 16u
#define BACKLOG 128u
#define MANY 3000u

static _Thread_local bool polls; /* the device of the library, on this thread */
static _Atomic unsigned taken, asked, rejected, destroyed, by_the_poll;
static _Atomic bool hold, no_memory;

static void count_one(_Atomic unsigned *count)
{
	at_add(count, 1);
	at_add(&by_the_poll, polls);
}

int __real_rdma_get_cm_event(struct rdma_event_channel *ch, struct rdma_cm_event **out);
int __wrap_rdma_get_cm_event(struct rdma_event_channel *ch, struct rdma_cm_event **out);
int __real_rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t length);
int __wrap_rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t length);
int __real_rdma_destroy_id(struct rdma_cm_id *id);
int __wrap_rdma_destroy_id(struct rdma_cm_id *id);
bool __real_rvi_has_route(const struct rv_dev *dev, const struct sockaddr_storage *to);
bool __wrap_rvi_has_route(const struct rv_dev *dev, const struct sockaddr_storage *to);
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

int __wrap_rdma_get_cm_event(struct rdma_event_channel *ch, struct rdma_cm_event **out)
{
	int rc = __real_rdma_get_cm_event(ch, out);

	at_add(&taken, polls && !rc);
	return rc;
}

int __wrap_rdma_reject(struct rdma_cm_id *id, const void *data, uint8_t length)
{
	count_one(&rejected);
	return __real_rdma_reject(id, data, length);
}

int __wrap_rdma_destroy_id(struct rdma_cm_id *id)
{
	if (id->channel == a.node.dev->cm) {
		while (at_load(&hold))
			tlv_sleep_ms(1);
		count_one(&destroyed);
	}
	return __real_rdma_destroy_id(id);
}

bool __wrap_rvi_has_route(const struct rv_dev *dev, const struct sockaddr_storage *to)
{
	count_one(&asked);
	return __real_rvi_has_route(dev, to);
}

void *__wrap_malloc(size_t size)
{
	return polls && at_load(&no_memory) ? NULL : __real_malloc(size);
}

static struct rdma_event_channel *theirs;
static struct rdma_cm_id *strangers[MANY];
static unsigned nr_refused; /* strangers that heard of it */

static in_addr_t address_of_device(unsigned device)
{
	return htonl(INADDR_LOOPBACK + device);
}

static void look_at_a(void)
{
	unsigned before = at_load(&taken);

	polls = true;
	tlv_pump(&a.node, 0, -1);
	polls = false;
	assert_in_range(at_load(&taken) - before, 0, BATCH);
}

/* Takes the strangers' events, and goes on with their steps. */
static void strangers_hear(void)
{
	struct rdma_conn_param p = { .private_data = "hello",
				     .private_data_len = 5,
				     .qp_num = 77 };
	struct pollfd fd = { .fd = theirs->fd, .events = POLLIN };
	struct rdma_cm_event *e;

	while (poll(&fd, 1, 0) == 1) {
		assert_int_equal(rdma_get_cm_event(theirs, &e), 0);
		if (e->event == RDMA_CM_EVENT_ADDR_RESOLVED)
			assert_int_equal(rdma_resolve_route(e->id, 1000), 0);
		else if (e->event == RDMA_CM_EVENT_ROUTE_RESOLVED)
			assert_int_equal(rdma_connect(e->id, &p), 0);
		else
			nr_refused += e->event == RDMA_CM_EVENT_REJECTED;
		rdma_ack_cm_event(e);
	}
}

/* Has a stranger ask, without room for READs. */
static void stranger_asks(unsigned i)
{
	struct sockaddr_in from = { .sin_family = AF_INET }, to = from;

	from.sin_addr.s_addr = address_of_device(2);
	to.sin_addr.s_addr = address_of_device(0);
	to.sin_port = rdma_get_src_port(a.node.dev->listener);
	assert_int_equal(rdma_create_id(theirs, &strangers[i], NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_resolve_addr(strangers[i], (struct sockaddr *)&from,
					   (struct sockaddr *)&to, 1000),
			 0);
	strangers_hear();
}

static int strangers_come(void **state)
{
	(void)state;
	theirs = rdma_create_event_channel();
	open_one_end(&a);
	nr_refused = 0;
	taken = asked = rejected = destroyed = by_the_poll = 0;
	return 0;
}

static int strangers_go(void **state)
{
	(void)state;
	for (unsigned i = 0; i < MANY && strangers[i]; i++)
		rdma_destroy_id(strangers[i]);
	memset(strangers, 0, sizeof(strangers));
	tlv_close(&a.node);
	rdma_destroy_event_channel(theirs);
	assert_int_equal(at_load(&by_the_poll), 0);
	return 0;
}

static bool wakes_sleepers(void)
{
	struct pollfd fd = { .fd = a.node.ops->fd(a.node.dev), .events = POLLIN };

	return poll(&fd, 1, 0) == 1;
}

/* Looks at the device and the strangers until the condition holds. */
#define LOOK_UNTIL(cond) \
	do { \
		int64_t end_ = tlv_deadline_ns(); \
		while (!(cond)) { \
			assert_true(now_ns() < end_); \
			look_at_a(); \
			strangers_hear(); \
		} \
	} while (0)

static void requests__a_few_in_each_poll(void **state)
{
	(void)state;
	for (unsigned i = 0; i < BACKLOG; i++)
		stranger_asks(i);
	for (unsigned i = 0; i < BACKLOG / BATCH; i++) {
		assert_true(wakes_sleepers());
		look_at_a();
		assert_int_equal(at_load(&taken), (i + 1) * BATCH);
	}
	LOOK_UNTIL(nr_refused == BACKLOG && at_load(&destroyed) == BACKLOG);
	assert_int_equal(at_load(&rejected), BACKLOG);
}

/* Has more ids wait than may. No more are made, and no sleeper is woken for them. */
static void requests__while_a_destroy_hangs(void **state)
{
	unsigned n = 0, before;

	(void)state;
	at_store(&hold, true);
	for (; n < MANY / 2; n++) {
		stranger_asks(n);
		look_at_a();
	}
	before = at_load(&taken);
	assert_in_range(before, 1000, 1100);
	assert_int_equal(at_load(&destroyed), 0);
	look_at_a();
	assert_false(wakes_sleepers());
	assert_int_equal(at_load(&taken), before);
	/* No connect begins. */
	assert_int_equal(tlv_connect(&a.node, &a.node.addr, "hello", 5)->status, -ENOMEM);
	at_store(&hold, false);
	LOOK_UNTIL(nr_refused == n);
	LOOK_UNTIL(at_load(&destroyed) == at_load(&taken));
	for (unsigned i = 0; i < 10; i++)
		stranger_asks(n++);
	LOOK_UNTIL(nr_refused == n);
}

/* Refuses without memory, too, and stands still before it has no record left. */
static void requests__without_memory(void **state)
{
	unsigned n = 0;

	(void)state;
	at_store(&hold, true);
	at_store(&no_memory, true);
	for (; n < 100; n++) {
		stranger_asks(n);
		look_at_a();
	}
	assert_in_range(at_load(&taken), 32, 64);
	at_store(&hold, false);
	LOOK_UNTIL(nr_refused == n);
	at_store(&no_memory, false);
}

#define STRANGERS(name) cmocka_unit_test_setup_teardown(name, strangers_come, strangers_go)

int main(void)
{
	const struct CMUnitTest tests[] = {
		STRANGERS(requests__a_few_in_each_poll),
		STRANGERS(requests__while_a_destroy_hangs),
		STRANGERS(requests__without_memory),
	};

	setenv("RREF_TEST_DEVICE", "ibv", 1);
	tlv_ops = &rv_ibv_ops;
	return cmocka_run_group_tests_name("strangers (fake)", tests, NULL, NULL);
}
