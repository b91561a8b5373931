// What an operator does about dead letters, wherever they are kept.

import assert from 'node:assert/strict';

import { Peer } from '../raw/peer.js';
import { until } from '../support/events.js';
import { runRaptor } from '../support/raptor.js';
import { ANSWER } from './receiver.js';

/** What `raptor webhooks` says with these arguments, or how it fails. `where`: further ones that lead it to the store; `options` as `runRaptor`. */
export const archive = (where, options) => async (...args) => {
  const { code, stdout, stderr } = await runRaptor(['webhooks', ...args, ...where], options);
  return code === 0 ? stdout.trim() : `failed: ${stderr.trim()}`;
};

/** As an entry of `webhooks` in an app's configuration, for a receiver that refuses. */
export const billing = (receiver) => receiver.endpoint({ name: 'billing', retry_secs: 2, events: ['channel_occupied'] });

/** An event that `receiver` refused for too long is listed, shown and replayed. Resolves with the delivery's id. */
export async function replayDeadLetter(webhooks, raptor, receiver, { deadWithinMs }) {
  assert.equal(await webhooks('list'), 'no deliveries');
  const peer = await Peer.connect(raptor);
  await peer.subscribe('lost');
  const list = await until(async () => {
    const lines = await webhooks('list', '--state', 'dead');
    return lines !== 'no deliveries' && lines;
  }, 'a dead letter', deadWithinMs);
  assert.match(list, /^[0-9a-f]{32}  dead       \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  app 3  billing  1 event  2 attempts, status 503$/);
  const [id] = list.split(' ');
  const shown = await webhooks('show', id);
  assert.match(shown, /^state +dead$/m);
  assert.equal(shown.match(/^attempt   \S+Z  \d+ ms  status 503$/gm).length, 2);
  assert.match(shown, /^body +\{"time_ms":\d+,"events":\[\{"name":"channel_occupied","channel":"lost"\}\]\}$/m);
  assert.equal(await webhooks('replay', 'nothing'), 'failed: not known, not over yet, or without a body: nothing');

  receiver.answer = ANSWER.well;
  assert.equal(await webhooks('replay', '--dead'), '1 dead letter will be sent again');
  await receiver.until(1);
  const { id: again, valid, time_ms: time } = receiver.deliveries[0];
  assert.deepEqual([again, valid], [id, true]);
  assert.ok(time > receiver.requests[0].time_ms, 'a verifier takes it for new');
  await until(async () => / delivered .* 3 attempts, status 200$/.test(await webhooks('list')));
  return id;
}
