"""Patients as hashes: the original identifiers are stored nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 8


def pseudonyms(keys: Sequence[str], image_sha256: Sequence[str]) -> tuple[str, ...]:
    """Return a salted hash of the patient key of each image, both of length N; equal keys have equal hashes.

    The salt (NIST SP 800-132, 5.1) is derived from all keys and all images of the set and not stored: hospital numbers
    have few digits and could be guessed from a hash with a stored salt, but not all numbers of a set at once. The same
    set has the same salt, so that a repeated study is bit-identical; different sets have different salts. Keyed BLAKE2b
    (RFC 7693), truncated to 64 bits.
    """
    salt = hashlib.sha256()
    for values in (sorted(set(keys)), sorted(image_sha256)):
        salt.update(len(values).to_bytes(8, "big"))
        for value in values:
            encoded = value.encode("utf-8", "surrogateescape")
            salt.update(len(encoded).to_bytes(8, "big"))
            salt.update(encoded)
    secret = salt.digest()

    def hashed(key: str) -> str:
        encoded = key.encode("utf-8", "surrogateescape")
        return "p-" + hashlib.blake2b(encoded, key=secret, digest_size=HASH_BYTES).hexdigest()

    known = {key: hashed(key) for key in set(keys)}
    return tuple(known[key] for key in keys)
