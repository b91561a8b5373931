// Servers that are killed again and again while clients talk, and what one of them heard.

import assert from 'node:assert/strict';

import { Peer } from '../raw/peer.js';
import { sleep, until } from '../support/events.js';
import { ANSWER } from './receiver.js';

const CHANNELS = 8;

/** Half of the requests fail, in turn in each way. */
export function half() {
  let n = 0;
  return (...args) => (n++ % 2 === 0 ? [ANSWER.status(500), ANSWER.reset, ANSWER.breakOff][n % 3] : ANSWER.well)(...args);
}

/** The events that were heard, by channel. */
export class Heard {
  channels = new Map(Array.from({ length: CHANNELS }, (_, c) => [`private-${c}`, []]));
  number = 0;

  /** Client events on every channel from now on. The result's `end` stops them; `silent` is there once the server is gone. */
  async talk(raptor) {
    const [sender, listener] = [await Peer.connect(raptor), await Peer.connect(raptor)];
    for (const channel of this.channels.keys()) {
      await sender.subscribe(channel);
      await listener.subscribe(channel);
    }
    let isOver = false;
    const sending = (async () => {
      while (!isOver) {
        for (let k = 0; k < 5; k++, this.number++) sender.send({ event: `client-${this.number}`, channel: `private-${this.number % CHANNELS}`, data: 'x' });
        await sleep(5);
      }
    })();
    const silent = (async () => {
      for (;;) {
        const { event, channel } = await listener.frame();
        this.channels.get(channel).push(Number(event.slice('client-'.length)));
      }
    })().catch(() => {});
    const end = () => { isOver = true; return sending; };
    return { end, silent };
  }

  /** The receiver has all of it in the end, each once and in order. */
  async isReceived(receiver, lives, withinMs) {
    const numbers = (channel) => receiver.events.filter((event) => event.channel === channel && event.name === 'client_event').map(({ event }) => Number(event.slice('client-'.length)));
    const total = [...this.channels.values()].flat().length;
    assert.ok(total > lives * 100, `${total} events`);
    const missing = () => [...this.channels].flatMap(([channel, list]) => {
      const got = new Set(numbers(channel));
      return list.filter((event) => !got.has(event));
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
