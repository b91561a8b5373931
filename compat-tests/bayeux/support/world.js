// What a step of the scenario holds in its hands: Faye clients of one version over one transport. Runs in Node and in pages.

import { SOON_MS, until } from '../../support/events.js';

/** The versions under test. */
export const VERSIONS = ['0.8', '1.0', '1.2', '1.4'];

/** In the order in which Faye clients prefer them. */
const TRANSPORTS = ['websocket', 'eventsource', 'long-polling', 'cross-origin-long-polling', 'callback-polling'];

/** How long a client waits before it tries again what failed: short, for tests. */
const RETRY_SECS = 0.2;
/**
 * Not so short over EventSource: whoever may not hold a connect gives up all that takes 1.2 times as long as this, and answers take a few tenths
 * of a second where browsers of other tests come up beside them.
 */
const EVENT_SOURCE_RETRY_SECS = 1;

const place = Math.random().toString(36).slice(2, 8);
let names = 0;

/**
 * @param {object} setting
 * @param {{Client: Function}} setting.Faye the library
 * @param {string} setting.url where the clients connect
 * @param {string} setting.transport what they are left with
 * @param {number} setting.holdMs how long the server holds a connect
 * @param {(name: string, ...args: any[]) => Promise<any>} setting.call what pages cannot do themselves
 */
export function createWorld({ Faye, url, transport, holdMs, call }) {
  const clients = [];

  /**
   * A client that connects once something is asked of it. `client.seen` has everything it was sent, `client.sent` everything it
   * sent, both by its extension interface; `client.downs` counts how often its transport was down.
   */
  function client(options = {}) {
    const created = new Faye.Client(url, { retry: transport === 'eventsource' ? EVENT_SOURCE_RETRY_SECS : RETRY_SECS, ...options });
    for (const other of TRANSPORTS.slice(0, TRANSPORTS.indexOf(transport))) created.disable(other);
    Object.assign(created, { seen: [], sent: [], downs: 0 });
    created.addExtension({
      incoming(message, next) { created.seen.push(JSON.parse(JSON.stringify(message))); next(message); },
      outgoing(message, next) { created.sent.push(JSON.parse(JSON.stringify(message))); next(message); },
    });
    created.bind('transport:down', () => { created.downs += 1; });
    clients.push(created);
    return created;
  }

  /** Resolves once the client sends its connects over the transport under test. Not with the client: it is a promise in the eyes of `await`. */
  async function connected(...all) {
    for (const one of all) one.connect();
    const isThere = (one) => connects(one).some(({ connectionType }) => connectionType === transport);
    await until(() => all.every(isThere), `connecting by ${transport}`, holdMs + SOON_MS);
  }

  /** Subscribes, resolves with the growing list of what the callback is given (`until(count, ms)`, `cancel()`), rejects with Faye's error if the server refuses. */
  function subscribe(subscriber, channel) {
    const got = [];
    const subscription = subscriber.subscribe(channel, (data) => got.push(data));
    Object.defineProperties(got, {
      until: { value: (count, ms) => until(() => got.length >= count, () => `${count} on ${channel}, got ${JSON.stringify(got)}`, ms).then(() => got) },
      cancel: { value: () => subscription.cancel() },
    });
    return settled(subscription).then(() => got);
  }

  return {
    transport,
    holdMs,
    client,
    connected,
    subscribe,
    /** Resolves once the server has accepted the message, rejects with Faye's error. */
    publish: (publisher, channel, data) => settled(publisher.publish(channel, data)),
    /** A channel name used nowhere else. */
    name: () => `/room-${place}-${++names}`,
    call,
    /** Disconnects every client. */
    close: () => clients.splice(0).forEach((created) => created.disconnect()),
  };
}

/** What was published and delivered to the client, each message once however many of its subscriptions it matches. */
export function deliveries({ seen }) {
  return seen.filter(({ channel, successful }) => successful === undefined && !channel.startsWith('/meta/'));
}

/** The client's own connects. */
export function connects({ sent }) {
  return sent.filter(({ channel }) => channel === '/meta/connect');
}

/** The server's replies on a channel. */
export function replies({ seen }, channel) {
  return seen.filter((message) => message.channel === channel && message.successful !== undefined);
}

/** `callback` and `errback` are what the promises of all versions have. */
function settled(deferrable) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('no reply')), 3 * SOON_MS);
    deferrable.callback(() => { clearTimeout(timer); resolve(); });
    deferrable.errback((error) => { clearTimeout(timer); reject(error); });
  });
}

