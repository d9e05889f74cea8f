"""The requests to a container registry: redirects, logins, and what goes wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from firstvec.errors import TransferError
from firstvec_build.shipping import registry_client
from firstvec_build.shipping.addresses import Access
from tests.build.test_publishing import snapshot
from tests.registries import (
    PASSWORD,
    USER,
    Answer,
    Liar,
    at,
    liar_with,
    refuse,
    send,
    take,
    take_from,
)

pytestmark = pytest.mark.usefixtures("on_the_loopback")


def test_a_redirect_to_another_host_gets_no_credentials(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    """Registries of clouds send the reader to a store of blobs."""
    netrc = Path(os.environ["HOME"]) / ".netrc"
    netrc.parent.mkdir()
    netrc.write_text("machine localhost login ada password sesame\nmachine 127.0.0.1 login eve password other\n")
    with liar_with(tiny_built) as store:

        def demand_login_and_redirect(request: Any) -> None:
            if request.headers.get("Authorization") != "Basic YWRhOnNlc2FtZQ==":
                raise Answer(401, WWW_Authenticate='Basic realm="the vault"')
            if "/blobs/" in request.path:
                raise Answer(307, Location=f"http://localhost:{store.port}{request.path}?signed=1")

        liar.lie = demand_login_and_redirect

        def strip(request: Any) -> None:
            request.path = request.path.removesuffix("?signed=1")

        store.lie = strip
        access = Access(insecure=True, username=USER, password=PASSWORD)
        got = take(f"oci://{liar.host}/tiny:1", tmp_path, access)
        assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
        assert len(store.requests) > 10
        assert {"authorization" in headers for _, _, headers in store.requests} == {False}
        assert sum("authorization" not in headers for _, _, headers in liar.requests) == 1


def test_a_registry_with_tls_cannot_redirect_to_a_place_without(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    with liar_with(tiny_built, tmp_path / "ca.pem") as safe:

        def redirect(request: Any) -> None:
            if "/blobs/" in request.path:
                raise Answer(307, Location=f"http://{liar.host}{request.path}")

        safe.lie = redirect
        trusting = Access(authorities=str(tmp_path / "ca.pem"))
        with pytest.raises(TransferError, match="redirects to a place without TLS"):
            take(f"oci://{safe.host}/tiny:1", tmp_path / "output", trusting)
        assert liar.requests == []
        safe.lie = lambda _request: None
        got = take(f"oci://{safe.host}/tiny:1", tmp_path / "output", trusting)
        assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_redirect_to_what_is_no_address_is_refused(
    command: str, liar: Liar, tiny_built: Path, tmp_path: Path
) -> None:
    def mislead(request: Any) -> None:
        if request.command == "HEAD":
            raise Answer(404)
        raise Answer(202 if command == "push" else 302, Location="http://[x")

    liar.lie = mislead
    with pytest.raises(TransferError, match=r"redirects to .* no address"):
        send(tiny_built, f"oci://{liar.host}/tiny:1") if command == "push" else take_from(liar, tmp_path)


def test_a_registry_with_tls_gets_no_layer_without(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    with liar_with(tiny_built, tmp_path / "ca.pem") as safe:

        def mislead(request: Any) -> None:
            raise Answer(404) if request.command == "HEAD" else Answer(202, Location=f"http://{liar.host}/upload")

        safe.lie = mislead
        with pytest.raises(TransferError, match="redirects to a place without TLS"):
            send(tiny_built, f"oci://{safe.host}/tiny:1", Access(authorities=str(tmp_path / "ca.pem")))
        assert liar.requests == []


class Challenge:
    """A registry's request for a name and a password."""

    headers = {"WWW-Authenticate": 'Basic realm="the vault"'}  # noqa: RUF012


def log_in(address: str) -> str | None:
    client = registry_client.Client(at(address), Access(insecure=True))
    client._log_in(Challenge())  # type: ignore[arg-type]
    return client._authorization


def test_a_stored_login_goes_to_its_own_registry_only(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["HOME"]) / ".docker"
    folder.mkdir(parents=True)
    logins = {"docker.io": "aHVi", "https://index.docker.io/v1/": "aHVi", "registry": "b3du", "some.where:5000": "b3Ro"}
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth} for host, auth in logins.items()}}))
    assert log_in("oci://registry/team/model:1") == "Basic b3du"
    assert log_in("oci://some.where:5000/team/model:1") == "Basic b3Ro"
    # oras takes a host without a dot for a folder of Docker's registry, and its two variables for every registry.
    monkeypatch.setenv("ORAS_USER", "ada")
    monkeypatch.setenv("ORAS_PASS", "sesame")
    assert log_in("oci://elsewhere/team/model:1") is None
    assert log_in("oci://localhost/team/model:1") is None


def test_redirects_come_to_an_end(liar: Liar, tmp_path: Path) -> None:
    def go_round(request: Any) -> None:
        raise Answer(302, Location=request.path)

    liar.lie = go_round
    refuse(liar, tmp_path, "redirects too often")
    assert len(liar.requests) == 6


def test_a_token_is_fetched_for_the_scope_and_renewed(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    """Docker's token authentication: the challenge names the place of the tokens, and the scope."""
    tokens: list[str] = []

    def demand_token(request: Any) -> None:
        if request.path.startswith("/token"):
            assert request.headers["Authorization"] == "Basic YWRhOnNlc2FtZQ=="
            assert "scope=repository%3Atiny%3Apull" in request.path
            tokens.append(f"token-{len(tokens)}")
            raise Answer(200, json.dumps({"token": tokens[-1]}).encode(), Content_Type="application/json")
        current = tokens[-1] if tokens else ""
        if request.headers.get("Authorization") != f"Bearer {current}" or len(liar.requests) == 12:
            tokens and len(liar.requests) == 12 and tokens.append("expired")
            challenge = f'Bearer realm="http://{liar.host}/token",service="r",scope="repository:tiny:pull"'
            raise Answer(401, WWW_Authenticate=challenge)

    liar.lie = demand_token
    access = Access(insecure=True, username=USER, password=PASSWORD)
    got = take(f"oci://{liar.host}/tiny:1", tmp_path, access)
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)
    assert tokens == ["token-0", "expired", "token-2"]


def test_a_public_bundle_needs_no_login_but_a_token(liar: Liar, tiny_built: Path, tmp_path: Path) -> None:
    def demand_token(request: Any) -> None:
        if request.path.startswith("/token"):
            assert request.headers["Authorization"] is None
            raise Answer(200, b'{"access_token": "for-everybody"}', Content_Type="application/json")
        if request.headers.get("Authorization") != "Bearer for-everybody":
            raise Answer(401, WWW_Authenticate=f'Bearer realm="http://{liar.host}/token",service="r"')

    liar.lie = demand_token
    got = take_from(liar, tmp_path)
    assert snapshot(Path(got.manifest.root)) == snapshot(tiny_built)


def test_the_login_is_not_sent_without_tls_for_a_registry_with_tls(liar: Liar) -> None:
    client = registry_client.Client(at(f"oci://{liar.host}/tiny:1"), Access(username=USER, password=PASSWORD))

    class Challenge:
        headers = {"WWW-Authenticate": f'Bearer realm="http://{liar.host}/token",service="r"'}  # noqa: RUF012

    with pytest.raises(TransferError, match=r"sends the login to .* without TLS"):
        client._log_in(Challenge())  # type: ignore[arg-type]
    assert liar.requests == []


@pytest.mark.parametrize(
    ("answer", "message", "attempts"),
    [
        (Answer(503), r"answers 503 Service Unavailable; try again later", 3),
        (Answer(429, b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}'), r"\(slow down\)", 3),
        (Answer(403, b'{"errors": [{"code": "DENIED"}]}'), r"403 Forbidden \(DENIED\); log in", 1),
        (Answer(418, b'{"errors": 3}'), "answers 418", 1),
        (Answer(404), "has no such bundle; check the name and the tag", 1),
        (Answer(400, b'{"errors": [{"message": "\\u001b[2J"}]}'), r"\\x1b", 1),
    ],
    ids=["503", "429", "403", "418", "404", "control characters"],
)
def test_what_the_registry_says_is_passed_on(
    answer: Answer, message: str, attempts: int, liar: Liar, tmp_path: Path
) -> None:
    def say(_request: Any) -> None:
        raise answer

    liar.lie = say
    error = refuse(liar, tmp_path, message)
    assert "\x1b" not in str(error)
    assert len(liar.requests) == attempts


def test_a_registry_that_is_silent_is_given_up(liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_client, "_TIMEOUT", (1.0, 0.2))

    def sleep(_request: Any) -> None:
        time.sleep(1)

    liar.lie = sleep
    assert refuse(liar, tmp_path, "cannot be reached .*timed out").is_passing
