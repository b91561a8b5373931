// What a step that looks at both protocols holds in its hands: clients of pusher-js and of Faye at the same server, and its application. Runs in
// Node and in pages.

/** What a trusted publisher shows in `ext`. */
export const PASSWORD = { password: 'correct-horse' };

const place = Math.random().toString(36).slice(2, 8);
let names = 0;

/**
 * @param {object} setting
 * @param {object} setting.pusher a world of pusher-js
 * @param {object} setting.bayeux a world of Faye over the transport under test, on a network that can be cut
 * @param {object} setting.beside another over WebSockets, on a network that cannot
 * @param {string} setting.applicationUrl see `startApplication`
 * @param {(name: string, ...args: any[]) => Promise<any>} setting.call makes one of `callsOf`
 */
export function createBridge({ pusher, bayeux, beside, applicationUrl, call }) {
  /** A Faye client that has its private and presence subscriptions signed by the application's unchanged Pusher endpoint. */
  function signing(params = {}, { world = bayeux, ...options } = {}) {
    const client = world.client(options);
    client.addExtension(signer(applicationUrl, params));
    return client;
  }
  return {
    pusher, bayeux, beside, signing, applicationUrl,
    trigger: (...args) => call('trigger', ...args),
    get: (...args) => call('get', ...args),
    sendToUser: (...args) => call('sendToUser', ...args),
    /** Publishes by plain HTTP. */
    post: (messages) => call('post', messages),
    /** The reply to a session of its own that asks for this subscription. */
    subscribeAsAnother: (...args) => call('subscribeAsAnother', ...args),
    cutNetwork: () => call('cutNetwork'),
    mendNetwork: () => call('mendNetwork'),
    /** A name used nowhere else. */
    room: (prefix = '') => `${prefix}room-${place}-${++names}`,
    /** Disconnects every client. */
    close: () => [pusher, bayeux, beside].forEach((world) => world.close()),
  };
}

/**
 * The extension that a Faye page needs for private and presence channels (`bayeux.md` 8.6).
 *
 * @param {string} applicationUrl
 * @param {{member?: object, forged?: boolean}} params what the application says of this client
 */
export function signer(applicationUrl, { member = null, forged = false }) {
  let socketId;
  return {
    incoming(message, next) {
      if (message.channel === '/meta/handshake') socketId = message.ext?.socket_id;
      next(message);
    },
    outgoing(message, next) {
      const [, kind, rest] = /^\/(private|presence)\/(.+)$/.exec(message.channel === '/meta/subscribe' ? message.subscription : '') ?? [];
      if (!kind) return next(message);
      const form = new URLSearchParams({ socket_id: socketId, channel_name: `${kind}-${rest.replaceAll('/', '.')}`, member: JSON.stringify(member) });
      if (forged) form.set('forged', '1');
      fetch(`${applicationUrl}/pusher/auth`, { method: 'POST', body: form })
        .then((answer) => answer.json())
        .then((proof) => next({ ...message, ext: { ...message.ext, ...proof } }));
    },
  };
}

/** The `ext` of the last successful handshake. */
export function socketIdOf({ seen }) {
  return seen.findLast(({ channel, successful }) => channel === '/meta/handshake' && successful).ext.socket_id;
}
