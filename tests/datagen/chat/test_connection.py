"""What a failure over HTTP means, and that no key is printed."""

import socketserver
import threading

import pytest

from datagen.chat import connection, errors
from datagen.chat.errors import RetryableError
from tests.support.chat_runs import ask, make_config, requests
from tests.support.chat_server import ChatServer


@pytest.mark.parametrize("content", [b"{", b"\xff", b"9" * 5_000, b"[" * 100_000])
def test_a_reply_that_is_no_json_is_asked_for_again(content):
    with pytest.raises(RetryableError, match="not JSON"):
        connection._json(content)


def test_no_server_at_all_is_told_as_such(tmp_path):
    server = ChatServer()
    server.close()
    _, _, error = ask(make_config(server, attempts=1), tmp_path / "s", requests(20))
    assert "connection: Cannot connect" in str(error)


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x01\r\n\r\n"])
def test_a_server_of_something_else_is_told_as_such(tmp_path, says):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(says)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        config = make_config(None, base_url=url, attempts=1)
        _, _, error = ask(config, tmp_path / "s", requests(20))
        server.shutdown()
    assert "every request so far is given up" in str(error) and "connection: " in str(error)


def test_the_key_is_nowhere_but_in_its_header(server, tmp_path):
    server.always = (401, {"error": {"message": "Incorrect API key: sk-secret-of-the-test"}})
    _, _, error = ask(make_config(server), tmp_path / "s", requests(1))
    assert "secret" not in str(error) and "[key]" in str(error)
    server.always = None
    ask(make_config(server), tmp_path / "s", requests(1))
    assert server.authorization == {"Bearer sk-secret-of-the-test"}
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes(), path


def test_an_error_is_cut_after_the_key_is_gone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plain-key-without-a-prefix")
    text = errors.short_text(ValueError("x" * 290 + " plain-key-without-a-prefix"))
    assert text == "x" * 290 + " [key]"
    assert errors.short_text(ValueError()) == "ValueError"
