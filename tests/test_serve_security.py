"""`sirius-dspy serve`: who may ask, and what hostile clients get."""

from __future__ import annotations

import gzip
import json
import socket

import httpx
import openai
import pytest

from sirius_dspy.errors import ServerError
from sirius_dspy.server.settings import ServerSettings, read_token
from tests.serve_help import ROWS, serving
from tests.wait import wait_until

TOKEN = "correct-horse-battery-9f2c"
LINE = json.dumps({"messages": ROWS[0]}).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server with little patience and small limits."""
    limits = {"max_upload_bytes": 5000, "max_body_bytes": 2000, "max_connections": 8}
    times = {"header_timeout_s": 0.3, "body_timeout_s": 0.3}
    with serving(tmp_path_factory.mktemp("small"), **limits, **times) as client:
        yield client


def connect(client):
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)


def read_all(connection):
    """Everything until the server closes the connection."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


# Who may ask


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org"])
def test_an_open_server_needs_a_token(tmp_path, host):
    with pytest.raises(ServerError, match="SIRIUS_SERVER_TOKEN"):
        ServerSettings(tmp_path, host=host)
    ServerSettings(tmp_path, host=host, token=TOKEN)


@pytest.mark.parametrize("token", ["", "short", "with spaces in it", "with-ümlauts-in-it", "two-lines-of\nx"])
def test_a_weak_token_is_refused(tmp_path, token):
    with pytest.raises(ServerError, match="16 printable") as caught:
        ServerSettings(tmp_path, token=token)
    assert not token or token not in str(caught.value)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv("SIRIUS_SERVER_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    with pytest.raises(ServerError, match="cannot be read"):
        read_token(tmp_path / "nothing")
    assert TOKEN not in repr(ServerSettings(tmp_path, token=TOKEN))


def test_only_the_token_opens_the_server(tmp_path, caplog, capfd):
    with serving(tmp_path, token=TOKEN) as client:
        assert client.models.list().data
        url = f"{client.base_url}models"
        wrong = ["", "Bearer", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"]
        for given in wrong:
            answer = httpx.get(url, headers={"authorization": given.encode("latin-1")})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert TOKEN not in answer.text
        assert httpx.get(url).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="another").files.create(file=("rows.jsonl", LINE), purpose="fine-tune")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("unknown")
    printed = capfd.readouterr()
    assert TOKEN not in caplog.text + printed.out + printed.err
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "headers", [{"host": "evil.example:80"}, {"origin": "https://evil.example"}, {"origin": "null"}]
)
def test_a_web_page_cannot_use_the_server(small, headers):
    answer = httpx.post(f"{small.base_url}fine_tuning/jobs", headers=headers, json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "invalid_request_error")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1234", "127.0.0.1", "127.0.0.2:80", "[::1]", "[::1]:80"])
def test_this_machine_s_own_names_are_answered(small, host):
    assert httpx.get(f"{small.base_url}models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "0.0.0.0", "evil:1"])
def test_other_names_are_not(small, host):
    assert httpx.get(f"{small.base_url}models", headers={"host": host}).status_code == 403


# What is sent


def test_a_large_upload_is_refused(small):
    with pytest.raises(openai.APIStatusError) as caught:
        small.files.create(file=("rows.jsonl", LINE * 100), purpose="fine-tune")
    assert caught.value.status_code == 413


@pytest.mark.parametrize(("path", "limit"), [("files", 5000), ("chat/completions", 2000)])
def test_a_large_body_without_a_length_is_refused_while_it_is_read(small, path, limit):
    sent = []

    def body():
        # Far more than what the system keeps for a server that does not read any more, which is some ten megabytes.
        for _ in range(2000):
            sent.append(100_000)
            yield b"--x\r\n" + b" " * 99_995

    headers = {"content-type": "multipart/form-data; boundary=x" if path == "files" else "application/json"}
    try:
        answer = httpx.post(f"{small.base_url}{path}", content=body(), headers=headers)
    except httpx.TransportError:
        pass  # the connection was closed while the client was still sending
    else:
        assert answer.status_code in (400, 413)
    assert sum(sent) < 200_000_000


@pytest.mark.parametrize("length", ["9" * 30, "-1", "x"])
def test_a_false_length_is_refused(small, length):
    with connect(small) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        assert read_all(connection).split()[1] in (b"400", b"413")


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
def test_a_compressed_body_is_refused(small, encoding):
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    answer = httpx.post(f"{small.base_url}chat/completions", content=gzip.compress(b" " * 10**6), headers=headers)
    assert (answer.status_code, "compressed" in answer.text) == (415, True)


@pytest.mark.parametrize(
    "name", ["../../evil.jsonl", "..\\evil.jsonl", "/etc/passwd", "a\u202eb\x1b[2J.jsonl", "x" * 3000, "nul\x00.jsonl"]
)
def test_a_hostile_file_name_is_only_a_label(tmp_path, name):
    with serving(tmp_path / "data") as client:
        file = client.files.create(file=(name, LINE), purpose="fine-tune")
        assert file.filename == client.files.retrieve(file.id).filename
        assert file.filename.isprintable()
        assert not set("/\\") & set(file.filename)
        assert len(file.filename) <= 255
    assert {path.name for path in (tmp_path / "data" / "files").iterdir()} == {f"{file.id}.json", f"{file.id}.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc%2fpasswd", "%2e%2e", ".lock", "file-%00", "%2fetc%2fpasswd", "file-" + "0" * 5000]
)
@pytest.mark.parametrize("path", ["files/{}", "files/{}/content", "fine_tuning/jobs/{}", "fine_tuning/jobs/{}/events"])
def test_an_id_is_no_path(small, path, name):
    answer = httpx.get(f"{small.base_url}{path.format(name)}")
    assert answer.status_code == 404
    assert len(answer.content) < 1000


# Connections


def test_a_connection_that_says_nothing_is_closed(small):
    with connect(small) as connection:
        assert read_all(connection) == b""


@pytest.mark.parametrize("before", [b"", b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_drips_is_cut_off(small, before):
    with connect(small) as connection:
        connection.sendall(before)
        first = connection.recv(65536) if before else b""
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost:")
        assert read_all(connection).startswith(b"HTTP") is False
    assert first.startswith(b"HTTP/1.1 200") == bool(before)


def test_a_body_that_drips_is_cut_off(small):
    with connect(small) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        assert read_all(connection).split()[1] == b"408"


def test_many_connections_do_not_stop_the_server(small):
    held = [connect(small) for _ in range(12)]
    try:
        for connection in held:
            connection.sendall(b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n")
        answers = [connection.recv(65536).split()[1] for connection in held]
    finally:
        for connection in held:
            connection.close()
    assert b"503" in answers
    wait_until(lambda: httpx.get(f"{small.base_url}models").status_code == 200)
