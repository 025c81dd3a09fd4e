"""Penn Treebank tokens of captions."""

from __future__ import annotations

import pytest

from trainers.evaluators.ptb_tokenizer import tokenize


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("it's", "it 's"), ("isn't", "is n't"), ("cannot", "can not"), ("(red)", "-lrb- red -rrb-"), ("t-shirt", "t-shirt"),
        ("12:30", "12:30"), ("", ""), ("  \n ", ""), ("...", ""), ("A Dog.", "a dog"),
        # contractions and what looks like them
        ("CAN'T", "ca n't"), ("they're we'll I've he'd I'm", "they 're we 'll i 've he 'd i 'm"), ("man’s", "man 's"),
        ("the dogs' bowl", "the dogs bowl"), ("'quoted' word", "quoted word"), ("7 o'clock L's", "7 o'clock l 's"),
        ("gonna wanna gotta gimme lemme", "gon na wan na got ta gim me lem me"), ("cannoth gonnas", "cannoth gonnas"),
        ("x-ray's", "x-ray 's"), ("'menu'", "menu"), ("knot's n't", "knot 's n't"),
        # hyphens, numbers, marks inside words
        ("tug-of-war", "tug-of-war"), ("a 2.5-inch pipe", "a 2.5-inch pipe"), ("black - white", "black white"),
        ("snow--covered", "snow covered"), ("snow–white", "snow-white"), ("1,000 and 3.5 or .5", "1,000 and 3.5 or .5"),
        ("12:30pm 1:30a.m.", "12:30 pm 1:30 a.m."),
        ("1/2 his/her", "1/2 his/her"), ("either/ or", "either / or"), ("3d 2nd", "3d 2nd"),
        ("10 a.m. in the U.S.", "10 a.m. in the u.s."), ("Mr. X.", "mr. x"), ("on grass.The dog", "on grass the dog"),
        # symbols
        ("$5, 50%", "$ 5 50 %"), ("salt & pepper", "salt & pepper"), ("Texas A&M", "texas a&m"), ("rock&roll", "rock & roll"),
        ("A&amp;M &quot;x&quot;", "a&m x"), ("#1 and #one @home", "# 1 and #one @home"),
        ("[a] {b}", "-lsb- a -rsb- -lcb- b -rcb-"), ("what?! yes: a; b, c … “d”", "what yes a b c d"),
        ("see www.example.com/a or a.b@c.org", "see www.example.com/a or a.b@c.org"),
        ("crème Ünïcode naïve", "crème ünïcode naïve"), ("two\ndogs\tplay", "two dogs play"),
    ],
)  # fmt: skip
def test_tokens_are_those_of_the_treebank(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens.split()


def test_tokens_of_tokens_are_the_same() -> None:
    text = "A man's T-shirt isn't red and/or blue at 12:30 - 1,000 dogs can't!"
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens
