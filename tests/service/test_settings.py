"""Settings: their sources and precedence, their refusals, and how they travel between processes."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings, read_settings


def test_values_precede_the_environment_and_the_environment_precedes_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SAFELIGHT_PORT": "9000", "SAFELIGHT_HOST": "0.0.0.0", "PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    settings = read_settings({"port": "9001", "model": None})
    assert (settings.port, settings.host, settings.model) == (9001, "0.0.0.0", "emoji-128,emoji-128-turbo")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"port": "http"}, "port must be a whole number, got 'http'"),
        ({"port": "70000"}, "between 0 and 65535"),
        (
            {"stages": "colocated", "encode_replicas": "0-2"},
            "encode_replicas has no effect with stages=colocated, where one replica holds all stages; "
            "set denoise_replicas instead",
        ),
        (
            {"stages": "colocated", "decode_gpus": 0.5},
            "decode_gpus has no effect with stages=colocated, where one replica holds all stages; "
            "set denoise_gpus instead",
        ),
        ({"stages": "one"}, "stages must be one of split, colocated, got 'one'"),
        ({"deadline_seconds": "soon"}, "deadline_seconds must be a number"),
        ({"deadline_seconds": "nan"}, "more than 0"),
        ({"deadline_seconds": "inf"}, "deadline_seconds must be"),
        ({"max_pictures": "0"}, "more than 0"),
        ({"text_cache_bytes": "-1"}, "at least 0"),
        ({"mark_images": "perhaps"}, "mark_images must be true or false, got 'perhaps'"),
        ({"max_rows": "1"}, "max_rows must be at least 2"),
        ({"encode_gpus": "inf"}, "encode_gpus must be at least 0 and finite, got inf"),
        ({"gateway_replicas": "0-2"}, "gateway_replicas must be at least 1"),
        ({"secrets_dir": "/nowhere"}, "secrets_dir must be a folder, got '/nowhere'"),
        ({"image_store": "images"}, "image_store must be an absolute path or a URL, got 'images'; 'none'"),
        (
            {"image_store": "ftp://host"},
            "image_store must be a path or a URL that starts with one of file://",
        ),
        ({"image_store_bytes": "-1"}, "image_store_bytes must be at least 0"),
        ({"link_seconds": "0"}, "link_seconds must be more than 0"),
        ({"link_key": "secret"}, "^link_key must have at least 32 characters$"),
        ({"public_url": "example.org"}, "public_url must be an http or https URL without query"),
        ({"public_url": "https://example.org/?a=b"}, "public_url must be"),
        ({"public_url": "https://user@example.org"}, "public_url must be"),
        ({"public_url": "https://example.org:99999"}, "public_url must be"),
        ({"public_url": "https://[::1"}, "public_url must be"),
        ({"require_api_keys": "none"}, "require_api_keys must be one of auto, always, never, got 'none'"),
        ({"api_keys_file": "/nowhere"}, "api_keys_file must be a file, got '/nowhere'"),
        ({"database": "data"}, "^database must be the absolute path of a folder, or a URL"),
        ({"database": "mysql://u:swordfish@h/n"}, "^database must be a folder, .* got mysql://$"),
        ({"counter_store": "memcached://u:swordfish@h"}, "^counter_store must be a URL such as valkey://"),
        ({"key_refresh_seconds": "0"}, "key_refresh_seconds must be more than 0"),
        ({"key_outage_seconds": "-1"}, "key_outage_seconds must be at least 0"),
        ({"trusted_hosts": "http://a.example"}, "trusted_hosts must be names of hosts"),
        ({"webhook_origins": "https://a.test"}, "^webhook_origins needs webhook_secret"),
        ({"webhook_origins": "a.test"}, "^webhook_origins must be origins such as https://"),
        ({"webhook_origins": "https://a.test/path"}, "^webhook_origins must be origins such as https://"),
        ({"webhook_secret": "swordfish"}, "^webhook_secret must be whsec_ and the base64 of 24 to 64 bytes$"),
        ({"webhook_secret": "whsec_c2hvcnQ="}, "^webhook_secret must be whsec_ and the base64 of 24 to 64 b"),
        ({"webhook_url": "https://a.test/hook"}, "^webhook_url must be in one of webhook_origins$"),
        ({"colour": "red"}, "colour is not a setting; allowed: model"),
    ],
)
def test_a_bad_setting_is_refused_by_name(values: dict[str, str], complaint: str) -> None:
    with pytest.raises(BadSetting, match=complaint):
        read_settings(values)
    with pytest.raises(BadSetting, match=complaint):
        Settings(**values)


def test_a_bad_environment_variable_is_refused_by_the_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_MAX_ROWS", "many")
    with pytest.raises(BadSetting, match="^max_rows must be a whole number, got 'many'$"):
        Settings()


@pytest.mark.parametrize("is_in_environment", [False, True])
def test_secrets_are_read_from_mounted_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_environment: bool
) -> None:
    """In the layout of a Kubernetes Secret: every file is a link into a folder of the version."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "SAFELIGHT_ADMIN_KEY").write_text("hidden\n")
    (tmp_path / "..data").symlink_to(version)
    (tmp_path / "SAFELIGHT_ADMIN_KEY").symlink_to(Path("..data") / "SAFELIGHT_ADMIN_KEY")
    if is_in_environment:
        monkeypatch.setenv("SAFELIGHT_SECRETS_DIR", str(tmp_path))
    settings = Settings() if is_in_environment else Settings(secrets_dir=str(tmp_path))
    assert settings.admin_key.get_secret_value() == "hidden"
    assert settings.secrets_dir == str(tmp_path)
    monkeypatch.setenv("SAFELIGHT_ADMIN_KEY", "from the environment")
    assert Settings(secrets_dir=str(tmp_path)).admin_key.get_secret_value() == "from the environment"


def test_the_admin_key_is_never_shown() -> None:
    settings = Settings(admin_key="hidden")
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(BadSetting) as refusal:
        Settings(admin_key=["hidden"])
    assert str(refusal.value) == "admin_key must be text"


def test_passwords_in_addresses_are_never_shown() -> None:
    settings = Settings(
        database="postgresql://user:swordfish@host/name",
        counter_store="valkey://:swordfish@host:6379/0",
        metrics_key="swordfish",
    )
    assert "swordfish" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_are_immutable_hashable_and_travel_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(port=1, admin_key="hidden", denoise_replicas="0-2")
    monkeypatch.setenv("SAFELIGHT_HOST", "0.0.0.0")  # of the process that unpickles them
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings and hash(copy) == hash(settings)
    assert copy.admin_key.get_secret_value() == "hidden"
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 2


def test_an_update_is_validated() -> None:
    settings = Settings(port=1, admin_key="hidden")
    assert settings.updated(port="2") == Settings(port=2, admin_key="hidden")
    with pytest.raises(BadSetting, match="port must be between"):
        settings.updated(port=-1)


def test_variables_of_kubernetes_and_empty_values_set_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the environment, in files, and as arguments; a file holds what a variable does not."""
    for name in Settings.model_fields:
        if name != "secrets_dir":
            monkeypatch.setenv(f"SAFELIGHT_{name.upper()}", "")
    monkeypatch.setenv("SAFELIGHT_PORT", "tcp://10.43.1.39:8000")
    monkeypatch.setenv("SAFELIGHT_SERVICE_HOST", "10.43.1.39")
    (tmp_path / "SAFELIGHT_PORT").write_text("81\n")
    (tmp_path / "SAFELIGHT_MAX_ROWS").write_text("\n")
    settings = read_settings({"secrets_dir": str(tmp_path), "model": "", "host": ""})
    assert settings == Settings(secrets_dir=str(tmp_path), port=81)
    assert (settings.port, settings.max_rows) == (81, Settings.model_fields["max_rows"].default)
    [line] = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert "SAFELIGHT_PORT, SAFELIGHT_SERVICE_HOST (service discovery" in line and "SAFELIGHT_HOST," in line


@pytest.mark.parametrize(
    "value", ["", "none", "/var/lib/images", "file:///var/lib/images", "s3://bucket/prefix", "az://container"]
)
def test_an_image_store_is_a_folder_or_a_bucket(value: str) -> None:
    assert Settings(image_store=value).image_store == value


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://example.org/", "https://example.org"),
        ("http://example.org:8000/a/b/", "http://example.org:8000/a/b"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_public_url_has_no_slash_at_its_end(value: str, url: str) -> None:
    assert Settings(public_url=value).public_url == url


@pytest.mark.parametrize(
    ("values", "images"),
    [
        ({}, 16),
        ({"max_rows": 2}, 2),
        ({"denoise_replicas": "4"}, 64),
        ({"denoise_replicas": "0-4"}, 16),
        ({"denoise_replicas": "4", "gateway_replicas": "2"}, 32),
        ({"denoise_replicas": "4", "batch_images": 5}, 5),
    ],
    ids=str,
)
def test_batches_have_two_ticks_of_every_denoiser(values: dict[str, Any], images: int) -> None:
    assert Settings(**values).line_images == images
