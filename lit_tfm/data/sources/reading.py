"""Files of text and of rows, read strictly: what is wrong with a file is said with its name and place.

Text is UTF-8; a byte order mark is dropped and CRLF becomes a plain line end. `.gz` is unpacked on the way.
"""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lit_tfm.errors import UserError

log = logging.getLogger(__name__)

KINDS = {
    "text": (".txt", ".text", ".md", ".rst", ".raw", ".tokens"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
}
KIND_OF = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
PACKED = (".zip", ".bz2", ".xz", ".zst", ".7z", ".tar", ".tgz")
BLOCK = 8 << 20
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # JSON may write half a character of UTF-16, which no text can hold
LONE = re.compile("[\ud800-\udfff]")


def kind_of(path: Path) -> str | None:
    """text, jsonl, csv, tsv or parquet by the file's suffix, `.gz` aside; None for one that is not known."""
    return KIND_OF.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower())


def read_blocks(path: Path, errors: str = "strict") -> Iterator[str]:
    """The text of a file in blocks of about 8 MB, each ending at a line end.

    `errors="replace"` puts U+FFFD for bytes that are not UTF-8, and tells in the log how many were; a NUL becomes a
    blank.
    """
    if path.suffix.lower() in PACKED:
        raise UserError(f"{path}: {path.suffix} archives are not read; unpack it, or pack the file itself as .gz")
    offset, lines, blank, replaced = 0, 0, True, 0
    for data in _whole_lines(path):
        if errors == "replace":
            data, bad = _mended(data)
            replaced += bad
        text = _decode(data, offset, lines, path)
        blank = blank and not text.strip()
        offset += len(data)
        lines += data.count(b"\n")
        yield text
    if replaced:
        log.warning("%s: %d places that are not UTF-8 text were replaced (data.errors=replace)", path, replaced)
    if blank:
        raise UserError(f"{path}: the file is empty{' (blanks only)' if offset else ''}; give one with text in it")


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []  # joined once: a line may be as long as the file
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            while block := file.read(BLOCK):
                end = block.rfind(b"\n") + 1
                if end:
                    yield b"".join([*rest, block[:end]])
                    rest = []
                rest.append(block[end:])
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); pack or download it again") from error
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    if last := b"".join(rest):
        yield last


def _mended(data: bytes) -> tuple[bytes, int]:
    """Valid UTF-8 without NUL, and how many places had to be replaced."""
    nuls = data.count(b"\0")
    data = data.replace(b"\0", b" ") if nuls else data
    try:
        data.decode("utf-8")
        return data, nuls
    except UnicodeDecodeError:
        text = data.decode("utf-8", errors="replace")
        return text.encode(), nuls + text.count("\ufffd") - data.count("\ufffd".encode())


def _decode(data: bytes, offset: int, lines: int, path: Path) -> str:
    """`offset` bytes and `lines` lines stand before `data`: errors tell the place in the file."""

    def place(at: int) -> str:
        line = lines + data.count(b"\n", 0, at) + 1
        return f"byte {offset + at:,}, line {line:,}"

    if offset == 0:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(f"{path}: UTF-16 text; make it UTF-8: iconv -f UTF-16 -t UTF-8 {path} > NEW")
        if data[:4] == b"PAR1":
            raise UserError(f"{path}: a parquet file by its content; name it *.parquet")
        if data[:2] == b"\x1f\x8b":
            raise UserError(f"{path}: a gzip file by its content; name it *.gz")
    if (nul := data.find(b"\0")) >= 0:
        raise UserError(f"{path}: binary, not text (a NUL at {place(nul)}); give UTF-8 text, or data.errors=replace")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (0x{data[error.start]:02x} at {place(error.start)}); convert it: "
            f"iconv -f LATIN1 -t UTF-8 {path} > NEW, or type data.errors=replace"
        ) from error
    if offset == 0:
        text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n") if "\r" in text else text


def read_text(path: Path) -> str:
    """The whole text of a file."""
    return "".join(read_blocks(path))


Row = dict[str | int, object]


def read_table(
    path: Path, kind: str, header: bool, delimiter: str | None = None, errors: str = "strict"
) -> Iterator[tuple[str, Row]]:
    """Rows as (place, values by column): the place is for messages, the columns are names, or positions from 0
    where there is no header."""
    if kind == "parquet":
        yield from _parquet(path)
    elif kind == "jsonl":
        yield from _json_lines(path, errors)
    else:
        yield from _separated(path, kind, header, delimiter, errors)


def _separated(path: Path, kind: str, header: bool, delimiter: str | None, errors: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(1 << 30)
    # Tab-separated data sets hold lone quotes as text (GLUE, SST-2); tabs inside quotes are not found there.
    quoting = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    delimiter = delimiter or ("\t" if kind == "tsv" else ",")
    lines = chain.from_iterable(
        io.StringIO(block, newline="") for block in read_blocks(path, errors)
    )  # never all in memory
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str | int] | None = None
    rows, begin = 0, 1  # the line a row begins at: a quote that is never closed makes it end at the end of the file
    try:
        for values in reader:
            where, begin = f"{path}: line {begin}", reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = _header(values, where) if header else list(range(len(values)))
                if header:
                    continue
            if len(values) != len(names):
                raise UserError(f"{where} has {len(values)} fields, the first has {len(names)}; mend that line")
            rows += 1
            yield where, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: line {begin}: {error}; mend the row that begins there") from error
    if not rows:
        raise UserError(f"{path}: the file has a header and no rows")


def _header(values: list[str], where: str) -> list[str]:
    """Names of the columns; those that have none (an index, written by pandas) are told apart by their position."""
    names = [value.strip() or f"unnamed {position}" for position, value in enumerate(values)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: column {twice!r} stands there twice; rename one of them")
    return names


def _json_lines(path: Path, errors: str) -> Iterator[tuple[str, Row]]:
    number = replaced = 0
    for block in read_blocks(path, errors):
        # Not splitlines(): a JSON string may hold U+2028 and its like.
        for line in block.removesuffix("\n").split("\n"):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if HALF.search(line):
                    row, bad = _whole_characters(row, f"{path}: line {number}", errors)
                    replaced += bad
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is not JSON ({error}); one object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} holds a {type(row).__name__}; one JSON object a line")
            yield f"{path}: line {number}", row
    if replaced:
        log.warning("%s: %d halves of characters (\\ud800 and the like) were replaced", path, replaced)


def _whole_characters(row: object, where: str, errors: str) -> tuple[object, int]:
    """The row without surrogates that stand alone, and how many there were. Raises UserError unless they may go."""
    text = json.dumps(row, ensure_ascii=False)
    if (lone := LONE.search(text)) and errors != "replace":
        raise UserError(f"{where} holds half a character (\\u{ord(lone[0]):04x}); mend it, or type data.errors=replace")
    text, count = LONE.subn("\ufffd", text)
    return json.loads(text), count


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa  # optional: a heavy package, needed for parquet alone
    import pyarrow.parquet as pq  # optional

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]})") from error
    if not number:
        raise UserError(f"{path}: the file has no rows")
