"""How two common readers take a `parameters` text apart, written again from their published behaviour.

AUTOMATIC1111: `parse_generation_parameters` and `re_param` in `modules/infotext_utils.py`.
CivitAI: `automaticMetadataProcessor.parse` in `src/utils/metadata/automatic.metadata.ts`.
"""

import json
import re
from typing import Any

MARK = "Negative prompt:"

# A name, a colon, and a value in quotes with backslash escapes, or else all up to the next comma.
SETTING = re.compile(
    r"""\s* (?P<name> \w [\w\ \-/]+ ) : \s* (?P<value> "(?: \\. | [^\\"] )+" | [^,]* ) (?: , | $ )""",
    re.VERBOSE,
)
SIZE = re.compile(r"^(\d+)x(\d+)$")
HASHES = re.compile(r", Hashes:\s*(\{[^}]+\})")
RESOURCES = re.compile(r", Civitai resources:\s*(\[[^\]]+\])")


def automatic1111(text: str) -> dict[str, str]:
    """What the web UI's "PNG info" reads."""
    *lines, last = text.strip().split("\n")
    settings = list(SETTING.finditer(last))
    if len(settings) < 3:
        lines, settings = [*lines, last], []
    prompts = {"Prompt": "", "Negative prompt": ""}
    current = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith(MARK):
            current, line = "Negative prompt", line[len(MARK) :].strip()
        prompts[current] += line if not prompts[current] else f"\n{line}"
    result = dict(prompts)
    for setting in settings:
        value = _unquoted(setting["value"])
        if size := SIZE.match(value):
            result |= {f"{setting['name']}-1": size[1], f"{setting['name']}-2": size[2]}
        elif value:
            result[setting["name"]] = value
    return result


def civitai(text: str) -> dict[str, Any]:
    """What the site reads of an uploaded image; raises where the site would."""
    lines = [line for line in text.split("\n") if line.strip()]
    for start in ("Template: ", "Negative Template: "):
        index = next((i for i, line in enumerate(lines) if line.startswith(start)), None)
        if index is not None:
            del lines[index]
            while index < len(lines) and not re.search(r"[\w\s]+: ", lines[index]):
                del lines[index]
    details = next((line for line in lines if line.startswith("Steps: ")), "")
    if details:
        lines.remove(details)
    for start in ("Resources: ", "Hashed prompt: ", "Hashed Negative prompt: "):
        details = details.split(start)[0]
    for structure in (HASHES, RESOURCES):
        if match := structure.search(details):
            json.loads(match[1])
            details = structure.sub("", details)
    prompt, *negative = (part.strip() for part in "\n".join(lines).split(MARK))
    return _details(details) | {"prompt": prompt, "negativePrompt": " ".join(negative).strip()}


def _unquoted(value: str) -> str:
    if value[:1] == value[-1:] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value


def _details(line: str) -> dict[str, Any]:
    """Names and values; what is in quotes is taken apart by the same rule."""
    result: dict[str, Any] = {}
    name = value = ""
    is_quoted = False
    for character in line:
        if character == '"':
            if is_quoted:
                result[name], name = _details(value.strip()), ""
            is_quoted = not is_quoted
        elif character == ":" and not is_quoted:
            name, value = value.strip(), ""
        elif character == "," and not is_quoted:
            if name:
                result[name] = value.strip()
            name = value = ""
        else:
            value += character
    if name:
        result[name] = value.strip()
    return result
