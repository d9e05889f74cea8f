"""The addresses of bundles elsewhere: ``oci://HOST/REPO:TAG``, ``oci://HOST/REPO@sha256:…``, ``hf://ORG/NAME@COMMIT``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from firstvec.errors import InputError, excerpt

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# The next three are those of the OCI Distribution Specification 1.1, "Pulling manifests".
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The names of repositories on the Hugging Face hub, as huggingface_hub's validate_repo_id has them.
_HUB_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_HUB_REVISION = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A bundle in a container registry."""

    host: str
    """With ``:PORT``, where there is one."""
    repository: str
    tag: str | None = None
    digest: str | None = None
    """Of the OCI manifest. Either a tag or a digest is there."""

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A bundle in a repository of the Hugging Face hub."""

    repository: str
    """``ORGANIZATION/NAME``."""
    revision: str | None = None
    """Commit, tag or branch."""

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


Address = Registry | Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a place, beside what the user's own configuration says."""

    username: str | None = None
    password: str | None = None
    insecure: bool = False
    """Whether to speak HTTP without TLS."""
    authorities: str | None = None
    """File of the certificates (PEM) of the authorities to trust, in place of those that Python trusts."""
    private: bool = False
    """Whether a push makes a new repository private. Only a hub makes repositories."""


def parse_address(text: str) -> Address:
    """Return the address that ``text`` is.

    Raises:
        InputError: the text is not an address. The error says which part is wrong.
    """
    scheme, separator, rest = text.partition("://")
    parser = _PARSERS.get(scheme) if separator else None
    if parser is None:
        raise InputError(f"{excerpt(text)}: is not an address; write oci://HOST/REPO:TAG or hf://ORG/NAME")
    return parser(text, rest)


def _parse_registry(text: str, rest: str) -> Registry:
    host, _, place = rest.partition("/")
    if not _HOST.fullmatch(host):
        raise _wrong(text, f"{excerpt(host)!r} is not a host", "oci://HOST/REPO:TAG or oci://HOST/REPO@sha256:DIGEST")
    name, at, digest = place.partition("@")
    name, colon, tag = name.partition(":")
    if not _REPOSITORY.fullmatch(name):
        what = f"{excerpt(name)!r} is not a repository, which has lower-case letters, digits, and . _ - / between them"
        raise _wrong(text, what, "oci://HOST/REPO:TAG")
    if at:
        if colon:
            raise _wrong(text, "has a tag and a digest", "one of them")
        if not _DIGEST.fullmatch(digest):
            raise _wrong(text, f"{excerpt(digest)!r} is not a digest", "sha256: and 64 digits of 0-9 and a-f")
        return Registry(host=host, repository=name, digest=digest)
    if not colon:
        raise _wrong(text, "names no version", "a tag or a digest: :TAG or @sha256:DIGEST")
    if not _TAG.fullmatch(tag):
        raise _wrong(text, f"{excerpt(tag)!r} is not a tag", "letters, digits, and . _ - behind the first one")
    return Registry(host=host, repository=name, tag=tag)


def _parse_hub(text: str, rest: str) -> Hub:
    repository, at, revision = rest.partition("@")
    parts = repository.split("/")
    if len(parts) != 2 or not all(map(_HUB_NAME.fullmatch, parts)):
        raise _wrong(text, f"{excerpt(repository)!r} is not a repository", "hf://ORG/NAME or hf://ORG/NAME@COMMIT")
    if at and (not _HUB_REVISION.fullmatch(revision) or ".." in revision):
        raise _wrong(text, f"{excerpt(revision)!r} is not a revision", "a commit, a tag or a branch behind @")
    return Hub(repository=repository, revision=revision or None)


_PARSERS: dict[str, Callable[[str, str], Address]] = {"oci": _parse_registry, "hf": _parse_hub}


def _wrong(text: str, what: str, right: str) -> InputError:
    return InputError(f"{excerpt(text)}: {what}; write {right}")
