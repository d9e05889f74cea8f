"""Every error that firstvec raises on purpose.

::

    FirstvecError
    ├── ManifestError               the manifest is missing, unreadable or invalid
    │   └── UnsupportedManifestVersion
    ├── SignatureError              a signature is required, and is missing or does not fit this key and bundle
    ├── BundleNotFound              no bundle of that name is in the places that are searched
    ├── ArtifactError               one artifact of a bundle cannot be used
    │   ├── IntegrityError          a file is not the one that the manifest describes
    │   ├── IncompatibleArtifact    this machine or engine cannot run the artifact
    │   └── SelfTestError           this machine or engine computes wrong vectors
    ├── NoCompatibleArtifact        none of a bundle's artifacts can be used here
    ├── LoadError                   the load failed; it can be tried again
    │   ├── LoadTimeout             the load is not finished yet
    │   └── ClosedError             the provider was closed
    ├── InputError                  an argument of the caller is not usable
    ├── MissingDependency           an optional package is not installed
    ├── TransferError               a registry or hub does not take or give a bundle
    ├── BulkError                   `firstvec embed` stopped; the shards that are done stay
    │   ├── RowError                a row has no usable text
    │   ├── InputChanged            an input file was changed while it was read
    │   ├── JobChanged              the output was begun with another input, model or option
    │   ├── OutputError             the output cannot be written
    │   ├── OutputInUse             another run writes to this output
    │   └── WorkerError             a worker process ended
    └── BuildError                  the bundle could not be built
        ├── SourceError             the model to build from
        ├── ExportError             TorchScript or ONNX export
        ├── QuantizationError       INT8
        └── QualityError            an artifact misses its threshold

Every message says what was wrong, where, and what to do next.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def printable(text: str) -> str:
    """Return ``text`` with every control character spelled out, because a terminal would obey it. Line ends stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def excerpt(text: str) -> str:
    """Return the first 80 characters of a value that nobody vouches for, with the unprintable ones spelled out."""
    return text[:80] if text[:80].isprintable() else ascii(text[:80])[1:-1]


def _archive_note() -> str:
    """Return what to do if this package was imported from an archive, such as a zipapp. Empty: it was not."""
    archive = getattr(__spec__.loader, "archive", "")  # of zipimport.zipimporter
    if not archive:
        return ""
    return (
        f"\nfirstvec runs out of the archive {archive}. The system maps files of folders only, so a bundle and a "
        "compiled module in an archive are not found. Unpack the archive, or pack the app with shiv or pex, which "
        "unpack it."
    )


class FirstvecError(Exception):
    """The base class. A program that catches it catches every error that firstvec raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # Python pickles an exception as its class called with `args`. Here `args` is the message and not the
        # arguments, so without this method a worker process could not send an error to its parent.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[FirstvecError], arguments: tuple[object, ...]) -> FirstvecError:
    error = kind.__new__(kind)
    error.args = arguments
    return error


class ManifestError(FirstvecError):
    """The manifest is missing, unreadable or invalid.

    ``path`` is the manifest's file. After a colon it names the place in the file
    (``artifacts[2].files[0].sha256``).
    """

    def __init__(self, path: str, reason: str, hint: str = "rebuild the bundle with `firstvec build`") -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason


class UnsupportedManifestVersion(ManifestError):
    """A newer firstvec wrote the bundle, with another major version of the format."""

    def __init__(self, path: str, version: str, supported: str) -> None:
        super().__init__(
            path,
            f"format_version {version} is not supported, this firstvec reads {supported}.x",
            "upgrade firstvec (`pip install --upgrade firstvec`)",
        )
        self.version = version


class SignatureError(FirstvecError):
    """A bundle must be signed, and its signature is missing or does not fit.

    ``path`` is the file of the signature or of the key. After a colon it names the place in the signature
    (``predicate.resources[2].digest``), where there is one.
    """

    def __init__(self, path: str, reason: str, hint: str) -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason


class BundleNotFound(FirstvecError):
    """No bundle of that name was found. ``searched`` lists the places, in order."""

    def __init__(self, name: str, searched: Sequence[str], found: Sequence[str] = ()) -> None:
        places = "".join(f"\n  - {place}" for place in searched) or "\n  - (nowhere: no place is configured)"
        others = f"\nThese bundles are there: {', '.join(found)}." if found else ""
        is_path = name.startswith(("/", ".", "~"))
        build = "Build a bundle with `firstvec build`" if is_path else f"Build it with `firstvec build {name}`"
        super().__init__(
            f"no bundle for model {name!r} was found. Searched:{places}{others}\n"
            f"{build}, or set FIRSTVEC_ARTIFACTS to the folder that holds it.{_archive_note()}"
        )
        self.name = name
        self.searched = tuple(searched)
        self.found = tuple(found)


class ArtifactError(FirstvecError):
    """An artifact cannot be used. ``artifact`` is its id."""

    def __init__(self, artifact: str, reason: str) -> None:
        super().__init__(f"{artifact}: {reason}" if artifact else reason)
        self.artifact = artifact
        self.reason = reason


class IntegrityError(ArtifactError):
    """A file of the bundle is not the one that the manifest describes."""

    def __init__(self, file: str, expected: str, actual: str, artifact: str = "", *, unreadable: bool = False) -> None:
        super().__init__(
            artifact,
            f"{file} cannot be read ({actual}), so firstvec cannot verify it; "
            "let this user read it, or restore the bundle from where you shipped it"
            if unreadable
            else f"{file} is not the file that was built: expected {expected}, found {actual}; "
            "restore the bundle from where you shipped it, or rebuild it with `firstvec build --force`",
        )
        self.file = file
        self.expected = expected
        self.actual = actual


class IncompatibleArtifact(ArtifactError):
    """This machine, or an engine installed on it, cannot run the artifact."""


class SelfTestError(ArtifactError):
    """The files are right and the engine runs them, but this machine computes other vectors than the build did.

    ``difference`` is the mean relative difference to the vectors of the build. ``allowed`` is its upper limit.
    """

    def __init__(self, artifact: str, engine: str, difference: float, allowed: float) -> None:
        super().__init__(
            artifact,
            f"the self-test failed: on this machine {engine} computes vectors that differ from those of the build by "
            f"{difference:.3g}, and at most {allowed:.3g} is right. The files are the ones that were built. "
            "`firstvec doctor` shows which artifacts compute right here; another version of the engine may help",
        )
        self.difference = difference
        self.allowed = allowed


class NoCompatibleArtifact(FirstvecError):
    """No artifact of the bundle can be used here. ``rejected`` pairs each artifact's id with the reason."""

    def __init__(self, model: str, profile: str, rejected: Sequence[tuple[str, str]], hint: str) -> None:
        reasons = "".join(f"\n  - {artifact}: {reason}" for artifact, reason in rejected)
        super().__init__(
            f"no artifact of {model} can be used on this machine ({profile}):{reasons}\n{hint}{_archive_note()}"
        )
        self.model = model
        self.profile = profile
        self.rejected = tuple(rejected)


class LoadError(FirstvecError):
    """The load failed. ``start_loading()`` tries again."""


class LoadTimeout(LoadError, TimeoutError):
    """The load did not finish in time. The load goes on in the background."""

    def __init__(self, model: str, seconds: float) -> None:
        super().__init__(
            f"{model} was not loaded within {seconds:g} s; the load goes on: call get_provider() again, "
            "or with a larger timeout"
        )
        self.seconds = seconds


class ClosedError(LoadError):
    """The provider was closed."""


class InputError(FirstvecError, ValueError):
    """An argument is not usable. ``index`` is the position of the offending text, where there is one."""

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason if index is None else f"text {index}: {reason}")
        self.reason = reason
        self.index = index


class MissingDependency(FirstvecError):
    """An optional package is not installed. ``otherwise`` says what to do without the package, where that helps."""

    def __init__(self, what: str, package: str, install: str, otherwise: str = "") -> None:
        needs = f"{what} needs {package}, which is not installed: pip install '{install}'"
        super().__init__(f"{needs}; or {otherwise}" if otherwise else needs)
        self.package = package
        self.install = install


class TransferError(FirstvecError):
    """A registry or hub cannot be reached, refuses, or sends something else than it promised.

    ``address`` is where. ``is_passing`` says whether the same request may succeed a moment later.
    """

    def __init__(self, address: str, reason: str, hint: str, *, is_passing: bool = False) -> None:
        super().__init__(f"{address}: {reason}; {hint}")
        self.address = address
        self.reason = reason
        self.is_passing = is_passing


class BulkError(FirstvecError):
    """A bulk run stopped. The shards that are done stay, and the same command goes on with the others."""


class RowError(BulkError):
    """A row has no usable text. ``file`` is the input, and ``row`` is counted from 0."""

    def __init__(self, file: str, row: int, reason: str) -> None:
        super().__init__(
            f"{file}: row {row} (counted from 0) {reason}; repair the row, or pass over such rows with "
            "--on-error skip or null"
        )
        self.file = file
        self.row = row
        self.reason = reason


class InputChanged(BulkError):
    """An input file was changed while it was read. ``path`` is the file."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{path}: {what} while it was read, so its rows may be of two versions; "
            "let nobody write to it, and begin anew with --overwrite"
        )
        self.path = path


class JobChanged(BulkError):
    """The output was begun with another input, model or option. ``changes`` names what, was and is."""

    def __init__(self, output: str, changes: Sequence[tuple[str, str, str]]) -> None:
        found = "".join(f"\n  - {what}: was {was}, is {now}" for what, was, now in changes)
        super().__init__(
            f"{output} was begun with other inputs, another model or other options:{found}\n"
            "Go on with what it was begun with, choose another --output, or begin anew with --overwrite."
        )
        self.output = output
        self.changes = tuple(changes)


class OutputError(BulkError):
    """The output cannot be written: a full disk, a folder that was taken away. ``path`` is the file."""

    def __init__(self, path: str, reason: str, hint: str) -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason


class OutputInUse(BulkError):
    """Another run writes to this output."""

    def __init__(self, output: str) -> None:
        super().__init__(f"{output}: another run writes there now; wait for its end, or choose another --output")
        self.output = output


class WorkerError(BulkError):
    """A worker process ended, for example because the memory did not suffice."""


class BuildError(FirstvecError):
    """The bundle could not be built. The previous bundle, if any, is untouched."""


class SourceError(BuildError):
    """The model to build from is missing, unreachable, changed, or of a kind that cannot be built."""


class ExportError(BuildError):
    """The model could not be exported to TorchScript or ONNX."""


class QuantizationError(BuildError):
    """The model could not be quantized to INT8."""


class QualityError(BuildError):
    """An artifact misses a threshold: ``metric`` is ``value`` but must be at least (or at most) ``threshold``."""

    def __init__(self, artifact: str, metric: str, value: float, relation: str, threshold: float) -> None:
        self.finding = f"{metric} is {value:.6g}, must be {relation} {threshold:g}"
        super().__init__(
            f"{artifact}: {self.finding}; the build was stopped and the previous bundle was left untouched. Build the "
            "other artifacts with --only, or lower the threshold if you accept the value"
        )
        self.artifact = artifact
        self.metric = metric
        self.value = value
        self.threshold = threshold
