// CometD's script in headless Chromium, over each of its transports, from the server's own origin and from another.

import { describe, test } from 'node:test';

import { until } from '../support/events.js';
import { post } from './support/http.js';
import { openAt } from './support/in-page.js';
import { HOLD_SECS, startBayeux } from './support/server.js';

async function open(transport, host) {
  const { port, url } = await startBayeux({ bayeux: { hold_secs: HOLD_SECS, session_secs: 2 * HOLD_SECS } });
  const html = `<!doctype html>
    <meta charset="utf-8">
    <title>CometD over ${transport}</title>
    <script type="module">
      import { createCometd } from '/page/bayeux/support/cometd-page.js';

      window.world = createCometd({ url: '${url}', transport: '${transport}', holdMs: ${1000 * HOLD_SECS}, post: window.call });
    </script>`;
  const publish = (channel, data) => post(url, { channel, data });
  return { page: await openAt(`http://${host}:${port}/page/`, html, publish), publish };
}

/** One server and one page for all steps, in this order. */
function cometdInPage(transport, host) {
  let opened;
  const run = async (title) => {
    opened ??= open(transport, host);
    await (await opened).page.evaluate((wanted) => window.world.run(wanted), title);
  };
  test('shakes hands over its transport; messages are acknowledged, clocks compared', (t) => run(t.name));
  test('a name and patterns deliver what they match, its own messages too', (t) => run(t.name));
  test('a refused subscription says why', (t) => run(t.name));
  test('idle cycles follow one another at the pace of the hold, each successful', (t) => run(t.name));
  test('a page that is loaded anew goes on with its session and misses nothing', async () => {
    await run('before the reload');
    const { page, publish } = await opened;
    const loaded = page.loadAnew();
    await publish('/page/reload', 'meanwhile');
    await loaded;
    await run('after the reload');
  });
  test('says goodbye', (t) => run(t.name));
}

describe('CometD in Chromium', { concurrency: 6, timeout: 120_000 }, () => {
  test('of two clients in one browser one polls now and then, and misses nothing', async () => {
    const { port, url } = await startBayeux({ bayeux: { hold_secs: HOLD_SECS, session_secs: 2 * HOLD_SECS, browser_polls_max: 1, browser_interval_secs: 1 } });
    const html = `<!doctype html>
      <meta charset="utf-8">
      <script type="module">
        import { createCometd } from '/page/bayeux/support/cometd-page.js';

        window.worlds = [0, 1].map(() => createCometd({ url: '${url}', transport: 'long-polling', holdMs: ${1000 * HOLD_SECS}, post: window.call }));
        [window.world] = worlds;
      </script>`;
    const page = await openAt(`http://127.0.0.1:${port}/page/`, html, (channel, data) => post(url, { channel, data }));
    const run = (title) => page.evaluate(async (wanted) => {
      for (const world of worlds) await world.run(wanted);
    }, title);
    await run('shakes hands over its transport; messages are acknowledged, clocks compared');
    await run('a name and patterns deliver what they match, its own messages too');
    const crowded = () => page.evaluate(() => worlds.map(({ connects }) => connects.filter(({ advice }) => advice?.['multiple-clients']).length));
    await until(async () => (await crowded()).some((count) => count >= 2), 'two polls that were not held');
    await run('says goodbye');
  });

  for (const transport of ['websocket', 'long-polling', 'callback-polling']) {
    for (const [origin, host] of [['the same', '127.0.0.1'], ['another', 'localhost']]) {
      describe(`over ${transport}, ${origin} origin`, { concurrency: 1 }, () => cometdInPage(transport, host));
    }
  }
});
