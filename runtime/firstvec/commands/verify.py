"""`firstvec verify`: hash every file of a bundle, check its signature, and name what else lies in its folder."""

from __future__ import annotations

from firstvec.bundle import contents, integrity, signature, store
from firstvec.bundle.manifest import File, Manifest, read_manifest_bytes
from firstvec.commands.output import print_json, print_text
from firstvec.errors import FirstvecError
from firstvec.options import DEFAULT_MODEL


def verify(model: str | None, public_key: str | None, strict: bool, as_json: bool) -> int | None:
    """Hash every file of a bundle and compare it with the manifest. What was remembered does not count."""
    manifests, broken = ([store.find_bundle(model)], {}) if model is not None else store.read_installed()
    if not manifests and not broken:
        store.find_bundle(DEFAULT_MODEL)  # raises BundleNotFound, which lists the places
    files: dict[str, dict[str, str]] = {}
    signatures: dict[str, dict[str, str | None]] = {}
    unlisted: dict[str, dict[str, str]] = {}
    absent: dict[str, list[str]] = {}
    for manifest in manifests:
        if public_key is not None:
            data = read_manifest_bytes(manifest.path)
            manifest = store.locate(
                Manifest.parse(data, manifest.path), manifest.path
            )  # the signature is of these bytes
            signatures[manifest.root] = signature.ask_verifiers(manifest, data, public_key)
        files[manifest.root] = {file.path: _verify_file(manifest.root, file) for file in manifest.files()}
        absent[manifest.root] = [artifact.id for artifact in manifest.absent]
        if strict:
            unlisted[manifest.root] = contents.find_unlisted(manifest)
    verdicts = [verdict for found in (files, signatures) for each in found.values() for verdict in each.values()]
    is_good = not broken and not any(unlisted.values()) and {*verdicts} <= {"ok", None}
    if as_json:
        values: dict[str, object] = {"ok": is_good, "bundles": files, "absent": absent, "broken": broken}
        values |= {"signatures": signatures} if public_key is not None else {}
        values |= {"unlisted": unlisted} if strict else {}
        print_json(values)
    else:
        for root in files:
            lines = [f"  ok   {path}" if found == "ok" else f"  BAD  {found}" for path, found in files[root].items()]
            lines += [f"  --   {artifact_id}: not installed" for artifact_id in absent[root]]
            lines += [f"  BAD  {path}: {what}; remove it" for path, what in unlisted.get(root, {}).items()]
            lines += [_signature_line(verifier, found) for verifier, found in signatures.get(root, {}).items()]
            print_text("\n".join([root, *lines]))
        for reason in broken.values():
            print_text(f"BAD  {reason}")
        good = "ok: every file is the one that the manifest describes"
        print_text(good if is_good else "BAD: see the lines above that begin with BAD")
    return None if is_good else 1


def _verify_file(root: str, file: File) -> str:
    """Return ``ok``, or what is wrong."""
    try:
        integrity.verify_file(root, file, use_markers=False)
    except FirstvecError as error:
        return str(error)
    return "ok"


def _signature_line(verifier: str, found: str | None) -> str:
    if found is None:
        why = f"{verifier} is not installed, or an artifact is not, or a file is no plain file"
        return f"  --   signature: {why}: it was not asked"
    return f"  ok   signature, says {verifier}" if found == "ok" else f"  BAD  signature, says {verifier}: {found}"
