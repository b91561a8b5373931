// An address that outlives the servers behind it, as behind a load balancer.

import { once } from 'node:events';
import { connect, createServer } from 'node:net';

import { atEnd } from './at-end.js';

/**
 * Listens on a free port and passes every connection on, each to the next of the servers, or to one after it that is there.
 *
 * @param {...{port: number}} servers none: connections are refused until `forward` names one
 * @returns {Promise<{port: number, forward: (...servers: {port: number}[]) => void, hold: () => void, release: () => void}>} `forward` names the servers of
 *   later connections, present ones stay where they are; `hold` reads nothing more from servers until `release`
 */
export async function startRelay(...servers) {
  let targets = servers;
  let next = 0;
  const sockets = new Set();
  const outgoings = new Set();

  const listener = createServer(async (incoming) => {
    incoming.on('error', () => {});
    const outgoing = await connectToNext();
    if (!outgoing || incoming.destroyed) {
      outgoing?.destroy();
      return incoming.destroy();
    }
    outgoings.add(outgoing);
    for (const [from, to] of [[incoming, outgoing], [outgoing, incoming]]) {
      sockets.add(from);
      from.pipe(to);
      from.on('error', () => to.destroy()).on('close', () => { sockets.delete(from); outgoings.delete(from); to.destroy(); });
    }
  });
  async function connectToNext() {
    for (let tries = 0; tries < targets.length; tries += 1) {
      const outgoing = connect(targets[next++ % targets.length].port, '127.0.0.1');
      if (await once(outgoing, 'connect').then(() => true, () => false)) return outgoing;
    }
  }
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  atEnd(() => {
    listener.close();
    sockets.forEach((socket) => socket.destroy());
  });
  return {
    port: listener.address().port,
    forward: (...later) => { targets = later; },
    hold: () => outgoings.forEach((socket) => socket.pause()),
    release: () => outgoings.forEach((socket) => socket.resume()),
  };
}
