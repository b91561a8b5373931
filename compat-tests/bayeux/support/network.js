// A network between clients and the server that fails when a test says so.

import { once } from 'node:events';
import { connect, createServer } from 'node:net';

import { atEnd } from '../../support/at-end.js';
import { MOUNT } from './server.js';

/**
 * Passes TCP connections on to `server` from a port of its own.
 *
 * @param {{port: number}} server
 * @returns {Promise<Network>}
 *
 * @typedef {object} Network
 * @property {number} port
 * @property {string} url `http://127.0.0.1:PORT/faye`
 * @property {() => void} cut resets every connection, and every new one until `mend`
 * @property {() => void} mend
 * @property {() => Connection[]} polls the connections on which a connect waits for its answer, be it a request or a WebSocket
 *
 * @typedef {object} Connection
 * @property {() => void} reset towards both ends
 * @property {() => Promise<void>} loseReply lets the next bytes of the server get lost, and the connection with them; resolves when that has happened
 */
export async function startNetwork(server) {
  const connections = new Set();
  let isCut = false;

  const listener = createServer({ noDelay: true }, (client) => {
    if (isCut) return client.on('error', () => {}).resetAndDestroy();
    const upstream = connect({ port: server.port, host: '127.0.0.1', noDelay: true });
    const connection = { awaited: '', isWebSocket: false, lost: null, reset };
    connections.add(connection);

    function reset() {
      connections.delete(connection);
      client.resetAndDestroy();
      upstream.resetAndDestroy();
    }
    client.on('data', (bytes) => {
      connection.awaited += bytes.toString('latin1');
      connection.isWebSocket ||= /^Upgrade: websocket\r$/im.test(connection.awaited);
      upstream.write(bytes);
    });
    upstream.on('data', (bytes) => {
      if (connection.lost) {
        reset();
        return connection.lost();
      }
      connection.awaited = '';
      client.write(bytes);
    });
    for (const [from, to] of [[client, upstream], [upstream, client]]) {
      from.on('end', () => to.end());
      from.on('error', () => {});
      from.on('close', () => { connections.delete(connection); to.destroy(); });
    }
    connection.loseReply = () => new Promise((resolve) => { connection.lost = resolve; });
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const resetAll = () => connections.forEach((connection) => connection.reset());
  atEnd(() => { listener.close(); resetAll(); });

  const { port } = listener.address();
  return {
    port,
    url: `http://127.0.0.1:${port}${MOUNT}`,
    cut: () => { isCut = true; resetAll(); },
    mend: () => { isCut = false; },
    polls: () => [...connections].filter(({ awaited, isWebSocket }) => isWebSocket || awaited.includes('/meta/connect')),
  };
}
