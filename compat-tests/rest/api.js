// The HTTP API as a server library speaks it, down to each query parameter. Signs by the text of `pusher.md` 5.3, on its own.

import { createHash, createHmac } from 'node:crypto';
import { Agent, request as httpRequest } from 'node:http';

import { atEnd } from '../support/at-end.js';
import { SOON_MS } from '../support/events.js';
import { TEST_APP } from '../support/raptor.js';

export const TOO_MUCH_DATA =
  'The data content of this event exceeds the allowed maximum (10240 bytes). See https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info';

/** One connection, kept alive, so that a file of tests does not open a thousand. */
const agent = new Agent({ keepAlive: true, maxSockets: 4 });
atEnd(() => agent.destroy());

/**
 * The API of one app. Paths are below `/apps/ID`; a body that is no string is written as JSON.
 *
 * Every call resolves with an `Answer`: `{status, headers, text}` and `json()`. Options of a call: see `signedTarget`.
 */
export class Api {
  constructor(raptor, app = TEST_APP) {
    this.raptor = raptor;
    this.app = app;
  }

  get(path, params = {}, options = {}) {
    return this.call('GET', path, { params, ...options });
  }

  post(path, body, options = {}) {
    return this.call('POST', path, { body: typeof body === 'object' && !Buffer.isBuffer(body) ? JSON.stringify(body) : body, ...options });
  }

  call(method, path, { body, headers, ...signing } = {}) {
    const target = signedTarget({ app: this.app, method, path: `/apps/${this.app.id}${path}`, body, ...signing });
    return send(this.raptor, { method, target, body, headers });
  }

  /** Publishes one event; rejects unless the answer is 200. */
  async trigger(channels, name, data, fields = {}) {
    const answer = await this.post('/events', { name, channels: [channels].flat(), data, ...fields });
    if (answer.status !== 200) throw new Error(`${answer.status} ${answer.text}`);
    return answer.json();
  }
}

/** One HTTP request, exactly as given. */
export function send(raptor, { method, target, body, headers = {}, over = agent }) {
  return new Promise((resolve, reject) => {
    const length = body === undefined ? {} : { 'Content-Length': Buffer.byteLength(body) };
    const request = httpRequest({ port: raptor.port, host: '127.0.0.1', method, path: target, headers: { ...length, ...headers }, agent: over, timeout: SOON_MS });
    request.on('timeout', () => request.destroy(new Error(`no answer to ${method} ${target} within ${SOON_MS} ms`)));
    request.on('error', reject);
    request.on('response', (response) => {
      const chunks = [];
      response.on('data', (chunk) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString();
        resolve({ status: response.statusCode, headers: response.headers, text, json: () => JSON.parse(text), reusedSocket: request.reusedSocket });
      });
    });
    request.end(body);
  });
}

/**
 * Path and signed query.
 *
 * - `params`: object or list of `[name, value]`; a list value gives `name[]=…` for each of its items.
 * - `override`: replaces or (`undefined`) leaves out one of the authentication parameters, before the signature is made.
 * - `signature`: sent instead of the right one; `null` leaves it out.
 * - `encode`: how a name or value is written in the URL.
 * - `signedPath`, `signedParams`: what is signed where it differs from what is sent.
 */
export function signedTarget({
  app,
  method,
  path,
  body,
  params = {},
  override = {},
  signature,
  encode = encodeURIComponent,
  signedPath = path,
  signedParams,
}) {
  const authentication = {
    auth_key: app.key,
    auth_timestamp: String(now()),
    auth_version: '1.0',
    body_md5: body === undefined || body.length === 0 ? undefined : md5(body),
    ...override,
  };
  const sent = [...pairs(params), ...pairs(authentication)];
  const text = stringToSign(method, signedPath, signedParams ? [...pairs(signedParams), ...pairs(authentication)] : sent);
  const query = sent.map(([name, value]) => `${encode(name)}=${encode(value)}`);
  if (signature !== null) query.push(`auth_signature=${encode(signature ?? hmac(app.secret, text))}`);
  return `${path}?${query.join('&')}`;
}

export function stringToSign(method, path, params) {
  const sorted = params.map(([name, value]) => [name.toLowerCase(), value]).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return `${method}\n${path}\n${sorted.map(([name, value]) => `${name}=${value}`).join('&')}`;
}

export function hmac(secret, text) {
  return createHmac('sha256', secret).update(text).digest('hex');
}

export function md5(body) {
  return createHash('md5').update(body).digest('hex');
}

/** Unix seconds. */
export function now() {
  return Math.floor(Date.now() / 1000);
}

function pairs(params) {
  const list = Array.isArray(params) ? params : Object.entries(params);
  return list.flatMap(([name, value]) => {
    if (value === undefined) return [];
    return Array.isArray(value) ? value.map((item) => [`${name}[]`, String(item)]) : [[name, String(value)]];
  });
}
