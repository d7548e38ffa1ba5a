/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Types: a name, an element size and flags, known to the group by a 64-bit hash of the three. Only
 * the hash travels with a value (its location and its header). Each worker keeps a table of the
 * types that it knows: built-in, its program's own or learnt. It asks a value's owner for a name
 * once. Entries are never removed: looking up takes no lock. call/type.c asks an owner.
 */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/guard.h"
#include "core/ctx.h"
#include "core/value/value.h"

#define BUCKETS 256u
#define TYPES_MAX 65536u

struct rc_types {
	pthread_mutex_t lock;                         /* adding */
	uint32_t nr;                                  /* guarded by lock */
	const struct rc_type *bytes;                  /* const after open */
	/* lists that are pushed under lock and read without */
	_Atomic(struct rc_type *) by_name[BUCKETS], by_hash[BUCKETS];
};

static const struct builtin {
	char name[12];
	size_t element_size;
} builtins[] = {
	{ "int8", 1 },	    { "int16", 2 },	  { "int32", 4 },   { "int64", 8 },
	{ "uint8", 1 },	    { "uint16", 2 },	  { "uint32", 4 },  { "uint64", 8 },
	{ "float16", 2 },   { "bfloat16", 2 },	  { "float32", 4 }, { "float64", 8 },
	{ "complex64", 8 }, { "complex128", 16 }, { "bytes", 1 },
};

/*
 * Returns the built-in type of that name, or of that name without []. *one: it is a single number.
 */
static const struct builtin *find_builtin(const char *name, bool *one)
{
	for (size_t i = 0; i < array_size(builtins); i++) {
		size_t n = strlen(builtins[i].name);
		bool bytes = i == array_size(builtins) - 1;

		if (strncmp(name, builtins[i].name, n) ||
		    (strcmp(name + n, "") && (bytes || strcmp(name + n, "[]"))))
			continue;
		*one = !name[n] && !bytes;
		return &builtins[i];
	}
	*one = false;
	return NULL;
}

/*
 * Returns the hash of docs/WIRE.md: the first 8 bytes of a hash of 16, the least that the library
 * makes. 0 stands for nothing.
 */
static uint64_t hash_of(const char *name, size_t element_size, unsigned flags)
{
	static const char label[] = "rref type 1";
	unsigned char hash[crypto_generichash_BYTES_MIN], number[12];
	crypto_generichash_state state;

	put_le64(number, element_size);
	put_le32(number + 8, flags);
	crypto_generichash_init(&state, NULL, 0, sizeof(hash));
	crypto_generichash_update(&state, (const unsigned char *)label, sizeof(label));
	crypto_generichash_update(&state, (const unsigned char *)name, strlen(name) + 1);
	crypto_generichash_update(&state, number, sizeof(number));
	crypto_generichash_final(&state, hash, sizeof(hash));
	return max_of(get_le64(hash), UINT64_C(1));
}

static unsigned name_bucket(const char *name)
{
	uint32_t h = 2166136261u;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 16777619u;
	return h % BUCKETS;
}

static const struct rc_type *find_name(struct rc_types *t, const char *name, size_t element_size,
				       unsigned flags)
{
	/* Acquire. Pairs with add, which releases: the contents of an entry never change. */
	for (const struct rc_type *e = at_load_acq(&t->by_name[name_bucket(name)]); e;
	     e = e->next_name)
		if (e->element_size == element_size && e->flags == flags &&
		    strcmp(e->name, name) == 0)
			return e;
	return NULL;
}

const struct rc_type *rc_type_find(struct rref_ctx *ctx, uint64_t hash)
{
	for (const struct rc_type *e = at_load_acq(&ctx->value.types->by_hash[hash % BUCKETS]); e;
	     e = e->next_hash)
		if (e->hash == hash)
			return e;
	return NULL;
}

const struct rc_type *rc_type_bytes(struct rref_ctx *ctx)
{
	return ctx->value.types->bytes;
}

static int add(struct rref_ctx *ctx, const char *name, size_t element_size, unsigned flags,
	       const struct rc_type **out)
{
	struct rc_types *t = ctx->value.types;
	size_t length = strlen(name);
	struct rc_type *e;
	int err = 0;

	pthread_mutex_lock(&t->lock);
	*out = find_name(t, name, element_size, flags);
	if (*out)
		goto unlock;
	if (t->nr == TYPES_MAX) {
		err = rc_fail(ENOMEM, "%u types are known, the limit", TYPES_MAX);
		goto unlock;
	}
	e = malloc(sizeof(*e) + length + 1);
	if (!e) {
		err = rc_fail(ENOMEM, "memory for a type");
		goto unlock;
	}
	*e = (struct rc_type){ .hash = hash_of(name, element_size, flags),
			       .element_size = element_size,
			       .flags = flags };
	find_builtin(name, &e->one);
	memcpy(e->name, name, length + 1);
	e->next_hash = at_load(&t->by_hash[e->hash % BUCKETS]);
	e->next_name = at_load(&t->by_name[name_bucket(name)]);
	at_store_rel(&t->by_hash[e->hash % BUCKETS], e);
	at_store_rel(&t->by_name[name_bucket(name)], e);
	t->nr++;
	*out = e;
unlock:
	pthread_mutex_unlock(&t->lock);
	return err;
}

int rc_types_open(struct rref_ctx *ctx)
{
	int err;

	ctx->value.types = calloc(1, sizeof(*ctx->value.types));
	if (!ctx->value.types)
		return rc_fail(ENOMEM, "memory for the table of types");
	pthread_mutex_init(&ctx->value.types->lock, NULL);
	for (size_t i = 0; i < array_size(builtins); i++) {
		char array[sizeof(builtins[0].name) + 2];
		const struct rc_type *e;

		err = add(ctx, builtins[i].name, builtins[i].element_size, 0, &e);
		ctx->value.types->bytes = e; /* the last of them */
		snprintf(array, sizeof(array), "%.11s[]", builtins[i].name);
		if (!err && i + 1 < array_size(builtins))
			err = add(ctx, array, builtins[i].element_size, 0, &e);
		if (err)
			return err;
	}
	ctx->value.bytes_hash = ctx->value.types->bytes->hash;
	return 0;
}

void rc_types_close(struct rref_ctx *ctx)
{
	struct rc_type *e, *next;

	if (!ctx->value.types)
		return;
	for (unsigned i = 0; i < BUCKETS; i++)
		for (e = at_load(&ctx->value.types->by_hash[i]); e; e = next) {
			next = e->next_hash;
			free(e);
		}
	pthread_mutex_destroy(&ctx->value.types->lock);
	free(ctx->value.types);
	ctx->value.types = NULL;
}

static bool name_valid(const char *name, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (name[i] < 0x21 || name[i] > 0x7e)
			return false;
	return length >= 1 && length <= RREF_NAME_MAX;
}

static int check_type(const struct rref_type *type, const char *what)
{
	if (type->size < offsetof(struct rref_type, flags) + sizeof(type->flags))
		return rc_fail(EINVAL, "%s: the type's size is not set", what);
	if (!type->name || !name_valid(type->name, strnlen(type->name, RREF_NAME_MAX + 1)))
		return rc_fail(EINVAL, "%s: a type's name is 1 to %d visible ASCII characters",
			       what, RREF_NAME_MAX);
	if (type->flags & ~RREF_LOCAL_ONLY)
		return rc_fail(EINVAL, "%s: type %s: unknown flags %#x", what, type->name,
			       type->flags);
	return 0;
}

int rc_type_get(struct rref_ctx *ctx, const struct rref_type *type, const char *what,
		const struct rc_type **out)
{
	const struct builtin *b;
	size_t element_size;
	bool one;

	if (!type) {
		*out = rc_type_bytes(ctx);
		return 0;
	}
	int err = check_type(type, what);

	if (err)
		return err;
	element_size = type->element_size;
	b = find_builtin(type->name, &one);
	if (b && element_size && element_size != b->element_size)
		return rc_fail(EINVAL, "%s: elements of type %s have %zu bytes, not %zu", what,
			       type->name, b->element_size, element_size);
	if (b)
		element_size = b->element_size;
	*out = find_name(ctx->value.types, type->name, element_size, type->flags);
	return *out ? 0 : add(ctx, type->name, element_size, type->flags, out);
}

void rc_type_describe(const struct rc_type *t, struct rref_type *out)
{
	struct rref_type told = { .size = out->size,
				  .name = t->name,
				  .element_size = t->element_size,
				  .flags = t->flags };

	memcpy(out, &told, min_of(out->size, sizeof(told)));
}

int rc_type_learn(struct rref_ctx *ctx, uint64_t hash, const char *name, size_t length,
		  size_t element_size, unsigned flags, const struct rc_type **out)
{
	char text[RREF_NAME_MAX + 1];

	if (!name_valid(name, length) || (flags & ~RREF_LOCAL_ONLY))
		return -EBADMSG;
	memcpy(text, name, length);
	text[length] = 0;
	/* The hash came with the value, and decides: a name that does not fit it is not this
	 * type's. */
	if (hash_of(text, element_size, flags) != hash)
		return -EBADMSG;
	return add(ctx, text, element_size, flags, out);
}

const char *rc_type_words(const struct rc_type *t, char *buf, size_t size)
{
	char elements[48] = "";

	if (t->element_size)
		snprintf(elements, sizeof(elements), "elements of %zu bytes", t->element_size);
	snprintf(buf, size, "%s (%s%s%s)", t->name, *elements ? elements : "no element size",
		 t->flags & RREF_LOCAL_ONLY ? ", " : "",
		 t->flags & RREF_LOCAL_ONLY ? "local only" : "");
	return buf;
}

int rc_type_check_out(const struct rref_type *out, const char *what)
{
	return out->size < sizeof(size_t) ? rc_fail(EINVAL, "%s: out->size is not set", what) : 0;
}

int rref_view_type(const struct rref_view *view, struct rref_type *out)
{
	RB_NO_CANCEL;
	const struct rc_type *t;

	if (!view || !out)
		return rc_fail(EINVAL, "rref_view_type: no view, or nowhere to put the type");
	int err = rc_view_lost(view) ? rc_fail_child() : rc_type_check_out(out, "rref_view_type");

	if (err)
		return err;
	const struct rc_value *own = rc_value_of(view);

	t = own ? own->type : rc_type_find(view->ctx, rc_landing_of(view)->type_hash);
	if (!t)
		return rc_fail(
			ENOENT,
			"rref_view_type: the type's name is not known here: "
			"rref_get_type asks for it");
	rc_type_describe(t, out);
	return 0;
}
