"""The page docs/settings.md, from the settings model."""

from typing import get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from safelight.service.settings import PREFIX, Settings

INTRODUCTION = f"""# Settings

Every setting of the service. `make docs` writes this page from `service/settings.py`.
A value is taken from the first of these that has one:

1. the flags of `safelight serve` (`--model`, `--served-name`, `--variant`, `--allow-unknown-config`,
   `--default-steps`, `--default-guidance`, `--default-solver`, `--default-size`, `--host`, `--port`,
   `--stages`, `--log-level`, `--log-format`), the arguments of
   `serve run safelight.service.app:app_from_args`, the `args` of a Serve config file, or the keyword
   arguments of `safelight.Pipeline`;
2. the environment variable, which is `{PREFIX}` and the setting's name in capitals, such as
   `{PREFIX}PORT` for `port`;
3. a file of that name in the folder `secrets_dir`;
4. the default.

A value that is empty, or the address of a Kubernetes Service or a linked container such as
`tcp://10.43.1.39:8000`, sets nothing: Kubernetes defines `{PREFIX}PORT` in every pod of a namespace that has
a Service called `safelight`. A log line names the variables that are ignored.

A number must be finite, and more than 0 unless its row, or the row that it refers to, says what 0 means.
An invalid value is refused at start, in one sentence that names the setting. Settings are read once: a
change takes effect when the service is started again or redeployed.
"""


def page() -> str:
    """The whole text of docs/settings.md."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(
        [INTRODUCTION, "| setting | value | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _row(name: str, field: FieldInfo) -> str:
    default = "" if isinstance(field.default, SecretStr) else field.default
    default = str(default).lower() if isinstance(default, bool) else default
    default_text = f"`{default}`" if default != "" else "empty"
    return f"| `{name}` | {_kind(field.annotation)} | {default_text} | {field.description} |"


def _kind(annotation: object) -> str:
    if choices := get_args(annotation):
        return " or ".join(f"`{choice}`" for choice in choices)
    kinds: dict[object, str] = {
        int: "whole number",
        float: "number",
        bool: "`true` or `false`",
        SecretStr: "secret text",
    }
    return kinds.get(annotation, "text")
