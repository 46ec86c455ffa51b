"""What a file that cannot be read looks like, in words."""

from __future__ import annotations

import string

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive, such as a checkpoint of PyTorch or a NumPy archive"),
    (b"\x80\x02", "a Python pickle, such as an old checkpoint of PyTorch"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file, such as weights of Keras"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program for Windows"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow file"),
    (b"GGUF", "weights in the GGUF format"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML document"),
    (b"#!/", "a script"),
)
_TAR, _TAR_AT = b"ustar", 257
_PRINTED = frozenset(string.printable.encode())


def looks_like(head: bytes) -> str:
    """What the first bytes of a file look like: 'a PNG image', 'text', 'binary data'."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, name in _STARTS:
        if head.startswith(magic) or (magic[:1] in (b"<", b"#") and start.lower().startswith(magic.lower())):
            return name
    if head[_TAR_AT:].startswith(_TAR):
        return "a tar archive"
    if b'{"__metadata__"' in head[:64] or b'"dtype":"' in head[:256]:
        return "weights in the safetensors format"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    some = head[:4096]
    return "text" if sum(b in _PRINTED or b > 127 for b in some) > 0.95 * len(some) else "binary data"
