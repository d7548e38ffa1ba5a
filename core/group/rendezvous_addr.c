/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rendezvous' door: the address, the checks that need no socket, and which of the two sides
 * this worker is.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <unistd.h>

#include "base/limit.h"
#include "base/util.h"
#include "core/base/error.h"
#include "core/base/quote.h"
#include "core/group/rendezvous.h"

#define RESOLVE_PAUSE_NS (200 * NSEC_PER_MSEC)
/* time between two log lines about a wait; doubled each time */
#define STILL_FIRST_NS (500 * NSEC_PER_MSEC)
#define STILL_LAST_NS (60 * NSEC_PER_SEC)
#define RANKS_SHOWN 16 /* ranges in a text */
#define FORM "it must be host:port or [v6]:port"

/* Gives what is wrong with an IPv4 address, or NULL. */
static const char *wrong_v4(const struct in_addr *in)
{
	uint32_t host = ntohl(in->s_addr);

	if (IN_MULTICAST(host) || host == INADDR_BROADCAST)
		return "a multicast or broadcast address is no place to meet at";
	return NULL;
}

/* Gives what is wrong with an IPv6 address and the interface behind its %, or NULL. */
static const char *wrong_place(const struct in6_addr *in6, const char *scope)
{
	if (scope && (!scope[1] || strchr(scope + 1, '%')))
		return "behind the % must be the name of a network interface, as in "
		       "[fe80::1%eth0]:29500";
	if (IN6_IS_ADDR_LINKLOCAL(in6) && !scope)
		return "a link-local address needs its network interface, as in "
		       "[fe80::1%eth0]:29500";
	if (IN6_IS_ADDR_MULTICAST(in6))
		return "a multicast or broadcast address is no place to meet at";
	if (scope && !IN6_IS_ADDR_LINKLOCAL(in6))
		return "only a link-local address has a network interface behind a %";
	return NULL;
}

/* Gives what is wrong with an IPv6 address, given without its brackets, or NULL. */
static const char *wrong_v6(struct rz_address *a)
{
	char number[INET6_ADDRSTRLEN], *scope = strchr(a->host, '%');
	size_t length = scope ? (size_t)(scope - a->host) : strlen(a->host);
	const char *wrong;
	struct in6_addr in6;
	struct in_addr in;

	snprintf(number, sizeof(number), "%.*s", (int)min_of(length, sizeof(number) - 1), a->host);
	if (length >= sizeof(number) || inet_pton(AF_INET6, number, &in6) != 1)
		return "what stands in brackets is no IPv6 address";
	wrong = wrong_place(&in6, scope);
	if (wrong)
		return wrong;
	a->is_number = true;
	if (!IN6_IS_ADDR_V4MAPPED(&in6))
		return NULL;
	/* An IPv4 address in disguise is that address: workers that are given either form meet. */
	memcpy(&in, &in6.s6_addr[12], sizeof(in));
	inet_ntop(AF_INET, &in, a->host, sizeof(a->host));
	return wrong_v4(&in);
}

/*
 * Gives what is wrong with a name or an IPv4 address, or NULL. Letters do not depend on the locale.
 */
static const char *wrong_name(struct rz_address *a)
{
	size_t length = strlen(a->host), label = 0;
	struct in_addr in;

	if (strspn(a->host, "0123456789.") == length) {
		a->is_number = true;
		return inet_pton(AF_INET, a->host, &in) == 1
			       ? wrong_v4(&in)
			       : "an IPv4 address is four numbers of 0 to 255, as in 10.0.0.1";
	}
	for (const char *p = a->host; *p; p++) {
		if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.",
			    *p))
			return "a host's name has letters, digits, '-', '_' and '.', and nothing "
			       "else";
		label = *p == '.' ? 0 : label + 1;
		/* Allows one dot at the end, which says that the name is complete. */
		if (label > 63 || (!label && (p == a->host || p[-1] == '.')))
			return "each part of a host's name, between dots, has 1 to 63 characters";
	}
	return NULL;
}

/* Copies the host, and finds the port's text. Gives what is wrong with the form, or NULL. */
static const char *wrong_form(const char *text, struct rz_address *a, const char **port)
{
	const char *host = text, *end;

	if (strstr(text, "://"))
		return "no URL; " FORM ", without what stands before and behind that";
	if (strpbrk(text, " \t\r\n"))
		return "a space or the end of a line is in it; " FORM;
	if (text[0] == '[') {
		host = text + 1;
		end = strchr(host, ']');
		if (!end || end[1] != ':')
			return FORM;
		*port = end + 2;
	} else {
		end = strchr(text, ':');
		if (!end)
			return "no port; " FORM;
		/* "::1:80" could be two different things. */
		if (strchr(end + 1, ':'))
			return "an IPv6 address must stand in brackets; " FORM;
		*port = end + 1;
	}
	_Static_assert(RZ_HOST_MAX == 255, "the text below says so");
	if (end == host || end - host > RZ_HOST_MAX)
		return "the host must have 1 to 255 bytes; " FORM;
	memcpy(a->host, host, (size_t)(end - host));
	a->host[end - host] = '\0';
	return NULL;
}

static const char *wrong_port(const char *text, struct rz_address *a)
{
	unsigned number = 0;

	for (const char *p = text; *p && number <= 65535; p++) {
		if (*p < '0' || *p > '9')
			return "the port must be a number, 1 to 65535";
		number = number * 10 + (unsigned)(*p - '0');
	}
	if (number < 1 || number > 65535)
		return "the port must be a number, 1 to 65535";
	snprintf(a->port, sizeof(a->port), "%u", number & 0xffff);
	return NULL;
}

int rz_address_parse(const char *text, struct rz_address *out)
{
	struct rz_address a = { .is_number = false };
	const char *port, *wrong;

	if (!text)
		return rc_fail(EINVAL, "rendezvous: no address given; " FORM);
	rc_quote(a.text, sizeof(a.text), text, strlen(text));
	wrong = wrong_form(text, &a, &port);
	if (!wrong)
		wrong = wrong_port(port, &a);
	if (!wrong)
		wrong = text[0] == '[' ? wrong_v6(&a) : wrong_name(&a);
	if (wrong)
		return rc_fail(EINVAL, "rendezvous \"%s\": %s", a.text, wrong);
	*out = a;
	return 0;
}

void rz_still(struct rz_patience *p, const struct rc_group_log *log, const char *fmt, ...)
{
	char text[RREF_TEXT_SIZE];
	int64_t now = now_ns();
	va_list ap;

	/* The first line comes at once. */
	if (!p->said_at)
		p->said_at = now - STILL_FIRST_NS;
	if (now - p->said_at < max_of(p->step, STILL_FIRST_NS))
		return;
	p->said_at = now;
	p->step = min_of(max_of(2 * p->step, STILL_FIRST_NS), STILL_LAST_NS);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	rz_log(log, RREF_LOG_INFO, "%s", text);
}

/*
 * Tells whether a name without an address now may have one later. The cluster may start up, a link
 * come, a server answer.
 */
static bool may_change(int r, int err)
{
	switch (r) {
	case EAI_AGAIN:
	case EAI_NONAME:
	case EAI_NODATA:
	case EAI_ADDRFAMILY:
	case EAI_FAIL:
		return true;
	case EAI_SYSTEM:
		return err != EMFILE && err != ENFILE && err != ENOMEM;
	default:
		return false;
	}
}

/*
 * Returns 0, or the errno of a lack of descriptors. The resolver reports such a lack as a name that
 * does not exist.
 */
static int lacks_descriptors(void)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return errno;
	close(fds[0]);
	close(fds[1]);
	return 0;
}

/* Looks once. Returns 0 or an EAI_ code. */
static int look_up(const struct rz_address *a, struct addrinfo **out)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC,
				  .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_NUMERICSERV |
					      (a->is_number ? AI_NUMERICHOST : 0) };

	return getaddrinfo(a->host, a->port, &hints, out);
}

/*
 * Refuses other addresses than loopback without a group key. The user's own key proves "the same
 * user on this machine". So the rest of the network has no business here.
 */
static int check_local(const struct rz_address *a, const struct rc_key *key,
		       const struct addrinfo *list)
{
	char text[RZ_SOCKADDR_TEXT];

	for (const struct addrinfo *i = list; i && !key->is_group; i = i->ai_next)
		if (!rz_is_loopback(i->ai_addr))
			return rc_fail(EACCES,
				       "rendezvous \"%s\" (%s) is not a loopback address, which "
				       "needs a group key: put the same "
				       "random bytes into a file on every host, chmod 600, and "
				       "name it in RREF_KEY_FILE",
				       a->text, rz_sockaddr_text(i->ai_addr, i->ai_addrlen, text));
	return 0;
}

int rz_resolve(const struct rz_address *a, const struct rc_key *key, int64_t deadline,
	       struct rz_patience *patience, const struct rc_group_log *log, struct addrinfo **out)
{
	int64_t start = now_ns();
	struct addrinfo *list;
	int tries = 0, r, err, lack;

	for (;;) {
		const char *why;

		errno = 0;
		r = look_up(a, &list);
		err = errno;
		tries++;
		if (r == 0)
			break;
		why = r == EAI_SYSTEM ? rref_strerror(err) : gai_strerror(r);
		if (r == EAI_MEMORY)
			return rc_fail(ENOMEM, "rendezvous \"%s\": no memory to resolve the host",
				       a->text);
		lack = lacks_descriptors();
		if (lack)
			return rc_fail(lack, "rendezvous \"%s\": cannot resolve the host: %s",
				       a->text, limit_why("pipe", lack, 0));
		if (!may_change(r, err))
			return rc_fail(r == EAI_SYSTEM ? err : EINVAL,
				       "rendezvous \"%s\": cannot resolve the host: %s", a->text,
				       why);
		if (now_ns() + RESOLVE_PAUSE_NS >= deadline)
			return rc_fail(
				ETIMEDOUT,
				"rendezvous \"%s\": cannot resolve the host: %s (%d tries in %s s)",
				a->text, why, tries, seconds_text(now_ns() - start).text);
		rz_still(patience, log,
			 "rendezvous \"%s\": cannot resolve the host yet: %s; trying again",
			 a->text, why);
		(void)poll(NULL, 0, rz_poll_ms(now_ns() + RESOLVE_PAUSE_NS));
	}
	r = check_local(a, key, list);
	if (r)
		freeaddrinfo(list);
	else
		*out = list;
	return r;
}

void rz_resolve_again(const struct rz_address *a, const struct rc_key *key, struct addrinfo **list)
{
	struct addrinfo *now;

	if (a->is_number || look_up(a, &now))
		return;
	if (check_local(a, key, now)) {
		freeaddrinfo(now);
		return;
	}
	freeaddrinfo(*list);
	*list = now;
}

bool rz_is_loopback(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	if (sa->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)sa;

		return IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
		       (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && in6->sin6_addr.s6_addr[12] == 127);
	}
	return false;
}

const char *rz_sockaddr_text(const struct sockaddr *sa, socklen_t length,
			     char out[RZ_SOCKADDR_TEXT])
{
	char host[56], port[8];

	if (getnameinfo(sa, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		snprintf(out, RZ_SOCKADDR_TEXT, "an unknown address");
	else
		snprintf(out, RZ_SOCKADDR_TEXT, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host,
			 port);
	return out;
}

/* Appends the range first..last to a list of used bytes. Returns the bytes used then. */
static size_t add_range(char *out, size_t size, size_t used, uint32_t first, uint32_t last)
{
	used += (size_t)snprintf(out + used, size - used, "%s%u", used ? ", " : "", first);
	if (last > first && used < size)
		used += (size_t)snprintf(out + used, size - used, "%s%u",
					 last == first + 1 ? ", " : "-", last);
	return used;
}

uint32_t rz_ranks_text(const struct rz_presence *p, uint32_t world, bool present, char *out,
		       size_t size)
{
	uint32_t nr = 0, shown = 0, ranges = 0;
	size_t used = 0;

	out[0] = '\0';
	for (uint32_t i = 0, end; i < world; i = end) {
		end = i + 1;
		if (rz_is_present(p, i) != present)
			continue;
		while (end < world && rz_is_present(p, end) == present)
			end++;
		nr += end - i;
		if (ranges++ >= RANKS_SHOWN || used >= size)
			continue;
		shown += end - i;
		used = add_range(out, size, used, i, end - 1);
	}
	if (nr > shown && used < size)
		snprintf(out + used, size - used, " and %u more", nr - shown);
	return nr;
}

const char *rz_status_text(const struct rz_status *status, uint32_t world, char *out, size_t size)
{
	struct rz_presence left;
	char never[120], again[120];
	uint32_t nr_never = rz_ranks_text(&status->came, world, false, never, sizeof(never)),
		 nr_left;

	for (size_t i = 0; i < sizeof(left.bits); i++)
		left.bits[i] = status->came.bits[i] & (uint8_t)~status->present.bits[i];
	nr_left = rz_ranks_text(&left, world, true, again, sizeof(again));
	snprintf(out, size, "%u of %u workers came%s%s%s%s", world - nr_never, world,
		 nr_never == 0	 ? ""
		 : nr_never == 1 ? "; missing rank "
				 : "; missing ranks ",
		 never,
		 nr_left == 0	? ""
		 : nr_left == 1 ? "; left again: rank "
				: "; left again: ranks ",
		 again);
	return out;
}

int rz_poll_ms(int64_t until)
{
	int64_t left = until - now_ns();

	if (left <= 0)
		return 0;
	if (left > (int64_t)INT_MAX / 2 * NSEC_PER_MSEC)
		return INT_MAX / 2;
	return (int)((left + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC);
}

void rz_log(const struct rc_group_log *log, int level, const char *fmt, ...)
{
	char text[RREF_TEXT_SIZE];
	va_list ap;

	if (!log || !log->fn)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log->fn(log->ctx, level, text);
}

int rc_rendezvous(const char *address, uint32_t world, const struct rc_member *me,
		  const struct rc_key *key, int64_t deadline, const struct rc_group_log *log,
		  struct rc_member *members)
{
	struct rz_address a;
	int r;

	if (world < 1 || world > RZ_WORLD_MAX)
		return rc_fail(EINVAL, "rendezvous: world size %u is not in 1..%d", world,
			       RZ_WORLD_MAX);
	if (me->rank >= world)
		return rc_fail(EINVAL, "rendezvous: rank %u is not in 0..%u (world size %u)",
			       me->rank, world - 1, world);
	r = rc_name_check(me->name);
	if (r)
		return r;
	for (int k = 0; k < RV_NR_KINDS; k++)
		if (me->addr[k].len > RV_ADDR_MAX)
			return rc_fail(
				EINVAL,
				"rendezvous: a device address of %u bytes, at most %d are allowed",
				(unsigned)me->addr[k].len, RV_ADDR_MAX);
	if (world == 1) {
		members[0] = *me;
		return 0;
	}
	r = rz_address_parse(address, &a);
	if (r)
		return r;
	return me->rank == 0 ? rz_serve(&a, world, me, key, deadline, log, members)
			     : rz_come(&a, world, me, key, deadline, log, members);
}
