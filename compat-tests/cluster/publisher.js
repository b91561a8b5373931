// Publishes to rooms in turn, so many events a second, until it is told to stop. A thread of its own: in the process of thousands of clients
// it would be held up by what they hear.

import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';

import { atEnd } from '../support/at-end.js';
import { sleep } from '../support/events.js';
import { Api } from '../rest/api.js';

const BATCH_EVENTS_MAX = 10;
const PUBLISHES_AT_ONCE_MAX = 64;

/** `stop()` resolves with `{sent, refused, secs, accepted}`, `accepted` being what each room was sent. */
export function startPublisher(server, app, { rooms, eventsPerSec }) {
  // What the test runner would say there is not part of this file's report.
  const worker = new Worker(new URL(import.meta.url), { stdout: true, workerData: { port: server.port, app, rooms, eventsPerSec } });
  atEnd(() => worker.terminate());
  const report = new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  return { stop: () => { worker.postMessage('stop'); return report; } };
}

async function publish({ port, app, rooms, eventsPerSec }) {
  const api = new Api({ port }, app);
  const accepted = Array.from({ length: rooms }, () => []);
  let [sent, refused, publishing] = [0, 0, true];
  parentPort.once('message', () => { publishing = false; });
  const pending = new Set();
  /** Each is `[room, data]`. */
  async function send(events) {
    sent += events.length;
    const batch = events.map(([room, data]) => ({ channel: `room-${room}`, name: 'said', data }));
    const { status } = await api.post('/batch_events', { batch }).catch(() => ({ status: undefined }));
    if (status !== 200) refused += events.length;
    else for (const [room, data] of events) accepted[room].push(data);
  }
  const begun = Date.now();
  const secs = () => (Date.now() - begun) / 1000;
  while (publishing) {
    const due = Math.floor(secs() * eventsPerSec) - sent;
    const events = Array.from({ length: Math.min(due, BATCH_EVENTS_MAX) }, (_, n) => [(sent + n) % rooms, sent + n]);
    if (events.length > 0) {
      const call = send(events).finally(() => pending.delete(call));
      pending.add(call);
    }
    if (pending.size >= PUBLISHES_AT_ONCE_MAX) await Promise.race(pending);
    else if (due <= BATCH_EVENTS_MAX) await sleep(5);
  }
  await Promise.all(pending);
  parentPort.postMessage({ sent, refused, secs: secs(), accepted });
}

if (!isMainThread) await publish(workerData);
