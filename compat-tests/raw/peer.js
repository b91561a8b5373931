// A Pusher client over a raw socket. It sends what a test says and compares every frame it gets as a whole: a missing, additional
// or null key fails.

import assert from 'node:assert/strict';

import { SOON_MS } from '../support/events.js';
import { TEST_APP } from '../support/raptor.js';
import { hmac } from '../rest/api.js';
import { WebSocket } from './websocket.js';

/** The test app without what would send frames that most tests do not ask for. */
export const APP = Object.freeze({ ...TEST_APP, subscription_count_events: false });

/** A further app, to stand beside `APP` in a configuration. */
export function appNamed(name, settings) {
  return Object.freeze({ ...APP, id: name, name, key: `${name}-key`, secret: `${name}-secret`, ...settings });
}

/** Stands for a string that holds this JSON, with its keys in any order. */
export class Json {
  constructor(value) {
    this.value = value;
  }
}

export const json = (value) => new Json(value);

/** `KEY:SIGNATURE` over the parts joined by colons (`pusher.md` 2.3). */
export function auth(app, ...parts) {
  return `${app.key}:${hmac(app.secret, parts.join(':'))}`;
}

export class Peer {
  /** Opens the socket and nothing more. `query` and `path` are sent as they are. */
  static async open(raptor, { app = APP, query = 'protocol=7', path = `/app/${app.key}?${query}`, ...rest } = {}) {
    const peer = new Peer();
    peer.app = app;
    peer.socket = await WebSocket.open({ port: raptor.port, path, ...rest });
    return peer;
  }

  /** Opens the socket and takes the established frame. */
  static async connect(raptor, options) {
    const peer = await Peer.open(raptor, options);
    const frame = await peer.frame();
    assert.equal(frame.event, 'pusher:connection_established', JSON.stringify(frame));
    peer.socketId = JSON.parse(frame.data).socket_id;
    return peer;
  }

  send(message) {
    this.socket.sendText(JSON.stringify(message));
  }

  /** Sends a subscribe with the right signature, or with `fields` in its place. */
  askToSubscribe(channel, { channelData, ...fields } = {}) {
    const data = { channel };
    if (/^(private|presence)-/.test(channel)) {
      data.auth = auth(this.app, this.socketId, channel, ...(channelData === undefined ? [] : [channelData]));
    }
    if (channelData !== undefined) data.channel_data = channelData;
    this.send({ event: 'pusher:subscribe', data: { ...data, ...fields } });
  }

  /** Subscribes and resolves with the decoded data of `subscription_succeeded`, which must be the next frame. */
  async subscribe(channel, options) {
    this.askToSubscribe(channel, options);
    const frame = await this.frame();
    assert.equal(frame.event, 'pusher_internal:subscription_succeeded', JSON.stringify(frame));
    assert.equal(frame.channel, channel);
    return JSON.parse(frame.data);
  }

  /** Joins a presence channel as `userId`. */
  join(channel, userId, userInfo) {
    return this.subscribe(channel, { channelData: JSON.stringify({ user_id: userId, user_info: userInfo }) });
  }

  unsubscribe(channel) {
    this.send({ event: 'pusher:unsubscribe', data: { channel } });
  }

  /** Sends a sign-in with the right signature; `userData` is an object or its text. */
  askToSignIn(userData) {
    const text = typeof userData === 'string' ? userData : JSON.stringify(userData);
    this.send({ event: 'pusher:signin', data: { auth: auth(this.app, `${this.socketId}::user::${text}`), user_data: text } });
    return text;
  }

  async signIn(userData) {
    const text = this.askToSignIn(userData);
    await this.receives({ event: 'pusher:signin_success', data: json({ user_data: text }) });
  }

  /** The next frame, parsed. A close instead of it fails. */
  async frame(ms = SOON_MS) {
    const item = await this.socket.next(ms);
    assert.equal(item.type, 'text', `expected a frame, got ${JSON.stringify(item)}`);
    return JSON.parse(item.text);
  }

  /** The next frames are exactly these, in this order. */
  async receives(...expected) {
    for (const frame of expected) compare(await this.frame(), frame);
  }

  /** The next frame is a non-fatal `pusher:error`; `message` may be a regular expression. */
  async receivesError(message, code = null) {
    const frame = await this.frame();
    if (message instanceof RegExp) {
      assert.match(frame.data?.message ?? JSON.stringify(frame), message);
      compare(frame, errorFrame(code, frame.data.message));
    } else {
      compare(frame, errorFrame(code, message));
    }
  }

  /** A refused subscribe: the error, the channel-scoped error with the same text, and the connection lives. */
  async receivesSubscriptionError(channel, { message, type = 'AuthError', status = 401 }) {
    const first = await this.frame();
    const text = first.data?.message;
    if (message instanceof RegExp) assert.match(text ?? JSON.stringify(first), message);
    compare(first, errorFrame(null, message instanceof RegExp ? text : message));
    await this.receives({ event: 'pusher:subscription_error', channel, data: json({ type, error: text, status }) });
  }

  /** All frames that are on their way, up to now: those that come before the answer to a ping. */
  async arrivingNow() {
    this.send({ event: 'pusher:ping', data: {} });
    const frames = [];
    for (;;) {
      const frame = await this.frame();
      if (frame.event === 'pusher:pong') return frames;
      frames.push(frame);
    }
  }

  async receivesNothing() {
    assert.deepEqual(await this.arrivingNow(), []);
  }

  /** Answers a ping, with nothing in between: alive, and no other frame was sent. */
  isAlive() {
    return this.receivesNothing();
  }

  /** The next things are a `pusher:error` and a close frame with the same code and reason, and the end of the connection. */
  async isClosed(code, message) {
    await this.receivesError(message, code);
    await this.isClosedSilently(code, message);
  }

  /** The next things are a close frame and the end of the connection. */
  async isClosedSilently(code, reason) {
    const close = await this.socket.next();
    assert.equal(close.type, 'close', JSON.stringify(close).slice(0, 500));
    assert.equal(close.code, code);
    if (reason instanceof RegExp) assert.match(close.reason, reason);
    else if (reason !== undefined) assert.equal(close.reason, reason);
    assert.deepEqual(await this.socket.next(), { type: 'end' });
  }

  /** Leaves politely and resolves when the connection is over. */
  async close() {
    this.socket.close();
    while ((await this.socket.next()).type !== 'end');
  }
}

export function errorFrame(code, message) {
  return { event: 'pusher:error', data: { code, message } };
}

/** Key for key; where `Json` is expected, a string holding that JSON. */
export function compare(actual, expected) {
  if (!(expected.data instanceof Json)) {
    assert.deepEqual(actual, expected);
    return;
  }
  assert.equal(typeof actual.data, 'string', `data is no string: ${JSON.stringify(actual)}`);
  assert.deepEqual({ ...actual, data: JSON.parse(actual.data) }, { ...expected, data: expected.data.value });
}

/** The process still serves others: a new connection is established, receives what is published to it, and its answers come soon. */
export async function stillServes(raptor, api) {
  const peer = await Peer.connect(raptor, { app: api.app });
  const channel = `still-here-${peer.socketId}`.replace('.', '-');
  await peer.subscribe(channel);
  await api.trigger(channel, 'hello', 'x');
  for (;;) {
    const frame = await peer.frame();
    if (frame.event === 'hello') break;
    assert.equal(frame.event, 'pusher_internal:subscription_count', JSON.stringify(frame));
  }
  await peer.close();
}
