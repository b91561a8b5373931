// What a step of the scenario holds in its hands: clients of one pusher-js version, and the application beside the server.
// Runs in Node and in pages.

import { collect, firstOf, once, until } from './events.js';

/** The versions under test. */
export const VERSIONS = ['4.4', '5.1', '6.0', '7.0', '7.6', '8.6'];

/** Which version of pusher-js brought what (its CHANGELOG and source). Everything else in the scenario is in all versions under test. */
export const SINCE = {
  statsOffByDefault: '6.0', // before: `disableStats`
  signin: '7.1', // with `userAuthentication` and `channelAuthorization` in place of `authEndpoint`
  subscriptionCount: '7.2',
  presenceOfSignedInUser: '7.4',
  watchlist: '7.5',
};

export function supports(version, feature) {
  return Number(version) >= Number(SINCE[feature]);
}

const place = Math.random().toString(36).slice(2, 8);
let names = 0;

/**
 * @param {object} setting
 * @param {Function} setting.Pusher the class of pusher-js
 * @param {string} setting.version one of `VERSIONS`
 * @param {string} setting.key app key
 * @param {object} setting.connection the options of pusher-js that say where the server is and over which transports it is reached
 * @param {string} setting.applicationUrl see `startApplication`
 * @param {(name: string, ...args: any[]) => Promise<any>} setting.call makes one of its `calls`
 */
export function createWorld({ Pusher, version, key, connection, applicationUrl, call }) {
  const clients = [];

  /**
   * A client that begins to connect. Options beyond those of pusher-js: `key`, and what the application says of this client:
   * `member` (presence), `user` (sign-in), `forged`, `denied`.
   */
  function client({ key: appKey = key, member, user, forged, denied, ...options } = {}) {
    const params = defined({ member: json(member ?? null), user: json(user), forged: forged && 1, denied: denied && 1 });
    const pusher = new Pusher(appKey, {
      cluster: 'none',
      forceTLS: false,
      ...(supports(version, 'statsOffByDefault') ? {} : { disableStats: true }),
      ...(supports(version, 'signin')
        ? {
            channelAuthorization: { transport: 'ajax', endpoint: `${applicationUrl}/pusher/auth`, params },
            userAuthentication: { transport: 'ajax', endpoint: `${applicationUrl}/pusher/user-auth`, params },
          }
        : { authEndpoint: `${applicationUrl}/pusher/auth`, auth: { params } }),
      ...connection,
      ...options,
    });
    clients.push(pusher);
    return pusher;
  }

  /** A connected client. */
  async function connect(options) {
    const pusher = client(options);
    await once(pusher.connection, 'connected');
    return pusher;
  }

  /** A connected client whose user is signed in and reachable by `sendToUser`. */
  async function signedIn(user, options) {
    const pusher = await connect({ user, ...options });
    const messages = collect(pusher.connection, 'message');
    const ownChannel = `#server-to-user-${user.id}`;
    pusher.signin();
    await until(() => messages.some(({ event, channel }) => event === 'pusher_internal:subscription_succeeded' && channel === ownChannel), `${user.id} signs in`);
    return pusher;
  }

  /** Subscribes and resolves with the channel once the server has acknowledged it; rejects if it refuses. */
  async function subscribe(pusher, name) {
    const channel = pusher.subscribe(name);
    const [event, data] = await firstOf(channel, ['pusher:subscription_succeeded', 'pusher:subscription_error']);
    if (event === 'pusher:subscription_error') throw new Error(`${name} refused: ${json(data)}`);
    return channel;
  }

  return {
    client,
    connect,
    signedIn,
    subscribe,
    /** A channel name used nowhere else. */
    name: (prefix = '') => `${prefix}room-${place}-${++names}`,
    trigger: (channels, event, data, params) => call('trigger', channels, event, data, params),
    triggerBatch: (batch) => call('triggerBatch', batch),
    get: (path, params) => call('get', path, params),
    sendToUser: (userId, event, data) => call('sendToUser', userId, event, data),
    terminate: (userId) => call('terminate', userId),
    restartServer: (signal) => call('restartServer', signal),
    /** Disconnects every client. */
    close: () => clients.splice(0).forEach((pusher) => pusher.disconnect()),
  };
}

/** The code of an `error` of `pusher.connection`, whether it came with a close or on a connection that goes on. */
export function errorCode(error) {
  return (error.error ?? error).data.code;
}

/** The text of such an error. */
export function errorMessage(error) {
  return (error.error ?? error).data.message;
}

function json(value) {
  return value === undefined ? undefined : JSON.stringify(value);
}

function defined(table) {
  return Object.fromEntries(Object.entries(table).filter(([, value]) => value !== undefined));
}
