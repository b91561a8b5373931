"""pysher, an unmodified client of protocol 6, receives what the unmodified Python library publishes."""

import json
import time

from conftest import APP


def test_a_public_channel_delivers_what_is_triggered(listen, pusher_client):
    listener = listen()
    listener.subscribe("news", "greeting")
    pusher_client.trigger("news", "greeting", {"hello": "wörld"})
    assert json.loads(listener.await_event("news", "greeting")) == {"hello": "wörld"}


def test_private_and_presence_channels_open_with_pyshers_own_signature(listen, pusher_client):
    listener = listen(user_data={"user_id": "zoë", "user_info": {"name": "Zoë"}})
    listener.subscribe("private-room", "e")
    listener.subscribe("presence-room", "e")
    pusher_client.trigger(["private-room", "presence-room"], "e", "x")
    assert listener.await_event("private-room", "e") == "x"
    assert listener.await_event("presence-room", "e") == "x"
    assert pusher_client.users_info("presence-room") == {"users": [{"id": "zoë"}]}


def test_members_learn_of_each_other(listen):
    first = listen(user_data={"user_id": "1"})
    first.subscribe("presence-meeting", "pusher_internal:member_added", "pusher_internal:member_removed")
    second = listen(user_data={"user_id": 2, "user_info": {"name": "Two"}})
    second.subscribe("presence-meeting")
    added = json.loads(first.await_event("presence-meeting", "pusher_internal:member_added"))
    assert added == {"user_id": "2", "user_info": {"name": "Two"}}
    second.client.unsubscribe("presence-meeting")
    assert json.loads(first.await_event("presence-meeting", "pusher_internal:member_removed")) == {"user_id": "2"}


def test_client_events_travel_from_pysher_to_pysher(listen):
    first, second = listen(), listen()
    channel = first.subscribe("private-chat")
    second.subscribe("private-chat", "client-typing")
    channel.trigger("client-typing", {"on": True})
    assert json.loads(second.await_event("private-chat", "client-typing")) == {"on": True}


def test_a_refused_subscription_leaves_the_connection_usable(listen, pusher_client):
    listener = listen()
    listener.client.subscribe("private-refused", auth=f"{APP['key']}:wrong")
    error = listener.await_event(None, "pusher:error")
    assert error["code"] is None
    assert error["message"].startswith("Invalid signature: Expected HMAC SHA256 hex digest of ")
    listener.subscribe("after-refusal", "e")
    pusher_client.trigger("after-refusal", "e", "x")
    assert listener.await_event("after-refusal", "e") == "x"
    assert listener.client.connection.state == "connected"


def test_an_unsubscribed_channel_is_empty(listen, pusher_client):
    listener = listen()
    listener.subscribe("left-again")
    assert pusher_client.channel_info("left-again") == {"occupied": True}
    listener.client.unsubscribe("left-again")
    listener.settle()
    assert pusher_client.channel_info("left-again") == {"occupied": False}


def test_a_disconnect_empties_the_channels(listen, pusher_client):
    listener = listen()
    listener.subscribe("disconnected")
    listener.disconnect()
    deadline = time.monotonic() + 5
    while pusher_client.channel_info("disconnected")["occupied"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_hundred_events_arrive_in_order(listen, pusher_client):
    listener = listen()
    listener.subscribe("ordered", "n")
    for n in range(100):
        pusher_client.trigger("ordered", "n", str(n))
    assert [listener.await_event("ordered", "n") for _ in range(100)] == [str(n) for n in range(100)]
