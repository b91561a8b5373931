// pusher-js in a page of headless Chromium, and the scenario run with it.

import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { describe, test } from 'node:test';

import { chromium } from 'playwright-core';

import { startApplication } from './application.js';
import { atEnd } from './at-end.js';
import { connectionTo } from './in-node.js';
import { TEST_APP, startRaptor } from './raptor.js';
import { scenario } from './scenario.js';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

let browser;

/** A new page in the one browser of this test file, with nothing kept from other pages. */
export async function openPage() {
  browser ??= chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS }).then((launched) => {
    atEnd(() => launched.close());
    return launched;
  });
  return (await browser).newPage();
}

/**
 * Serves a page with the web build of pusher-js (the one that can decrypt), `window.createWorld()` and `window.runStep(title)`.
 *
 * @returns {Promise<string>} its address
 */
export async function servePage({ version, connection, applicationUrl }) {
  const setting = { version, key: TEST_APP.key, connection, applicationUrl };
  const page = `<!doctype html>
    <meta charset="utf-8">
    <title>pusher-js ${version}</title>
    <script src="/pusher.js"></script>
    <script type="module">
      import { scenario } from '/support/scenario.js';
      import { createWorld } from '/support/world.js';

      const setting = ${JSON.stringify(setting)};
      window.createWorld = () => createWorld({ ...setting, Pusher, call: window.call });
      window.runStep = async (title) => {
        const world = window.createWorld();
        try {
          await scenario(setting.version).find((step) => step.title === title).run(world);
        } finally {
          world.close();
        }
      };
    </script>`;

  const http = createServer(async ({ url }, response) => {
    const script = /^\/support\/[a-z-]+\.js$/.test(url) ? new URL(`..${url}`, import.meta.url)
      : url === '/pusher.js' ? new URL(`../node_modules/pusher-js-${version}/dist/web/pusher-with-encryption.min.js`, import.meta.url)
      : null;
    if (script) response.setHeader('Content-Type', 'text/javascript; charset=utf-8').end(await readFile(script));
    else if (url === '/') response.setHeader('Content-Type', 'text/html; charset=utf-8').end(page);
    else response.writeHead(404).end();
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  atEnd(() => { http.close(); http.closeAllConnections(); });
  return `http://127.0.0.1:${http.address().port}/`;
}

/**
 * Registers the scenario as tests in a page, one server and one page for all its steps.
 *
 * @param {object} [options]
 * @param {string[]} [options.transports] `enabledTransports` of pusher-js
 * @param {(title: string) => boolean} [options.only] which steps
 */
export function scenarioInPage(version, { transports = ['ws', 'wss'], only = () => true } = {}) {
  describe(`pusher-js ${version} in Chromium over ${transports.join(', ')}`, () => {
    let page;
    const errors = [];

    async function open() {
      const server = await startRaptor();
      const application = await startApplication(server);
      const address = await servePage({ version, connection: connectionTo(server, transports), applicationUrl: application.url });
      const opened = await openPage();
      opened.on('pageerror', (error) => errors.push(error));
      await opened.exposeFunction('call', (name, ...args) => application.calls[name](...args));
      await opened.goto(address);
      await opened.waitForFunction(() => window.runStep);
      return opened;
    }

    for (const { title } of scenario(version).filter((step) => only(step.title))) {
      test(title, { timeout: 30_000 }, async () => {
        page ??= await open();
        await page.evaluate((wanted) => window.runStep(wanted), title);
        if (errors.length > 0) throw errors.splice(0)[0];
      });
    }
  });
}
