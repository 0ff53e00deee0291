import pytest

from app.negotiation import Preferences, best_media_type, parse_prefer

OFFERED = ["application/json", "image/png", "image/webp"]


@pytest.mark.parametrize(
    ("headers", "preferences"),
    [
        ([], Preferences()),
        (["wait=10"], Preferences(wait_s=10)),
        (["respond-async, WAIT = 2.5"], Preferences(wait_s=2.5)),
        (['wait="3"; foo=bar'], Preferences(wait_s=3)),
        (["respond-async", "wait=4"], Preferences(wait_s=4)),
        (["wait=1, wait=9"], Preferences(wait_s=1)),
        (["wait=0"], Preferences(wait_s=0)),
        (["wait=soon"], Preferences()),
        (["wait=-1"], Preferences()),
        (["wait=inf"], Preferences()),
        (["wait=nan"], Preferences()),
        (["wait=1e9"], Preferences(wait_s=1e9)),
        (["wait=" + "9" * 5000], Preferences()),
        (["=;=,,;", "wait=3"], Preferences(wait_s=3)),
        (["wait"], Preferences()),
        (["wait=5, cancel-on-disconnect"], Preferences(wait_s=5, cancels_on_disconnect=True)),
    ],
)
def test_prefer_is_read_as_rfc_7240_wants(headers, preferences):
    assert parse_prefer(headers) == preferences


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("image/*", "image/png"),
        ("IMAGE/WEBP", "image/webp"),
        ("image/*;q=0.5, image/webp", "image/webp"),
        ("image/png;q=0, image/*", "image/webp"),
        ("application/json;q=0.1, image/*;q=0.2", "image/png"),
        ("text/html, image/webp, */*;q=0.8", "image/webp"),
        ("application/json, image/png", "application/json"),
        ("text/csv", None),
        ("image/gif", None),
        ("application/json;q=0", None),
        ("image/png;q=x", None),
        ("image/png;q=nan, image/webp;q=0.1", "image/webp"),
        ("image/png;q=inf, image/webp;q=-1", "image/png"),
        (",;q=1,", None),
        (", image/png", "image/png"),
    ],
)
def test_the_media_type_accepted_most_is_chosen(accept, chosen):
    assert best_media_type(accept, OFFERED) == chosen
