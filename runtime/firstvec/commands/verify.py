"""`firstvec verify`: hash every file of a bundle, check its signature, and name what else lies in its folder."""

from __future__ import annotations

from firstvec.bundle import contents, integrity, signature, store
from firstvec.bundle.manifest import Manifest, read_manifest_bytes
from firstvec.commands.output import print_json, print_text
from firstvec.errors import FirstvecError
from firstvec.options import DEFAULT_MODEL
from firstvec.record import Record


class Verdict(Record):
    """What was found in one bundle."""

    files: dict[str, str]
    """Path → ``ok``, or what is wrong."""
    signatures: dict[str, str | None]
    """Verifier → ``ok``, or what is wrong. None: the verifier was not asked."""
    unlisted: dict[str, str]
    """Path → what it is: everything that the manifest does not list."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        verdicts = [*self.files.values(), *self.signatures.values()]
        return all(verdict in ("ok", None) for verdict in verdicts) and not self.unlisted


def verify(model: str | None, public_key: str | None, strict: bool, as_json: bool) -> int | None:
    """Verify one bundle, or all. Return 1 if something is wrong."""
    broken: dict[str, str] = {}
    if model is not None:
        manifests = [store.find_bundle(model)]
    else:
        manifests, broken = store.read_installed()
        if not manifests and not broken:
            store.find_bundle(DEFAULT_MODEL)  # raises BundleNotFound, which lists the places
    verdicts = {manifest.root: _verify_bundle(manifest, public_key, strict) for manifest in manifests}
    is_good = not broken and all(verdict.is_good for verdict in verdicts.values())
    if as_json:
        values: dict[str, object] = {
            "ok": is_good,
            "bundles": {root: verdict.files for root, verdict in verdicts.items()},
            "broken": broken,
        }
        if public_key is not None:
            values["signatures"] = {root: verdict.signatures for root, verdict in verdicts.items()}
        if strict:
            values["unlisted"] = {root: verdict.unlisted for root, verdict in verdicts.items()}
        print_json(values)
    else:
        for root, verdict in verdicts.items():
            _print_verdict(root, verdict)
        for reason in broken.values():
            print_text(f"BAD  {reason}")
        good, bad = (
            "ok: every file is the one that the manifest describes",
            "BAD: see the lines above that begin with BAD",
        )
        print_text(good if is_good else bad)
    return None if is_good else 1


def _verify_bundle(manifest: Manifest, public_key: str | None, strict: bool) -> Verdict:
    signatures: dict[str, str | None] = {}
    if public_key is not None:
        data = read_manifest_bytes(manifest.path)
        manifest = Manifest.parse(data, manifest.path)
        signatures = signature.ask_verifiers(manifest, data, public_key)
    files = {}
    for file in manifest.files():
        try:
            integrity.verify_file(manifest.root, file, use_markers=False)
            files[file.path] = "ok"
        except FirstvecError as error:
            files[file.path] = str(error)
    return Verdict(files=files, signatures=signatures, unlisted=contents.find_unlisted(manifest) if strict else {})


def _print_verdict(root: str, verdict: Verdict) -> None:
    print_text(root)
    for path, reason in verdict.files.items():
        print_text(f"  ok   {path}" if reason == "ok" else f"  BAD  {reason}")
    for path, what in verdict.unlisted.items():
        print_text(f"  BAD  {path}: {what}; remove it")
    for verifier, found in verdict.signatures.items():
        if found is None:
            print_text(f"  --   signature: {verifier} is not installed, and was not asked")
        else:
            says = f"signature, says {verifier}"
            print_text(f"  ok   {says}" if found == "ok" else f"  BAD  {says}: {found}")
