"""Texts that anybody may have written: where they are shown, and where they become names of files."""

import hashlib
import re
import unicodedata

# Bidirectional classes of the characters that have no other use than to turn what follows around.
_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def visible(text: str, keep: str = "") -> str:
    r"""Returns a text without control characters, halves of surrogate pairs and what turns the direction of writing.

    They become escapes (\x1b), except those in `keep`: a terminal, a page and a figure then show all of the text, and
    nothing in it changes what stands around it.
    """
    if text.isprintable():
        return text
    return "".join(escaped(char) if _acts(char) and char not in keep else char for char in text)


def _acts(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _TURNS


def escaped(char: str) -> str:
    """Returns a character as Python writes it in ASCII."""
    return char.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int = 80) -> str:
    """Returns a text in one line of at most about `most` characters, for a message."""
    line = visible(text)
    return line if len(line) <= most else f"{line[:most]}... ({len(line):,} characters)"


def file_name(exact: str) -> str:
    """Returns a name that every file system takes. Different texts have different names, simple ones their own."""
    # ":" is kept (truncation=4:16); what a shell or a file system may trip over is not.
    name = re.sub(r"[^A-Za-z0-9_.,:=+-]", "_", exact)[:120]
    if name == exact:
        return name
    return f"{name},{hashlib.sha256(exact.encode(errors='surrogatepass')).hexdigest()[:8]}"
