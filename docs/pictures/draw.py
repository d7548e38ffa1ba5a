#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the pages: draw.py NAME.txt... writes NAME.svg beside each text.

    draw.py --check NAME.txt...    writes nothing; fails if a picture is not what its text gives

The pictures have their own background, so they can be read on white and on black. A text is one of
two kinds. A line that begins with # is a comment. Both begin with `title WORDS`.

A chart of messages, in time order:
    lane ID NAME                   a column; the first is the leftmost
    ID -> ID: WORDS                a message or a call
    ID => ID: WORDS                a one-sided READ: drawn thick
    ID: WORDS                      something that happens at one lane
    ID ID: WORDS                   the same, across lanes
    gap                            some room

A stack of floors:
    floor NAME | WORDS             a box over the whole width
    room NAME | WORDS              the same, inside the house
    side NAME | WORDS ; NAME | WORDS   boxes side by side
    down WORDS / up WORDS          the arrows beside the house
"""
import html
import re
import sys

FONT = "font-family=\"'DejaVu Sans', Verdana, Arial, sans-serif\""
MONO = "font-family=\"'DejaVu Sans Mono', Menlo, Consolas, monospace\""
INK, PAPER, EDGE = "#1c2733", "#f7f9fb", "#9aa7b4"
SOFT, ROOM, READ = "#e4ebf2", "#ffffff", "#b3400e"
SIZE = 13


def width(text):
    """The width of a text in this font, a little more than it is."""
    return sum(4.5 if c in "ijl.,:;'|()/ " else 11 if c in "mwMW" else 8.1 for c in text)


class Canvas:
    def __init__(self):
        self.parts, self.right, self.bottom = [], 0, 0

    def put(self, part, right, bottom):
        self.parts.append(part)
        self.right, self.bottom = max(self.right, right), max(self.bottom, bottom)

    def text(self, x, y, words, anchor="start", bold=False, color=INK, font=FONT, size=SIZE,
             halo=0):
        weight = ' font-weight="bold"' if bold else ""
        edge = f' paint-order="stroke" stroke="{PAPER}" stroke-width="{halo}"' if halo else ""
        self.put(f'<text x="{x:.0f}" y="{y:.0f}" {font} font-size="{size}" fill="{color}" '
                 f'text-anchor="{anchor}"{weight}{edge}>{html.escape(words)}</text>', x, y)

    def box(self, x, y, w, h, fill=ROOM):
        self.put(f'<rect x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="5" '
                 f'fill="{fill}" stroke="{EDGE}"/>', x + w, y + h)

    def line(self, x1, y1, x2, y2, color=EDGE, wide=1, head="", dash=""):
        end = f' marker-end="url(#{head})"' if head else ""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.put(f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" '
                 f'stroke="{color}" stroke-width="{wide}"{dashes}{end}/>', max(x1, x2), max(y1, y2))

    def svg(self, title):
        w, h = self.right + 16, self.bottom + 16
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="{size}" '
            f'markerHeight="{size}" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{color}"/>'
            '</marker>'
            for name, color, size in (("thin", INK, 8), ("thick", READ, 5)))
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{w:.0f}" height="{h:.0f}" '
                f'viewBox="0 0 {w:.0f} {h:.0f}" role="img">\n<title>{html.escape(title)}</title>\n'
                f'<defs>{heads}</defs>\n'
                f'<rect x="0.5" y="0.5" width="{w - 1:.0f}" height="{h - 1:.0f}" rx="8" '
                f'fill="{PAPER}" stroke="{EDGE}"/>\n' + "\n".join(self.parts) + "\n</svg>\n")


def chart(lines, c):
    """A chart of messages."""
    lanes, steps = {}, []
    for line in lines:
        lane = re.fullmatch(r"lane (\w+) (.+)", line)
        arrow = re.fullmatch(r"(\w+) (->|=>) (\w+): (.+)", line)
        note = re.fullmatch(r"(\w+)(?: (\w+))?: (.+)", line)
        if lane:
            lanes[lane[1]] = lane[2]
        elif arrow:
            steps.append((arrow[2], arrow[1], arrow[3], arrow[4]))
        elif note:
            steps.append(("note", note[1], note[2] or note[1], note[3]))
        elif line == "gap":
            steps.append(("gap", "", "", ""))
        else:
            sys.exit(f"draw.py: {line}?")
    order = list(lanes)
    x, right = {}, 0
    for i, name in enumerate(order):
        half = width(lanes[name]) / 2 + 14
        # A note stands over its lane, and an arrow's words between two lanes.
        for kind, a, b, words in steps:
            if kind == "note" and a == b == name:
                half = max(half, width(words) / 2 + 14)
        at = 16 + half if i == 0 else right + half + 10
        for kind, a, b, words in steps:
            if kind in ("->", "=>") and name in (a, b):
                other = order.index(b if name == a else a)
                if other < i:
                    bold = 1.15 if kind == "=>" else 1
                    at = max(at, x[order[other]] + width(words) * bold + 34)
        x[name], right = at, at + half
    y = 40
    for name in order:
        w = width(lanes[name]) + 24
        c.box(x[name] - w / 2, y, w, 28, SOFT)
        c.text(x[name], y + 19, lanes[name], "middle", True)
    top, body = y + 28, []
    y = top + 22
    for kind, a, b, words in steps:
        if kind == "gap":
            y += 14
        elif kind == "note":
            lo, hi = min(x[a], x[b]), max(x[a], x[b])
            w = max(width(words) + 20, hi - lo + 40)
            body.append(("box", (lo + hi) / 2, y, w, words))
            y += 36
        else:
            body.append((kind, x[a], x[b], y + 16, words))
            y += 36
    for name in order:
        c.line(x[name], top, x[name], y, dash="3 3")
    for kind, *rest in body:
        if kind == "box":
            mid, y0, w, words = rest
            c.box(mid - w / 2, y0 - 6, w, 26)
            c.text(mid, y0 + 12, words, "middle")
        else:
            x1, x2, y0, words = rest
            way = 1 if x2 > x1 else -1
            color, wide, head = (READ, 3, "thick") if kind == "=>" else (INK, 1.3, "thin")
            c.text((x1 + x2) / 2, y0 - 7, words, "middle", kind == "=>", color, halo=5)
            c.line(x1, y0, x2 - way, y0, color, wide, head)


def stack(lines, c):
    """A stack of floors."""
    rows, arrows = [], {}
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind in ("down", "up"):
            arrows[kind] = rest
        elif kind in ("floor", "room", "side"):
            cells = rest.split(" ; ")
            rows.append((kind, [[p.strip() for p in cell.split("|")] for cell in cells]))
        else:
            sys.exit(f"draw.py: {line}?")
    rooms = [cells[0] for kind, cells in rows if kind == "room"]
    name_w = max(width(r[0]) for r in rooms) + 46
    inner = max(name_w + width(r[1]) for r in rooms) + 24
    left, total = 60, inner + 28
    y, first, last = 44, 0, 0
    for i, (kind, cells) in enumerate(rows):
        if kind == "room":
            if rows[i - 1][0] != "room":
                n = 0
                while i + n < len(rows) and rows[i + n][0] == "room":
                    n += 1
                first, last = y, y + 30 + 32 * n + 10
                c.box(left, y, total, last - first, SOFT)
                c.text(left + 14, y + 21, "core/", bold=True, font=MONO)
                y += 30
            c.box(left + 14, y, inner, 28)
            c.text(left + 26, y + 19, cells[0][0], bold=True, font=MONO)
            c.text(left + 14 + name_w, y + 19, cells[0][1])
            y += 32
            if i + 1 == len(rows) or rows[i + 1][0] != "room":
                y += 20
        else:
            w = (total - 14 * (len(cells) - 1)) / len(cells)
            for k, (name, *words) in enumerate(cells):
                h = 26 + 18 * len(words)
                c.box(left + k * (w + 14), y, w, h, SOFT)
                c.text(left + 14 + k * (w + 14), y + 19, name, bold=True, font=MONO)
                for n, text in enumerate(words):
                    c.text(left + 14 + k * (w + 14), y + 38 + 18 * n, text)
            y += 26 + 18 * max(len(cell) - 1 for cell in cells) + 10
    for side, words, y1, y2 in ((left - 24, arrows["down"], first, last),
                                (left + total + 24, arrows["up"], last, first)):
        c.line(side, y1, side, y2, INK, 1.3, "thin")
        mid, tx = (first + last) / 2, side + (-8 if side < left else 17)
        c.put(f'<text x="{tx:.0f}" y="{mid:.0f}" {FONT} font-size="{SIZE}" fill="{INK}" '
              f'text-anchor="middle" transform="rotate(-90 {tx:.0f} {mid:.0f})">'
              f'{html.escape(words)}</text>', tx + 6, mid)


def draw(path):
    with open(path, encoding="utf-8") as f:
        lines = [s for s in (line.strip() for line in f) if s and not s.startswith("#")]
    title = lines.pop(0).removeprefix("title ")
    c = Canvas()
    c.text(16, 26, title, bold=True, size=15)
    c.right = 16 + width(title) * 1.25
    (stack if any(s.startswith("floor ") for s in lines) else chart)(lines, c)
    return c.svg(title)


def main():
    check = sys.argv[1:2] == ["--check"]
    bad = 0
    for path in sys.argv[1 + check:]:
        out = path.removesuffix(".txt") + ".svg"
        new = draw(path)
        try:
            with open(out, encoding="utf-8") as f:
                old = f.read()
        except FileNotFoundError:
            old = ""
        if new != old and check:
            print(f"{out} is not what {path} gives")
            bad = 1
        elif new != old:
            with open(out, "w", encoding="utf-8") as f:
                f.write(new)
    sys.exit(bad)


if __name__ == "__main__":
    main()
