from pathlib import Path

import pytest

from app.settings import AppSettings, read_settings
from workers.errors import StorageUnavailable
from workers.results import open_results
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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SMALTI_PORT", "70000", "SMALTI_PORT must be 65535 or less, got '70000'"),
        ("SMALTI_PORT", "http", "SMALTI_PORT must be a whole number, got 'http'"),
        ("SMALTI_LEASE_S", "soon", "SMALTI_LEASE_S must be a number, got 'soon'"),
        ("SMALTI_LEASE_S", "inf", "SMALTI_LEASE_S must be a number, got 'inf'"),
        ("SMALTI_LEASE_S", "0", "SMALTI_LEASE_S must be 1.0 or more, got '0'"),
        (
            "SMALTI_RESULT_TTL_S",
            "9" * 20,
            "SMALTI_RESULT_TTL_S must be 315360000 or less, got '99999999999999999999'",
        ),
        ("SMALTI_MAX_WAIT_S", "0", "SMALTI_MAX_WAIT_S must be more than 0.0, got '0'"),
        ("SMALTI_SEED_PROMISE", "maybe", "SMALTI_SEED_PROMISE must be 'on' or 'off', got 'maybe'"),
        ("SMALTI_DEVICE", "gpu", "SMALTI_DEVICE must be auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
        ("REDIS_URL", "localhost:6379", "REDIS_URL must begin with redis://, as in redis://localhost:6379"),
    ],
)
@pytest.mark.parametrize("kind", [AppSettings, WorkerSettings])
def test_any_process_refuses_a_bad_value_in_one_line(monkeypatch, variable, value, said, kind):
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as refused:
        read_settings(kind)
    assert str(refused.value) == said


def test_the_key_of_a_client_is_no_mistake(monkeypatch):
    """A shell that asks a service may start one, too."""
    monkeypatch.setenv("SMALTI_API_KEY", "smalti-x")
    assert read_settings(AppSettings).port == 8000


@pytest.mark.parametrize("kind", [AppSettings, WorkerSettings])
def test_every_number_has_an_upper_bound(kind):
    """One that Redis or the clock can't hold would let no job end."""
    for name, schema in kind.model_json_schema(by_alias=False)["properties"].items():
        for each in schema.get("anyOf", [schema]):
            if each.get("type") in ("integer", "number"):
                assert each.get("maximum", 2**63) <= 2**40, name


def test_results_may_be_kept_in_a_folder_of_their_own_or_in_a_bucket(monkeypatch, tmp_path):
    monkeypatch.setenv("SMALTI_RESULT_STORE", str(tmp_path / "elsewhere"))
    settings = read_settings(WorkerSettings)
    assert (settings.results_dir, settings.has_bucket) == (tmp_path / "elsewhere", False)
    (tmp_path / "elsewhere").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match=r"elsewhere \(SMALTI_RESULT_STORE\) can't be written"):
        open_results(settings).check()

    for address in ("s3://bucket", "s3://my.bucket-1/a/b_c/"):
        monkeypatch.setenv("SMALTI_RESULT_STORE", address)
        assert read_settings(WorkerSettings).has_bucket


@pytest.mark.parametrize(
    "address",
    ["gs://bucket", "s3://", "s3://B", "s3://name:secret@bucket", "s3://bucket//x", "s3://bucket/../x"],
)
def test_another_address_of_results_is_refused_without_being_repeated(monkeypatch, address):
    monkeypatch.setenv("SMALTI_RESULT_STORE", address)
    with pytest.raises(SettingsError, match="SMALTI_RESULT_STORE must be a folder, s3://BUCKET or") as error:
        read_settings(AppSettings)
    assert "secret" not in str(error.value)
