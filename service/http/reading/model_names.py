"""The names by which requests may ask for the served model."""

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
    """The names of `model`, with the operator's `aliases`, each of which may hold `*`."""

    model: ModelInfo
    aliases: tuple[str, ...] = ()

    def find(self, name: str, is_strict: bool = False) -> str:
        """The id of the model that `name` asks for; if `is_strict`, by the names that are listed only.

        Raises `ModelNotFound`, which lists them.
        """
        if name in self.listed or any(fnmatchcase(name, alias) for alias in self.aliases):
            return self.model.id
        if not is_strict and self._is_understood(name):
            return self.model.id
        allowed = ", ".join((*self.listed, *(() if is_strict else PATTERNS)))
        raise ModelNotFound(
            f"The model {name[:100]!r} is not served here; allowed: {allowed}, or leave it out.", "model"
        )

    @property
    def listed(self) -> tuple[str, ...]:
        """What `/v1/models` lists: the model's names, OpenAI's and the operator's."""
        return tuple(dict.fromkeys((*self.model.names, *ALIASES, *self.aliases)))

    def _is_understood(self, name: str) -> bool:
        text = name.strip().lower()
        plain = text.removeprefix(PREFIX)
        return (
            not text
            or any(fnmatchcase(text, name.lower()) for name in self.listed)
            or any(fnmatchcase(plain, pattern) for pattern in PATTERNS)
        )
