// A Faye client of the fleet. Runs in Node and in pages.

/** In the order in which Faye clients prefer them. */
const TRANSPORTS = ['websocket', 'eventsource', 'long-polling', 'cross-origin-long-polling', 'callback-polling'];

/**
 * Subscribes to a room, and if it has one to its hall, where it is present. `note(what, value)` is told of all that it lives through: `session` (a
 * `clientId`), `subscribed` (a channel), `refused`, `heard` (data), `list` (ids), `+` and `-` (an id),
 * `down`, `over` (the transport of a connect).
 *
 * @param {object} setting
 * @param {{Client: Function}} setting.Faye the library
 * @param {string} setting.url where it connects
 * @param {string} setting.transport what it is left with
 * @param {string} setting.room
 * @param {boolean} setting.hasHall
 * @param {(socketId: string, channel: string) => any} setting.sign what the application would add to its subscription to the hall
 */
export function startFaye({ Faye, url, transport, room, hasHall, sign, note }) {
  const client = new Faye.Client(url, { retry: 1 });
  for (const other of TRANSPORTS.slice(0, TRANSPORTS.indexOf(transport))) client.disable(other);
  let socketId;
  let before = Promise.resolve();
  client.addExtension({
    incoming(message, next) {
      if (message.successful === false) note('refused', `${message.channel} ${message.subscription ?? ''} ${message.error}`);
      else if (message.channel === '/meta/handshake') {
        socketId = message.ext.socket_id;
        note('session', message.clientId);
      } else if (message.channel === '/meta/subscribe') note('subscribed', message.subscription);
      next(message);
    },
    outgoing(message, next) {
      if (message.channel === '/meta/connect') note('over', message.connectionType);
      if (message.channel !== '/meta/subscribe') return next(message);
      // In their order: only who is in the hall hears who comes and goes.
      before = before.then(async () => {
        const proof = message.subscription.startsWith('/presence/') ? await sign(socketId, `presence-${room}`) : {};
        next({ ...message, ext: { ...message.ext, ...proof } });
      });
    },
  });
  client.bind('transport:down', () => note('down', transport));
  client.subscribe(`/${room}`, (data) => note('heard', data));
  if (hasHall) {
    client.subscribe(`/presence/${room}`, () => {}).then(() => client.subscribe(`/service/presence/${room}`, ({ event, ids, user_id }) => {
      if (event === 'list') note('list', ids);
      else note(event === 'join' ? '+' : '-', user_id);
    }));
  }
  return client;
}
