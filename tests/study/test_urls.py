"""Where passwords come from, and that they are neither shown nor kept."""

import pytest

from lightning_hp.study import urls
from lightning_hp.study.urls import proxy_address, redacted, with_password, without_password


@pytest.mark.parametrize(
    ("url", "kept", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:p@ss@host/db", "postgresql+psycopg://me@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&x=1",
         "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://host/db?password=secret", "postgresql://host/db", "postgresql://host/db?password=***"),
        ("grpc://host:13000", "grpc://host:13000", "grpc://host:13000"),
        ("sqlite:///s.db", "sqlite:///s.db", "sqlite:///s.db"),
        ("journal", "journal", "journal"),
    ],
)  # fmt: skip
def test_a_url_is_kept_without_its_password_and_shown_with_stars(url, kept, shown):
    assert without_password(url) == kept
    assert redacted(url) == shown


def test_the_password_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    url = "postgresql://me@host/db"
    assert with_password(url) == url
    (tmp_path / "secret").write_text("from file\n")
    monkeypatch.setenv(urls.PASSWORD_FILE, str(tmp_path / "secret"))
    assert with_password(url) == "postgresql://me:from%20file@host/db"
    monkeypatch.setenv(urls.PASSWORD, "p@ss/word")
    assert with_password(url) == "postgresql://me:p%40ss%2Fword@host/db"
    for other in ("postgresql://me:own@host/db", "postgresql://host/db", "journal", "sqlite:///me@host.db"):
        assert with_password(other) == other


def test_the_address_of_a_proxy():
    assert proxy_address("grpc://db.example.org:1234") == ("db.example.org", 1234)
    assert proxy_address("grpc://localhost") == ("localhost", 13000)
    with pytest.raises(ValueError, match=r"`storage` must be grpc://HOST:PORT, got grpc://"):
        proxy_address("grpc://")
