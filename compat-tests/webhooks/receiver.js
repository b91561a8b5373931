// An application that receives webhooks, and misbehaves as it is told.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';

import Pusher from 'pusher';

import { atEnd } from '../support/at-end.js';
import { SOON_MS, until } from '../support/events.js';
import { TEST_APP } from '../support/raptor.js';

/** Ways to receive: each is called with the request, its response, and what `Receiver` has made of it. */
export const ANSWER = {
  well: (_, response) => response.writeHead(200).end('{}'),
  status: (status, headers) => (_, response) => response.writeHead(status, headers).end(),
  /** Never. */
  silence: () => {},
  /** Promises more than it sends. */
  breakOff: (_, response) => {
    response.writeHead(200, { 'Content-Length': 100 });
    response.write('half', () => response.socket.destroy());
  },
  reset: (request) => request.socket.destroy(),
};

/**
 * Starts one on a free port. `requests` are all that came, `deliveries` those that were answered well: each has `id`, `body` (a string),
 * `events`, `time_ms`, `headers`, `rawHeaders`, `at` (when it came, ms) and `connection` (a number for each TCP connection).
 * Every request is checked with the official Node library.
 */
export class Receiver {
  requests = [];
  deliveries = [];
  answer = ANSWER.well;

  /** `tls`: key and certificate of an HTTPS server. */
  static async start({ app = TEST_APP, answer = ANSWER.well, tls = undefined } = {}) {
    const receiver = new Receiver();
    receiver.answer = answer;
    receiver.library = new Pusher({ appId: app.id, key: app.key, secret: app.secret, cluster: 'any' });
    const receive = (request, response) => receiver.receive(request, response);
    receiver.server = tls ? createTlsServer(tls, receive) : createServer(receive);
    let connections = 0;
    receiver.server.on('connection', (socket) => (socket.number = ++connections));
    receiver.server.keepAliveTimeout = 60_000;
    await new Promise((resolve) => receiver.server.listen(0, '127.0.0.1', resolve));
    receiver.port = receiver.server.address().port;
    receiver.url = `${tls ? 'https' : 'http'}://127.0.0.1:${receiver.port}/hook`;
    atEnd(() => receiver.stop());
    return receiver;
  }

  /** As an entry of `webhooks` in an app's configuration. */
  endpoint(more = {}) {
    return { url: this.url, allow_private_networks: true, ...more };
  }

  stop() {
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }

  receive(request, response) {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('error', () => {});
    request.on('end', () => {
      const body = Buffer.concat(chunks).toString();
      const webhook = this.library.webhook({ headers: request.headers, rawBody: body });
      const { method, url, headers, rawHeaders, httpVersion } = request;
      const received = {
        id: headers['x-raptor-webhook-id'], valid: webhook.isValid(), body, method, url, headers, rawHeaders, httpVersion, at: Date.now(), connection: request.socket.number,
        ...JSON.parse(body),
      };
      this.requests.push(received);
      response.on('finish', () => {
        if (response.statusCode < 300) this.deliveries.push(received);
      });
      this.answer(request, response, received);
    });
  }

  /** What was delivered so far, each delivery once, in order. */
  get events() {
    const seen = new Set();
    return this.deliveries.filter(({ id }) => !seen.has(id) && seen.add(id)).flatMap(({ events }) => events);
  }

  /** Of one name, or of several. */
  named(...names) {
    return this.events.filter(({ name }) => names.includes(name));
  }

  /** Waits until this many events have been delivered. */
  async until(count, ms = SOON_MS) {
    await until(() => this.events.length >= count, () => `${count} events, got ${JSON.stringify(this.events).slice(0, 1000)}`, ms);
    return this.events;
  }

  /** Every request was valid, and a repeat has the bytes of the first. */
  isExact() {
    const bodies = new Map();
    for (const { id, valid, body, headers } of this.requests) {
      assert.ok(valid, `${headers['x-pusher-signature']} of ${body}`);
      const first = bodies.get(id) ?? body;
      assert.equal(body, first);
      bodies.set(id, first);
    }
  }
}
