"""The choices that an operator has about reading a checkpoint folder."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is read of a checkpoint folder where the folder leaves a choice."""

    # Of the weight files, such as "fp16" for `model.fp16.safetensors`. Empty: the file without a variant,
    # else that of the dtype, else the only one.
    variant: str = ""
    # Whether an option in a configuration that is not known is logged and ignored; else it is refused.
    allow_unknown_config: bool = False


DEFAULT_READ_OPTIONS = ReadOptions()
