"""The unmodified `pusher` library for Python: every call, and the class of every error."""

import json
import pathlib
import time

import pusher
import pytest
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus

from conftest import APP, ROOT

TOO_MUCH_DATA = (
    "The data content of this event exceeds the allowed maximum (10240 bytes). "
    "See https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info\n"
)


def vectors(name):
    return json.loads((pathlib.Path(ROOT) / "fixtures" / "pusher" / f"{name}.json").read_text())


def client(port, **changes):
    return pusher.Pusher(**{"app_id": APP["id"], "key": APP["key"], "secret": APP["secret"], "host": "127.0.0.1", "port": port, "ssl": False, **changes})


# Publishing


@pytest.mark.parametrize(
    "data, delivered",
    [
        ("plain", "plain"),
        ("", ""),
        ({"hello": "wörld", "url": "http://x/y"}, '{"hello": "wörld", "url": "http://x/y"}'),
        ([1, 2.5, None], "[1, 2.5, null]"),
        ("ë" * 5120, "ë" * 5120),
    ],
)
def test_trigger_delivers_the_text_that_python_wrote(listen, pusher_client, data, delivered):
    listener = listen()
    listener.subscribe("texts", "e")
    assert pusher_client.trigger("texts", "e", data) == {}
    assert listener.await_event("texts", "e") == delivered


def test_trigger_reaches_many_channels(listen, pusher_client):
    listener = listen()
    channels = ["many-a", "many-b", "many;c=d@e,f.g"]
    for channel in channels:
        listener.subscribe(channel, "e")
    assert pusher_client.trigger(channels, "e", "x") == {}
    for channel in channels:
        assert listener.await_event(channel, "e") == "x"


def test_trigger_leaves_out_a_socket(listen, pusher_client):
    left_out, other = listen(), listen()
    for listener in (left_out, other):
        listener.subscribe("except", "e")
    pusher_client.trigger("except", "e", "1", left_out.socket_id)
    pusher_client.trigger("except", "e", "2")
    assert [other.await_event("except", "e") for _ in range(2)] == ["1", "2"]
    assert left_out.await_event("except", "e") == "2"


def test_trigger_to_100_channels(pusher_client):
    assert pusher_client.trigger([f"c{n}" for n in range(100)], "e", "x") == {}


def test_trigger_batch_delivers_in_order(listen, pusher_client):
    listener = listen()
    listener.subscribe("batch", "a", "b")
    assert pusher_client.trigger_batch([{"channel": "batch", "name": "a", "data": {"n": 1}}, {"channel": "batch", "name": "b", "data": "x"}]) == {}
    assert [event[1:] for event in (listener.events if listener.await_event("batch", "b") else [])] == [("a", '{"n": 1}')]


def test_trigger_batch_with_info_answers_a_list(listen, pusher_client):
    listen().subscribe("batch-info")
    batch = [{"channel": "batch-info", "name": "e", "data": "x", "info": "subscription_count"}, {"channel": "batch-info", "name": "e", "data": "x"}]
    assert pusher_client.trigger_batch(batch) == {"batch": [{"subscription_count": 1}, {}]}


# Asking: Python signs the MD5 of an empty body on every GET


def test_channels_info(listen, pusher_client):
    listen(user_data={"user_id": "1"}).subscribe("presence-listed")
    assert "presence-listed" in pusher_client.channels_info()["channels"]
    assert pusher_client.channels_info("presence-listed", ["user_count"]) == {"channels": {"presence-listed": {"user_count": 1}}}
    assert pusher_client.channels_info("nothing-starts-so") == {"channels": {}}


def test_channel_info(listen, pusher_client):
    listen(user_data={"user_id": "1"}).subscribe("presence-asked")
    assert pusher_client.channel_info("presence-asked", ["user_count", "subscription_count"]) == {"occupied": True, "user_count": 1, "subscription_count": 1}
    assert pusher_client.channel_info("nobody") == {"occupied": False}
    pusher_client.trigger("cache-asked", "e", "kept")
    answer = pusher_client.channel_info("cache-asked", ["cache"])
    assert answer["occupied"] is False and answer["cache"]["data"] == "kept" and 1790 < answer["cache"]["ttl"] <= 1800


def test_channel_info_of_a_name_with_every_legal_character(listen, pusher_client):
    listen().subscribe("a;b=c@d,e.f_g-H")
    assert pusher_client.channel_info("a;b=c@d,e.f_g-H") == {"occupied": True}


def test_users_info(listen, pusher_client):
    listen(user_data={"user_id": 10}).subscribe("presence-users")
    assert pusher_client.users_info("presence-users") == {"users": [{"id": "10"}]}
    assert pusher_client.users_info("presence-nobody") == {"users": []}


# Users


def sign_in(listener, pusher_client, user_id):
    answer = pusher_client.authenticate_user(listener.socket_id, {"id": user_id, "user_info": {"name": "Zoë"}})
    listener.client.connection.send_event("pusher:signin", {"auth": answer["auth"], "user_data": answer["user_data"]})
    assert json.loads(listener.await_event(None, "pusher:signin_success")) == {"user_data": answer["user_data"]}


def test_authenticate_user_signs_a_connection_in_and_send_to_user_reaches_it(listen, pusher_client):
    listener = listen()
    sign_in(listener, pusher_client, "12345")
    listener.subscribe("#server-to-user-12345", "hello", auth="")
    assert pusher_client.send_to_user("12345", "hello", {"to": "you"}) == {}
    assert json.loads(listener.await_event("#server-to-user-12345", "hello")) == {"to": "you"}


def test_terminate_user_connections_reaches_the_app_though_its_path_lacks_it(listen, pusher_client):
    listener, other = listen(), listen()
    sign_in(listener, pusher_client, "doomed")
    sign_in(other, pusher_client, "spared")
    assert pusher_client.terminate_user_connections("doomed") == {}
    error = listener.await_event(None, "pusher:error")
    assert error == {"code": 4009, "message": "You got disconnected by the app."}
    other.settle()
    assert pusher_client.terminate_user_connections("nobody") == {}


# Signatures


def test_authenticate_opens_channels(listen, pusher_client):
    listener = listen()
    answer = pusher_client.authenticate("private-signed", listener.socket_id)
    listener.subscribe("private-signed", auth=answer["auth"])
    answer = pusher_client.authenticate("presence-signed", listener.socket_id, {"user_id": "zoë", "user_info": {"name": "Zoë"}})
    assert "\\u00eb" in answer["channel_data"]
    listener.client.connection.send_event("pusher:subscribe", {"channel": "presence-signed", **answer})
    listener.settle()
    assert pusher_client.channel_info("private-signed") == {"occupied": True}
    assert pusher_client.users_info("presence-signed") == {"users": [{"id": "zoë"}]}


def test_the_signatures_are_those_of_the_vectors(pusher_client):
    by_name = {vector["name"]: vector["signature"] for vector in vectors("subscriptions")["subscriptions"]}
    assert pusher_client.authenticate("private-foobar", "1234.1234")["auth"] == f"{APP['key']}:{by_name['V1']}"
    assert pusher_client.authenticate("private-cache-foo", "1234.1234")["auth"] == f"{APP['key']}:{by_name['V9']}"


@pytest.mark.parametrize("vector", vectors("webhooks")["webhooks"], ids=lambda vector: vector["name"])
def test_a_webhook_is_valid_within_five_minutes_only(pusher_client, vector, monkeypatch):
    body, signature = vector["body"], vector["signature"]
    sent = json.loads(body)["time_ms"] / 1000
    monkeypatch.setattr(time, "time", lambda: sent + 299)
    assert pusher_client.validate_webhook(APP["key"], signature, body) == json.loads(body)
    assert pusher_client.validate_webhook("other", signature, body) is None
    assert pusher_client.validate_webhook(APP["key"], signature, body + " ") is None
    monkeypatch.setattr(time, "time", lambda: sent + 301)
    assert pusher_client.validate_webhook(APP["key"], signature, body) is None


# Errors


def fails(error, text, call, *arguments):
    with pytest.raises(error) as raised:
        call(*arguments)
    assert str(raised.value) == text if isinstance(text, str) else text(str(raised.value))


def test_a_wrong_secret_is_bad_auth(port):
    fails(PusherBadAuth, lambda text: text.startswith("Invalid signature: you should have sent HmacSHA256Hex("), client(port, secret="wrong").trigger, "c", "e", "x")
    fails(PusherBadAuth, lambda text: text.startswith("Invalid signature: you should have sent HmacSHA256Hex("), client(port, secret="wrong").channels_info)


def test_a_wrong_key_is_bad_auth(port):
    fails(PusherBadAuth, "Unknown auth_key\n", client(port, key="wrong").trigger, "c", "e", "x")


def test_an_unknown_app_is_a_bad_status(port):
    fails(PusherBadStatus, "404: Unknown app\n", client(port, app_id="999").trigger, "c", "e", "x")


def test_bad_requests_are_bad_requests(pusher_client):
    fails(PusherBadRequest, "Event names must not start with pusher: or pusher_internal:\n", pusher_client.trigger, "c", "pusher:x", "x")
    fails(PusherBadRequest, "Batch too large (11 > 10)\n", pusher_client.trigger_batch, [{"channel": "c", "name": "e", "data": "x"} for _ in range(11)])
    fails(PusherBadRequest, "Users can only be retrieved for presence channels\n", pusher_client.users_info, "room")
    fails(PusherBadRequest, "Cannot retrieve the user count unless the channel is a presence channel\n", pusher_client.channel_info, "room", ["user_count"])
    fails(PusherBadRequest, lambda text: text.startswith("Invalid channel name "), pusher_client.trigger, "x" * 165, "e", "x")


def test_too_much_data_is_a_413(pusher_client):
    fails(PusherBadStatus, f"413: {TOO_MUCH_DATA}", pusher_client.trigger, "c", "e", "x" * 10241)


def test_a_connection_is_kept_over_success_and_errors(pusher_client):
    pool = pusher_client._pusher_client.http.session.get_adapter("http://").poolmanager
    for _ in range(3):
        pusher_client.channels_info()
        with pytest.raises(PusherBadRequest):
            pusher_client.users_info("room")
        pusher_client.trigger("c", "e", "x")
    assert [pool.pools[key].num_connections for key in pool.pools.keys()] == [1]
