"""`firstvec explain`: which artifact each strategy takes on this machine, and why not the others."""

from __future__ import annotations

from firstvec.bundle import integrity, store
from firstvec.commands.output import print_json, print_table, print_text
from firstvec.engines.session import session_kind
from firstvec.errors import NoCompatibleArtifact
from firstvec.loading import self_test
from firstvec.machine.profile import ResourceProfile
from firstvec.options import make_options
from firstvec.selection import select
from firstvec.strategy import STRATEGIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from firstvec.bundle.manifest import Manifest
    from firstvec.selection import Choice


def explain(model: str, strategy: str | None, as_json: bool, **choice_options: Any) -> None:
    """Show which artifact each strategy takes on this machine, and why not the others. Loads nothing."""
    options = make_options(model, **choice_options)
    manifest = store.find_bundle(model, options.require_signature, options.working_folder)
    profile = ResourceProfile.detect()
    choices: dict[str, Choice | NoCompatibleArtifact] = {}
    for name in [strategy] if strategy else [*STRATEGIES]:
        try:
            choices[name] = select(manifest, profile, options.replace(strategy=name))
        except NoCompatibleArtifact as error:
            if strategy:
                raise
            choices[name] = error
    if as_json:
        values = {
            name: {"error": str(choice)}
            if isinstance(choice, NoCompatibleArtifact)
            else {**choice.to_values(), **_earlier_checks(name, choice, manifest, profile)}
            for name, choice in choices.items()
        }
        print_json({"machine": str(profile), "strategies": values})
        return
    print_text(f"machine: {profile}")
    strategies: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name, choice in choices.items():
        rows = (
            (("none", str(choice)),)
            if isinstance(choice, NoCompatibleArtifact)
            else _choice_rows(choice, _earlier_checks(name, choice, manifest, profile))
        )
        strategies.setdefault(rows, []).append(name.upper())
    for same_rows, names in strategies.items():
        print_text(f"\n{', '.join(names)}")
        print_table(same_rows, indent="  ")


def _earlier_checks(
    strategy: str, choice: Choice, manifest: Manifest, profile: ResourceProfile
) -> dict[str, bool | None]:
    """Return what was checked before on this machine, so that a load does not check it again."""
    artifact = choice.artifact
    version = profile.engine_version(artifact.engine) or ""
    kind = session_kind(quick_start=STRATEGIES[strategy].quick_start)
    return {
        "verified_before": all(integrity.is_remembered(manifest.root, file) for file in artifact.files),
        "self_test_passed_before": self_test.is_remembered(manifest, artifact, choice.device, version, kind),
    }


def _choice_rows(choice: Choice, checks: dict[str, bool | None]) -> tuple[tuple[str, ...], ...]:
    size = choice.artifact.size / 1e6
    checked = "files verified before" if checks["verified_before"] else f"{size:.1f} MB to be hashed at the first load"
    if (passed := checks["self_test_passed_before"]) is not None:
        checked += "; self-test passed before" if passed else "; self-test at the first load"
    return (
        ("takes", choice.artifact.id, f"{choice.reason}; on {choice.device}; {checked}"),
        *(("next", artifact.id, "if the one above fails to load") for artifact in choice.candidates[1:]),
        *(("not", artifact.id, reason) for artifact, reason in choice.rejected),
    )
