"""`safelight keys`: make, list, show, revoke and rotate API keys, in the database or through a service."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from safelight.service.cli import UserError
from safelight.service.cli.inputs import settings_of
from safelight.service.cli.tables import format_table
from safelight.service.keys.api_key import BadKey, KeyLimits, KeySpec, StoredSecret
from safelight.service.keys.secrets import hash_secret, is_secret, make_secret, prefix_of

DAY = 86_400.0
Key = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=summary)
        action.set_defaults(run_action=run)
        if name != "hash":
            action.add_argument("--json", action="store_true", help="one JSON object on stdout")
            action.add_argument(
                "--url",
                metavar="URL",
                help="a running service, whose admin key is in SAFELIGHT_ADMIN_KEY; default: the database",
            )
        return action

    _add_choices(add("create", "make a key; its secret is printed once", _create))
    add("list", "list all keys", _list)
    for name, summary, run in (
        ("show", "show a key", _show),
        ("revoke", "end a key for ever", _revoke),
        ("rotate", "give a key a new secret, which is printed once", _rotate),
    ):
        action = add(name, summary, run)
        action.add_argument("name", metavar="NAME", help="name or id of the key")
        if name == "rotate":
            action.add_argument(
                "--overlap-hours",
                type=float,
                default=24.0,
                metavar="H",
                help="hours for which the secret before it opens the key, too; default 24",
            )
    hashing = add("hash", "print the entry of a new key for SAFELIGHT_API_KEYS_FILE", _hash)
    _add_choices(hashing)
    hashing.add_argument("--stdin", action="store_true", help="hash the secret on stdin; default: make one")


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Add what is chosen for a new key."""
    parser.add_argument("name", metavar="NAME", help="names the key in lists, logs and accounting")
    group = parser.add_argument_group("limits; by default none")
    group.add_argument("--requests-per-minute", type=int, metavar="N")
    group.add_argument("--images-per-day", type=int, metavar="N", help="of UTC")
    group.add_argument("--device-seconds-per-day", type=float, metavar="S", help="of UTC")
    group.add_argument(
        "--spend-per-month", type=float, metavar="X", help="of UTC, at SAFELIGHT_PRICE_PER_DEVICE_HOUR"
    )
    group.add_argument("--models", metavar="A,B", help="names of models that it may use; default all")
    group.add_argument("--expires-days", type=float, metavar="D", help="days after which it ends")
    parser.add_argument(
        "--weight", type=float, default=1.0, metavar="W", help="share among keys that wait; not used yet"
    )
    parser.add_argument(
        "--max-priority",
        type=int,
        default=0,
        metavar="N",
        help="highest priority of its requests, 0 to 9; not used yet",
    )


def run(args: argparse.Namespace) -> int:
    try:
        code: int = args.run_action(args)
        return code
    except BadKey as error:
        raise UserError(str(error)) from None


def _create(args: argparse.Namespace) -> int:
    return _print_secret(_keys(args).create(_spec(args)), args.json)


def _list(args: argparse.Namespace) -> int:
    keys = _keys(args).list_all()
    if args.json:
        print(json.dumps({"data": keys}))
    else:
        header = ("name", "id", "secret", "state", "last used", "limits")
        print(format_table(header, [_row(key) for key in keys]))
    return 0


def _show(args: argparse.Namespace) -> int:
    return _print_key(_keys(args).get(args.name), args.json)


def _revoke(args: argparse.Namespace) -> int:
    return _print_key(_keys(args).revoke(args.name), args.json)


def _rotate(args: argparse.Namespace) -> int:
    return _print_secret(_keys(args).rotate(args.name, 3600.0 * args.overlap_hours), args.json)


def _hash(args: argparse.Namespace) -> int:
    from safelight.service.keys.key_file import describe_entry

    spec = _spec(args)
    secret = sys.stdin.readline().strip() if args.stdin else make_secret()
    if not is_secret(secret):
        raise UserError("the secret on stdin has not the form of one: sk- and 43 characters")
    print(json.dumps(describe_entry(spec, StoredSecret(prefix_of(secret), hash_secret(secret)))))
    if not args.stdin:
        print(f"The secret, which is kept nowhere: {secret}", file=sys.stderr)
    return 0


def _keys(args: argparse.Namespace) -> Any:
    """What holds the keys: a service, or the database."""
    from safelight.service.cli.keys.stores import LocalKeys, RemoteKeys

    settings = settings_of()
    return RemoteKeys(args.url, settings.admin_key) if args.url else LocalKeys(settings.database)


def _spec(args: argparse.Namespace) -> KeySpec:
    limits = KeyLimits(
        args.requests_per_minute, args.images_per_day, args.device_seconds_per_day, args.spend_per_month
    )
    models = tuple(name.strip() for name in (args.models or "").split(",") if name.strip())
    expires = None if args.expires_days is None else time.time() + DAY * args.expires_days
    return KeySpec(args.name, args.weight, args.max_priority, limits, models, expires)


def _print_secret(key: Key, is_json: bool) -> int:
    """The secret alone on stdout, so that a script can take it."""
    if is_json:
        print(json.dumps(key))
    else:
        print(f"{key['name']} ({key['id']}): this secret is shown once and kept nowhere", file=sys.stderr)
        print(key["secret"])
    return 0


def _print_key(key: Key, is_json: bool) -> int:
    print(json.dumps(key) if is_json else "\n".join(f"{name:23} {_value(key, name)}" for name in key))
    return 0


def _row(key: Key) -> tuple[str, ...]:
    limits = (f"{name}={key[name]:g}" for name in KeyLimits.__slots__ if key[name] is not None)
    secrets = " ".join(f"{prefix}..." for prefix in key["prefixes"][-1:])
    return key["name"], key["id"], secrets, _state(key), _value(key, "last_used"), " ".join(limits) or "none"


def _state(key: Key) -> str:
    if key["revoked"] is not None:
        return "revoked"
    return "expired" if key["expires"] is not None and key["expires"] <= time.time() else "in use"


def _value(key: Key, name: str) -> str:
    value = key[name]
    if value is None or value == []:
        return "-"
    if name in ("created", "expires", "revoked", "last_used"):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M")
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"
