"""Every error that firstvec raises on purpose.

::

    FirstvecError
    ├── ManifestError               the manifest is missing, unreadable or invalid
    │   └── UnsupportedManifestVersion
    ├── SignatureError              a signature is required and is not there, or not one of that key over this bundle
    ├── BundleNotFound              no bundle of that name where bundles are looked for
    ├── ArtifactError               one artifact of a bundle cannot be used
    │   ├── IntegrityError          a file is not the one that the manifest describes
    │   ├── IncompatibleArtifact    this machine or engine cannot run it
    │   └── SelfTestError           this machine or engine computes it wrong
    ├── NoCompatibleArtifact        none of a bundle's artifacts can be used here
    ├── LoadError                   the load failed, or was never started; it can be retried
    │   ├── LoadTimeout             the load is not finished yet
    │   └── ClosedError             the provider was closed
    ├── InputError                  the caller's argument is not usable
    ├── MissingDependency           an optional package is not installed
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
    """``text`` for a terminal: names may hold what that obeys, and bytes that are no text. Line ends are left."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


class FirstvecError(Exception):
    """Base class: catching it catches every error that firstvec raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        # An exception is pickled as its class called with `args`, which is the message here, not the arguments:
        # without this a worker process could not hand one to its parent.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[FirstvecError], arguments: tuple[object, ...]) -> FirstvecError:
    error = kind.__new__(kind)
    error.args = arguments
    return error


class ManifestError(FirstvecError):
    """The manifest is missing, unreadable or invalid.

    ``path`` is where: the manifest's file, and behind a colon the place in it (``artifacts[2].files[0].sha256``).
    """

    def __init__(self, path: str, reason: str, hint: str = "rebuild the bundle with `firstvec build`") -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason


class UnsupportedManifestVersion(ManifestError):
    """The bundle was written by a newer firstvec with another major format version."""

    def __init__(self, path: str, version: str, supported: str) -> None:
        super().__init__(
            path,
            f"format_version {version} is not supported, this firstvec reads {supported}.x",
            "upgrade firstvec (`pip install --upgrade firstvec`)",
        )
        self.version = version


class SignatureError(FirstvecError):
    """A bundle must be signed and is not, by that key, as it lies there; ``path`` is the signature's or the key's file.

    Behind a colon ``path`` has the place in the signature (``predicate.resources[2].digest``), where there is one.
    """

    def __init__(self, path: str, reason: str, hint: str) -> None:
        super().__init__(f"{path}: {reason}; {hint}")
        self.path = path
        self.reason = reason


class BundleNotFound(FirstvecError):
    """No bundle of that name was found; ``searched`` lists the places, in order."""

    def __init__(self, name: str, searched: Sequence[str], found: Sequence[str] = ()) -> None:
        places = "".join(f"\n  - {place}" for place in searched) or "\n  - (nowhere: no place is configured)"
        others = f"\nBundles that are there: {', '.join(found)}." if found else ""
        is_path = name.startswith(("/", ".", "~"))
        build = "Build a bundle with `firstvec build`" if is_path else f"Build it with `firstvec build {name}`"
        super().__init__(
            f"no bundle for model {name!r} was found. Searched:{places}{others}\n"
            f"{build}, or set FIRSTVEC_ARTIFACTS to the folder that holds it."
        )
        self.name = name
        self.searched = tuple(searched)
        self.found = tuple(found)


class ArtifactError(FirstvecError):
    """An artifact cannot be used; ``artifact`` is its id."""

    def __init__(self, artifact: str, reason: str) -> None:
        super().__init__(f"{artifact}: {reason}" if artifact else reason)
        self.artifact = artifact
        self.reason = reason


class IntegrityError(ArtifactError):
    """A file of the bundle is not the one that the manifest describes."""

    def __init__(self, file: str, expected: str, actual: str, artifact: str = "", *, unreadable: bool = False) -> None:
        super().__init__(
            artifact,
            f"{file} cannot be read, so that nobody knows whether it is the file that was built: {actual}; "
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
    """The files are the ones that were built and the engine runs them, but this machine computes other vectors.

    ``difference`` is the mean relative difference to the vectors of the build, which may be ``allowed`` at most.
    """

    def __init__(self, artifact: str, engine: str, difference: float, allowed: float) -> None:
        super().__init__(
            artifact,
            f"the self-test failed: on this machine {engine} computes vectors that differ from those of the build by "
            f"{difference:.3g}, at most {allowed:.3g} is right, though the files are the ones that were built; "
            "`firstvec doctor` shows which artifacts are computed right here; another version of the engine may do so",
        )
        self.difference = difference
        self.allowed = allowed


class NoCompatibleArtifact(FirstvecError):
    """No artifact of the bundle can be used here; ``rejected`` maps each artifact's id to the reason."""

    def __init__(self, model: str, profile: str, rejected: Sequence[tuple[str, str]], hint: str) -> None:
        reasons = "".join(f"\n  - {artifact}: {reason}" for artifact, reason in rejected)
        super().__init__(f"no artifact of {model} can be used on this machine ({profile}):{reasons}\n{hint}")
        self.model = model
        self.profile = profile
        self.rejected = tuple(rejected)


class LoadError(FirstvecError):
    """The load failed or was never started. A failed load can be retried with ``start_loading()``."""


class LoadTimeout(LoadError, TimeoutError):
    """The load did not finish in time. It goes on in the background."""

    def __init__(self, model: str, seconds: float) -> None:
        super().__init__(
            f"{model} was not loaded within {seconds:g} s; the load goes on: call get_provider() again, "
            "or with a larger timeout"
        )
        self.seconds = seconds


class ClosedError(LoadError):
    """The provider was closed."""


class InputError(FirstvecError, ValueError):
    """An argument is not usable; ``index`` is the position of the offending text, where there is one."""

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason if index is None else f"text {index}: {reason}")
        self.reason = reason
        self.index = index


class MissingDependency(FirstvecError):
    """An optional package is not installed."""

    def __init__(self, what: str, package: str, install: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed: pip install '{install}'")
        self.package = package
        self.install = install


class BuildError(FirstvecError):
    """The bundle could not be built. The previous bundle, if any, is untouched."""


class SourceError(BuildError):
    """The model to build from is missing, unreachable, changed, or not one that can be built."""


class ExportError(BuildError):
    """The model could not be exported to TorchScript or ONNX."""


class QuantizationError(BuildError):
    """The model could not be quantised to INT8."""


class QualityError(BuildError):
    """An artifact misses a threshold: ``metric`` is ``value`` but must be at least (or at most) ``threshold``."""

    def __init__(self, artifact: str, metric: str, value: float, relation: str, threshold: float) -> None:
        super().__init__(
            f"{artifact}: {metric} is {value:.6g}, must be {relation} {threshold:g}; the build was stopped and the "
            f"previous bundle was left untouched. Build the others "
            "with --only, or lower the threshold if you accept it"
        )
        self.artifact = artifact
        self.metric = metric
        self.value = value
        self.threshold = threshold
