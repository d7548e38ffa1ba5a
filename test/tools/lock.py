#!/usr/bin/env python3
"""Functions that need the lock, and do not assert that their thread holds it.

lock.py [FOLDER]: a line for each that a header of FOLDER/core declares with needs_lock.
"""
import glob
import os
import re
import sys

# A context that no other thread knows uses these without the lock.
ALONE = {'rc_handle_next', 'rc_handle_free'}
DECLARED = re.compile(r'^needs_lock [^;{]*?\b(\w+)\(([^;{]*)\)\s*;', re.M)
# The argument that leads to the context. A function without one cannot know the lock.
CONTEXT = re.compile(r'struct (?:rref_ctx|rref_future|rref|rref_call|rc_incoming) \*\w+')


def read(name):
    with open(name, encoding='utf-8') as f:
        return f.read()


def main():
    folder = os.path.join(*sys.argv[1:2], 'core')
    found = glob.glob(folder + '/**/*.[ch]', recursive=True)
    bodies = {}
    for name in found:
        if name.endswith('.c'):
            for m in re.finditer(r'\b(\w+)\((?:[^;{}()]|\([^()]*\))*\)\n\{\n(.*?)^\}', read(name),
                                 re.M | re.S):
                bodies.setdefault(m[1], m[2])
    for name in sorted(found):
        for m in DECLARED.finditer(read(name)) if name.endswith('.h') else ():
            if CONTEXT.search(m[2]) and m[1] not in ALONE and \
                    'rc_assert_locked(' not in bodies.get(m[1], ''):
                print(f'{name}: {m[1]}')


if __name__ == '__main__':
    main()
