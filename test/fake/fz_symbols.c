/* SPDX-License-Identifier: Apache-2.0 */
#include "fz_symbols.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tg.h"

static struct fz_symbol *symbols;
static size_t nr;

/* Returns whether the name, of a function that is in no file's part of the table, is librref's. */
static bool is_ours(const char *name)
{
	static const char *const prefixes[] = { "rc_", "rref_", "rv_", "rvi_", "rp_", "rw_",
						"rb_", "ra_" };

	if (!strncmp(name, "ra_je_", 6))
		return false;
	for (size_t i = 0; i < array_size(prefixes); i++)
		if (!strncmp(name, prefixes[i], strlen(prefixes[i])))
			return true;
	return false;
}

/*
 * The part of the table that is being read. Functions of one file stand behind the file's name, in
 * the order in which the linker took the files. That is the test, its helpers, librref, jemalloc
 * (*.pic.o) and the fake devices. Functions that other files know stand behind a file without a
 * name.
 */
struct part {
	bool named, library, behind;
};

static void begin_part(struct part *p, const char *file)
{
	p->behind |= strstr(file, ".pic.o") != NULL;
	p->named = *file;
	p->library = !p->behind && strncmp(file, "tg", 2) && strncmp(file, "tl_", 3) &&
		     !strstr(file, "_test.c");
}

static int by_address(const void *a, const void *b)
{
	const struct fz_symbol *x = a, *y = b;

	return (x->at > y->at) - (x->at < y->at);
}

static int find_base(struct dl_phdr_info *info, size_t size, void *base)
{
	(void)size;
	*(uintptr_t *)base = info->dlpi_addr;
	return 1; /* the program comes first */
}

static void take_table(const char *file, const Elf64_Shdr *sections, const Elf64_Shdr *table)
{
	const Elf64_Sym *s = (const void *)(file + table->sh_offset);
	const char *names = file + sections[table->sh_link].sh_offset;
	size_t n = table->sh_size / sizeof(*s);
	struct part part = { false };
	uintptr_t base = 0;

	dl_iterate_phdr(find_base, &base);
	symbols = calloc(n, sizeof(*symbols));
	TG_CHECK(symbols);
	for (size_t i = 0; i < n; i++) {
		const char *name = names + s[i].st_name;

		if (ELF64_ST_TYPE(s[i].st_info) == STT_FILE)
			begin_part(&part, name);
		if (ELF64_ST_BIND(s[i].st_info) != STB_LOCAL)
			part.named = false;
		if (ELF64_ST_TYPE(s[i].st_info) != STT_FUNC || !s[i].st_size)
			continue;
		symbols[nr++] = (struct fz_symbol){
			.at = base + s[i].st_value,
			.end = base + s[i].st_value + s[i].st_size,
			.name = name,
			.library = part.named ? part.library : is_ours(name),
		};
	}
	qsort(symbols, nr, sizeof(*symbols), by_address);
}

void fz_symbols_open(void)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	const Elf64_Shdr *sections;
	const Elf64_Ehdr *e;
	struct stat st;

	if (symbols)
		return;
	TG_CHECK(fd >= 0 && !fstat(fd, &st));
	e = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	TG_CHECK(e != MAP_FAILED);
	close(fd);
	sections = (const void *)((const char *)e + e->e_shoff);
	for (unsigned i = 0; i < e->e_shnum; i++)
		if (sections[i].sh_type == SHT_SYMTAB)
			take_table((const char *)e, sections, &sections[i]);
	TG_CHECK(nr);
}

struct fz_symbol *fz_symbol_of(uintptr_t at)
{
	size_t from = 0, to = nr;

	while (from < to) {
		size_t mid = (from + to) / 2;

		if (symbols[mid].at <= at)
			from = mid + 1;
		else
			to = mid;
	}
	return from && at < symbols[from - 1].end ? &symbols[from - 1] : NULL;
}

void fz_symbol_text(uintptr_t at, char *buf, size_t size)
{
	const struct fz_symbol *s = fz_symbol_of(at);

	if (s)
		snprintf(buf, size, "%s+0x%lx", s->name, (unsigned long)(at - s->at));
	else
		snprintf(buf, size, "0x%lx", (unsigned long)at);
}

unsigned fz_symbols_stopped(void)
{
	unsigned n = 0;

	for (size_t i = 0; i < nr; i++)
		n += symbols[i].stops > 0;
	return n;
}
