// Many unmodified clients of every kind, and what each of them lives through.

import { createHmac } from 'node:crypto';
import { createRequire } from 'node:module';

import { openAt } from '../bayeux/support/in-page.js';
import { MOUNT } from '../bayeux/support/server.js';
import { atEnd } from '../support/at-end.js';
import { connectionTo, pusherClass } from '../support/in-node.js';
import { startFaye } from './fleet-faye.js';

const Faye = createRequire(import.meta.url)('faye-1.4');

/** A page has six connections to a host: so many streams, and the others send. */
const STREAMS_OF_A_PAGE = 3;

/** Of `[apps.bayeux]`. A client whose stream was not open yet when it shook hands polls first, and only after that poll takes the stream. */
export const BAYEUX = { mounts: [MOUNT], hold_secs: 6, session_secs: 90 };

/**
 * @typedef {object} Client
 * @property {string} kind a key of `KINDS`
 * @property {string} user
 * @property {string} room
 * @property {string[]} sessions every `socket_id` or `clientId` that it had
 * @property {number} since when it had the last of them
 * @property {Set<string>} channels in which it is now
 * @property {any[]} heard the data of the room's events
 * @property {string[]} transitions who came and went in its hall, as `+id` and `-id`
 * @property {Set<string>} roster who is there, as it was told
 * @property {string[]} errors
 * @property {string} over the transport of its last connect, of Faye
 * @property {number|null} left when its connection was lost; a test sets it back
 * @property {() => void} close
 */

/** How a client of each kind is started: `(proxy, app, client) => close`. */
export const KINDS = {
  'pusher-js WebSocket': (...of) => startPusher('ws', ...of),
  'pusher-js xhr_streaming': (...of) => startPusher('xhr_streaming', ...of),
  'pusher-js xhr_polling': (...of) => startPusher('xhr_polling', ...of),
  'Faye WebSocket': (...of) => startFayeInNode('websocket', ...of),
  'Faye long-polling': (...of) => startFayeInNode('long-polling', ...of),
  'Faye EventSource': startFayeInPage,
};

/** Those that are moved when their node stops, and lose nothing. A WebSocket of pusher-js is told to go. */
export const MOVING = Object.keys(KINDS).filter((kind) => kind !== 'pusher-js WebSocket');

/** A client in a room and, unless told otherwise, its hall. */
export async function startClient(proxy, app, { kind, user, room, hasHall = true }) {
  const client = { kind, user, room, hasHall, sessions: [], channels: new Set(), heard: [], transitions: [], roster: new Set(), errors: [], left: null };
  client.close = await KINDS[kind](proxy, app, client);
  atEnd(client.close);
  return client;
}

/** Whether it is in all its channels, and receives over the transport that it is named for. */
export function isIn({ kind, hasHall, channels, over }) {
  const [library, transport] = kind.split(' ');
  return channels.size === (hasHall ? (library === 'Faye' ? 3 : 2) : 1) && (library !== 'Faye' || over === transport.toLowerCase());
}

function sign(app, user, socketId, channel) {
  const channel_data = JSON.stringify({ user_id: user });
  const signature = createHmac('sha256', app.secret).update(`${socketId}:${channel}:${channel_data}`).digest('hex');
  return { auth: `${app.key}:${signature}`, channel_data };
}

function startPusher(transport, proxy, app, client) {
  const Pusher = pusherClass('8.6');
  const pusher = new Pusher(app.key, {
    cluster: '', ...connectionTo(proxy, [transport]), forceTLS: false,
    channelAuthorization: { customHandler: ({ socketId, channelName }, callback) => callback(null, sign(app, client.user, socketId, channelName)) },
  });
  pusher.connection.bind('connected', () => {
    client.sessions.push(pusher.connection.socket_id);
    client.since = Date.now();
  });
  pusher.connection.bind('error', (error) => client.errors.push(error?.error?.data?.code ?? error?.data?.code ?? 'error'));
  pusher.connection.bind('state_change', ({ previous }) => {
    if (previous !== 'connected') return;
    client.left = Date.now();
    client.channels.clear();
  });
  const subscribe = (name) => {
    const channel = pusher.subscribe(name);
    channel.bind('pusher:subscription_succeeded', () => client.channels.add(name));
    channel.bind('pusher:subscription_error', ({ error }) => client.errors.push(error));
    return channel;
  };
  subscribe(client.room).bind('said', (data) => client.heard.push(data));
  if (client.hasHall) {
    const hall = subscribe(`presence-${client.room}`);
    hall.bind('pusher:subscription_succeeded', ({ members }) => { client.roster = new Set(Object.keys(members)); });
    hall.bind('pusher:member_added', ({ id }) => note(client, '+', id));
    hall.bind('pusher:member_removed', ({ id }) => note(client, '-', id));
  }
  return () => pusher.disconnect();
}

/** What a Faye client of the fleet tells. */
function note(client, what, value) {
  switch (what) {
    case 'session':
      client.sessions.push(value);
      client.since = Date.now();
      client.channels.clear();
      client.roster.clear();
      break;
    case 'subscribed': client.channels.add(value); break;
    case 'refused': client.errors.push(value); break;
    case 'heard': client.heard.push(value); break;
    case 'list': client.roster = new Set([...value, ...client.roster]); break;
    case '+': client.transitions.push(`+${value}`); client.roster.add(value); break;
    case '-': client.transitions.push(`-${value}`); client.roster.delete(value); break;
    case 'over': client.over = value; break;
    case 'down': client.left = Date.now(); break;
    default: throw new Error(what);
  }
}

function startFayeInNode(transport, proxy, app, client) {
  const { room, hasHall } = client;
  const faye = startFaye({ Faye, url: `${proxy.url}${MOUNT}`, transport, room, hasHall, sign: (...of) => sign(app, client.user, ...of), note: (...of) => note(client, ...of) });
  // Not waited for: nobody may be there to answer.
  return () => { faye.disconnect(); };
}

const pages = new Map();

/** Several share a page, each page has a host name of its own. */
async function startFayeInPage(proxy, app, client) {
  if (!pages.has(proxy)) pages.set(proxy, []);
  const ofProxy = pages.get(proxy);
  let last = ofProxy.at(-1);
  if (!last || last.clients.length === STREAMS_OF_A_PAGE) {
    last = { clients: [] };
    ofProxy.push(last);
    const { clients } = last;
    last.page = openPage(`http://page-${ofProxy.length}.localhost:${proxy.port}`, (name, nth, ...of) => ({ note, sign: (of, ...more) => sign(app, of.user, ...more) })[name](clients[nth], ...of));
  }
  const nth = last.clients.push(client) - 1;
  const page = await last.page;
  await page.evaluate(([...of]) => window.start(...of), [nth, { room: client.room, hasHall: client.hasHall }]);
  // Not waited for: it ends with its page.
  return () => { page.evaluate((which) => window.stop(which), nth).catch(() => {}); };
}

function openPage(origin, call) {
  return openAt(`${origin}/page/`, `<!doctype html>
    <meta charset="utf-8">
    <title>Faye over EventSource</title>
    <script src="${MOUNT}/client.js"></script>
    <script type="module">
      import { startFaye } from '/page/cluster/fleet-faye.js';

      const clients = [];
      window.start = (nth, setting) => {
        const of = (name) => (...values) => window.call(name, nth, ...values);
        clients[nth] = startFaye({ Faye, url: '${origin}${MOUNT}', transport: 'eventsource', ...setting, sign: of('sign'), note: of('note') });
      };
      window.stop = (nth) => { clients[nth].disconnect(); };
      window.world = {};
    </script>`, call);
}
