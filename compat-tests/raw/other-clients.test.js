// The official clients that do not run here, by what they put on the wire and by what they cannot read (`pusher.md` 1.1–1.4, 2.4).
// Messages are written as each client writes them: with its key order, its spaces, its nulls.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { sleep } from '../support/events.js';
import { startRaptor } from '../support/raptor.js';
import { Api } from '../rest/api.js';
import { APP, Peer, appNamed, auth, errorFrame } from './peer.js';
import { PING } from './websocket.js';

const disabled = appNamed('disabled', { enabled: false });
const counted = appNamed('counted', { subscription_count_events: true });
const raptor = await startRaptor({ config: { apps: [APP, disabled] } });
const counting = await startRaptor({ config: { apps: [counted] } });
const impatient = await startRaptor({ config: { apps: [APP], activity_timeout_secs: 1, pong_timeout_secs: 1 } });
const api = new Api(raptor, APP);

/** Three times as long as the impatient server waits before it gives a silent connection up. */
const IDLE_MS = 6_000;

/** `whileIdle` is what the client sends of its own accord; none of them answers a `pusher:ping`, all answer WebSocket pings. */
const CLIENTS = {
  Java: { query: 'client=java-client&protocol=5&version=2.4.4' },
  '.NET': { query: 'protocol=5&client=pusher-dotnet-client&version=2.1.0', whileIdle: (peer) => peer.socket.sendFrame({ opcode: PING }) },
  Swift: { query: 'client=pusher-websocket-swift&version=10.1.5&protocol=7' },
};

describe('clients that do not run here', { concurrency: true }, () => {
  for (const [client, { query, whileIdle = () => {} }] of Object.entries(CLIENTS)) {
    test(`${client} connects and hears an event, each with data that is a string`, async () => {
      const peer = await Peer.open(raptor, { query });
      const established = await peer.frame();
      assert.equal(established.event, 'pusher:connection_established');
      assert.equal(typeof established.data, 'string');
      const channel = `news-${client.replace('.', '')}`;
      peer.send({ event: 'pusher:subscribe', data: { channel } });
      await peer.receives({ event: 'pusher_internal:subscription_succeeded', channel, data: '{}' });
      await api.trigger(channel, 'e', '{"n":1}');
      await peer.receives({ event: 'e', channel, data: '{"n":1}' });
    });

    test(`${client} is told why it is refused by an object in pusher:error, before the close frame`, async () => {
      const peer = await Peer.open(raptor, { app: disabled, query });
      assert.deepEqual(await peer.frame(), errorFrame(4003, 'Application disabled'));
      await peer.isClosedSilently(4003, 'Application disabled');
    });

    test(`${client} stays connected while it is idle`, async () => {
      const peer = await Peer.connect(impatient, { query });
      const end = Date.now() + IDLE_MS;
      while (Date.now() < end) {
        whileIdle(peer);
        await sleep(1_000);
      }
      assert.ok(!peer.socket.ended);
    });
  }

  test('Java asks for a pong with a message that has no data', async () => {
    const peer = await Peer.connect(raptor, CLIENTS.Java);
    peer.socket.sendText('{"event": "pusher:ping"}');
    await peer.receives({ event: 'pusher:pong', data: '{}' });
  });

  test('Java joins presence and private channels, and triggers text on them', async () => {
    const [java, other] = [await Peer.connect(raptor, CLIENTS.Java), await Peer.connect(raptor)];
    const member = '{"user_id":"7","user_info":{"name":"Zoë"}}';
    java.socket.sendText(JSON.stringify({ event: 'pusher:subscribe', data: { channel: 'presence-java', auth: auth(APP, java.socketId, 'presence-java', member), channel_data: member } }));
    assert.equal((await java.frame()).event, 'pusher_internal:subscription_succeeded');
    await other.join('presence-java', 'other');
    await java.arrivingNow();
    java.socket.sendText('{"event":"client-move","channel":"presence-java","data":"{\\"x\\":1}"}');
    await other.receives({ event: 'client-move', channel: 'presence-java', data: '{"x":1}', user_id: '7' });
  });

  test('Java finds data in every event, for it fails to read one without', async () => {
    const peer = await Peer.connect(raptor, CLIENTS.Java);
    peer.askToSubscribe('presence-cache-java', { channelData: '{"user_id":"1"}' });
    peer.askToSubscribe('private-java', { auth: `${APP.key}:wrong` });
    peer.send({ event: 'unknown' });
    const frames = await peer.arrivingNow();
    assert.deepEqual(frames.map(({ event }) => event), [
      'pusher_internal:subscription_succeeded', 'pusher:cache_miss', 'pusher:error', 'pusher:subscription_error', 'pusher:error',
    ]);
    for (const frame of frames) assert.ok(frame.data !== undefined && frame.data !== null, JSON.stringify(frame));
    for (const { data } of frames.filter(({ event }) => event === 'pusher:error')) assert.equal(data.code, null); // it casts the code to a number
  });

  test('.NET subscribes to a private channel with channel_data that is null', async () => {
    const peer = await Peer.connect(raptor, CLIENTS['.NET']);
    const channel = 'private-dotnet';
    peer.socket.sendText(`{"event":"pusher:subscribe","data":{"auth":"${auth(APP, peer.socketId, channel)}","channel_data":null,"channel":"${channel}"}}`);
    await peer.receives({ event: 'pusher_internal:subscription_succeeded', channel, data: '{}' });
  });

  test('.NET finds each id of a roster in its hash, with user_info and without', async () => {
    const [dotnet, other] = [await Peer.connect(raptor, CLIENTS['.NET']), await Peer.connect(raptor)];
    await other.subscribe('presence-dotnet', { channelData: '{"user_id":10}' });
    const { presence } = await dotnet.join('presence-dotnet', 'me', { name: 'Me' });
    assert.deepEqual([...presence.ids].sort(), ['10', 'me']);
    assert.deepEqual(presence.hash, { 10: null, me: { name: 'Me' } });
  });

  test('.NET pings every second with WebSocket pings and gets each back', async () => {
    const peer = await Peer.connect(raptor, CLIENTS['.NET']);
    for (let n = 0; n < 5; n += 1) {
      peer.socket.sendFrame({ opcode: PING, payload: String(n) });
      assert.deepEqual(await peer.socket.next(), { type: 'pong', payload: Buffer.from(String(n)) });
    }
  });

  test('Swift finds text as data, counts that are numbers and user ids that are strings', async () => {
    const [peer, late] = [await Peer.connect(counting, { app: counted, ...CLIENTS.Swift }), await Peer.connect(counting, { app: counted })];
    await peer.signIn({ id: 'swift', watchlist: ['nobody'] });
    peer.askToSubscribe('cache-swift');
    peer.askToSubscribe('presence-swift', { channelData: '{"user_id":5}' });
    const frames = await peer.arrivingNow();
    await late.subscribe('presence-swift', { channelData: '{"user_id":6}' });
    frames.push(await peer.frame());
    await late.close();
    frames.push(await peer.frame());
    for (const { data } of frames) assert.equal(typeof data, 'string');

    const dataOf = (name) => JSON.parse(frames.find(({ event }) => event === name).data);
    assert.deepEqual(dataOf('pusher_internal:watchlist_events').events, [{ name: 'offline', user_ids: ['nobody'] }]);
    assert.deepEqual(dataOf('pusher_internal:subscription_count'), { subscription_count: 1 });
    assert.deepEqual([dataOf('pusher_internal:member_added'), dataOf('pusher_internal:member_removed')], [{ user_id: '6' }, { user_id: '6' }]);
  });
});

test('compression is declined, with which every client goes on', async () => {
  for (const offer of ['permessage-deflate', 'permessage-deflate; client_max_window_bits', 'x-webkit-deflate-frame']) {
    const peer = await Peer.connect(raptor, { headers: { 'Sec-WebSocket-Extensions': offer } });
    assert.equal(peer.socket.answer.headers['sec-websocket-extensions'], undefined);
    await peer.isAlive();
  }
});
