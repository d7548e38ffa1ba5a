/* SPDX-License-Identifier: Apache-2.0 */
/* The fake connection manager: the handshake, its data, refusals, goodbyes, lost requests. */
#include "fr.h"

#include <arpa/inet.h>
#include <errno.h>
#include <rdma/rdma_cma.h>

static struct rdma_event_channel *here, *there;
static struct rdma_cm_id *listener;

static struct sockaddr_in address_of(unsigned device, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = port };

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK + device);
	return a;
}

static int listening(void **state)
{
	struct sockaddr_in a = address_of(1, 0);

	(void)state;
	here = rdma_create_event_channel();
	there = rdma_create_event_channel();
	assert_int_equal(rdma_create_id(there, &listener, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_bind_addr(listener, (struct sockaddr *)&a), 0);
	assert_int_equal(rdma_listen(listener, 2), 0);
	return 0;
}

static int no_longer_listening(void **state)
{
	(void)state;
	rdma_destroy_id(listener);
	assert_false(fr_is_readable(there->fd, 0));
	assert_false(fr_is_readable(here->fd, 0));
	rdma_destroy_event_channel(here);
	rdma_destroy_event_channel(there);
	return 0;
}

/* Takes the next event, which must be that one; returns its connection data in *out. */
static struct rdma_cm_id *expect(struct rdma_event_channel *ch, enum rdma_cm_event_type type,
				 int status, struct rdma_conn_param *out, uint8_t *data)
{
	struct rdma_cm_event *e;
	struct rdma_cm_id *id;

	assert_true(fr_is_readable(ch->fd, 5000));
	assert_int_equal(rdma_get_cm_event(ch, &e), 0);
	assert_int_equal(e->event, type);
	assert_int_equal(e->status, status);
	id = e->id;
	if (out) {
		*out = e->param.conn;
		memcpy(data, out->private_data, out->private_data_len);
	}
	rdma_ack_cm_event(e);
	return id;
}

/* Makes an id and sends a request to that port of device 1. */
static struct rdma_cm_id *send_request_to(uint16_t port)
{
	struct sockaddr_in src = address_of(0, 0), dst = address_of(1, port);
	struct rdma_conn_param p = { .private_data = "hello",
				     .private_data_len = 5,
				     .responder_resources = 3,
				     .initiator_depth = 5,
				     .qp_num = 77 };
	struct rdma_cm_id *id;

	assert_int_equal(rdma_create_id(here, &id, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_resolve_addr(id, (struct sockaddr *)&src, (struct sockaddr *)&dst,
					   1000),
			 0);
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_ADDR_RESOLVED, 0, NULL, NULL), id);
	assert_int_equal(rdma_resolve_route(id, 1000), 0);
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_ROUTE_RESOLVED, 0, NULL, NULL), id);
	assert_int_equal(rdma_connect(id, &p), 0);
	return id;
}

static void handshake__carries_data_and_depths(void **state)
{
	struct rdma_cm_id *id = send_request_to(rdma_get_src_port(listener)), *asked;
	struct rdma_conn_param p;
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_RTR };
	uint8_t data[256];
	int mask;

	(void)state;
	assert_int_not_equal(rdma_init_qp_attr(id, &a, &mask), 0); /* not yet known */
	asked = expect(there, RDMA_CM_EVENT_CONNECT_REQUEST, 0, &p, data);
	assert_int_equal(p.private_data_len, 56);
	assert_memory_equal(data, "hello\0\0", 7);
	/* The other side serves what we ask for. */
	assert_int_equal(p.responder_resources, 5);
	assert_int_equal(p.initiator_depth, 3);
	p = (struct rdma_conn_param){ .private_data = "answer",
				      .private_data_len = 6,
				      .responder_resources = 4,
				      .initiator_depth = 2,
				      .qp_num = 78 };
	assert_int_equal(rdma_accept(asked, &p), 0);
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_CONNECT_RESPONSE, 0, &p, data), id);
	assert_int_equal(p.private_data_len, 196);
	assert_memory_equal(data, "answer\0\0", 8);
	assert_int_equal(p.responder_resources, 2);
	assert_int_equal(p.initiator_depth, 4);
	assert_int_equal(rdma_init_qp_attr(id, &a, &mask), 0);
	assert_int_equal(a.dest_qp_num, 78);
	assert_int_equal(rdma_init_qp_attr(asked, &a, &mask), 0);
	assert_int_equal(a.dest_qp_num, 77);
	assert_int_equal(rdma_establish(id), 0);
	assert_ptr_equal(expect(there, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, NULL), asked);
	assert_int_equal(rdma_disconnect(id), 0);
	expect(there, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, NULL);
	expect(here, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, NULL);
	rdma_destroy_id(asked);
	rdma_destroy_id(id);
}

static void connection__is_over_when_an_end_is_destroyed(void **state)
{
	struct rdma_cm_id *id = send_request_to(rdma_get_src_port(listener)), *asked;
	struct rdma_conn_param p = { .qp_num = 78 };

	(void)state;
	asked = expect(there, RDMA_CM_EVENT_CONNECT_REQUEST, 0, NULL, NULL);
	assert_int_equal(rdma_accept(asked, &p), 0);
	expect(here, RDMA_CM_EVENT_CONNECT_RESPONSE, 0, NULL, NULL);
	assert_int_equal(rdma_establish(id), 0);
	expect(there, RDMA_CM_EVENT_ESTABLISHED, 0, NULL, NULL);
	rdma_destroy_id(id);
	assert_ptr_equal(expect(there, RDMA_CM_EVENT_DISCONNECTED, 0, NULL, NULL), asked);
	rdma_destroy_id(asked);
}

static void request__nobody_listens(void **state)
{
	struct rdma_cm_id *id = send_request_to(1);

	(void)state;
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_REJECTED, 8, NULL, NULL), id);
	rdma_destroy_id(id);
}

static void request__is_rejected_with_a_reason(void **state)
{
	struct rdma_cm_id *id = send_request_to(rdma_get_src_port(listener)), *asked;
	struct rdma_conn_param p;
	uint8_t data[256];

	(void)state;
	asked = expect(there, RDMA_CM_EVENT_CONNECT_REQUEST, 0, NULL, NULL);
	assert_int_equal(rdma_reject(asked, "no", 2), 0);
	rdma_destroy_id(asked);
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_REJECTED, 28, &p, data), id);
	assert_int_equal(p.private_data_len, 148);
	assert_memory_equal(data, "no\0", 3);
	rdma_destroy_id(id);
}

static void request__is_lost_and_refused_by_knobs(void **state)
{
	uint64_t lost = fv_count(0).lost_requests, refused = fv_count(0).refused_requests;
	struct rdma_cm_id *first, *second, *third;

	(void)state;
	fv_knobs(0)->lose_requests = 1;
	fv_knobs(0)->refuse_requests = 1;
	first = send_request_to(rdma_get_src_port(listener));
	assert_false(fr_is_readable(here->fd, 20) || fr_is_readable(there->fd, 0));
	second = send_request_to(rdma_get_src_port(listener));
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_REJECTED, 28, NULL, NULL), second);
	assert_false(fr_is_readable(there->fd, 0));
	assert_int_equal(fv_count(0).lost_requests, lost + 1);
	assert_int_equal(fv_count(0).refused_requests, refused + 1);
	third = send_request_to(rdma_get_src_port(listener));
	rdma_destroy_id(expect(there, RDMA_CM_EVENT_CONNECT_REQUEST, 0, NULL, NULL));
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_REJECTED, 28, NULL, NULL), third);
	rdma_destroy_id(first);
	rdma_destroy_id(second);
	rdma_destroy_id(third);
}

static void requests__beyond_the_backlog_are_rejected(void **state)
{
	struct rdma_cm_id *id[3];

	(void)state;
	for (int i = 0; i < 3; i++)
		id[i] = send_request_to(rdma_get_src_port(listener));
	assert_ptr_equal(expect(here, RDMA_CM_EVENT_REJECTED, 28, NULL, NULL), id[2]);
	/* Requests that no program took are rejected when their listener goes. */
	rdma_destroy_id(listener);
	assert_false(fr_is_readable(there->fd, 0));
	expect(here, RDMA_CM_EVENT_REJECTED, 28, NULL, NULL);
	expect(here, RDMA_CM_EVENT_REJECTED, 28, NULL, NULL);
	assert_int_equal(rdma_create_id(there, &listener, NULL, RDMA_PS_TCP), 0);
	for (int i = 0; i < 3; i++)
		rdma_destroy_id(id[i]);
}

static void asker__goes_before_the_answer(void **state)
{
	struct rdma_cm_id *id = send_request_to(rdma_get_src_port(listener)), *asked;
	struct rdma_conn_param p = { .qp_num = 78 };

	(void)state;
	rdma_destroy_id(id);
	asked = expect(there, RDMA_CM_EVENT_CONNECT_REQUEST, 0, NULL, NULL);
	assert_int_not_equal(rdma_accept(asked, &p), 0);
	assert_ptr_equal(expect(there, RDMA_CM_EVENT_REJECTED, 4, NULL, NULL), asked);
	rdma_destroy_id(asked);
}

static void address__of_no_device_is_refused(void **state)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(10u << 24 | 7) };
	struct rdma_cm_id *id;

	(void)state;
	assert_int_equal(rdma_create_id(here, &id, NULL, RDMA_PS_TCP), 0);
	assert_int_equal(rdma_bind_addr(id, (struct sockaddr *)&a), -1);
	assert_int_equal(errno, ENODEV);
	rdma_destroy_id(id);
}

#define CM(name) cmocka_unit_test_setup_teardown(name, listening, no_longer_listening)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CM(address__of_no_device_is_refused),
		CM(asker__goes_before_the_answer),
		CM(connection__is_over_when_an_end_is_destroyed),
		CM(handshake__carries_data_and_depths),
		CM(request__is_lost_and_refused_by_knobs),
		CM(request__is_rejected_with_a_reason),
		CM(request__nobody_listens),
		CM(requests__beyond_the_backlog_are_rejected),
	};

	return cmocka_run_group_tests_name("cm", tests, NULL, NULL);
}
