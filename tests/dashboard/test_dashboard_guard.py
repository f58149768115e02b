"""Who is let in, what may be changed, and what a served file may do."""

import base64
import io

import pytest

from lightning_hp.dashboard.guard import Guard, is_loopback


def inner(environ, start_response):
    headers = [("Content-Type", "text/plain"), ("Access-Control-Allow-Origin", "*"), ("Content-Security-Policy", "x")]
    start_response("200 OK", headers)
    return [b"inside"]


def ask(guard, path="/", method="GET", **environ):
    told = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "HTTP_HOST": "127.0.0.1:8080",
        "wsgi.input": io.BytesIO(),
        **environ,
    }
    answer = {}

    def start(status, headers, *more):
        answer.update(status=int(status.split()[0]), headers=dict(headers))

    answer["body"] = b"".join(guard(told, start))
    return answer


def basic(password, user="me"):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("lab.example.org", 200),
        ("evil.example.org", 421),
        ("127.0.0.1.evil.org", 421),
        ("localhost.evil.org", 421),
        ("evil@localhost", 421),
        ("localhost/evil", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_host(host, status):
    assert ask(Guard(inner, hosts=["Lab.example.org"]), HTTP_HOST=host)["status"] == status


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (basic("säcret"), 200),
        (basic("säcret", user="anybody"), 200),
        (basic("sacret"), 401),
        (basic(""), 401),
        ("Basic !!!", 401),
        ("Basic " + base64.b64encode(b"no colon").decode(), 401),
        ("Bearer säcret", 401),
        ("", 401),
    ],
)
def test_password(header, status):
    answer = ask(Guard(inner, password="säcret"), HTTP_AUTHORIZATION=header)
    assert answer["status"] == status
    assert ("WWW-Authenticate" in answer["headers"]) == (status == 401)


def test_the_password_itself_is_not_kept():
    guard = Guard(inner, password="swordfish")
    assert all("swordfish" not in repr(value) for value in vars(guard).values())


def test_an_empty_password_is_refused():
    with pytest.raises(ValueError, match="`password` must have at least one character"):
        Guard(inner, password="")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "ANYTHING"])
def test_read_only_refuses_changes_with_a_reason(method):
    answer = ask(Guard(inner, read_only=True), "/api/studies/0", method)
    assert answer["status"] == 403
    assert b"read-only" in answer["body"]
    assert ask(Guard(inner, read_only=True), "/api/studies/0", "GET")["status"] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"HTTP_ORIGIN": "http://127.0.0.1:8080"}, 200),
        ({"HTTP_SEC_FETCH_SITE": "same-origin"}, 200),
        ({"HTTP_ORIGIN": "http://evil.example.org"}, 403),
        ({"HTTP_ORIGIN": "http://127.0.0.1:9999"}, 403),
        ({"HTTP_ORIGIN": "null"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, 403),
        ({"HTTP_SEC_FETCH_SITE": "same-site"}, 403),
    ],
)
def test_changes_are_taken_from_own_pages_only(headers, status):
    assert ask(Guard(inner), "/api/studies/0", "DELETE", **headers)["status"] == status


def test_the_host_is_judged_before_the_password_and_the_password_before_all_else():
    guard = Guard(inner, password="x", read_only=True)
    assert ask(guard, method="DELETE", HTTP_HOST="evil.org")["status"] == 421
    assert ask(guard, method="DELETE")["status"] == 401
    assert ask(guard, method="DELETE", HTTP_AUTHORIZATION=basic("x"))["status"] == 403


def test_artifacts_are_served_in_a_sandbox_and_to_no_other_site():
    headers = ask(Guard(inner), "/artifacts/0/ab")["headers"]
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts;")
    assert "allow-same-origin" not in headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert ask(Guard(inner), "/dashboard")["headers"]["Content-Security-Policy"] == "x"


def test_head_has_no_body():
    assert ask(Guard(inner), method="HEAD", HTTP_HOST="evil.org")["body"] == b""


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_loopback(host, own):
    assert is_loopback(host) is own
