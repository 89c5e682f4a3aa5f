#!/usr/bin/env python3
"""Records the terminal pictures of these pages: runs each command and draws its output as an SVG.

    python3 docs/images/record.py [NAME ...]    without a name: all pictures

The variable AMP_BINARY may name a built `amp` binary, which then runs in place of `cargo amp`.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import textwrap
from html import escape

# For each picture: the arguments of `cargo amp`, and how many lines of the output are drawn (None: all).
SCREENS = {
    "verify": ("verify", None),
    "gate-fail": ("gate --model PlantedLayerNorm", 12),
    "overflow": ("train --precision 16-mixed --init-scale 1e9 --epochs 2", None),
}
COLORS = {"PASS": "#3fb950", "FAIL": "#f85149"}
COLUMNS = 140
CELL_WIDTH, LINE_HEIGHT, MARGIN = 7.2, 15, 16


def output(arguments: str) -> list[str]:
    """Runs the command and returns the lines of its standard output and standard error."""
    binary = os.environ.get("AMP_BINARY")
    command = [binary] if binary else ["cargo", "amp"]
    # With exit code 1, the gate has failed as expected, and its output is drawn. Other codes are errors.
    run = subprocess.run(command + shlex.split(arguments), text=True, check=False,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode not in (0, 1):
        sys.exit(f"error: {shlex.join(command)} {arguments} ended with {run.returncode}:\n{run.stdout}")
    return run.stdout.splitlines()


def wrapped(line: str, width: int) -> list[str]:
    """Breaks a long line between words, as it would appear on a terminal of this width."""
    if len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent="  ")


def colored(line: str) -> str:
    text = escape(line)
    for word, color in COLORS.items():
        text = text.replace(f" {word} ", f' <tspan fill="{color}" font-weight="bold">{word}</tspan> ')
    return text


def drawn(command: str, lines: list[str]) -> str:
    tables = [len(line) for line in lines if line.startswith(("┌", "│"))]
    columns = max([COLUMNS, *tables])
    shown = [f"$ {command}"] + [part for line in lines for part in wrapped(line, columns)]
    width = 2 * MARGIN + columns * CELL_WIDTH
    height = 2 * MARGIN + len(shown) * LINE_HEIGHT
    rows = []
    for number, line in enumerate(shown):
        if line.strip():
            # A fixed text length keeps table columns aligned, whichever monospace font the reader has.
            rows.append(f'<text x="{MARGIN}" y="{MARGIN + (number + 0.8) * LINE_HEIGHT:.1f}" '
                        f'textLength="{len(line) * CELL_WIDTH:.1f}" lengthAdjust="spacingAndGlyphs" '
                        f'xml:space="preserve">{colored(line)}</text>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" '
        f'aria-label="{escape(command, quote=True)}" font-size="12" fill="#e6edf3" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace">',
        f'<title>{escape(command)}</title>',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#0d1117"/>',
        *rows,
        "</svg>\n",
    ])


def main() -> None:
    names = sys.argv[1:] or list(SCREENS)
    unknown = [name for name in names if name not in SCREENS]
    if unknown:
        sys.exit(f"error: unknown picture {', '.join(unknown)}: expected one of {', '.join(SCREENS)}")
    for name in names:
        arguments, most = SCREENS[name]
        lines = output(arguments)[:most]
        file = pathlib.Path(__file__).with_name(f"{name}.svg")
        file.write_text(drawn(f"cargo amp {arguments}", lines), encoding="utf-8")
        print(f"{file.name}: {len(lines)} lines")


if __name__ == "__main__":
    main()
