"""What errors quote: enough of a value to recognise it, whatever it holds."""

from __future__ import annotations

from atoll.model.errors import quoted


def test_a_long_value_keeps_its_start_and_the_name_at_its_end() -> None:
    path = "/srv/" + "deep/" * 100 + "copy.sqlite"
    text = quoted(path)
    assert text.startswith("'/srv/deep/")
    assert text.endswith(f"/copy.sqlite' ({len(path) + 2} characters)")
    assert len(text) < 110


def test_a_short_value_is_shown_whole_on_one_line() -> None:
    assert quoted("a\nb\x00") == r"'a\nb\x00'"
