"""Whether the bytes of a file that a person named are text, and what they are where they are not.

Decides that text is UTF-8, and which packed files are known by how they begin. Opens no file; what the text says is somebody else's matter.
"""

from __future__ import annotations

from typing import Final

# How what is no text begins, and what to do with it.
_PACKED: Final = (
    (b"\x1f\x8b", "compressed: unpack it first, with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed: unpack it first, with unzstd"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet: unpack it, or save the sheet as CSV in UTF-8"),
)


class NotTextError(ValueError):
    """Bytes that are no text; it says what was expected instead, for an error that names the file."""


def decode(content: bytes) -> str:
    """The text, without a byte order mark. Raises NotTextError."""
    refuse_packed(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotTextError(f"UTF-8 text (byte {error.start}, in line {line}, is none)") from None


def refuse_packed(beginning: bytes) -> None:
    """Raises NotTextError for a file that begins so, if that is packed."""
    packed = next((what for begins, what in _PACKED if beginning.startswith(begins)), "")
    if packed:
        raise NotTextError(f"text, and this is {packed}")
