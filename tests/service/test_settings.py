"""Settings: given over environment over default, and never something to stumble over later."""

import pytest

from safelight.service.settings import BadSetting, Settings, num_cores, read_settings


def test_what_is_given_goes_before_the_environment_before_the_defaults():
    environ = {"SAFELIGHT_PORT": "9000", "SAFELIGHT_HOST": "0.0.0.0", "PORT": "1"}
    settings = read_settings({"port": "9001", "model": None}, environ)
    assert (settings.port, settings.host, settings.model) == (9001, "0.0.0.0", Settings().model)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"port": "http"}, "port must be a whole number, got 'http'"),
        ({"port": "70000"}, "between 0 and 65535"),
        ({"stages": "one"}, "split, colocated"),
        ({"deadline_seconds": "soon"}, "deadline_seconds must be a number"),
        ({"deadline_seconds": "nan"}, "more than 0"),
        ({"deadline_seconds": "inf"}, "deadline_seconds must be"),
        ({"max_pictures": "0"}, "more than 0"),
        ({"text_cache_bytes": "-1"}, "at least 0"),
        ({"max_rows": "1"}, "max_rows must be at least 2"),
        ({"colour": "red"}, "colour is not a setting; allowed: model"),
    ],
)
def test_a_bad_setting_is_named(given, complaint):
    with pytest.raises(BadSetting, match=complaint):
        read_settings(given, {})


def test_there_is_a_core_to_run_on():
    assert num_cores() >= 1
