"""Reads a mapping of field names to values, from a JSON object or a form, as the fields of a request."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.errors import ModelNotFound
from safelight.service.http.reading.draft import Draft
from safelight.service.http.reading.field_names import (
    FIELDS,
    SPECIAL,
    WRAPPERS,
    field_of,
    nearest_field,
    without_wrapper,
)
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.reading.size_fields import read_size_fields
from safelight.service.http.reading.sizes import read_size
from safelight.service.http.reading.solver_fields import read_scheduler, read_solver, read_spacing
from safelight.service.http.reading.values import KINDS, Kind, same
from safelight.service.http.validation import validate_fields

WITHOUT_STREAM = "previews are sent with stream only"
MAX_UNKNOWN = 20  # unknown fields that are listed one by one
SOLVER_FIELDS = ("solver", "timestep_spacing")
NO_KINDS: Mapping[str, Kind] = {}


def read_fields(
    fields: Mapping[str, object], names: ModelNames, extra_kinds: Mapping[str, Kind] = NO_KINDS
) -> Draft:
    """What `fields` mean.

    Fields in a wrapper such as `extra_body` come out of it; a field under another server's name gets its own;
    width and height become a size; values that are written otherwise are read; what no field has is dropped.
    If nothing is listed as adjusted, the strict reading takes the same fields, apart from empty wrappers.

    Args:
        fields: The fields as the client sent them.
        names: The names of the served models.
        extra_kinds: Fields that the request has beside those of `ImageRequest`, and how they are read.

    Raises:
        InvalidRequest: A size is absurd.
        ModelNotFound: The model is not served.
    """
    draft, kinds = Draft(names, names.model), {**KINDS, **extra_kinds}
    others = _rename(draft, fields, extra_kinds)
    draft.model = _model_of(draft)  # which decides what other fields may say
    for field, value in list(draft.values.items()):
        if value is not None:
            _read_value(draft, field, value, kinds)
    read_size_fields(draft, {field: sent for field, sent in others.special.items() if field != "scheduler"})
    if "scheduler" in others.special:
        read_scheduler(draft, *others.special["scheduler"])
    for field, name, value in others.repeated:
        _drop_repeated(draft, field, name, value)
    _drop_eta(draft)
    _drop_previews(draft)
    _drop_unknown(draft, others.unknown)
    return draft


def _model_of(draft: Draft) -> ModelInfo:
    """The model that is asked for; a name of none is refused when its field is read."""
    name = draft.values.get("model")
    with suppress(ModelNotFound):
        return draft.names.find(name) if isinstance(name, str) else draft.model
    return draft.model


@dataclass
class _OtherFields:
    """Fields of the client's that are not simply fields of the request under another name."""

    special: dict[str, tuple[str, object]] = dataclass_field(default_factory=dict)
    repeated: list[tuple[str, str, object]] = dataclass_field(default_factory=list)
    unknown: list[tuple[str, object]] = dataclass_field(default_factory=list)


def _rename(draft: Draft, fields: Mapping[str, object], extra_kinds: Mapping[str, Kind]) -> _OtherFields:
    """Put the values of all fields of the request into `draft`; returns the others."""
    others = _OtherFields()
    own_names = (*FIELDS, *extra_kinds)
    entries = sorted(_unwrapped(fields), key=lambda entry: entry[0] not in own_names)  # these take precedence
    for name, value in entries:
        plain = without_wrapper(name)
        field = plain if plain in extra_kinds else field_of(plain)
        if value is None and name not in own_names:
            continue
        if field is None:
            others.unknown.append((name, value))
        elif draft.has(field) or field in others.special:
            others.repeated.append((field, name, value))
        elif field in SPECIAL:
            others.special[field] = (name, value)
        else:
            draft.put(field, value, name)
    return others


def _read_value(draft: Draft, field: str, value: object, kinds: Mapping[str, Kind]) -> None:
    """Replace `value` in `draft` by what it means, and list it if it or the field's name is not ours."""
    sent_name = draft.sent_names[field]
    used, note = _meaning(draft, field, value, sent_name, kinds)
    draft.values[field] = used
    if not same(value, used):
        draft.adjust(sent_name, value, used, note)
    elif sent_name != field:
        draft.adjust(sent_name, value, used, f"read as {field}")


def _meaning(
    draft: Draft, field: str, value: object, sent_name: str, kinds: Mapping[str, Kind]
) -> tuple[object, str]:
    """What a field's value means.

    Args:
        draft: What has been read.
        field: The name of the field.
        value: Its value, not null.
        sent_name: The client's name of it.
        kinds: How the fields are read.

    Returns:
        The value that is meant, and the note for one that is written otherwise.
    """
    if field in kinds:
        return kinds[field].read(value), kinds[field].note
    if field == "size":
        return read_size(value, draft.model, sent_name), "the nearest size that is served"
    if field == "model" and isinstance(value, str):
        model_id = draft.names.find(value).id
        return (value if value in draft.names.listed else model_id), "another name of the served model"
    if field == "solver":
        return read_solver(draft, value, sent_name)
    if field == "timestep_spacing":
        return read_spacing(draft, value, sent_name)
    return value, ""


def _drop_repeated(draft: Draft, field: str, sent_name: str, value: object) -> None:
    """Drop a field that has a value under another name; it must be valid all the same."""
    if field in FIELDS and not (field in SOLVER_FIELDS and isinstance(value, str)):
        used, _ = _meaning(draft, field, value, sent_name, KINDS)
        validate_fields({"prompt": "-", field: used}, {field: sent_name})
    draft.drop(sent_name, value, f"{draft.sent_names.get(field, field)} is given as well")


def _drop_eta(draft: Draft) -> None:
    """Drop a share of noise that the solver does not have; other servers' clients send one always."""
    eta, solver = draft.values.get("eta"), draft.values.get("solver") or draft.model.solver
    if eta and solver != "ddim":
        validate_fields({"prompt": "-", "eta": eta}, draft.sent_names)
        draft.drop(draft.sent_names["eta"], eta, f"eta has a meaning for ddim only, not for {solver}")
        del draft.values["eta"]


def _drop_previews(draft: Draft) -> None:
    """Drop previews of an answer that is not streamed."""
    number = draft.values.get("partial_images")
    if number and type(number) is int and not draft.values.get("stream"):
        validate_fields({"prompt": "-", "partial_images": number}, draft.sent_names)
        draft.drop(draft.sent_names["partial_images"], number, WITHOUT_STREAM)
        del draft.values["partial_images"]


def _drop_unknown(draft: Draft, unknown: list[tuple[str, object]]) -> None:
    for name, value in unknown[:MAX_UNKNOWN]:
        nearest = nearest_field(without_wrapper(name))
        hint = f"; did you mean {nearest}?" if nearest else ""
        draft.drop(name, value, f"not a field of this request{hint}")
    if len(unknown) > MAX_UNKNOWN:
        draft.drop("...", None, f"{len(unknown) - MAX_UNKNOWN} more that are not fields of this request")


def _unwrapped(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The fields, with those inside a wrapper after the others, as `extra_body.seed`."""
    wrappers = {
        name: value for name, value in fields.items() if name in WRAPPERS and isinstance(value, Mapping)
    }
    yield from ((name, value) for name, value in fields.items() if name not in wrappers)
    for wrapper, inner in wrappers.items():
        yield from ((f"{wrapper}.{name}", value) for name, value in inner.items())
