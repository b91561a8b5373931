// CometD's script in a page, with all its extensions, and what it has to be able to do there. Runs in pages.

import { AckExtension, CometD, ReloadExtension, TimeStampExtension, TimeSyncExtension } from '../../node_modules/cometd/cometd.js';

import { until } from '../../support/events.js';

/**
 * @param {object} setting
 * @param {string} setting.url where the client connects
 * @param {string} setting.transport the only one it is left with
 * @param {number} setting.holdMs how long the server holds a connect
 * @param {(channel: string, data: any) => Promise<any>} setting.post publishes by plain HTTP, from outside the page
 */
export function createCometd({ url, transport, holdMs, post }) {
  const timesync = new TimeSyncExtension();
  const client = new CometD();
  client.configure({ url, logLevel: 'warn' });
  for (const other of client.getTransportTypes()) if (other !== transport) client.unregisterTransport(other);
  for (const [name, extension] of Object.entries({ ack: new AckExtension(), timesync, timestamp: new TimeStampExtension(), reload: new ReloadExtension() })) {
    client.registerExtension(name, extension);
  }
  const connects = [];
  client.addListener('/meta/connect', (reply) => connects.push(reply));

  const asked = (ask) => new Promise((resolve) => { ask(resolve); });
  const arrived = (got, count) => until(() => got.length >= count, () => `${count} messages, got ${JSON.stringify(got)}`, 3 * holdMs);
  const listen = async (channel) => {
    const got = [];
    const { successful, error, subscription } = await asked((done) => { got.handle = client.subscribe(channel, (message) => got.push([message.channel, message.data]), done); });
    if (!successful || subscription !== channel) throw new Error(error);
    return got;
  };

  const steps = {
    async 'shakes hands over its transport; messages are acknowledged, clocks compared'() {
      const shaken = await asked((done) => client.handshake(done));
      equal([shaken.successful, shaken.ext.ack, client.getTransport().type], [true, true, transport]);
      await until(() => connects.some(({ successful }) => successful), 'connected');
      equal(Math.abs(timesync.getTimeOffset()) < 1_000, true);
    },

    async 'a name and patterns deliver what they match, its own messages too'() {
      const [exact, children, all] = [await listen('/page/a'), await listen('/page/*'), await listen('/page/**')];
      equal((await asked((done) => client.publish('/page/a', { hello: 'wörld' }, done))).successful, true);
      await post('/page/b/c', 'from outside');
      await arrived(all, 2);
      equal([exact, children, all].map((got) => [...got]), [[['/page/a', { hello: 'wörld' }]], [['/page/a', { hello: 'wörld' }]], [['/page/a', { hello: 'wörld' }], ['/page/b/c', 'from outside']]]);
      for (const got of [exact, children, all]) equal((await asked((done) => client.unsubscribe(got.handle, done))).successful, true);
      await post('/page/a', 'unheard');
      const last = await listen('/page/last');
      await post('/page/last', 1);
      await arrived(last, 1);
      equal(all.length, 2);
    },

    async 'a refused subscription says why'() {
      const error = await listen('/meta/x').then(() => 'accepted', ({ message }) => message);
      equal(error, '403:/meta/x:Forbidden channel');
    },

    async 'idle cycles follow one another at the pace of the hold, each successful'() {
      const before = connects.length;
      const start = Date.now();
      await until(() => connects.length >= before + 3, 'three idle cycles', 5 * holdMs);
      equal(Date.now() - start > 1.5 * holdMs, true);
      equal(connects.slice(before).every(({ successful }) => successful), true);
    },

    /** In two parts, with the page loaded anew in between. */
    async 'before the reload'() {
      await listen('/page/reload');
      sessionStorage.setItem('test.clientId', client.getClientId());
      client.reload();
    },

    async 'after the reload'() {
      const got = [];
      const shaken = await asked((done) => client.handshake((reply) => {
        client.subscribe('/page/reload', ({ data }) => got.push(data));
        done(reply);
      }));
      equal([shaken.ext.reload, client.getClientId()], [true, sessionStorage.getItem('test.clientId')]);
      await arrived(got, 1);
      await post('/page/reload', 'afterwards');
      await arrived(got, 2);
      equal(got, ['meanwhile', 'afterwards']);
    },

    async 'says goodbye'() {
      equal((await asked((done) => client.disconnect(done))).successful, true);
    },
  };
  return { connects, run: (title) => steps[title]() };
}

function equal(actual, expected) {
  const [a, e] = [actual, expected].map((value) => JSON.stringify(value));
  if (a !== e) throw new Error(`${a} instead of ${e}`);
}
