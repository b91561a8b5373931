// An address that outlives the server behind it, as behind a load balancer.

import { once } from 'node:events';
import { connect, createServer } from 'node:net';

import { atEnd } from './at-end.js';

/**
 * Listens on a free port and passes every connection on to `server`.
 *
 * @param {{port: number}} [server] none: connections are refused until `forward` names one
 * @returns {Promise<{port: number, forward: (server: {port: number}) => void, hold: () => void, release: () => void}>} `forward` names the server of
 *   later connections, present ones stay where they are; `hold` reads nothing more from servers until `release`
 */
export async function startRelay(server) {
  let target = server?.port;
  const sockets = new Set();
  const outgoings = new Set();

  const listener = createServer((incoming) => {
    if (!target) return incoming.destroy();
    const outgoing = connect(target, '127.0.0.1');
    outgoings.add(outgoing);
    for (const [from, to] of [[incoming, outgoing], [outgoing, incoming]]) {
      sockets.add(from);
      from.pipe(to);
      from.on('error', () => to.destroy()).on('close', () => { sockets.delete(from); outgoings.delete(from); to.destroy(); });
    }
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  atEnd(() => {
    listener.close();
    sockets.forEach((socket) => socket.destroy());
  });
  return {
    port: listener.address().port,
    forward: (next) => { target = next.port; },
    hold: () => outgoings.forEach((socket) => socket.pause()),
    release: () => outgoings.forEach((socket) => socket.resume()),
  };
}
