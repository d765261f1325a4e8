"""Nouns <-> messages, and nouns <-> stored bytes: `<noun>_to_proto`, `<noun>_from_proto`, `encode_<noun>`, `decode_<noun>`.

Decides how a noun is written down and which messages from outside are refused. Must not know who sends what, and when.
Import from the sub-modules, one per noun.
"""
