"""Texts that try to make a page do something, texts put together at random, and a harmless one.

Every group tries another way: Markdown's own, by reference, HTML, bare addresses, dangerous
schemes, Streamlit's directives, and what is left open or closed twice.
"""

from __future__ import annotations

import random

INLINE = [
    "![alt](http://evil.example/1.png)",
    "![alt](https://evil.example/2.png 'title')",
    "![](//evil.example/3.png)",
    "![alt](<https://evil.example/4.png>)",
    "![a\n](https://evil.example/5.png)",
    "![a ![b](https://evil.example/6.png)](https://evil.example/7.png)",
    "[![badge](https://evil.example/8.svg)](https://evil.example/9)",
    "[link](https://evil.example/10)",
    "[link](evil.example)",
    "[link](/relative/path)",
    "[link](#anchor)",
    "[**bold** link](https://evil.example/11)",
    "**[link](https://evil.example/12)**",
    "*![x](https://evil.example/13.png)*",
    "~~![x](https://evil.example/14.png)~~",
    "# ![x](https://evil.example/15.png) heading",
    "- ![x](https://evil.example/16.png) item",
    "1) ![x](https://evil.example/17.png) item",
    "> ![x](https://evil.example/18.png) quote",
    "> > - ![x](https://evil.example/19.png) nested",
    "before\\![x](https://evil.example/20.png)",
    "before\\\\![x](https://evil.example/21.png)",
    "\\\\\\![x](https://evil.example/22.png)",
    "!\\[x](https://evil.example/23.png)",
    "![x]\\(https://evil.example/24.png)",
    "![x](https&colon;//evil.example/25.png)",
    "![x](&#104;ttps://evil.example/26.png)",
    "&#33;[x](https://evil.example/27.png)",
    "&excl;&lbrack;x&rsqb;&lpar;https://evil.example/28.png&rpar;",
    "heading ![x](https://evil.example/29.png)\n===",
    "![x](https://evil.example/30.png\n",
    "[x](https://evil.example/31\n'title')",
    "\u200b![x](https://evil.example/32.png)",
    "\ufeff![x](https://evil.example/33.png)",
    "\x0c![x](https://evil.example/34.png)",
    "\x00![x](https://evil.example/35.png)",
    "a\u2028![x](https://evil.example/36.png)",
    "a\r![x](https://evil.example/37.png)\r\nb",
    "\t![x](https://evil.example/38.png)",
    "    ![x](https://evil.example/39.png)",
]
BY_REFERENCE = [
    "[x]\n\n[x]: https://evil.example/50",
    "![x]\n\n[x]: https://evil.example/51.png",
    "![x][y]\n\n[y]: https://evil.example/52.png",
    "![x][]\n\n[x]: <https://evil.example/53.png> 'title'",
    "[x]:\nhttps://evil.example/54.png\n\n![x]",
    "[x]: https://evil.example/55 'a\nb'\n\n[x]",
    "> [x]: https://evil.example/56.png\n\n![X]",
    "- [x]: https://evil.example/57.png\n\n![x]",
    "Text[^1]\n\n[^1]: ![x](https://evil.example/58.png)",
    "Text[^https://evil.example]\n\n[^https://evil.example]: note",
    "[x\\]: https://evil.example/59\n\n[x\\]",
    "- [ ] task\n- [x] done ![x](https://evil.example/60.png)",
]
HTML = [
    "<img src=https://evil.example/70.png>",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "<script src='https://evil.example/71.js'></script>",
    "<iframe src='https://evil.example/72'></iframe>",
    "<a href='https://evil.example/73'>x</a>",
    "<form action='https://evil.example/74'><input name=q><button>Send</button></form>",
    "<style>@import 'https://evil.example/75.css';</style>",
    "<link rel=stylesheet href='https://evil.example/76.css'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/77'>",
    "<base href='https://evil.example/'>",
    "<svg onload=alert(1)><image href='https://evil.example/78.png'/></svg>",
    "<video src='https://evil.example/79.mp4' autoplay></video>",
    "<object data='https://evil.example/80'></object>",
    "<embed src='https://evil.example/81'>",
    "<details open ontoggle=alert(1)><summary>x</summary></details>",
    "<div>\n\n![x](https://evil.example/82.png)\n\n</div>",
    "<!-- ![x](https://evil.example/83.png) -->",
    "<![CDATA[ <img src=https://evil.example/84.png> ]]>",
    "<?php ![x](https://evil.example/85.png) ?>",
    "&lt;img src=https://evil.example/86.png&gt;",
    "&#60;img src=https://evil.example/87.png&#62;",
    "<pre>\n```\n</pre>\n![x](https://evil.example/88.png)\n```",
    "<math><mi xlink:href='https://evil.example/89'>x</mi></math>",
    "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>",
    "<textarea><img src=https://evil.example/90.png></textarea>",
    "a <b\nonmouseover=alert(1)>b</b>",
]
AUTOLINKS = [
    "<https://evil.example/100>",
    "<mailto:me@evil.example>",
    "<me@evil.example>",
    "https://evil.example/101",
    "http://evil.example/102.",
    "HTTPS://EVIL.EXAMPLE/103",
    "www.evil.example/104",
    "WWW.evil.example",
    "me@evil.example",
    "me+you_too-x.y@evil.example",
    "me@.evil.example",
    "mailto:me@evil.example",
    "xmpp:me@evil.example",
    "(https://evil.example/105)",
    "https\\://evil.example/106",
    "https:/\\/evil.example/107",
    "https&colon;//evil.example/108",
    "https:&#47;/evil.example/109",
    "&#104;ttps://evil.example/110",
    "www&#46;evil.example",
    "www\\.evil.example",
    "me&#64;evil.example",
    "me&commat;evil.example",
    "me\\@evil.example",
    "**https://evil.example/111**",
    "_https://evil.example/112_",
    "~~www.evil.example~~",
    "https://evil.example/`113`",
    "`x`https://evil.example/114`y`",
    "https://a.example/https://evil.example/115",
    "httphttps://evil.example/116",
    "https://evil.example/<https://evil.example/117>",
    "| https://evil.example/118 | www.evil.example |\n|---|---|\n| me@evil.example | x |",
    "| a|https://evil.example/119|\n|---|---|",
    "https://пример.example/120",
    "見https://evil.example/121。",
    "\u200bhttps://evil.example/122",
    "https://\u200bevil.example/123",
    "# https://evil.example/124",
    "- www.evil.example\n- me@evil.example",
    "> https://evil.example/125",
    "https://evil.example/126?a=1&b=2#c",
    "https://user:word@evil.example:8080/127",
    "[https://evil.example/128](https://evil.example/129)",
    "\\https://evil.example/130",
    "a_b@evil.example",
    "https://[::1]/131",
]
SCHEMES = [
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "<javascript:alert(1)>",
    "![x](javascript:alert(1))",
    "[x](vbscript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](data:image/svg+xml,<svg onload=alert(1)>)",
    "![x](data:image/gif;base64,R0lGODlhAQABAAAAACw=)",
    "<data:text/html,hi>",
    "[x]: javascript:alert(1)\n\n[x]",
    "[x](file:///etc/passwd)",
    "![x](blob:https://evil.example/140)",
]
DIRECTIVES = [
    ":red[alarm]",
    ":blue-background[text]",
    ":green-badge[text]",
    ":red[![x](https://evil.example/150.png)]",
    ":color[text]{background=\"url('https://evil.example/151.png')\"}",
    ":small[text] :shimmer[text] :help[text]",
    ":material/delete: :material_delete: :streamlit:",
    "**:streamlit:**",
    ":smile: :+1: :100:",
    "::leaf[x]{a=b}",
    ":::note\n![x](https://evil.example/152.png)\n:::",
    "a:b[c]{d}",
    "$\\href{https://evil.example/153}{x}$",
    "$$\n\\includegraphics{https://evil.example/154.png}\n$$",
    "$$x$$ and $y$",
    "It costs $5 and $10, or 5$ and 10$",
    "```math\n\\href{https://evil.example/155}{x}\n```\n$x$",
    '```mermaid\ngraph TD\nA@{ img: "https://evil.example/156.png" }\n```',
    '~~~ Mermaid x\ngraph TD\nA-->B\nclick A href "https://evil.example/157"\n~~~',
    "```-language-mermaid\ngraph TD\nA-->B\n```",
    "```&#109;ermaid\ngraph TD\nA-->B\n```",
]
HALF_OPEN = [
    "`![x](https://evil.example/160.png)",
    "``![x](https://evil.example/161.png)`",
    "```\ncode\n``\n![x](https://evil.example/162.png)",
    "```\ncode\n```\n![x](https://evil.example/163.png)",
    "```\ncode\n````\n![x](https://evil.example/164.png)",
    "```\ncode\n~~~\n```\n![x](https://evil.example/165.png)\n~~~",
    "~~~ `\n![x](https://evil.example/166.png)\n~~~\n![x](https://evil.example/167.png)",
    "``` `\n![x](https://evil.example/168.png)\n```",
    "````\n```\n![x](https://evil.example/169.png)\n```\n````\n![x](https://evil.example/170.png)",
    "- ~~~\n![x](https://evil.example/171.png)\n- ~~~\n![x](https://evil.example/172.png)",
    "- - ~~~\n![x](https://evil.example/173.png)\n~~~\n![x](https://evil.example/174.png)",
    "> ```\n![x](https://evil.example/175.png)",
    "> ```\n> code\n![x](https://evil.example/176.png)\n```\n![x](https://evil.example/177.png)",
    "1. ```\n   code\n2. ![x](https://evil.example/178.png)",
    "text\n    ```\n    ![x](https://evil.example/179.png)\n    ```",
    "| a | b | c |\n|---|---|---|\n| `x\\\\|![x](https://evil.example/183.png)|`y` |",
    "`a``![x](https://evil.example/184.png)``b`",
    "\\`![x](https://evil.example/185.png)`",
    "`\\`![x](https://evil.example/186.png)`",
    "`code`\\`![x](https://evil.example/187.png)`",
    "`a\n![x](https://evil.example/188.png)\nb`",
    "- `a\n- ![x](https://evil.example/189.png)`",
    '`<a href="`">` ![x](https://evil.example/190.png)',
    '<a href="`">`![x](https://evil.example/191.png)',
    "[`](https://evil.example/192)`",
    "*[x*](https://evil.example/193)",
    "[x](https://evil.example/194",
    "`a\r\r![x](https://evil.example/203.png)`",
    "- > ~~~\n  > [x](https://evil.example/204) & $5\n  > ~~~",
    "```![x](https://evil.example/205.png)``` ``x` ![x](https://evil.example/206.png)``",
    "![x](https://evil.example/195.png`)`",
    "---\ntitle: ![x](https://evil.example/196.png)\n---",
    "\x1f```\n![x](https://evil.example/197.png)\n```",
    "```\n\u2028```\n![x](https://evil.example/198.png)",
    "\u00a0```\n![x](https://evil.example/199.png)\n```",
    "```\n![x](https://evil.example/200.png)\n\u00a0```\n![x](https://evil.example/201.png)",
    "\ud800![x](https://evil.example/202.png)",
]
# Indented code in a list, and tables whose rows do not fit: a \\ more or less may be seen.
UGLY = [
    "- a\n\n      ![x](https://evil.example/40.png)\n\n  ![y](https://evil.example/41.png)",
    "| a | `b | ![x](https://evil.example/180.png)` |\n|---|---|---|",
    "| `a|![x](https://evil.example/181.png)|b` |\n|---|---|---|",
    "| a | b |\n|---|---|\n| `x\\|![x](https://evil.example/207.png)` | y |",
    "| a | b |\n|---|---|\n`x|![x](https://evil.example/208.png)`",
    "| a | b | c |\n|---|---|---|\n| `x\\|`|![x](https://evil.example/182.png)|`y` |",
]
PAYLOADS = UGLY + INLINE + BY_REFERENCE + HTML + AUTOLINKS + SCHEMES + DIRECTIVES + HALF_OPEN

CODE = """if a < b: print("<b>", "https://evil.example/c", '![x](y)', f"{x:>3}")  # :material/x:"""
SPACES = 'four = "spaces"'
URL = "https://evil.example/t"
BENIGN = f"""\
# Heading

Some **bold**, *slanted* and ~~struck~~ words, `x < 1 & "$y"` too.
It's a poem's line – 3 < 4, a_b, C:\\dir, 5*3, 2*3*4, $5 and $10, 12:30:00, R&D, [sic],
a -> b -- c <= 2, :smile:, `half, ![i](j), <b>, &amp;, *, :material/x: and x@y, ``b` c``.

- one
    - nested
- two `a|b`, `x`www.x or ```y```

7. seven
    ```
    eight
    ```
    nine
8. ten `a|b`

> quoted

| left | right |
|:-----|------:|
| `a|b` | {URL} |

```python
{CODE}
```

    {SPACES}
"""

FRAGMENTS = [
    *("```", "````", "~~~", "`", "``", "\\`", "\n", "\n\n", "\r", "\n    ", "\n\t", "\n  ", "\n> "),
    *(
        "\n- ",
        "\n1. ",
        "\n# ",
        "\n---\n",
        "\n|-|-|\n",
        "|",
        "\\|",
        "\\",
        "\\\\",
        "[",
        "]",
        "!",
        "(",
    ),
    *(
        ")",
        "<",
        ">",
        "&",
        "&#96;",
        "&lt;",
        ":",
        "::",
        "$",
        "$$",
        "*",
        "**",
        "_",
        "~",
        "@",
        " ",
        "\f",
    ),
    *("![x](https://evil.example/f.png)", "[x](javascript:alert(1))", "https://evil.example/f"),
    *("www.evil.example", "me@evil.example", "<img src=https://evil.example/f.png>", "[x]: //evil"),
    *(
        "mermaid\n",
        ":streamlit:",
        ":red[",
        "<!--",
        "-->",
        "\u2028",
        "\u2060",
        "word",
        "[^1]",
        "\x0b",
    ),
]


def random_texts(count: int, seed: int) -> list[str]:
    """Texts put together at random from what means something to Markdown."""
    draws = random.Random(seed)
    return ["".join(draws.choices(FRAGMENTS, k=draws.randint(4, 25))) for _ in range(count)]


RANDOM = random_texts(300, seed=1)
