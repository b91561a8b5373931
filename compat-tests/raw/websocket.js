// A WebSocket client that can also do what no library does: break every rule of RFC 6455, stop reading, vanish.

import { createHash, randomBytes } from 'node:crypto';
import { connect } from 'node:net';

import { atEnd } from '../support/at-end.js';
import { SOON_MS } from '../support/events.js';

export const CONTINUATION = 0x0;
export const TEXT = 0x1;
export const BINARY = 0x2;
export const CLOSE = 0x8;
export const PING = 0x9;
export const PONG = 0xa;

/** The server answered the handshake with something else than 101. */
export class Refused extends Error {
  constructor(head) {
    super(`no upgrade: ${head.split('\r\n')[0]}`);
    this.status = Number(head.split(' ')[1]);
  }
}

/**
 * What arrives, in order: `{type: 'text', text}`, `{type: 'binary', payload}`, `{type: 'pong', payload}`, `{type: 'close', code, reason}`,
 * and last `{type: 'end'}` when the TCP connection is over. Pings are answered and not shown, unless `answerPings` is false: then
 * `{type: 'ping', payload}` is shown and not answered.
 */
export class WebSocket {
  /** The answer to the handshake: `{status, headers}`, header names in lower case. */
  answer;
  answerPings = true;

  #socket;
  #unread = Buffer.alloc(0);
  #fragments = [];
  #arrived = [];
  #waiting = null;
  #ended = false;

  /** Opens `path` (with query) on 127.0.0.1; rejects with `Refused`, or when nothing answers. `early` is sent behind the handshake, in one piece with it. */
  static async open({ port, path, headers = {}, answerPings = true, early = Buffer.alloc(0) }) {
    const socket = connect(port, '127.0.0.1');
    socket.setNoDelay(true);
    socket.on('error', () => {});
    atEnd(() => socket.destroy());
    const key = randomBytes(16).toString('base64');
    socket.write(Buffer.concat([Buffer.from(handshake({ port, path, key, headers })), early]));
    const { head, rest } = await readHead(socket);

    const answer = parseHead(head);
    if (answer.status !== 101) {
      socket.destroy();
      throw new Refused(head);
    }
    const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
    if (answer.headers['sec-websocket-accept'] !== accept) throw new Error(`wrong Sec-WebSocket-Accept: ${head}`);
    return new WebSocket(socket, answer, rest, answerPings);
  }

  constructor(socket, answer, rest, answerPings) {
    this.#socket = socket;
    this.answer = answer;
    this.answerPings = answerPings;
    socket.on('data', (bytes) => this.#onBytes(bytes));
    socket.on('close', () => {
      this.#ended = true;
      this.#show({ type: 'end' });
    });
    this.#onBytes(rest);
    socket.resume();
  }

  sendText(text) {
    this.sendFrame({ opcode: TEXT, payload: text });
  }

  /** One frame, right or wrong. `rsv` holds the three reserved bits (0–7); `length` is announced instead of the payload's own. */
  sendFrame({ opcode, payload = '', fin = true, rsv = 0, masked = true, length }) {
    this.sendBytes(frame({ opcode, payload, fin, rsv, masked, length }));
  }

  sendBytes(bytes) {
    if (!this.#socket.destroyed) this.#socket.write(bytes);
  }

  /** Starts the closing handshake. */
  close(code = 1000, reason = '') {
    this.sendFrame({ opcode: CLOSE, payload: closePayload(code, reason) });
  }

  /** Shuts our sending side without a close frame (TCP FIN) and goes on reading. */
  shutdown() {
    this.#socket.end();
  }

  /** Vanishes: no close frame, and a reset instead of the TCP farewell. */
  vanish() {
    // A socket that has said farewell cannot be reset any more; Node would never close it.
    if (this.#socket.writableEnded) this.#socket.destroy();
    else this.#socket.resetAndDestroy();
  }

  /** From now on nothing is taken from the socket; the kernel's buffers fill. */
  stopReading() {
    this.#socket.pause();
  }

  goOnReading() {
    this.#socket.resume();
  }

  get ended() {
    return this.#ended;
  }

  /** The next thing that arrives; rejects after `ms`. */
  next(ms = SOON_MS) {
    if (this.#arrived.length > 0) return Promise.resolve(this.#arrived.shift());
    if (this.#waiting) throw new Error('one reader at a time');
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting = null;
        reject(new Error(`nothing arrived within ${ms} ms`));
      }, ms);
      this.#waiting = (item) => {
        clearTimeout(timer);
        this.#waiting = null;
        resolve(item);
      };
    });
  }

  #show(item) {
    if (this.#waiting) this.#waiting(item);
    else this.#arrived.push(item);
  }

  #onBytes(bytes) {
    this.#unread = this.#unread.length === 0 ? bytes : Buffer.concat([this.#unread, bytes]);
    for (;;) {
      const parsed = parseFrame(this.#unread);
      if (!parsed) return;
      this.#unread = this.#unread.subarray(parsed.size);
      this.#onFrame(parsed);
    }
  }

  #onFrame({ opcode, fin, payload }) {
    switch (opcode) {
      case PING:
        if (this.answerPings) this.sendFrame({ opcode: PONG, payload });
        else this.#show({ type: 'ping', payload });
        return;
      case PONG:
        this.#show({ type: 'pong', payload });
        return;
      case CLOSE:
        this.#show({
          type: 'close',
          code: payload.length >= 2 ? payload.readUInt16BE() : null,
          reason: new TextDecoder('utf-8', { fatal: true }).decode(payload.subarray(2)),
        });
        this.sendFrame({ opcode: CLOSE, payload: payload.subarray(0, 2) });
        this.#socket.end();
        return;
      default: {
        this.#fragments.push({ opcode, payload });
        if (!fin) return;
        const whole = Buffer.concat(this.#fragments.map((fragment) => fragment.payload));
        const kind = this.#fragments[0].opcode;
        this.#fragments = [];
        if (kind === TEXT) this.#show({ type: 'text', text: new TextDecoder('utf-8', { fatal: true }).decode(whole) });
        else this.#show({ type: 'binary', payload: whole });
      }
    }
  }
}

/** The request head of a WebSocket handshake. Header values may be replaced; `undefined` leaves one out. */
export function handshake({ port, path, key = 'dGhlIHNhbXBsZSBub25jZQ==', headers = {} }) {
  const all = {
    Host: `127.0.0.1:${port}`,
    Upgrade: 'websocket',
    Connection: 'Upgrade',
    'Sec-WebSocket-Key': key,
    'Sec-WebSocket-Version': '13',
    ...headers,
  };
  const lines = Object.entries(all).filter(([, value]) => value !== undefined).map(([name, value]) => `${name}: ${value}\r\n`);
  return `GET ${path} HTTP/1.1\r\n${lines.join('')}\r\n`;
}

export function closePayload(code, reason = '') {
  const payload = Buffer.alloc(2 + Buffer.byteLength(reason));
  payload.writeUInt16BE(code);
  payload.write(reason, 2);
  return payload;
}

/** The bytes of one client frame. */
export function frame({ opcode, payload = '', fin = true, rsv = 0, masked = true, length }) {
  const body = Buffer.from(payload);
  const announced = length ?? BigInt(body.length);
  const head = [(fin ? 0x80 : 0) | (rsv << 4) | opcode];
  const maskBit = masked ? 0x80 : 0;
  if (announced < 126n) head.push(maskBit | Number(announced));
  else if (announced < 65536n) head.push(maskBit | 126, ...bigEndian(announced, 2));
  else head.push(maskBit | 127, ...bigEndian(announced, 8));
  if (!masked) return Buffer.concat([Buffer.from(head), body]);
  const mask = randomBytes(4);
  return Buffer.concat([Buffer.from(head), mask, body.map((byte, i) => byte ^ mask[i % 4])]);
}

function bigEndian(value, bytes) {
  return Array.from({ length: bytes }, (_, i) => Number((value >> BigInt(8 * (bytes - 1 - i))) & 0xffn));
}

/** `null` while the frame is incomplete. A server that masks or uses reserved bits is an error of its own. */
function parseFrame(bytes) {
  if (bytes.length < 2) return null;
  if (bytes[0] & 0x70) throw new Error('the server set a reserved bit');
  if (bytes[1] & 0x80) throw new Error('the server masked a frame');
  let size = 2;
  let length = bytes[1];
  if (length === 126) {
    if (bytes.length < 4) return null;
    length = bytes.readUInt16BE(2);
    size = 4;
  } else if (length === 127) {
    if (bytes.length < 10) return null;
    length = Number(bytes.readBigUInt64BE(2));
    size = 10;
  }
  if (bytes.length < size + length) return null;
  return { opcode: bytes[0] & 0x0f, fin: (bytes[0] & 0x80) !== 0, payload: bytes.subarray(size, size + length), size: size + length };
}

function readHead(socket) {
  return new Promise((resolve, reject) => {
    let read = Buffer.alloc(0);
    const timer = setTimeout(() => finish(new Error(`no HTTP answer within ${SOON_MS} ms`)), SOON_MS);
    const onClose = () => finish(new Error(`closed without an HTTP answer, after ${JSON.stringify(read.toString())}`));
    const onData = (bytes) => {
      read = Buffer.concat([read, bytes]);
      const end = read.indexOf('\r\n\r\n');
      if (end >= 0) finish(null, { head: read.subarray(0, end).toString('latin1'), rest: read.subarray(end + 4) });
    };
    function finish(error, value) {
      clearTimeout(timer);
      socket.off('data', onData).off('close', onClose);
      socket.pause();
      if (error) reject(error);
      else resolve(value);
    }
    socket.on('data', onData).on('close', onClose);
  });
}

function parseHead(head) {
  const [line, ...rest] = head.split('\r\n');
  const headers = Object.fromEntries(rest.map((h) => [h.slice(0, h.indexOf(':')).toLowerCase(), h.slice(h.indexOf(':') + 1).trim()]));
  return { status: Number(line.split(' ')[1]), headers };
}
