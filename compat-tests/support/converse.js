// What a server answers to bytes, as they are.

import { connect } from 'node:net';

import { SOON_MS } from './events.js';

/**
 * Sends `bytes` over a new connection, and resolves with all that came when the server has ended it. Fails if it does not within `ms`.
 *
 * `then` is called with the socket behind that; `encoding` is how the answer becomes text.
 */
export function converse(server, bytes, { ms = SOON_MS, encoding = 'utf8', then = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    const socket = connect(server.port, '127.0.0.1');
    let answer = '';
    const timer = setTimeout(() => {
      socket.destroy();
      reject(new Error(`still open after ${ms} ms, having answered ${JSON.stringify(answer.slice(0, 300))}`));
    }, ms);
    socket.on('error', () => {});
    socket.on('data', (data) => (answer += data.toString(encoding)));
    socket.on('close', () => {
      clearTimeout(timer);
      resolve(answer);
    });
    if (bytes.length > 0) socket.write(bytes);
    then(socket);
  });
}
