import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.errors import PermissionDenied, SettingError, Unauthenticated
from service.callers import Caller, Callers, load_tokens, peer_address


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def callers(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who\n\nann {digest('apple')}\nroot {digest('pear')}  admin\n")
    return Callers(load_tokens(path))


def test_a_known_token_tells_its_name(callers):
    assert callers.identify("Bearer apple", "ipv4:1.2.3.4:5") == Caller(name="ann", is_admin=False)
    assert callers.identify_admin("bearer pear", "unix:") == Caller(name="root", is_admin=True)


@given(st.one_of(st.none(), st.text(max_size=30), st.text(max_size=30).map(lambda text: f"Bearer {text}")))
def test_anything_else_is_refused_and_not_quoted(authorization):
    known = Callers([])
    with pytest.raises(Unauthenticated) as caught:
        known.identify(authorization, "ipv4:1.2.3.4:5")
    assert str(caught.value).startswith("this service asks for a token and was given ")
    if authorization and len(authorization) > 12:
        assert authorization not in str(caught.value)


def test_admin_needs_the_mark(callers):
    with pytest.raises(PermissionDenied, match="'ann' does not open"):
        callers.identify_admin("Bearer apple", "unix:")


def test_without_tokens_the_address_is_the_caller():
    assert Callers(None).identify(None, "ipv4:10.0.0.7:5123") == Caller(name="10.0.0.7", is_admin=True)


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:5123", "10.0.0.7"),
        ("ipv6:%5B::1%5D:80", "::1"),
        ("ipv6:[fe80::2]:80", "fe80::2"),
        ("unix:", "unix"),
        ("", "unknown"),
    ],
)
def test_peers_are_named_without_their_port(peer, address):
    assert peer_address(peer) == address


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no token"),
        ("ann secret", "line 1"),
        (f"ann {digest('a')}\nann {digest('b')}", "line 2 gives the name ann again"),
        (f"ann {digest('a')} root", "line 1"),
    ],
)
def test_a_faulty_file_is_refused_by_line(tmp_path, text, fault):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(SettingError, match=fault) as caught:
        load_tokens(path)
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingError, match="cannot be read"):
        load_tokens(tmp_path / "none")
