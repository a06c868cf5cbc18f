"""Values as JSON that reads back equal: what is stored, compared and hashed.

JSON's own values stand for themselves. Everything else is a *tagged* object,

    {"$type": "tuple", "value": [1, 2]}
    {"$type": "enum", "class": "shop:Color", "name": "RED", "value": "red"}

whose `value` is what a person would read, and whose other keys say what it was. Nothing is pickled, and reading imports
and calls nothing that a file names: classes are found among those that this process has written or that a signature
names, and their objects are restored field by field, without their constructors.

What cannot be restored (a lock, a function, an object of a plain class) is tagged `opaque`: it is told apart by its
content as far as that can be seen, and refused where it would have to be read back.
"""

from sirius_dspy.plain.digests import canonical, digest, text_digest
from sirius_dspy.plain.reading import coerce, from_plain, opaque_parts, readable
from sirius_dspy.plain.writing import example_content, example_key, to_plain

__all__ = [
    "canonical",
    "coerce",
    "digest",
    "example_content",
    "example_key",
    "from_plain",
    "opaque_parts",
    "readable",
    "text_digest",
    "to_plain",
]
