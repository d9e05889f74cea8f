"""The addresses of bundles elsewhere: what is one, and what the error says of what is none."""

from __future__ import annotations

import pytest

from firstvec.errors import InputError
from firstvec_build.shipping.addresses import Hub, Registry, parse_address

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("oci://localhost:5000/minilm:1", Registry(host="localhost:5000", repository="minilm", tag="1")),
        (
            "oci://r.example.com/a/b__c/d-e:V1.2_x",
            Registry(host="r.example.com", repository="a/b__c/d-e", tag="V1.2_x"),
        ),
        (f"oci://[::1]:5000/a@{DIGEST}", Registry(host="[::1]:5000", repository="a", digest=DIGEST)),
        ("hf://org/all-MiniLM-L6-v2", Hub(repository="org/all-MiniLM-L6-v2")),
        ("hf://org/name@1110a243", Hub(repository="org/name", revision="1110a243")),
        ("hf://org/name@refs/pr/1", Hub(repository="org/name", revision="refs/pr/1")),
    ],
)
def test_an_address_is_parsed_and_written_as_it_was(text: str, address: Registry | Hub) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all-MiniLM-L6-v2", "is not an address; write oci://HOST/REPO:TAG or hf://ORG/NAME"),
        ("docker://host/a:1", "is not an address"),
        ("", "is not an address"),
        ("oci://host", "'' is not a repository"),
        ("oci:///a:1", "'' is not a host"),
        ("oci://user:secret@host/a:1", "is not a host"),
        ("oci://host/A:1", "'A' is not a repository, which has lower-case letters"),
        ("oci://host/a/../b:1", "is not a repository"),
        ("oci://host/a?x=1:1", "is not a repository"),
        ("oci://host/a", "names no version; write a tag or a digest: :TAG or @sha256:DIGEST"),
        ("oci://host/a:", "'' is not a tag"),
        ("oci://host/a:.b", "'.b' is not a tag"),
        ("oci://host/a:1/2", "'1/2' is not a tag"),
        ("oci://host/a@sha256:12", "'sha256:12' is not a digest"),
        ("oci://host/a@sha512:12", "is not a digest; write sha256: and 64 digits"),
        (f"oci://host/a:1@{DIGEST}", "has a tag and a digest; write one of them"),
        ("oci://host/a:1\x1b[2J", r"\x1b"),
        ("hf://name", "'name' is not a repository; write hf://ORG/NAME"),
        ("hf://a/b/c", "is not a repository"),
        ("hf://../b", "is not a repository"),
        ("hf://a/b@", "'' is not a revision"),
        ("hf://a/b@../c", "is not a revision"),
        ("hf://a/b@x y", "is not a revision"),
    ],
)
def test_what_is_no_address_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(text)
    assert message in str(caught.value)
    assert "\x1b" not in str(caught.value)
