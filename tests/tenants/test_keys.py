import base64

from app.tenants.keys import digest_of, id_of, mint


def test_a_key_says_what_it_is_and_has_256_bits_nobody_can_guess() -> None:
    keys = {mint() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("gllm-")
        assert len(base64.urlsafe_b64decode(key.removeprefix("gllm-") + "=")) == 32


def test_a_digest_is_what_sha256sum_says_and_the_id_its_beginning() -> None:
    digest = digest_of(b"abc")
    assert digest.hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert id_of(digest) == "ba7816bf8f01"
