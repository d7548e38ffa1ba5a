/* SPDX-License-Identifier: Apache-2.0 */
/* Small things that every layer uses: monotonic time,
 * little-endian packing, containers, intrusive lists. Header only. */
#ifndef RREF_BASE_UTIL_H
#define RREF_BASE_UTIL_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define array_size(a) (sizeof(a) / sizeof((a)[0]))
#define min_of(a, b) ((a) < (b) ? (a) : (b))
#define max_of(a, b) ((a) > (b) ? (a) : (b))

#define NSEC_PER_SEC INT64_C(1000000000)
#define NSEC_PER_MSEC INT64_C(1000000)
#define NSEC_PER_USEC INT64_C(1000)

/* CLOCK_MONOTONIC only: a step of the wall clock must never fence a peer. */
static inline int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

/*
 * A decimal number in text. printf's %f takes its point from the program's locale, which may have a
 * comma there. A dump, a trace or a log must be the same everywhere. A negative number counts as 0.
 */
struct decimal {
	char text[32];
};

/* Writes value / 10^digits with that many digits behind the point; digits is 1 to 9. */
static inline struct decimal decimal_text(int64_t value, int digits)
{
	struct decimal d;
	int64_t whole = max_of(value, 0), unit = 1;

	for (int i = 0; i < digits; i++)
		unit *= 10;
	snprintf(d.text, sizeof(d.text), "%lld.%0*lld", (long long)(whole / unit), digits,
		 (long long)(whole % unit));
	return d;
}

/* Writes a time as seconds, rounded to tenths: "1.5". */
static inline struct decimal seconds_text(int64_t ns)
{
	const int64_t tenth = 100 * NSEC_PER_MSEC;

	return decimal_text(ns / tenth + (ns % tenth >= tenth / 2), 1);
}

/* The wire is little-endian; packing goes byte-wise so that
 * neither alignment nor the host's order matters. */
static inline void put_le16(void *p, uint16_t v) { v = htole16(v); memcpy(p, &v, 2); }
static inline void put_le32(void *p, uint32_t v) { v = htole32(v); memcpy(p, &v, 4); }
static inline void put_le64(void *p, uint64_t v) { v = htole64(v); memcpy(p, &v, 8); }
static inline uint16_t get_le16(const void *p) { uint16_t v; memcpy(&v, p, 2); return le16toh(v); }
static inline uint32_t get_le32(const void *p) { uint32_t v; memcpy(&v, p, 4); return le32toh(v); }
static inline uint64_t get_le64(const void *p) { uint64_t v; memcpy(&v, p, 8); return le64toh(v); }

/* A few bytes, as names are: some moves, where memcpy would be
 * called, or become a loop byte by byte. */
static inline void copy_short(void *to, const void *from, size_t n)
{
	uint8_t *t = (uint8_t *)to;
	const uint8_t *f = (const uint8_t *)from;

	if (n >= 8) {
		for (size_t i = 0; i < n - 8; i += 8)
			memcpy(t + i, f + i, 8);
		memcpy(t + n - 8, f + n - 8, 8);
	} else if (n >= 4) {
		memcpy(t, f, 4);
		memcpy(t + n - 4, f + n - 4, 4);
	} else if (n) {
		t[0] = f[0];
		t[n / 2] = f[n / 2];
		t[n - 1] = f[n - 1];
	}
}

/* A doubly linked circular list. An empty head points at itself.
 * A removed node does too, so that removing twice is safe. */
struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l) { l->next = l->prev = l; }
static inline int list_empty(const struct list *l) { return l->next == l; }
static inline void list_add(struct list *head, struct list *n) /* first */
{
	n->next = head->next;
	n->prev = head;
	head->next->prev = n;
	head->next = n;
}
static inline void list_add_tail(struct list *head, struct list *n)
{
	n->prev = head->prev;
	n->next = head;
	head->prev->next = n;
	head->prev = n;
}
static inline void list_del(struct list *n)
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	list_init(n);
}
static inline struct list *list_pop(struct list *head)
{
	struct list *n = head->next;

	if (n == head)
		return NULL;
	list_del(n);
	return n;
}
/* The first of a list that is not empty; it is in none afterwards, and does not say so itself. */
static inline struct list *list_take(struct list *head)
{
	struct list *n = head->next;

	head->next = n->next;
	n->next->prev = head;
	return n;
}
#define list_for_each_safe(pos, tmp, head) \
	for ((pos) = (head)->next, (tmp) = (pos)->next; (pos) != (head); \
	     (pos) = (tmp), (tmp) = (pos)->next)

/* Returns true if the nr-th event of its kind is worth a line: the first 32, then powers of two.
 * Strangers can cause such events. */
static inline bool worth_logging(uint64_t nr)
{
	return nr <= 32 || (nr & (nr - 1)) == 0;
}

#endif
