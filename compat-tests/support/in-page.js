// pusher-js in a page of headless Chromium, and the scenario run with it.

import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer, request as startRequest } from 'node:http';
import { describe, test } from 'node:test';

import { chromium } from 'playwright-core';

import { startApplication } from './application.js';
import { atEnd } from './at-end.js';
import { connectionTo } from './in-node.js';
import { TEST_APP, startRaptor } from './raptor.js';
import { scenario } from './scenario.js';
import { supports } from './world.js';

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

let browser;

/** A new page in the one browser of this test file, with nothing kept from other pages. */
export async function openPage() {
  browser ??= chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS }).then((launched) => {
    atEnd(() => launched.close());
    return launched;
  });
  return (await browser).newPage();
}

/**
 * Serves a page whose `world` (`world.js`) holds pusher-js as browsers load it, in the build that can decrypt, and whose `runStep(title)` runs
 * a step of the scenario with it.
 *
 * @param {string} version
 * @param {{port: number}} server
 * @param {object} [options] `transports`: `enabledTransports` of pusher-js; `sameOrigin`: the page and the server are one host to it
 * @returns {Promise<{address: string, open: (address?: string) => Promise<import('playwright-core').Page>}>} `open` opens it in a new page, after
 *   `before` has run there
 */
export async function serveWorld(version, server, { transports = ['ws', 'wss'], sameOrigin = false } = {}) {
  const application = await startApplication(server);
  const setting = { version, key: TEST_APP.key, applicationUrl: application.url };
  const html = () => `<!doctype html>
    <meta charset="utf-8">
    <title>pusher-js ${version}</title>
    <script src="/pusher.js"></script>
    ${transports?.includes('sockjs') ? '<script src="/sockjs.js"></script>' : ''}
    <script type="module">
      import { scenario } from '/support/scenario.js';
      import { createWorld } from '/support/world.js';

      window.world = createWorld({ ...${JSON.stringify({ ...setting, connection: connectionTo(sameOrigin ? http.address() : server, transports) })}, Pusher, call: window.call });
      window.runStep = async (title) => {
        try {
          await scenario('${version}').find((step) => step.title === title).run(world);
        } finally {
          world.close();
        }
      };
    </script>`;

  const http = createServer(async (request, response) => {
    const { url } = request;
    if (sameOrigin && /^\/(app|pusher|timeline)\//.test(url)) return passOn(request, response, server);
    // Before 6.0 the one build can decrypt.
    const build = supports(version, 'statsOffByDefault') ? 'pusher-with-encryption' : 'pusher';
    const script = url === '/pusher.js' ? new URL(`../node_modules/pusher-js-${version}/dist/web/${build}.min.js`, import.meta.url)
      : url === '/sockjs.js' ? new URL(`../node_modules/pusher-js-${version}/dist/web/sockjs.min.js`, import.meta.url)
      : /^\/support\/[a-z]+\.js$/.test(url) ? new URL(`..${url}`, import.meta.url)
      : null;
    if (script) response.setHeader('Content-Type', 'text/javascript; charset=utf-8').end(await readFile(script));
    else if (url === '/') response.setHeader('Content-Type', 'text/html; charset=utf-8').end(html());
    else response.writeHead(404).end();
  });
  http.listen(0, '127.0.0.1');
  await once(http, 'listening');
  atEnd(() => { http.close(); http.closeAllConnections(); });
  const address = `http://127.0.0.1:${http.address().port}/`;

  async function open(at = address, { before = undefined } = {}) {
    const page = await openPage();
    if (before) await page.addInitScript(before);
    await page.exposeFunction('call', (name, ...args) => application.calls[name](...args));
    await page.goto(at);
    await page.waitForFunction(() => window.world);
    return page;
  }
  return { address, open };
}

/** What a proxy does that changes nothing. */
function passOn(request, response, { port }) {
  const { method, url, headers } = request;
  const onward = startRequest({ port, host: '127.0.0.1', method, path: url, headers, agent: false }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
    answer.on('error', () => response.destroy());
  });
  onward.on('error', () => response.destroy());
  response.on('close', () => onward.destroy());
  request.pipe(onward);
}

/**
 * Registers the scenario as tests in a page, one server and one page for all its steps.
 *
 * @param {object} [options] `transports`: as for `serveWorld`; `only`: tells by its title whether a step is taken; `before`: runs in the page
 *   before its scripts; `as`: what the transport is called; `pageForEach`: a new page for each step;
 *   `sameOrigin`: as for `serveWorld`; `start`: starts the server
 */
export function scenarioInPage(version, { transports, only = () => true, before = undefined, as = transports?.join(', '), pageForEach = false, sameOrigin = false, start = startRaptor } = {}) {
  describe(`pusher-js ${version} in Chromium${as ? ` over ${as}` : ''}`, { concurrency: 1 }, () => {
    let page;
    let served;
    const errors = [];

    async function open() {
      served ??= await serveWorld(version, await start(), { transports, sameOrigin });
      const opened = await served.open(served.address, { before });
      opened.on('pageerror', (error) => errors.push(error));
      return opened;
    }

    for (const { title } of scenario(version).filter((step) => only(step.title))) {
      test(title, { timeout: 30_000 }, async () => {
        page ??= await open();
        try {
          await page.evaluate((wanted) => window.runStep(wanted), title);
        } finally {
          if (pageForEach) { await page.close(); page = undefined; }
        }
        if (errors.length > 0) throw errors.splice(0)[0]; // one that nobody in the page caught
      });
    }
  });
}
