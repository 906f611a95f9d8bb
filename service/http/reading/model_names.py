"""The names by which requests may ask for the served models."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.errors import ModelNotFound

# Names of OpenAI's that clients hard-code, and the patterns that cover those to come.
ALIASES = ("gpt-image-1", "dall-e-2", "dall-e-3")
PATTERNS = ("gpt-image-*", "chatgpt-image-*", "dall-e-*")
PREFIX = "openai/"  # of routers that put the provider in front


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names of `model` and of `others`.

    `model` serves requests that name none or one of OpenAI's names, and has the operator's `aliases`, each of
    which may hold `*`.
    """

    model: ModelInfo
    aliases: tuple[str, ...] = ()
    others: tuple[ModelInfo, ...] = ()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """All models, the default first."""
        return (self.model, *self.others)

    def find(self, name: str, is_strict: bool = False) -> ModelInfo:
        """The model that `name` asks for; if `is_strict`, by the names that are listed only.

        Raises `ModelNotFound`, which lists them.
        """
        for model in self._by_precedence(name):
            if name in model.names or (not is_strict and _plain(name) in map(_plain, model.names)):
                return model
        if name in self.listed or any(fnmatchcase(name, alias) for alias in self.aliases):
            return self.model
        if not is_strict and self._is_the_default(name):
            return self.model
        allowed = ", ".join((*self.listed, *(() if is_strict else PATTERNS)))
        raise ModelNotFound(
            f"The model {name[:100]!r} is not served here; allowed: {allowed}, or leave it out.", "model"
        )

    def find_id(self, model_id: str) -> ModelInfo | None:
        """The model with that id."""
        return next((model for model in self.models if model.id == model_id), None)

    @property
    def listed(self) -> tuple[str, ...]:
        """All names that `/v1/models` lists, those of the default model first."""
        others = (name for model in self.others for name in model.names)
        return tuple(dict.fromkeys((*self.listed_for(self.model), *others)))

    def listed_for(self, model: ModelInfo) -> tuple[str, ...]:
        """The names of one of the models; those of the default are also OpenAI's and the operator's."""
        more = (*ALIASES, *self.aliases) if model.id == self.model.id else ()
        return tuple(dict.fromkeys((*model.names, *more)))

    def _by_precedence(self, name: str) -> Sequence[ModelInfo]:
        """The models, the one whose id is `name` first: another may have it as its folder's name."""
        return sorted(self.models, key=lambda model: model.id != name)

    def _is_the_default(self, name: str) -> bool:
        """Whether a name that is written otherwise is one of the default model's."""
        text = _plain(name)
        return (
            not text
            or any(fnmatchcase(text, listed.lower()) for listed in self.listed_for(self.model))
            or any(fnmatchcase(text.removeprefix(PREFIX), pattern) for pattern in PATTERNS)
        )


def _plain(name: str) -> str:
    return name.strip().lower()
