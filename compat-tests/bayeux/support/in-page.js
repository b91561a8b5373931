// Faye's browser client in pages of headless Chromium, loaded from the server under test, and the scenario run with it.

import { readFile } from 'node:fs/promises';
import { describe, test } from 'node:test';

import { chromium } from 'playwright-core';

import { atEnd } from '../../support/at-end.js';
import { callsTo, stepsToRun } from './in-node.js';
import { startNetwork } from './network.js';
import { startServer } from './server.js';

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
  // Our pages come from nowhere: Chromium takes them for pages of the internet, which may not reach this machine.
  '--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets',
];

/** Longer than elsewhere, and with it the fifth of it that a client waits on: six pages and their browser share the machine, and stand still at times. */
const HOLD_SECS = 5;

let browser;

/** A new page in the one browser of this test file, with nothing kept from other pages. */
export async function openPage() {
  browser ??= chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS }).then((launched) => {
    atEnd(() => launched.close());
    return launched;
  });
  return (await browser).newPage();
}

/** The version that the server itself serves; of the others the build in the package. */
export const SERVED = '1.4';
const BUILDS = {
  '0.8': '/page/node_modules/faye-0.8/browser/faye-browser.js',
  '1.0': '/page/node_modules/faye-1.0/browser/faye-browser.js',
  '1.2': '/page/node_modules/faye-1.2/client/faye-browser.js',
};

/**
 * Opens a page whose `world` (`world.js`) holds a browser build of Faye, and whose `runStep(title)` runs a step.
 *
 * The page itself comes from nowhere: until it is there, requests below `/page/` are answered from the files of these tests. So its
 * origin can be that of the server, as if the application stood behind the same proxy.
 */
async function openWorld(version, transport, { isCrossOrigin }) {
  const server = await startServer({ holdSecs: HOLD_SECS });
  const network = await startNetwork(server);
  const calls = callsTo(server, network);
  const origin = `http://${isCrossOrigin ? 'localhost' : '127.0.0.1'}:${network.port}`;
  const setting = { url: network.url, transport, holdMs: 1000 * HOLD_SECS };
  const html = `<!doctype html>
    <meta charset="utf-8">
    <title>Faye ${version} over ${transport}</title>
    <script src="${version === SERVED ? `${network.url}/client.js` : BUILDS[version]}"></script>
    <script type="module">
      import { scenario } from '/page/bayeux/support/scenario.js';
      import { createWorld } from '/page/bayeux/support/world.js';

      window.world = createWorld({ ...${JSON.stringify(setting)}, Faye, call: window.call });
      window.runStep = async (title) => {
        try {
          await scenario().find((step) => step.title === title).run(world);
        } finally {
          world.close();
        }
      };
    </script>`;

  return openAt(`${origin}/page/`, html, (name, ...args) => calls[name](...args));
}

let lastOpened = Promise.resolve();

/**
 * Opens a page of that text at an address below `/page/`, where it finds the files of these tests and `window.call`, which calls `call`
 * here. Resolves once it has set `window.world`. One page after the other: each takes a processor, and clients elsewhere give up waiting.
 */
export function openAt(address, html, call) {
  const opened = lastOpened.then(() => openNow(address, html, call));
  lastOpened = opened.catch(() => {});
  return opened;
}

async function openNow(address, html, call) {
  const page = await openPage();
  await page.exposeFunction('call', call);
  const load = async (go) => {
    await page.route('**/page/**', async (route) => {
      const [, file] = /\/page\/(.*)$/.exec(new URL(route.request().url()).pathname);
      if (file === '') return route.fulfill({ contentType: 'text/html; charset=utf-8', body: html });
      await route.fulfill({ contentType: 'text/javascript; charset=utf-8', body: await readFile(new URL(`../../${file}`, import.meta.url)) });
    });
    await go();
    await page.waitForFunction(() => window.world);
    await page.unroute('**/page/**'); // else preflights would be answered by the browser's driver
  };
  await load(() => page.goto(address));
  page.loadAnew = () => load(() => page.reload());
  return page;
}

/** Registers the scenario as tests in a page, one server and one page for all its steps. */
export function scenarioInPage(version, transport, { isCrossOrigin = false } = {}) {
  describe(`Faye ${version} in Chromium over ${transport}, ${isCrossOrigin ? 'another' : 'the same'} origin`, { concurrency: 1 }, () => {
    let page;
    const errors = [];

    async function open() {
      const opened = await openWorld(version, transport, { isCrossOrigin });
      opened.on('pageerror', (error) => errors.push(error));
      return opened;
    }

    for (const { title } of stepsToRun(transport)) {
      test(title, { timeout: 60_000 }, async () => {
        page ??= await open();
        await page.evaluate((wanted) => window.runStep(wanted), title);
        if (errors.length > 0) throw errors.splice(0)[0]; // one that nobody in the page caught
      });
    }
  });
}
