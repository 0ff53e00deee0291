"""What pages of others can't do through a visitor's browser, and what a setting lets them do."""

import re

import pytest

from app.browsers import EXPOSED_HEADERS, host_of
from app.main import create_app
from app.openapi import _HEADERS
from app.settings import AppSettings, read_settings
from tests.app.conftest import problem_of, serving, settings_for
from workers.settings import SettingsError

HERE = "http://localhost:8000"
FORM = {"files": {"source": b"AAAA"}}
FOREIGN_PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://[x"},
    {"Origin": "http://localhost:3000", "Host": "localhost:8000"},  # another port is another origin
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": HERE, "Host": "localhost:8000"},
]
OWN_PAGES = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://public.example"},  # behind a proxy
    {"Sec-Fetch-Site": "none"},
    {"Origin": HERE, "Host": "localhost:8000"},
]


@pytest.mark.parametrize(
    "host", ["localhost", "api:8000", "127.0.0.1:9", "[::1]:8000", "192.168.1.7", "a.localhost."]
)
def test_addresses_and_local_names_are_answered(service, host):
    assert service.client.get("/health/live", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "EVIL.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[evil.example]",
    ],
)
@pytest.mark.parametrize("path", ["/health/live", "/docs", "/nothing"])
def test_a_foreign_host_name_is_refused_with_the_setting_that_allows_it(service, host, path):
    problem = problem_of(service.client.get(path, headers={"Host": host}), 421, "misdirected_host")
    assert "SMALTI_ALLOWED_HOSTS" in problem.detail


@pytest.mark.parametrize("headers", FOREIGN_PAGES)
def test_a_page_of_another_origin_makes_no_job(service, headers):
    for body in (FORM, {"json": {}}, {"content": b"{}", "headers": {"Content-Type": "text/plain"}}):
        request = body | {"headers": body.get("headers", {}) | headers}
        for path in ("/encode", "/generate", "/decode"):
            problem = problem_of(service.client.post(path, **request), 403, "forbidden_origin")
            assert "SMALTI_CORS_ORIGINS" in problem.detail
    problem_of(service.client.delete("/jobs/x", headers=headers), 403, "forbidden_origin")
    assert service.client.get("/health/live", headers=headers).status_code == 200


@pytest.mark.parametrize("headers", OWN_PAGES)
def test_programs_and_pages_of_the_same_origin_are_served(service, headers):
    assert service.client.post("/generate", json={}, headers=headers).status_code == 202
    problem_of(service.client.post("/encode", **FORM, headers=headers), 422, "invalid_image")


def test_without_the_setting_no_origin_is_allowed(service):
    response = service.client.get("/health/live", headers={"Origin": HERE})
    assert "access-control-allow-origin" not in response.headers


def test_origins_of_the_setting_may_use_the_api_and_read_its_headers(redis_url, tmp_path):
    origin, other = "https://app.example.com", "https://evil.example"
    settings = settings_for(
        tmp_path, redis_url, cors_origins=(origin,), allowed_hosts=("api.example.com", "*.example.org")
    )
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,prefer"}
    with serving(create_app(settings)) as client:
        preflight = client.options("/generate", headers=asks | {"Origin": origin})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "prefer" in preflight.headers["access-control-allow-headers"]

        response = client.post("/generate", json={}, headers={"Origin": origin})
        assert response.status_code == 202
        assert response.headers["access-control-allow-origin"] == origin
        assert "Location" in response.headers["access-control-expose-headers"]
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        refused = client.post("/generate", json={"num_outputs": 99}, headers={"Origin": origin})
        assert refused.headers["access-control-allow-origin"] == origin  # or the page can't read why

        problem_of(client.options("/generate", headers=asks | {"Origin": other}), 403, "forbidden_origin")
        problem_of(client.post("/generate", json={}, headers={"Origin": other}), 403, "forbidden_origin")
        for host, status in (("api.example.com", 200), ("a.b.example.org", 200), ("example.org", 421)):
            assert client.get("/health/live", headers={"Host": host}).status_code == status


def test_the_name_that_is_listened_on_is_answered(redis_url, tmp_path):
    settings = settings_for(tmp_path, redis_url, host="Images.example.com", require_keys="off")
    with serving(create_app(settings)) as client:
        headers = {"Host": "images.example.com:8000"}
        assert client.get("/health/live", headers=headers).status_code == 200


def test_pages_may_read_every_header_of_ours_that_is_documented():
    assert set(_HEADERS) - {"Cache-Control", "Accept-Ranges"} == set(EXPOSED_HEADERS)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SMALTI_CORS_ORIGINS", "app.example.com"),
        ("SMALTI_CORS_ORIGINS", "https://app.example.com/"),
        ("SMALTI_ALLOWED_HOSTS", "https://app.example.com"),
        ("SMALTI_ALLOWED_HOSTS", "app.example.com:8000"),
        ("SMALTI_ROOT_PATH", "smalti"),
        ("SMALTI_ROOT_PATH", "/smalti/"),
    ],
)
def test_a_setting_that_could_match_nothing_is_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable):
        read_settings(AppSettings)


def test_names_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("SMALTI_ALLOWED_HOSTS", "A.example.com, *.example.org")
    assert read_settings(AppSettings).allowed_hosts == ("a.example.com", "*.example.org")


@pytest.mark.parametrize(
    "path", ["/health/live", "/docs", "/nothing", "/openapi.json", "/static-offline-docs/swagger-ui.css"]
)
def test_every_answer_tells_browsers_to_take_it_for_nothing_else(service, path):
    headers = service.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-site"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert ("sandbox" in policy) == (path != "/docs")


def test_the_policy_of_the_documentation_covers_what_its_page_has(service):
    response = service.client.get("/docs")
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
    )
    assert "'self' 'unsafe-inline'" in policy["script-src"]  # its script and the bundle
    assert policy["connect-src"] == "'self'"  # the document, and what is tried out
    assert not re.search(r"(?:src|href)=[\"']https?:", response.text)


@pytest.mark.parametrize(
    ("header", "host"),
    [("A.example:80", "a.example"), ("[::1]:80", "::1"), ("a.example.", "a.example"), ("", "")],
)
def test_a_host_header_is_read(header, host):
    assert host_of(header) == host
