"""Texts that would become commands where a name or value is not quoted, for Hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

BITS = [
    *('"', "'", "\\", "$$", "$1", "$a$", ";", "--", "/*", "*/", "%s", "%(a)s", "{0}", "{", "}", "{{schema}}"),
    *("{{tables.t}}", "\n", "\r", "\t", " ", "\u00e9", "\u202e", ".", ":x", "?", "@", "#", "E'", "\\'", '""'),
    *("; drop table public.canary; --", '"; drop table public.canary; --', "'; drop table public.canary; --"),
    *("$$; drop table public.canary; $$", "\\'; drop table public.canary; --", "a", "Z", "0", "_"),
]
NASTY = st.lists(st.sampled_from(BITS), min_size=1, max_size=4).map("".join).filter(lambda text: text.strip())
NAMES = NASTY.filter(lambda text: len(text.encode()) <= 63)
FILES = NASTY.filter(lambda text: "/" not in text and len(text.encode()) <= 200)
WILD = st.text(max_size=30) | NASTY
