"""What to compute on, as a user writes it: texts, and pairs of texts."""

from pathlib import Path
from typing import TYPE_CHECKING

from ditto.errors import EmptyText, UsageError

if TYPE_CHECKING:
    from ditto.models.tokenizer import Text

RECODE = "write it in UTF-8, for example: iconv -f LATIN1 (or UTF-16) -t UTF-8 FILE"


def read_file(path: Path) -> str:
    """A file of texts, without a byte order mark. Raises UsageError: absent, not to be read, not UTF-8, a NUL in it."""
    if not path.is_file():
        raise UsageError(f"{path}: a directory, no file" if path.is_dir() else f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not in UTF-8 (byte {error.start}); {RECODE}") from None
    if (at := text.find("\0")) >= 0:  # UTF-16 without a mark is valid UTF-8, and every second character is none
        line = text.count("\n", 0, at) + 1
        raise UsageError(f"{path}, line {line}: a NUL: no file of texts, or one in UTF-16; {RECODE}")
    return text


def split_pair(line: str) -> "Text":
    """A line of a file: a text, or with a tab a pair of texts. Raises UsageError for a second tab."""
    parts = line.split("\t")
    if len(parts) > 2:
        raise UsageError(f"{len(parts) - 1} tabs: one tab makes a pair, and there are no more than two segments")
    return line if len(parts) == 1 else (parts[0], parts[1])


def read_lines(content: str, source: str, *, skip_blank: bool = False) -> "list[Text]":
    """The texts and pairs of a file named `source`, one a line. Errors name the line.

    Raises UsageError for a line with two tabs, EmptyText for an empty text or segment. With `skip_blank`, lines of
    white space alone are left out.
    """
    texts: list[Text] = []
    for number, line in enumerate(content.splitlines(), 1):
        if skip_blank and not line.strip():
            continue
        at = f"{source}, line {number}"
        try:
            text = split_pair(line)
        except UsageError as error:
            raise UsageError(f"{at}: {error}") from None
        texts.append(_filled(text, at))
    return texts


def pair_up(texts: list[str], pairs: list[str]) -> "list[Text]":
    """`--text` and `--pair` in the order given. Raises UsageError unless there are as many or no pairs, EmptyText."""
    if pairs and len(pairs) != len(texts):
        raise UsageError(
            f"{len(texts)} --text and {len(pairs)} --pair: the first --pair belongs to the first --text, "
            "and so on; give as many"
        )
    joined: list[Text] = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
    return [_filled(text, f"text {i} of {len(texts)}") for i, text in enumerate(joined, 1)]


def _filled(text: "Text", at: str) -> "Text":
    if isinstance(text, str):
        if not text.strip():
            raise EmptyText(f"{at} is empty")
        return text
    for part, name in zip(text, ("first", "second"), strict=True):
        if not part.strip():
            raise EmptyText(f"{at}: the pair's {name} segment is empty")
    return text
