"""Webhooks through the unmodified checker of the `pusher` library for Python."""

import http.server
import json
import os
import pathlib
import queue
import subprocess
import threading

import pusher
import pytest

from conftest import APP, ROOT

import pysher

WAIT_SECS = 10


@pytest.fixture
def receiver():
    """A queue of the headers and the body of each webhook, and the URL that takes them."""
    received = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.put((self.headers, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield received, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def webhooks_port(receiver, tmp_path):
    """The port of a server that sends webhooks to the receiver."""
    config = tmp_path / "raptor.toml"
    app = "".join(f"{key} = {json.dumps(value)}\n" for key, value in APP.items())
    config.write_text(f'listen = "127.0.0.1:0"\n[[apps]]\n{app}[[apps.webhooks]]\nurl = "{receiver[1]}"\nallow_private_networks = true\n')
    binary = os.environ.get("RAPTOR_BIN", str(pathlib.Path(ROOT) / "target" / "release" / "raptor"))
    server = subprocess.Popen([binary, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={"PATH": os.environ["PATH"]})
    line = server.stdout.readline()
    threading.Thread(target=server.stdout.read, daemon=True).start()
    yield int(line.rsplit(":", 1)[1])
    server.terminate()
    server.wait(10)


def test_webhooks_pass_the_checker(webhooks_port, receiver):
    library = pusher.Pusher(app_id=APP["id"], key=APP["key"], secret=APP["secret"], host="127.0.0.1", port=webhooks_port, ssl=False)
    client = pysher.Pusher(APP["key"], custom_host="127.0.0.1", port=webhooks_port, secure=False, secret=APP["secret"], user_data={"user_id": "7"}, log_level=None)
    client.connection.bind("pusher:connection_established", lambda _: client.subscribe("presence-room"))
    client.connect()
    events = []
    while len(events) < 2:
        headers, body = receiver[0].get(timeout=WAIT_SECS)
        key, signature = headers["X-Pusher-Key"], headers["X-Pusher-Signature"]
        webhook = library.validate_webhook(key=key, signature=signature, body=body)
        assert webhook is not None, body
        assert library.validate_webhook(key=key, signature=signature[::-1], body=body) is None
        events += webhook["events"]
    assert events[:2] == [
        {"name": "channel_occupied", "channel": "presence-room"},
        {"name": "member_added", "channel": "presence-room", "user_id": "7"},
    ]
    client.disconnect(timeout=0.1)
