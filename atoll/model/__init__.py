"""The nouns of Atoll: frozen, slotted, keyword-only dataclasses, ids as NewTypes, transition tables as data.

Decides what a thing *is* and which changes of state are legal. Must not know clocks, networks, files, protobuf or any program.
Import from the sub-modules (`atoll.model.job`), one per noun.
"""
