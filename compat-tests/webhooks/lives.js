// Servers that are killed again and again while clients talk. What any client heard has happened: the application must be told of it.

import assert from 'node:assert/strict';

import { Peer } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { ANSWER } from './receiver.js';

const CHANNELS = 8;
/** So long after the last event nothing more is on its way. */
const QUIET_MS = 300;

/** Half of the requests fail, in turn in each way. */
export function half() {
  let n = 0;
  return (...args) => (n++ % 2 === 0 ? [ANSWER.status(500), ANSWER.reset, ANSWER.breakOff][n % 3] : ANSWER.well)(...args);
}

/** The events that anybody heard, by channel. */
export class Heard {
  channels = new Map(Array.from({ length: CHANNELS }, (_, c) => [`private-${c}`, new Set()]));
  number = 0;

  /**
   * Client events on every channel from now on, sent through one server, heard there and on others. The result's `end` stops them; once
   * the server is gone, `silent()` waits until nobody hears any more, and closes what is open.
   */
  async talk(raptor, ...others) {
    const sender = await Peer.connect(raptor);
    const listeners = await Promise.all([raptor, ...others].map((at) => Peer.connect(at)));
    for (const channel of this.channels.keys()) await Promise.all([sender, ...listeners].map((peer) => peer.subscribe(channel)));
    let isOver = false;
    const sending = (async () => {
      while (!isOver) {
        for (let k = 0; k < 5; k++, this.number++) sender.send({ event: `client-${this.number}`, channel: `private-${this.number % CHANNELS}`, data: 'x' });
        await sleep(5);
      }
    })();
    let last = Date.now();
    for (const listener of listeners) {
      (async () => {
        for (;;) {
          const { event, channel } = await listener.frame();
          if (!event.startsWith('client-')) continue;
          last = Date.now();
          this.channels.get(channel).add(Number(event.slice('client-'.length)));
        }
      })().catch(() => {});
    }
    const end = () => { isOver = true; return sending; };
    const silent = async () => {
      await until(() => Date.now() - last > QUIET_MS, 'silence', 10_000);
      for (const listener of listeners) listener.socket.vanish();
    };
    return { end, silent };
  }

  /** The receiver has all of it in the end, each once and in order. */
  async isReceived(receiver, lives, withinMs) {
    const numbers = (channel) => receiver.events.filter((event) => event.channel === channel && event.name === 'client_event').map(({ event }) => Number(event.slice('client-'.length)));
    const total = [...this.channels.values()].reduce((sum, events) => sum + events.size, 0);
    assert.ok(total > lives * 100, `${total} events`);
    const missing = () => [...this.channels].flatMap(([channel, list]) => {
      const got = new Set(numbers(channel));
      return [...list].filter((event) => !got.has(event));
    });
    await until(() => missing().length === 0, () => `all of ${total}; ${missing().length} missing, ${missing().slice(0, 20)}`, withinMs);
    if (process.env.RAPTOR_LIVES) console.log(`${total} events seen in ${lives} lives, ${receiver.requests.length} requests, ${receiver.deliveries.length} of them answered well`);
    receiver.isExact();
    for (const channel of this.channels.keys()) {
      const got = numbers(channel);
      assert.deepEqual(got, [...new Set(got)].sort((a, b) => a - b), channel);
    }
  }
}
