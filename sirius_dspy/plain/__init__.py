"""Converts values to JSON that reads back equal, to be stored, compared and hashed.

JSON's own values stand for themselves. Everything else is a *tagged* object,

    {"$type": "tuple", "value": [1, 2]}
    {"$type": "enum", "class": "shop:Color", "name": "RED", "value": "red"}

whose `value` is what a person would read, and whose other keys say what it was. Nothing is pickled, and reading imports
and calls nothing that a file names: only classes that this process has written, or that a signature names, can be read,
and their objects are restored field by field, without their constructors.

A value that cannot be restored (a lock, a function, an object of a plain class) is tagged `opaque`: its content counts
as far as it can be seen, and reading it back is an error.
"""

from sirius_dspy.plain.digest_set import DigestSet
from sirius_dspy.plain.digests import canonical, digest, text_digest
from sirius_dspy.plain.reading import coerce, comparable, from_plain, opaque_parts, readable
from sirius_dspy.plain.writing import example_content, example_key, to_plain

__all__ = [
    "DigestSet",
    "canonical",
    "coerce",
    "comparable",
    "digest",
    "example_content",
    "example_key",
    "from_plain",
    "opaque_parts",
    "readable",
    "text_digest",
    "to_plain",
]
