"""Words of a caption, as the Penn Treebank splits them: what every caption metric counts.

Captions are scored on the tokens of Stanford's PTBTokenizer, lower-cased and without punctuation. This is the part of its
rules that captions meet, as one regular expression (https://nlp.stanford.edu/software/tokenizer.html; no code of it is used).
"""

from __future__ import annotations

import html
import re

DROPPED = frozenset("""'"`.?!,:;-""")  # '', ``, --, ... are made of these
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "-", "—": "-", "…": "."})
_TOKENS = re.compile(
    r"""
      (?:https?://|www\.)\S*[\w/]                         # addresses
    | \w[\w.+-]*@\w[\w-]*(?:\.\w+)+
    | [#@][^\W\d]\w*
    | (?-i:[A-Z]+(?:[+&][A-Z]+)+)                         # A&M
    | (?:\d[\d.,]*|\w+)(?:-\w+)+                          # t-shirt, 2.5-inch
    | \w+(?:/\w+){1,2}                                    # black/white, 1/2
    | [-+]?\d*(?:[.,:]\d+)+                               # 12:30, 1,000, 3.5
    | [a-z](?:\.[a-z])+\.?(?!\w)                          # a.m., u.s.
    | \b(?:mr|mrs|ms|dr|st|jr|sr|mt|vs|etc)\.
    | \bcan(?=not\b) | \b(?:gon|wan)(?=na\b) | \bgot(?=ta\b) | \b(?:gim|lem)(?=me\b)
    | \w+(?=n't\b) | n't\b                                # is n't
    | '(?:s|re|ll|ve|d|m)\b                               # it 's
    | \b[dol]'(?!(?:s|re|ll|ve|d|m)\b)\w+                 # o'clock
    | \w+
    | [^\w\s]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize(text: str) -> list[str]:
    """Return the lower-case tokens of a caption, without punctuation; brackets are spelled `-lrb-` and `-rrb-`.

    `It's a T-shirt (red)!` gives `it 's a t-shirt -lrb- red -rrb-`; `cannot` gives `can not`, `isn't` gives `is n't`. HTML
    entities, which some caption files have, are read as the characters they stand for.
    """
    tokens = _TOKENS.findall(html.unescape(text).translate(_PLAIN))
    return [BRACKETS.get(token, token.lower()) for token in tokens if token not in DROPPED]
