"""The secrets of keys: their form, what is kept of them, and the work of comparing one."""

import random
import re
from collections import Counter
from hmac import compare_digest

import pytest

from safelight.service.keys import secrets
from safelight.service.keys.secrets import (
    find_digest,
    hash_secret,
    is_secret,
    make_secret,
    mask_secrets,
    prefix_of,
)


def test_a_secret_has_256_random_bits_and_its_form() -> None:
    samples = {make_secret() for _ in range(1000)}
    assert len(samples) == 1000 and all(map(is_secret, samples))
    assert {len(secret) for secret in samples} == {46}  # 256 bits in base64 are 43 characters, after sk-
    assert len({prefix_of(secret) for secret in samples}) == 1000
    characters = Counter(character for secret in samples for character in secret[3:45])
    assert len(characters) == 64 and max(characters.values()) < 1.4 * min(characters.values())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-",
        "sk-" + 42 * "a",
        "sk-" + 44 * "a",
        "SK-" + 43 * "a",
        "sk-" + 42 * "a" + "ä",
        "sk-" + 42 * "a" + "\n",
    ],
)
def test_other_texts_are_no_secrets(text: str) -> None:
    assert not is_secret(text)


def test_secrets_are_masked_wherever_they_stand() -> None:
    secret, other = make_secret(), make_secret()
    text = f"GET /?key={secret} failed: '{other}'; sk-short stays"
    assert mask_secrets(text) == "GET /?key=sk-*** failed: 'sk-***'; sk-short stays"


def test_a_digest_is_found_among_those_with_its_prefix() -> None:
    digests = [hash_secret(make_secret()) for _ in range(3)]
    assert [find_digest(digest, digests) for digest in digests] == [0, 1, 2]
    assert find_digest(hash_secret(make_secret()), digests) is None
    assert find_digest(bytes(32), []) is None  # the stand-in opens nothing


def test_the_work_of_a_comparison_does_not_depend_on_how_much_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 10,000 tries, each right in as many characters as it happens: the same calls on as many bytes."""
    calls: list[tuple[int, int]] = []

    def counted(first: bytes, second: bytes) -> bool:
        calls.append((len(first), len(second)))
        return compare_digest(first, second)

    monkeypatch.setattr(secrets, "compare_digest", counted)
    generator, secret = random.Random(1), make_secret()
    digests = [hash_secret(secret), hash_secret(make_secret())]
    work: dict[int, Counter[tuple[tuple[int, int], ...]]] = {}
    for _ in range(10_000):
        num_right = generator.randrange(47)
        attempt = secret[:num_right] + make_secret()[num_right:]
        calls.clear()
        expected = 0 if attempt == secret else None
        assert find_digest(hash_secret(attempt), digests) == expected
        work.setdefault(num_right, Counter())[tuple(calls)] += 1
    assert len(work) == 47
    assert {shape for counts in work.values() for shape in counts} == {((32, 32), (32, 32))}
    calls.clear()
    find_digest(hash_secret(secret), [])
    assert calls == [(32, 32)]  # also for a prefix that no key has


def test_a_hash_is_the_sha256_of_the_whole_secret() -> None:
    digest = hash_secret("sk-" + 43 * "a").hex()
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert digest == "65f376a44cec73581dbd6ad34fd4db499a56e86dc3ea38128af8a7fb42e0f5cb"
