"""MTEB: ``mteb.evaluate(FirstvecEncoder(), tasks)``. docs/mteb.md has an example.

mteb asks for methods, and not for a base class. This module therefore imports mteb only in calls: its import takes
seconds.
"""

from __future__ import annotations

from firstvec.errors import InputError
from firstvec.loader import OptimizedEmbeddingLoader
from firstvec.options import DEFAULT_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from mteb.models.model_meta import ModelMeta
    from typing_extensions import Unpack

    from firstvec.options import MoreOptions, Strategy
    from firstvec.provider import Array, EmbeddingProvider

_FRAMEWORKS = {"onnxruntime": ["ONNX"], "torch": ["PyTorch"]}
"""Engine → mteb's names of it. mteb takes no others, so the native engine has none."""
_NO_REVISION = "no_revision_available"
"""mteb's own word, which stands for a name in the folders of its results."""


class FirstvecEncoder:
    """Embed texts for MTEB: mteb's ``EncoderProtocol``. The first call loads the model.

    The constructor loads nothing. One object serves all threads and forked processes. A pickled or copied object loads
    the model again.

    Args:
        model_name: name of a bundle (``organization/model`` or ``model``), or the path of a bundle's folder.
        revision: only the revision from which the bundle was built. None takes any.
        device: ``cpu``, ``cuda`` or ``mps``. None takes the best for this machine.
        model_prompts: task name, task type or prompt type of mteb, or ``NAME-query`` and ``NAME-document`` → prompt.
            They stand in for the model's prompts.
        embed_dim: components of a vector to keep (Matryoshka models). None keeps all.
        strategy: when to load and which artifact to take, as for `firstvec.OptimizedEmbeddingLoader`.
        enable_quantization: let LAZY, BACKGROUND and PROGRESSIVE take INT8.
        min_quality: smallest acceptable ``cosine_min`` of an artifact to the fp32 reference, -1 to 1.
        require_signature: path of a public key (PEM) whose signature the bundle must have.
        artifact: id of the one artifact that may be taken.

    Raises:
        InputError: an argument is not usable. An unknown model or revision is an error of the first call.
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        revision: str | None = None,
        *,
        device: str | None = None,
        model_prompts: Mapping[str, str] | None = None,
        embed_dim: int | None = None,
        strategy: Strategy = "progressive",
        enable_quantization: bool = False,
        **more: Unpack[MoreOptions],
    ) -> None:
        self._loader = OptimizedEmbeddingLoader(model_name, strategy, device, enable_quantization, **more)
        self._revision = revision
        self._prompts = model_prompts
        self._embed_dim = embed_dim
        self._meta: ModelMeta | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._loader.model_name!r}, strategy={self._loader.strategy.value!r})"

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> Array:
        """Embed the texts of a task: float32, shape (N, dim), in their order.

        Queries get the model's ``query`` prompt, and documents its ``document`` prompt. A prompt for the task's name or
        type comes first, in mteb's order.

        Args:
            inputs: batches, as mteb's DataLoader gives them. Each has its texts as ``text``.
            task_metadata: the task's name and type, which may have a prompt of their own.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: mteb's ``PromptType``, or None.
            options: ``batch_size``, ``show_progress_bar`` and ``precision``, as for `EmbeddingProvider.encode`.

        Raises:
            InputError: a text is not usable, or a batch has no texts.
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        provider = self._load()
        prompt = self._prompt(provider, task_metadata, getattr(prompt_type, "value", prompt_type))
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InputError(f"a batch has {', '.join(batch)} and no text, and the model embeds texts only")
            texts += batch["text"]
        vectors: Array = provider.encode(texts, prompt=prompt, truncate_dim=self._embed_dim, **options)
        return vectors

    def _prompt(self, provider: EmbeddingProvider[Array, Array], task: Any, kind: str | None) -> str | None:
        """Return the prompt as mteb's own encoder for sentence-transformers chooses it. None: the model's default."""
        about = provider.manifest.model
        prompts = about.prompts if self._prompts is None else self._prompts
        names = [task.name, task.type]
        if kind is not None:
            names = [f"{task.name}-{kind}", task.name, f"{task.type}-{kind}", task.type, kind]
        if kind == "document":
            names += ["passage", "corpus"]
        return next((prompts[name] for name in names if name in prompts), None)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of each vector with each, shape (N, M), as mteb computes it: a tensor of torch.

        Args:
            embeddings1: shape (N, dim).
            embeddings2: shape (M, dim).
        """
        from mteb.similarity_functions import select_similarity

        return select_similarity(embeddings1, embeddings2, self.mteb_model_meta.similarity_fn_name)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of the vectors of the same place, shape (N,), as mteb computes it: a tensor of torch.

        Args:
            embeddings1: shape (N, dim).
            embeddings2: shape (N, dim).
        """
        from mteb.similarity_functions import select_pairwise_similarity

        return select_pairwise_similarity(embeddings1, embeddings2, self.mteb_model_meta.similarity_fn_name)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb stores with results: the manifest's name, revision, dimension and length. Waits for the model.

        ``experiment_kwargs`` has the artifact in use. mteb then keeps the results of each artifact in a folder of its
        own, and takes none of sentence-transformers' for it.

        Raises:
            InputError: the bundle was built from another revision.
            FirstvecError: why the model could not be loaded, as for `OptimizedEmbeddingLoader.get_provider`.
        """
        if self._meta is None:
            self._meta = self._describe()
        return self._meta

    @mteb_model_meta.setter
    def mteb_model_meta(self, value: ModelMeta) -> None:
        self._meta = value  # ``ModelMeta.load_model`` sets it

    def _describe(self) -> ModelMeta:
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        from firstvec.bundle.similarity import similarity_fn_name

        provider = self._load()
        about, artifact = provider.manifest.model, provider.artifact
        dim = provider.embedding_dim if self._embed_dim is None else min(self._embed_dim, provider.embedding_dim)
        experiment: dict[str, Any] = {"artifact": artifact.id}
        if self._embed_dim is not None:
            experiment["embed_dim"] = dim
        if self._prompts is not None:
            experiment["model_prompts"] = dict(self._prompts)
        return ModelMeta.create_empty(
            overwrites={
                "loader": type(self),
                # mteb takes no name without an organization.
                "name": about.name if "/" in about.name else f"local/{about.name}",
                "revision": about.revision or _NO_REVISION,
                "max_tokens": about.max_seq_length,
                "embed_dim": dim,
                "framework": _FRAMEWORKS.get(artifact.engine, []),
                "similarity_fn_name": ScoringFunction(similarity_fn_name(provider.manifest)),
                "use_instructions": any((about.prompts if self._prompts is None else self._prompts).values()),
                "experiment_kwargs": experiment,
            }
        )

    def _load(self) -> EmbeddingProvider[Array, Array]:
        self._loader.start_loading()  # a load that has failed is tried again
        provider = self._loader.get_provider(timeout=None)
        built_from = provider.manifest.model.revision
        if self._revision not in (None, _NO_REVISION, built_from):
            raise InputError(
                f"revision {self._revision!r}: the bundle was built from revision {built_from!r}, and nothing is "
                "downloaded; build a bundle with `firstvec build --revision`"
            )
        return provider
