from pathlib import Path

import pytest

from app.settings import AppSettings, read_settings
from workers.settings import SettingsError, WorkerSettings


def test_every_field_is_read_from_its_variable(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://queue:6379/1")
    monkeypatch.setenv("SMALTI_PIPELINES", "second, first")
    monkeypatch.setenv("SMALTI_DATA_DIR", "/srv/data")
    monkeypatch.setenv("SMALTI_MAX_QUEUE_LENGTH", "7")

    settings = read_settings(AppSettings)

    assert settings.redis_url == "redis://queue:6379/1"
    assert settings.pipelines == ("second", "first")
    assert settings.results_dir == Path("/srv/data/results")
    assert settings.max_queue_length == 7


def test_the_command_line_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("SMALTI_PORT", "1")

    settings = read_settings(AppSettings, redis_url="redis://here", port=2)

    assert (settings.redis_url, settings.port) == ("redis://here", 2)


def test_a_misspelt_variable_is_refused_with_the_nearest_right_name(monkeypatch):
    monkeypatch.setenv("SMALTI_PIPELINE", "fashion-mnist")

    with pytest.raises(SettingsError, match=r"SMALTI_PIPELINE .*did you mean SMALTI_PIPELINES\?"):
        read_settings(WorkerSettings)


def test_the_prefix_before_redis_url_is_pointed_out(monkeypatch):
    monkeypatch.setenv("SMALTI_REDIS_URL", "redis://here")

    with pytest.raises(SettingsError, match=r"did you mean REDIS_URL\?"):
        read_settings(AppSettings)


def test_processes_accept_the_variables_of_each_other(monkeypatch):
    monkeypatch.setenv("SMALTI_PORT", "8080")
    monkeypatch.setenv("SMALTI_LEASE_S", "2")

    assert read_settings(WorkerSettings).lease_s == 2
    assert read_settings(AppSettings).port == 8080


def test_an_empty_variable_is_as_good_as_none(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("SMALTI_PORT", "")

    settings = read_settings(AppSettings)

    assert (settings.redis_url, settings.port) == (None, 8000)


def test_a_bad_value_names_its_variable_its_limit_and_the_value(monkeypatch):
    monkeypatch.setenv("SMALTI_PORT", "70000")

    with pytest.raises(SettingsError, match=r"SMALTI_PORT: .*65535, got '70000'"):
        read_settings(AppSettings)
