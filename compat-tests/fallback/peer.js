// Clients of the transports over HTTP that ask as pusher-js does, and read answers as bytes.

import http from 'node:http';

import { until } from '../support/events.js';
import { TEST_APP } from '../support/raptor.js';

export const QUERY = 'protocol=7&client=js&version=8.6.0';
export const PRELUDE = 'h'.repeat(2048);

let names = 0;

/**
 * One request. Its answer grows: `text`, `lines()`, `status`, `headers`; `head` resolves when it begins, `ended` with it at its end.
 * `headers` that are `undefined` are not sent.
 */
export function ask(server, path, { body = '', method = 'GET', headers = {} } = {}) {
  const sentHeaders = { 'Content-Type': 'application/json', ...headers };
  for (const name of Object.keys(sentHeaders)) if (sentHeaders[name] === undefined) delete sentHeaders[name];
  const sent = http.request({ port: server.port, host: '127.0.0.1', method, path, agent: false, headers: sentHeaders });
  const answer = { text: '', lines: () => answer.text.split('\n').slice(0, -1), abort: () => sent.destroy() };
  answer.ended = new Promise((resolve, reject) => {
    sent.on('error', reject).on('response', (response) => {
      Object.assign(answer, { status: response.statusCode, headers: response.headers });
      response.setEncoding('utf8').on('data', (text) => { answer.text += text; }).on('end', () => resolve(answer)).on('error', reject);
    });
  });
  answer.ended.catch(() => {});
  answer.head = until(() => answer.status, 'the head of an answer');
  answer.head.catch(() => {});
  sent.end(body);
  return answer;
}

/** A client that asks as pusher-js does. The option `at` names another server for one request. */
export function clientOf(server, { key = TEST_APP.key, prefix = '/pusher' } = {}) {
  const base = `${prefix}/app/${key}/${names % 1000}/abcdefg${(names++ % 32).toString(32)}`;
  let n = 1;

  function request(transport, { number = n++, at = server, ...options } = {}) {
    const path = `${base}/${transport}?${transport === 'xhr_send' ? '' : `${QUERY}&`}t=${Date.now()}&n=${number}`;
    return ask(at, path, { method: 'POST', ...options });
  }
  const client = {
    request,
    poll: async (options) => (await request('xhr', options).ended),
    stream: async (options) => { const answer = request('xhr_streaming', options); await answer.head; return answer; },
    sendAt: (at, ...events) => request('xhr_send', { at, body: JSON.stringify(events.map((event) => JSON.stringify(event))) }).ended,
    send: (...events) => request('xhr_send', { body: JSON.stringify(events.map((event) => JSON.stringify(event))) }).ended,
    subscribe: (channel) => client.send({ event: 'pusher:subscribe', data: { channel } }),
    base,
    number: () => n,
  };
  return client;
}

/** The events in lines of frames. */
export function events(lines) {
  return lines.filter((line) => line[0] === 'a').flatMap((line) => JSON.parse(line.slice(1)).map((text) => JSON.parse(text)));
}

export const named = (lines, name) => events(lines).filter(({ event }) => event === name).map(({ data }) => JSON.parse(data));

let sessions = 0;

/** A client of SockJS. `open` says for which app it is, as pusher-js does after the opening frame. */
export function sockJsOf(server, { key = TEST_APP.key } = {}) {
  const base = `/pusher/${String(sessions % 1000).padStart(3, '0')}/sockjs_${(sessions++ % 36).toString(36)}`;
  const client = {
    base,
    get: (transport, { at = server, ...options } = {}) => ask(at, `${base}/${transport}`, options),
    post: (transport, { at = server, ...options } = {}) => ask(at, `${base}/${transport}`, { method: 'POST', ...options }),
    send: (messages, options) => client.post('xhr_send', { body: JSON.stringify(messages), headers: { 'Content-Type': undefined }, ...options }).ended,
    open: (options) => client.send([JSON.stringify({ path: `/app/${key}?${QUERY}&flash=false` })], options),
    subscribe: (channel, options) => client.send([JSON.stringify({ event: 'pusher:subscribe', data: { channel } })], options),
  };
  return client;
}
