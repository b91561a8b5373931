"""A running server for the tests of the Python libraries."""

import json
import os
import pathlib
import subprocess
import tempfile
import threading

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
START_TIMEOUT_SECS = 10

APP = json.loads((HERE.parent / "support" / "test-app.json").read_text())


@pytest.fixture(scope="session")
def port():
    """The port of a server with the test app, started for the whole run."""
    binary = os.environ.get("RAPTOR_BIN", str(ROOT / "target" / "release" / "raptor"))
    with tempfile.TemporaryDirectory() as directory:
        config = pathlib.Path(directory) / "raptor.toml"
        app = "".join(f"{key} = {json.dumps(value)}\n" for key, value in APP.items())
        config.write_text(f'listen = "127.0.0.1:0"\n[[apps]]\n{app}')
        server = subprocess.Popen(
            [binary, "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={"PATH": os.environ["PATH"]}
        )
        watchdog = threading.Timer(START_TIMEOUT_SECS, server.kill)
        watchdog.start()
        try:
            line = server.stdout.readline()
            watchdog.cancel()
            assert line.startswith("Raptor is listening on http://127.0.0.1:"), line
            # The pipe is read to its end, so that the server never waits for us.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield int(line.rsplit(":", 1)[1])
        finally:
            watchdog.cancel()
            server.terminate()
            try:
                code = server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        assert code == 0


@pytest.fixture
def pusher_client(port):
    """The unmodified server library."""
    import pusher

    return pusher.Pusher(app_id=APP["id"], key=APP["key"], secret=APP["secret"], host="127.0.0.1", port=port, ssl=False)


class Listener:
    """The unmodified client library, with what it receives in order."""

    def __init__(self, port, user_data=None):
        import pysher

        self.events = []
        self.questions = 0
        self.changed = threading.Condition()
        self.client = pysher.Pusher(
            APP["key"], custom_host="127.0.0.1", port=port, secure=False, secret=APP["secret"], user_data=user_data, log_level=None
        )
        for event in ("pusher:connection_established", "pusher:error", "pusher:signin_success"):
            self.client.connection.bind(event, lambda data, event=event: self.note(None, event, data))
        self.client.connect()
        self.await_event(None, "pusher:connection_established")

    @property
    def socket_id(self):
        return self.client.connection.socket_id

    def note(self, channel, event, data):
        with self.changed:
            self.events.append((channel, event, data))
            self.changed.notify_all()

    def subscribe(self, name, *events, auth=None):
        """Subscribes, binds to `events` and waits until the server has answered.

        pysher forgets what arrives before its `subscribe` returns, so the acknowledgement itself may go unseen.
        """
        channel = self.client.subscribe(name, auth)
        for event in events:
            channel.bind(event, lambda data, event=event: self.note(name, event, data))
        self.settle()
        return channel

    def await_event(self, channel, event, seconds=5):
        """The data of the first such event, which is then forgotten."""

        def find():
            return next((e for e in self.events if e[:2] == (channel, event)), None)

        with self.changed:
            assert self.changed.wait_for(find, seconds), f"no {event} on {channel} within {seconds} s; got {self.events}"
            found = find()
            self.events.remove(found)
            return found[2]

    def settle(self):
        """Everything sent before has been answered: the answers come in order, and this question has an answer of its own."""
        self.questions += 1
        self.client.connection.send_event(f"question-{self.questions}", {})
        while self.await_event(None, "pusher:error")["message"] != f"Unsupported event received on socket: question-{self.questions}":
            pass

    def disconnect(self):
        # Closing from another thread can leave pysher's reader waiting on its closed socket for its ping timeout; the connection
        # is over all the same, so that thread, a daemon, is not waited for.
        self.client.disconnect(timeout=0.1)


@pytest.fixture
def listen(port):
    """Makes connected listeners and disconnects them at the end."""
    listeners = []

    def connect(**options):
        listeners.append(Listener(port, **options))
        return listeners[-1]

    yield connect
    for listener in listeners:
        listener.disconnect()
