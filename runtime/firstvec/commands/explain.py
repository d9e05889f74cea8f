"""`firstvec explain`: which artifact each strategy takes on this machine, and why not the others."""

from __future__ import annotations

from firstvec.bundle import integrity, store
from firstvec.commands.output import print_json, print_table, print_text
from firstvec.engines.table import ENGINES
from firstvec.errors import InputError, NoCompatibleArtifact
from firstvec.loading import self_test
from firstvec.machine.profile import ResourceProfile
from firstvec.options import make_options
from firstvec.selection import select
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bundle.manifest import Manifest
    from firstvec.options import Options


def explain(model: str, strategy: str | None, html: str | None, as_json: bool, **choice_options: Any) -> None:
    """Show which artifact each strategy takes on this machine, and why not the others.

    Loads nothing, but with --html: the page shows how long each different choice takes to its first vector, so each is
    loaded in some fresh processes.
    """
    options = make_options(model, **choice_options)
    manifest = store.find_bundle(model, options.require_signature, options.working_folder)
    profile = ResourceProfile.detect()
    choices: dict[str, dict[str, Any]] = {}
    for name in [strategy] if strategy else STRATEGIES:
        try:
            choices[name] = _choose(manifest, profile, options.replace(strategy=name))
        except NoCompatibleArtifact as error:
            if strategy:
                raise
            choices[name] = {"error": str(error)}
    if html == "-":
        raise InputError("--html writes a file beside the text on stdout: name a file, and not -")
    if html is not None:
        from firstvec.commands import encode, page

        encode.write_result(page.draw(page.describe(manifest, profile, options, choices)), html, "--html")
    if as_json:
        print_json({"machine": str(profile), "strategies": choices, "left_out": manifest.left_out or {}})
        return
    print_text(f"machine: {profile}")
    names_of: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name, choice in choices.items():
        names_of.setdefault(_rows(choice, manifest), []).append(name.upper())
    for rows, names in names_of.items():
        print_text(f"\n{', '.join(names)}")
        print_table(rows, indent="  ")
    if html is not None:
        print_text(f"\nThe page is in {html}")


def _choose(manifest: Manifest, profile: ResourceProfile, options: Options) -> dict[str, Any]:
    """Return the choice, and what was checked before on this machine, so that a load does not check it again."""
    choice = select(manifest, profile, options)
    artifact = choice.artifact
    version = profile.engine_version(artifact.engine) or ""
    is_quick = STRATEGIES[options.strategy].quick_start and ENGINES[artifact.engine].has_two_kinds
    kind = "quick-start" if is_quick else "throughput"
    return {
        **choice.to_values(),
        "session": kind,
        "verified_before": all(integrity.is_remembered(manifest.root, file) for file in artifact.files),
        "self_test_passed_before": self_test.is_remembered(manifest, artifact, choice.device, version, kind),
    }


def _rows(choice: dict[str, Any], manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    if "error" in choice:
        return (("none", choice["error"]),)
    size = next(artifact.size for artifact in manifest.artifacts if artifact.id == choice["artifact"]) / 1e6
    checked = "files verified before" if choice["verified_before"] else f"{size:.1f} MB to be hashed at the first load"
    if (passed := choice["self_test_passed_before"]) is not None:
        checked += "; self-test passed before" if passed else "; self-test at the first load"
    return (
        ("takes", choice["artifact"], f"{choice['reason']}; on {choice['device']}; {checked}"),
        *(("next", name, "if the one above fails to load") for name in choice["fallbacks"]),
        *(("not", name, reason) for name, reason in choice["rejected"].items()),
        *(("not", name, f"left out by the build: {reason}") for name, reason in (manifest.left_out or {}).items()),
    )
