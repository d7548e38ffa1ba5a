#!/usr/bin/env python3
"""The public header, function by function: each has a block of its own directly above it, of which
a manual page can be made. Prints what is missing.
  header.py [--root DIR]     looks at the header
  header.py --pages DIR      writes a manual page of each function into the folder: NAME.3

A block
  begins with a sentence whose first word is a verb ("Makes ...", "Returns ...");
  names each parameter in a line of its own ("   name   text");
  says what a function that is not void "Returns";
  lists errors ("-EINVAL   condition"), or says "Never fails";
  has "Threads:" and "Progress:", with a class of progress;
  names each errno that the function gives by name, itself or by functions of its file, and those
  of its guard.
"""
import glob
import os
import re
import sys

CLASSES = ('wait-free', 'lock-free', 'may lock', 'may block')
GUARDS = (('rc_enter(', ('EINVAL', 'ECHILD', 'EDEADLK', 'ESHUTDOWN')),
          ('rc_is_barred(', ('ECHILD', 'EDEADLK')), ('rc_fail_child(', ('ECHILD',)))


def read(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def declarations(text):
    """(name, result, parameters, block) of each function; block '' if none is directly above it."""
    for m in re.finditer(r'^RREF_API ([^;(]*?)(rref_\w+)\((.*?)\)(?:\n#if.*?#endif\n\t)?;', text,
                         re.M | re.S):
        above = re.search(r'/\*(?:(?!\*/).)*\*/\n\Z', text[:m.start()], re.S)
        yield m.group(2), m.group(1).strip(), m.group(3), above.group(0) if above else ''


def parameters(text):
    """The names in a list of parameters, pointers to functions included."""
    text = re.sub(r'\(\*(\w+)\)\([^)]*\)', r'\1', text)
    for p in text.split(','):
        p = p.strip()
        if p not in ('void', ''):
            yield p if p == '...' else re.search(r'(\w+)$', p).group(1)


def lines_of(block):
    """The words of a block, without the marks of the comment."""
    text = re.sub(r'\s?\*/$', '', block.rstrip())
    return [re.sub(r'^(/\*|\s\*) ?', '', line) for line in text.split('\n')]


def missing(name, result, params, block, gives):
    """What the block lacks."""
    if not block:
        yield 'no block directly above it'
        return
    lines = lines_of(block)
    words = ' '.join(line.strip() for line in lines if line.strip())
    if not re.match(r'[A-Z][a-z]+s\b', words):
        yield 'the first sentence does not begin with a verb: ' + ' '.join(words.split()[:3])
    for p in parameters(params):
        if not any(re.match(r'  ' + re.escape(p) + r'  +\S', line) for line in lines):
            yield f'no line of parameter {p}'
    if result != 'void' and not re.search(r'\bReturns\b', words):
        yield 'no "Returns"'
    listed = {e for line in lines for e in re.findall(r'-(E[A-Z0-9]+)\b', line)}
    never = re.search(r'\bNever\s+fails\b', words)
    if not listed and not never:
        yield 'neither errors nor "Never fails"'
    for e in sorted(gives - listed):
        yield f'-{e}, which it gives'
    if not re.search(r'\bThreads: ', words):
        yield 'no "Threads:"'
    progress = re.search(r'\bProgress: (.*)', words)
    if not progress or not any(c in progress.group(1) for c in CLASSES):
        yield 'no "Progress:" with one of ' + ', '.join(CLASSES)


def given(root):
    """The errno that each public function gives, in its own body or by functions of its file."""
    found = {}
    for path in glob.glob(os.path.join(root, 'core', '**', '*.c'), recursive=True):
        bodies = {m.group(1): m.group(2) for m in re.finditer(
            r'^[a-z_][\w *()]*?\b(\w+)\([^;{]*\)\n\{\n(.*?)^\}', read(path), re.M | re.S)}
        for name in bodies:
            if name.startswith('rref_'):
                found[name] = errors_of(name, bodies, set())
    return found


def errors_of(name, bodies, seen):
    body = bodies[name]
    errors = set(re.findall(r'rc_fail\((E[A-Z0-9]+)', body))
    errors |= set(re.findall(r'return (?:\w+ \? )?-(E[A-Z0-9]+)', body))
    for word, gives in GUARDS:
        if word in body:
            errors |= set(gives)
    seen.add(name)
    for called in set(re.findall(r'\b([a-z]\w*)\(', body)):
        if called in bodies and called not in seen and not called.startswith('rref_'):
            errors |= errors_of(called, bodies, seen)
    return errors


def roff(lines):
    """Lines as they stand; a backslash, and a dot at the beginning, are roff's."""
    return [re.sub(r"^([.'])", r'\\&\1', line.replace('\\', r'\e')) for line in lines]


def page(name, result, params, block):
    """A manual page: the block's own parts under the usual headings."""
    lines = lines_of(block)
    while lines and not lines[0]:
        lines.pop(0)
    text = '\n'.join(lines)
    first = re.match(r'(.*?)[.;:](?=\s|$)', text, re.S).group(1)
    short = first[0].lower() + ' '.join(first.split())[1:]
    head, threads = re.split(r'^(?=Threads: )', text, maxsplit=1, flags=re.M)
    says, returns = (re.split(r'^(?=Returns\b)', head, maxsplit=1, flags=re.M) + [''])[:2]
    parts = [('NAME', [f'{name} - {short}']),
             ('SYNOPSIS', ['#include <rref.h>', '', result + ('' if result.endswith('*') else ' ') +
                           f'{name}({" ".join(params.split())});']),
             ('DESCRIPTION', (says or head).strip().split('\n')),
             ('RETURN VALUE AND ERRORS', returns.strip().split('\n') if says and returns else []),
             ('ATTRIBUTES', threads.strip().split('\n'))]
    out = [f'.TH {name.upper()} 3 "" librref']
    for title, body in parts:
        if body:
            out += [f'.SH {title}', '.nf', *roff(body), '.fi']
    return '\n'.join(out) + '\n'


def write_pages(folder):
    for path in sorted(glob.glob('include/rref/*.h')):
        for name, result, params, block in declarations(read(path)):
            with open(os.path.join(folder, name + '.3'), 'w', encoding='utf-8') as f:
                f.write(page(name, result, params, block))


def main():
    if sys.argv[1:2] == ['--pages']:
        write_pages(sys.argv[2])
        return 0
    root = sys.argv[2] if sys.argv[1:2] == ['--root'] else '.'
    gives = given(root)
    nr = faults = 0
    for path in sorted(glob.glob(os.path.join(root, 'include', 'rref.h')) +
                       glob.glob(os.path.join(root, 'include', 'rref', '*.h'))):
        for name, result, params, block in declarations(read(path)):
            nr += 1
            for what in missing(name, result, params, block, gives.get(name, set())):
                faults += 1
                print(f'{os.path.relpath(path, root)}: {name}: {what}')
        for i, line in enumerate(read(path).split('\n')):
            if len(line.expandtabs(8)) > 100:
                faults += 1
                print(f'{os.path.relpath(path, root)}:{i + 1}: more than 100 columns')
    print(f'{nr} functions')
    return 1 if faults or not nr else 0


sys.exit(main())
