#!/usr/bin/env python3
# Counts things that the style of the tree forbids, and compares each count with its line in
# test/tools/lint.txt. A count that is worse fails. lint.sh is the command; docs/TESTING.md tells.
#   lint.py [--show MEASURE] [--lower]     runs in the top folder of a tree
# Needs pmccabe (functions), universal-ctags (names), clang-format (format) and a C compiler.
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import tempfile

BUDGET = 'test/tools/lint.txt'
LIBRARY = ('include', 'base', 'verbs', 'alloc', 'core')
OUTSIDE = ('verbs/raw/', 'core/tools/')  # in these folders, but no part of the library
TESTS = ('test', 'perf', 'docs/examples', 'docs/model', '.ci') + OUTSIDE
COLUMNS = 100
WORDS = 20
FUNCTION_LINES = 70
COMPLEXITY = 10
FILE_LINES = 600
FORMATTER = 14  # .clang-format is written for this version

# ---- the files

ROOT = os.getcwd()


def text(name):
    with open(name, encoding='utf-8') as f:
        return f.read()


def below(folders, endings):
    found = set()
    for folder in folders:
        for where, inner, names in os.walk(folder):
            inner[:] = [i for i in inner if i != 'build']
            found.update(os.path.join(where, n) for n in names if n.endswith(endings))
    return found


class Part:
    """The files of the library, of the tests, or the pages."""

    def __init__(self, name):
        outside = tuple(OUTSIDE)
        self.name = name
        if name == 'library':
            self.c = sorted(f for f in below(LIBRARY, ('.c', '.h')) if not f.startswith(outside))
            self.hash = []
            self.pages = []
        elif name == 'tests':
            self.c = sorted(below(TESTS, ('.c', '.h', '.cc', '.pml')))
            scripts = below(TESTS, ('.sh', '.py', '.awk', '/run', '/init'))
            self.hash = sorted(scripts) + [f for f in ('Makefile', '.ci/run') if os.path.exists(f)]
            self.pages = []
        else:
            self.c = self.hash = []
            self.pages = sorted(glob.glob('*.md') + list(below(('docs',), '.md')))


# ---- comments

TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|(?://[^\n]*\n?[ \t]*)+',
                   re.S)


class Comment:
    def __init__(self, name, first, last, alone, lines):
        self.file, self.first, self.last = name, first, last
        self.alone = alone  # begins its line
        self.lines = lines  # without the comment's marks


def c_comments(name):
    code, found = text(name), []
    for m in TOKEN.finditer(code):
        said = m.group()
        if said[0] != '/':
            continue
        first = code.count('\n', 0, m.start()) + 1
        if said[1] == '*':
            lines = [re.sub(r'^\s*\* ?', '', x) for x in said[2:-2].split('\n')]
        else:
            said = said.rstrip()
            lines = [re.sub(r'^\s*// ?', '', x) for x in said.split('\n')]
        alone = not code[code.rfind('\n', 0, m.start()) + 1:m.start()].strip()
        found.append(Comment(name, first, first + said.count('\n'), alone, lines))
    return found


def hash_comments(name):
    found, lines, first = [], [], 0
    for nr, line in enumerate(text(name).split('\n') + [''], 1):
        m = re.match(r'\s*##? (.*)', line)
        if m:
            first = first or nr
            lines.append(m.group(1))
        elif lines:
            found.append(Comment(name, first, nr - 1, True, lines))
            lines, first = [], 0
    return found


def page_texts(name):
    """The paragraphs of a page, without code, tables and headings."""
    found, lines, first, code = [], [], 0, False
    for nr, line in enumerate(text(name).split('\n') + [''], 1):
        fence = line.lstrip().startswith('```')
        code ^= fence
        starts = bool(re.match(r'\s*([-*]|\d+\.) ', line))
        if code or fence or starts or not line.strip() or line[0] in '#|':
            if lines:
                found.append(Comment(name, first, nr - 1, True, lines))
            lines, first = [], 0
            if not starts or code or fence:
                continue
            line = re.sub(r'^\s*([-*]|\d+\.) ', '', line)
        first = first or nr
        lines.append(re.sub(r'\]\([^)]*\)', ']', line))
    return found


# ---- code without comments and texts

def bare(name):
    """The code, with blanks for the letters of comments and texts."""
    blank = lambda m: re.sub(r'[^\n]', ' ', m.group())
    return TOKEN.sub(blank, text(name))


def without_comments(said):
    return TOKEN.sub(lambda m: '' if m.group()[0] == '/' else m.group(), said)


def shipped(name):
    """The lines of a file with their numbers, without assertions and what only they need."""
    kept, inside, open_ = [], 0, 0
    for nr, line in enumerate(text(name).split('\n'), 1):
        begins = re.match(r'#\s*(if|else|endif)(?:def|ndef|\b)(.*)', line)
        if begins and (inside or begins[2].strip() in ('RB_CHECKED', 'RREF_CHECKED')):
            # One branch ships: the one behind #else.
            inside += {'if': 1, 'else': 0, 'endif': -1}[begins[1]]
            branch = branch if inside > 1 else begins[1]
        elif inside and branch == 'if' or line == '#include "base/assert.h"':
            pass
        elif open_ or re.match(r'\s+(rb_require|(r\w+_)?assert(?(2)\w*))\(', line):
            said = re.sub(r'"(?:\\.|[^"\\])*"|/\*.*', '', line)
            open_ += said.count('(') - said.count(')')
        else:
            kept.append((nr, line))
    return kept


def found_in(files, pattern, source=bare):
    rule = re.compile(pattern)
    for name in files:
        for nr, line in enumerate(source(name).split('\n'), 1):
            for m in rule.finditer(line):
                yield name, nr, m.group()


# ---- prose

CLAUSE = re.compile(r'(?:^|[.;:!?,]\s+|\(|\b(?:and|but|or|so|nor)\s+)'
                    r'(?:who|whom|whoever|what|whatever|those|none|one (?:that|who|of which))\b',
                    re.I)
OPENING = set('''
    it its they their them that those one ones he his we our us you your nobody none nothing who
    whom whose whoever what whatever which where when whenever how why whether of in for
    from with without to at on by as after before behind between among until till into over
    under since while if unless because though although than and or but nor inside outside
    within during about beside besides'''.split())
# Words in -s that are no verbs, where the tree has them at the beginning of a function's comment.
NO_VERB = set('''
    this its his as is us thus always perhaps besides unless across plus yes bytes threads
    messages references sessions connections readers peers values words things times
    operations results others statistics digits docs entries payloads providers refs regions
    texts arenas columns descriptors errors handlers headers lines members packets pieces
    rounds users'''.split())


def words(said):
    return re.findall(r"[A-Za-z][A-Za-z'-]*", said)


def joined(comment):
    """Its text in one line, without the guard or the kind of thread in front of it."""
    said = ' '.join(' '.join(comment.lines).split())
    return re.sub(r'^(?:\[[^\]]*\] |under the lock[;,:] )+', '', said)


def prose(comments):
    return [c for c in comments if len(words(joined(c))) >= 4 and 'SPDX' not in c.lines[0]]


def sentences(comment):
    """(line, sentence) for each; an empty line, a list's mark or a table ends one too."""
    blocks, lines = [], []
    for nr, line in enumerate(comment.lines, comment.first):
        if (not line.strip() or re.match(r'\s*([-*]|\d+\.) ', line)
                or re.search(r'\S(  |\t)\s*\S', line)):
            blocks.append(lines)
            lines = []
        lines.append((nr, line))
    for block in blocks + [lines]:
        at, said = [], ''
        for nr, line in block:
            at += [nr] * (len(line.strip()) + 1)
            said += line.strip() + ' '
        begin = 0
        for m in re.finditer(r'(?<!\.)(?<!\be\.g)(?<!\bi\.e)[.!?](?=[)"\']*(?:\s|$))', said):
            yield at[begin], said[begin:m.end()].strip()
            begin = m.end() + len(said[m.end():]) - len(said[m.end():].lstrip())
            if begin >= len(said):
                break
        if said[begin:].strip():
            yield at[begin], said[begin:].strip()


def clauses(comments):
    for c in prose(comments):
        for m in CLAUSE.finditer(joined(c)):
            before = [len(' '.join(' '.join(c.lines[:i + 1]).split())) for i in range(len(c.lines))]
            line = c.first + next((i for i, n in enumerate(before) if n > m.end() - 1), 0)
            yield c.file, line, joined(c)[m.start():m.end() + 30].lstrip(' .,;:!?(')


def openings(comments):
    for c in prose(comments):
        first = words(joined(c))[0].lower()
        if first in OPENING:
            yield c.file, c.first, joined(c)[:50]


def long_sentences(comments):
    for c in prose(comments):
        for line, said in sentences(c):
            n = len(re.findall(r"[\w'`][^\s]*", said))
            if n > WORDS:
                yield c.file, line, f'{n} words: {said[:60]}'


def no_verb(comments, functions):
    """Comments right above a function that begin with another word than a verb."""
    for c in prose(comments):
        name = functions.get((c.file, c.last + 1))
        if not name or not c.alone:
            continue
        first = words(joined(c))[0].lower()
        if joined(c).startswith('---'):
            continue
        if not re.fullmatch(r"[a-z]+s", first) or first in NO_VERB or first.endswith('ss'):
            yield c.file, c.first, joined(c)[:60]


# ---- lines and functions

def wide(files):
    for name in files:
        for nr, line in enumerate(text(name).split('\n'), 1):
            n = len(line.expandtabs(8))
            if n > COLUMNS:
                yield name, nr, f'{n} columns'


def wide_pages(files):
    for name in files:
        code = False
        for nr, line in enumerate(text(name).split('\n'), 1):
            code ^= line.lstrip().startswith('```')
            # A table's row and a link cannot be broken.
            if len(line) > COLUMNS and (code or line[:1] != '|' and '](' not in line):
                yield name, nr, f'{len(line)} columns'


def output(command, **more):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          check=False, **more).stdout


def ctags(files):
    """(name, file, line, whether it is static, whether it is a definition) of each function."""
    if not files:
        return []
    lines = output(['ctags', '-x', '--languages=C', '--kinds-C=fp', '--extras=+F', '--fields=+f',
                    '--_xformat=%{name}\t%{file}\t%{input}\t%{line}\t%{kind}', '-L', '-'],
                   input='\n'.join(files))
    found = []
    for line in lines.splitlines():
        name, static, file, nr, kind = line.split('\t')
        found.append((name, file, int(nr), static == 'file', kind.startswith('f')))
    return found


def twice(functions):
    where = {}
    for name, file, nr, static, definition in functions:
        if static and definition and name != 'main':
            where.setdefault(name, {})[file] = nr
    for name, places in sorted(where.items()):
        if len(places) > 1:
            yield [(file, nr, name) for file, nr in sorted(places.items())]


def pmccabe(files):
    """(file, line, lines, complexity, decisions, statements, name) of each function.

    Assertions are counted by themselves: they decide nothing.
    """
    found, numbers = [], {}
    with tempfile.TemporaryDirectory() as copies:
        for name in files:
            numbers[name], lines = zip(*shipped(name))
            os.makedirs(os.path.join(copies, os.path.dirname(name)), exist_ok=True)
            with open(os.path.join(copies, name), 'w', encoding='utf-8') as f:
                f.write('\n'.join(lines))
        said = output(['pmccabe'] + files, cwd=copies) if files else ''
    for line in said.splitlines():
        m = re.fullmatch(r'(\d+)\t(\d+)\t(\d+)\t(\d+)\t(\d+)\t(.*)\((\d+)\): (.*)', line)
        if m:
            nr = numbers[m[6]][int(m[7]) - 1]
            found.append((m[6], nr, int(m[5]), int(m[1]), int(m[2]) - 1, int(m[3]), m[8]))
    return found


def differing(files):
    """Lines that clang-format would change; None without the version that .clang-format is for."""
    try:
        version = output(['clang-format', '--version'])
    except OSError:
        version = 'none'
    if f'version {FORMATTER}.' not in version:
        return None

    def one(name):
        diff = output(['diff', name, '-'], input=output(['clang-format', name]))
        found = []
        for m in re.finditer(r'^(\d+)(?:,(\d+))?([acd])', diff, re.M):
            first, last = int(m[1]), int(m[2] or m[1])
            found += [(name, nr, 'clang-format') for nr in range(first, last + 1)]
        return found

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return [place for places in pool.map(one, files) for place in places]


def not_alone(files):
    """Headers that do not compile without another one before them."""
    def one(name):
        command = [os.environ.get('CC', 'cc'), '-std=gnu11', '-D_GNU_SOURCE', '-Iinclude', '-I.',
                   '-Wall', '-Werror', '-fsyntax-only', '-x', 'c', '-']
        run = subprocess.run(command, input=f'#include "{os.path.join(ROOT, name)}"\n',
                             stderr=subprocess.PIPE, text=True, check=False)
        why = re.search(r'error: (.*)', run.stderr)
        return [(name, 1, why[1] if why else 'fails')] if run.returncode else []

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = [f for f in files if f.endswith('.h')]
        return [place for places in pool.map(one, headers) for place in places]


def long_files(files):
    for name in files:
        n = len(shipped(name)) - 1
        if n > FILE_LINES:
            yield name, FILE_LINES + 1, f'{n} lines'


def foreign(files):
    """Fields in a struct of rref_ctx that another room's file reaches. A struct is its header's."""
    home = {}
    headers = [f for f in files if f.startswith('core/') and f.endswith('.h')]
    structs = {s: f for f in headers for s in re.findall(r'^struct (\w+) \{', text(f), re.M)}
    ctx = text('core/ctx.h') if 'core/ctx.h' in headers else ''
    for struct, field in re.findall(r'^\tstruct (\w+) (\w+);', ctx, re.M):
        if structs.get(struct, 'core/ctx.h') != 'core/ctx.h':
            home[field] = os.path.dirname(structs[struct])
    rooms = [f for f in files if re.match('core/[^/]+/', f)]
    for name, nr, said in found_in(rooms, r'\bctx->\w+\.\w+'):
        field = re.match(r'ctx->(\w+)', said)
        if field and home.get(field[1], os.path.dirname(name)) != os.path.dirname(name):
            yield name, nr, said


def layers():
    """What layers.sh finds; None without objects."""
    if not glob.glob('build/librref-test.a'):
        return None
    said = output(['bash', 'test/tools/layers.sh'])
    if not re.search(r'^\d+ passed, \d+ failed', said, re.M):
        return [('test/tools/layers.sh', 1, 'did not end')]
    return [('test/tools/layers.sh', 1, x) for x in re.findall(r'^FAILED (.*)', said, re.M)]


# ---- the measures

class Measure:
    """A count, its places, and its limit in the budget.

    rises: may only rise. step: the limit that --lower writes is rounded up to a multiple of it.
    """

    def __init__(self, name, what, places, count=None, note='', rises=False, step=1):
        self.missing = places is None
        self.name, self.what, self.note, self.rises, self.step = name, what, note, rises, step
        self.places = list(places or [])
        self.now = len(self.places) if count is None else count

    def worse(self, limit):
        return self.now < limit if self.rises else self.now > limit

    def tight(self):
        return self.now if self.rises else -(-self.now // self.step) * self.step


def per(n, of, unit):
    return f'{1000 * n / of:.1f} per 1,000 {unit}' if of else ''


def share(n, of, unit):
    return f'{100 * n / of:.1f} % of {of} {unit}' if of else ''


def prose_measures(prefix, comments, whose):
    nr_words = sum(len(words(joined(c))) for c in prose(comments))
    nr = len(prose(comments))
    who, odd, long = (list(f(comments)) for f in (clauses, openings, long_sentences))
    yield Measure(prefix + 'clauses',
                  f'{whose}: clauses that begin with who, what, whoever, those, none', who,
                  note=per(len(who), nr_words, 'words'))
    if prefix != 'page-':
        yield Measure(prefix + 'openings',
                      f'{whose}: begin with a pronoun, a relative, a preposition', odd,
                      note=share(len(odd), nr, 'comments'))
    yield Measure(prefix + 'sentences', f'{whose}: sentences of more than {WORDS} words', long)


def measures():
    for part, prefix, whose in ((Part('library'), '', 'comments'),
                                (Part('tests'), 'test-', 'comments of tests')):
        comments = [c for f in part.c for c in c_comments(f)]
        comments += [c for f in part.hash for c in hash_comments(f)]
        tags = ctags([f for f in part.c if f.endswith(('.c', '.h'))])
        yield from prose_measures(prefix, comments, whose)
        verbs = list(no_verb(comments, {(file, nr): name for name, file, nr, _, _ in tags}))
        yield Measure(prefix + 'verbless', 'comments of functions that do not begin with a verb',
                      verbs)
        yield Measure(prefix + 'width', f'lines of more than {COLUMNS} columns',
                      wide(part.c + part.hash))
        pairs = list(twice(tags))
        yield Measure(prefix + 'names', 'names of static functions that more than one file has',
                      [p for places in pairs for p in places], count=len(pairs))
        formatted = differing([f for f in part.c if f.endswith(('.c', '.h'))])
        yield Measure(prefix + 'format', 'lines that clang-format would change', formatted)
        functions = pmccabe([f for f in part.c if f.endswith(('.c', '.h'))])
        long = [(f, nr, f'{name}: {lines} lines') for f, nr, lines, _, _, _, name in functions
                if lines > FUNCTION_LINES]
        yield Measure(prefix + 'functions', f'functions of more than {FUNCTION_LINES} lines', long)
        hard = [(f, nr, f'{name}: {cc}') for f, nr, _, cc, _, _, name in functions
                if cc > COMPLEXITY]
        decisions, statements = (sum(f[i] for f in functions) for i in (4, 5))
        yield Measure(prefix + 'complexity', f'functions of a complexity above {COMPLEXITY}', hard,
                      note=share(len(hard), len(functions), 'functions') + (
                          f', {100 * decisions / statements:.0f} decisions in 100 statements'
                          if statements else ''))
        yield Measure(prefix + 'files', f'files of more than {FILE_LINES} lines',
                      long_files(part.c))
        if prefix:
            continue
        marks = [(c.file, c.first + i, line.strip()[:60]) for c in comments
                 for i, line in enumerate(c.lines) for _ in re.findall(r'\[lock\]', line)]
        yield Measure('lock-marks', '"[lock]" in comments', marks)
        yield Measure('bool-locked', '"bool locked"', found_in(part.c, r'\bbool locked\b'))
        asserted = (r'^(?!\s*#).*\b(?!_?[Ss]tatic_|rb_assert_failed)'
                    r'(?:(?:\w+_)?assert(?:_\w+)?|rb_require)\s*\(')
        yield Measure('assertions', 'assertions at run time',
                      found_in(part.c, asserted), rises=True)
        lines = sum(text(f).count('\n') for f in part.c)
        code = sum(1 for f in part.c
                   for line in without_comments('\n'.join(x for _, x in shipped(f))).split('\n')
                   if line.strip())
        yield Measure('lines', 'lines of code, without comments, assertions and empty lines', [],
                      count=code, step=500, note=f'{lines} with them')
        yield Measure('foreign', 'fields of a room of core/ that files of another room reach',
                      foreign(part.c))
        yield Measure('headers', 'headers that do not compile alone', not_alone(part.c))
    yield Measure('layers', 'failures of layers.sh', layers())
    pages = Part('pages').pages
    yield from prose_measures('page-', [c for f in pages for c in page_texts(f)], 'pages')
    yield Measure('page-width', f'lines of more than {COLUMNS} columns, tables left out',
                  wide_pages(pages))


# ---- the budget

def read_budget():
    limits = {}
    if os.path.exists(BUDGET):
        for line in text(BUDGET).splitlines():
            if line.strip() and line[0] != '#':
                name, limit = line.split()[:2]
                limits[name] = int(limit)
    return limits


def write_budget(all_of_them, limits):
    """Lowers what can be lowered, adds what is new, keeps the rest and the comments on top."""
    top = [x for x in text(BUDGET).splitlines() if x[:1] == '#'] if os.path.exists(BUDGET) else []
    lines = []
    for m in all_of_them:
        limit = limits.get(m.name)
        if not m.missing and (limit is None or not m.worse(limit)):
            limit = m.tight()
        if limit is not None:
            lines.append(f'{m.name:<18} {limit}')
    with open(BUDGET, 'w', encoding='utf-8') as f:
        f.write('\n'.join(top + lines) + '\n')


def changed():
    """The lines of each file that differ from the commit that last wrote the budget, or None."""
    try:
        commit = output(['git', 'log', '-1', '--format=%H', '--', BUDGET]).strip()
        command = ['git', 'diff', '-U0', '--no-color', '--relative', commit]
        diff = output(command) if commit else None
    except OSError:
        diff = None
    if diff is None:
        return None
    lines, name = {}, None
    for line in diff.splitlines():
        if line.startswith('+++ '):
            name = line[6:]
        m = re.match(r'@@ \S+ \+(\d+)(?:,(\d+))? @@', line)
        if m:
            lines.setdefault(name, set()).update(range(int(m[1]), int(m[1]) + int(m[2] or 1)))
    return lines


def told(m, recent):
    """The places of a measure that is over its limit: the changed ones, else all."""
    places = [p for p in m.places if recent and p[1] in recent.get(p[0], ())] or m.places
    for file, nr, what in places[:40]:
        print(f'    {file}:{nr}: {what}')
    if len(places) > 40:
        print(f'    and {len(places) - 40} more: make lint SHOW={m.name}')


def main():
    sys.stdout.reconfigure(line_buffering=True)  # each count is seen when it is made
    args = sys.argv[1:]
    show = args[args.index('--show') + 1] if '--show' in args else None
    lower = '--lower' in args
    limits, all_of_them, failed, passed, may = read_budget(), [], 0, 0, []
    recent = changed()
    for m in measures():
        all_of_them.append(m)
        if show is not None:
            if show in m.name:
                for file, nr, what in m.places:
                    print(f'{file}:{nr}: {m.name}: {what}')
            continue
        limit = limits.get(m.name)
        if m.missing:
            print(f'{"-":>7} {m.name}: not measured: {m.what}')
            continue
        print(f'{m.now:>7} of {"none" if limit is None else limit} {m.name}: {m.what}' +
              (f' ({m.note})' if m.note else ''))
        if limit is None and not lower:
            print(f'FAILED {m.name} has no line in {BUDGET}: make lint LOWER=1 adds it')
            failed += 1
        elif limit is not None and m.worse(limit):
            print(f'FAILED {m.name}: {m.now}, but {BUDGET} asks for {limit} or ' +
                  ('more' if m.rises else 'less'))
            told(m, recent)
            failed += 1
        else:
            passed += 1
            if limit is not None and m.tight() != limit:
                may.append(f'{m.name} {limit} -> {m.tight()}')
    if show is not None:
        return 0
    if lower:
        write_budget(all_of_them, limits)
    elif may:
        print(f'{BUDGET} may be tightened (make lint LOWER=1): ' + ', '.join(may))
    print(f'{passed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
